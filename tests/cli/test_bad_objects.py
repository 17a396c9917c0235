"""What only a loaded model or an imported class can tell is refused in the same way; the folder is not touched."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from difalign.cli import app
from tests.cli.bad_input import Bad, Outcome, assert_refused, setting
from tests.folders import file_contents
from tests.house.repository import ROOT

_CARD = f"name: mine\nsummary: s\ntarget: {{target}}\nlicence: MIT\npath: {ROOT / 'pipelines' / 'tiny-sd3'}\n"


def card(name: str, text: str, *said: str) -> Bad:
    return Bad(name, ("train", "pipeline=./c.yaml"), said, {"c.yaml": text})


CASES = [
    setting("adapters of no layer", "training.lora.targets=[attn.to_qq]", "training.lora", "'attn.to_qq'", "attn.to_q"),
    setting("option out of range", "rewards.verifier.options.strict_share=2", "reward 'verifier'", "strict_share is 2"),
    setting("half precision without a GPU", "training.mixed_precision=fp16", "needs a GPU", "mixed_precision=bf16"),
    setting(
        "folder that cannot be made", "output_dir=/proc/run", "'/proc/run': cannot be written", "another output_dir"
    ),
    card(
        "class that is not there",
        _CARD.format(target="difalign.pipelines.sd3:SD3Pipelin"),
        "did you mean 'SD3Pipeline'",
    ),
    card(
        "option that the adapter does not take",
        _CARD.format(target="difalign.pipelines.sd3:SD3Pipeline") + "options: {max_sequence: 3}\n",
        "options.max_sequence: unknown option",
        "did you mean 'max_sequence_length'?",
    ),
]


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_object_is_refused(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if bad.name == "half precision without a GPU":
        monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    before = file_contents(bad.fill(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["difalign", *bad.arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    out, err = capsys.readouterr()
    assert_refused(bad, Outcome(stop.value.code, out, err[err.index("error: ") :], before, file_contents(tmp_path)))
