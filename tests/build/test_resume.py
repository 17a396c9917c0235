"""A run on a random SD3 that is resumed: the adapters and their moments go through a real pipeline and real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from difalign import api
from difalign.build.preflight import prepare
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config
from difalign.train.checkpoint import list_checkpoints
from tests.build.random_runs import write_run
from tests.train.small_runs import WEIGHTS, rows_without_clocks, write_random_sd3

SECTIONS: dict[str, Any] = {
    "sampling": {
        "steps": 3,
        "samples_per_prompt": 3,
        "micro_batch": 6,
        "plan": {"kind": "plain", "last_step_noise": False},
    },
    "training": {"micro_batch": 6, "checkpoint": {"every": 1}, "ema": {"every": 1, "max_decay": 0.5}},
    "evaluation": {"steps": 2},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run, and the run itself, of two rollouts, beside them."""
    folder = tmp_path_factory.mktemp("inputs")
    train = ("a red circle", "two blue squares", "a green cross")
    file = write_run(write_random_sd3(folder), train=train, heldout=("a red square", "a green circle"), **SECTIONS)
    api.train(file, overrides=[f"output_dir={folder}/straight"])
    return folder


def train(inputs: Path, *settings: str) -> None:
    api.train(inputs / "mine.yaml", overrides=[f"output_dir={inputs}/resumed", *settings])


def test_resumed_run_has_the_weights_samples_and_rows_of_the_straight_one(inputs: Path) -> None:
    train(inputs, "training.rollouts=1")
    train(inputs, "resume=latest")
    straight, resumed = inputs / "straight", inputs / "resumed"
    first, second = (load_file(folder / WEIGHTS) for folder in (straight, resumed))  # the header's order is random
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert rows_without_clocks(resumed) == rows_without_clocks(straight)
    for name in ("000000.json", "000000.png", "000002.json", "000002.png"):
        assert (resumed / "evaluations" / name).read_bytes() == (straight / "evaluations" / name).read_bytes()
    files = ("weights.safetensors", "optimizer.safetensors", "average.safetensors", "trainer.json")
    ends = [list_checkpoints(folder)[-1].folder for folder in (straight, resumed)]
    assert all((ends[0] / name).read_bytes() == (ends[1] / name).read_bytes() for name in files)
    assert json.loads((resumed / "summary.json").read_text())["resumed_at"] == [1]


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("train.txt", "cross", "circle", "prompts.train: its content has changed"),
        ("redness.yaml", "scale: 1.0", "scale: 2.0", "rewards.colour: its content has changed"),
        ("random_sd3.yaml", "steps: 3", "steps: 4", "pipeline: its content has changed"),
    ],
)
def test_files_that_have_changed_since_are_named(inputs: Path, file: str, old: str, new: str, said: str) -> None:
    settings = [f"output_dir={inputs}/straight", "resume=latest"]
    assert prepare(load_config(inputs / "mine.yaml", settings)).resume is not None
    text = (inputs / file).read_text()
    (inputs / file).write_text(text.replace(old, new))
    try:
        with pytest.raises(ConfigError, match=f"{said}\n .*resume_with_changes=true"):
            prepare(load_config(inputs / "mine.yaml", settings))
        changed = prepare(load_config(inputs / "mine.yaml", [*settings, "resume_with_changes=true"])).resume
    finally:
        (inputs / file).write_text(text)
    assert changed is not None
    assert changed.changes == (said,)
    assert changed.measure_base is (file != "train.txt")


def test_words_of_a_card_may_change(inputs: Path) -> None:
    card = inputs / "redness.yaml"
    text = card.read_text()
    card.write_text(text.replace("mean red less mean green", "how red it is"))
    point = prepare(load_config(inputs / "mine.yaml", [f"output_dir={inputs}/straight", "resume=latest"])).resume
    card.write_text(text)
    assert point is not None
    assert point.changes == ()


def test_other_adapters_are_refused_with_the_remedy(inputs: Path) -> None:
    settings = [f"output_dir={inputs}/straight", "resume=latest", "training.lora.rank=4", "resume_with_changes=true"]
    with pytest.raises(ConfigError, match=r"does not fit what is trained: .*lora_A.* \[2, .* \[4, .*training.lora"):
        api.train(inputs / "mine.yaml", overrides=settings)
    assert (inputs / "straight" / "summary.json").is_file()


def test_only_the_first_process_looks_for_the_checkpoint(inputs: Path) -> None:
    config = load_config(inputs / "mine.yaml", [f"output_dir={inputs}/straight", "resume=latest"])
    assert prepare(config, check_output=False).resume is None
