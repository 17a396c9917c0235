"""``difalign score`` from files to table, summary and page; what cannot be scored is refused before a model loads."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from difalign.build.picture_files import open_picture
from difalign.cli.app import app
from tests.build.pictures import CAPTIONS, draw

RUNNER = CliRunner()


def call(*arguments: str | Path) -> Result:
    return RUNNER.invoke(app, ["score", *map(str, arguments)])


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    """Six pictures of three captions; the third and the last show another caption than they should."""
    shown = [*CAPTIONS[:2], CAPTIONS[0], *CAPTIONS[:2], CAPTIONS[1]]
    (tmp_path / "tuned").mkdir()
    for number, caption in enumerate(shown):
        draw(caption, seed=number).save(tmp_path / "tuned" / f"{number}.png")
    (tmp_path / "p.txt").write_text("\n".join(CAPTIONS * 2) + "\n")
    return tmp_path


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_scores_are_those_of_the_rewards(drawn: Path):
    result = call(
        drawn / "tuned", "-p", drawn / "p.txt", "-r", "verifier", "-r", "tiny-clip", "-o", drawn / "s.csv", "--batch", 4
    )
    assert result.exit_code == 0, result.output
    table = rows(drawn / "s.csv")
    assert [float(row["verifier/strict"]) for row in table] == [1, 1, 0, 1, 1, 0]
    import difalign

    pixels = [np.asarray(open_picture(drawn / "tuned" / f"{i}.png"), dtype=np.float32) / 255 for i in range(6)]
    media = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    expected = difalign.load_reward("tiny-clip").score(media, CAPTIONS * 2).scores
    assert [float(row["tiny-clip"]) for row in table] == pytest.approx(expected.tolist(), abs=1e-5)
    assert "6 pictures of 3 prompts" in result.stdout


def test_sizes_may_differ(drawn: Path):
    picture = open_picture(drawn / "tuned" / "1.png")
    picture.resize((200, 160)).save(drawn / "tuned" / "1.png")
    result = call(drawn / "tuned", "-p", "x", "-r", "compressibility", "-o", drawn / "s.jsonl")
    assert result.exit_code == 0, result.output
    sizes = [json.loads(line)["compressibility"] for line in (drawn / "s.jsonl").read_text().splitlines()]
    assert len(sizes) == 6
    assert min(sizes) == sizes[1]


def test_options_reach_the_reward(drawn: Path):
    arguments = (drawn / "tuned", "-p", drawn / "p.txt", "-r", "verifier", "-o", drawn / "s.csv", "--set")
    assert call(*arguments, "verifier.strict_share=1.0").exit_code == 0
    assert all(row["verifier"] == row["verifier/strict"] for row in rows(drawn / "s.csv"))
    refused = call(*arguments, "verifier.strict=1.0")
    assert refused.exit_code == 2
    assert "strict_share" in refused.stderr
    assert "did you mean 'verifier'" in call(*arguments, "verfier.strict_share=1").stderr


def test_comparison_counts_wins_and_draws_them(drawn: Path, chromium: str):
    (drawn / "base").mkdir()
    for number in range(6):
        draw(CAPTIONS[(number + 1) % 3], seed=number).save(drawn / "base" / f"{number}.png")
    draw(CAPTIONS[2], seed=5).save(drawn / "base" / "5.png")
    result = call(
        drawn / "tuned", "-p", drawn / "p.txt", "-r", "verifier", "--against", drawn / "base",
        "-o", drawn / "s.csv", "--report", drawn / "report",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found = json.loads((drawn / "report" / "summary.json").read_text())["comparison"]["verifier/strict"]
    # By prompt, tuned and base: (1, 1) against (0, 0), the same, and (0, 0) against (0, 1).
    assert found["win_rate"] == pytest.approx(2 / 3)
    assert found["gain"]["gain"] == pytest.approx((1 + 1 - 0.5) / 3)
    assert len(rows(drawn / "s_base.csv")) == 6
    for name in ("verifier_best.png", "verifier_worst.png"):
        assert open_picture(drawn / "report" / name).width > 100
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    page = subprocess.run(
        [*command, f"file://{drawn}/report/scores.html"], capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert page.count("<rect class=") >= 2
    assert page.count("<img src=") == 12
    assert "Against base" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-p", "p.txt", "-r", "verifer"], "did you mean 'verifier'"),
        (["-p", "short.txt", "-r", "verifier"], "2 prompts for 6 pictures"),
        (["-p", "a dog", "-r", "verifier"], "cannot score 'a dog'"),
        (["-p", "p.txt", "-r", "verifier", "-o", "s.xlsx"], "s.xlsx: is no table"),
        (["-p", "p.txt", "-r", "verifier", "--against", "empty"], "holds no picture"),
        (["-p", "p.txt", "-r", "verifier", "--against", "other"], "5 pictures have no partner"),
        (["-p", "p.txt", "-r", "verifier", "--device", "tpu9"], "--device tpu9: cannot be used"),
        (["-p", "p.txt", "-r", "verifier", "--report", "p.txt"], "--report p.txt: is a file"),
        (["-p", "p.txt", "-r", "needy"], "needs 'clauses' beside 'a red circle'"),
        (["-p", "p.txt", "-r", "modular"], "needs no_such_module"),
    ],
)
def test_bad_input_is_refused_before_a_model_loads(
    drawn: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
):
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.chdir(drawn)
    monkeypatch.setattr("difalign.build.factory.build_reward", load)
    (drawn / "short.txt").write_text("a red circle\na blue square\n")
    (drawn / "empty").mkdir()
    (drawn / "other").mkdir()
    draw("a red circle").save(drawn / "other" / "0.png")
    card = "target: difalign.reward_models.compressibility:Compressibility\nlicence: x\nsummary: x\n"
    for name, line in (("needy", "needs: [clauses]"), ("modular", "requires: [no_such_module]")):
        (drawn / f"{name}.yaml").write_text(f"name: {name}\n{card}{line}\n")
    arguments = [f"{word}.yaml" if word in ("needy", "modular") else word for word in arguments]
    result = call("tuned", *arguments)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_what_fails_for_single_pictures_is_told_and_left_empty(drawn: Path):
    (drawn / "halting.py").write_text(
        "import torch\nfrom difalign.core.types import RewardOutput\n"
        "def score(media, prompts):\n"
        "    ok = torch.tensor([p != 'two blue squares' for p in prompts])\n"
        "    scores = torch.where(ok, 1.0, torch.nan)\n"
        "    return RewardOutput(scores, valid=ok, errors={i: 'no' for i, k in enumerate(ok.tolist()) if not k})\n"
    )
    (drawn / "halting.yaml").write_text("name: halting\nsummary: x\nlicence: x\ntarget: halting:score\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(drawn))
        result = call(drawn / "tuned", "-p", drawn / "p.txt", "-r", drawn / "halting.yaml", "-o", drawn / "s.csv")
    assert result.exit_code == 0, result.output
    table = rows(drawn / "s.csv")
    assert [row["halting"] for row in table] == ["1.0", "", "1.0"] * 2
    assert table[1]["error"] == "halting: no"
    assert "2 pictures lack a score" in result.stderr
