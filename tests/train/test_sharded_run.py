"""The whole denoiser, trained in parts on two processes (FSDP2): the same run as on one, by the same files.

A random SD3 with everything that touches weights switched on: guidance, gradient clipping, the pull towards a reference
copy, a moving average, evaluation in between, checkpoints. Three prompts do not divide by two.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from difalign.build.preflight import prepare
from difalign.build.run import run_flow_grpo
from difalign.core.overrides import load_config
from difalign.train.checkpoint import list_checkpoints
from tests.train.launched import SHARDED, TRAIN, run, said
from tests.train.small_runs import rows_of, write_random_sd3, write_redness

pytestmark = [pytest.mark.multiproc]

CONFIG = """
pipeline: {folder}/random_sd3.yaml
rewards:
  colour:
    card: {folder}/redness.yaml
prompts:
  train: {folder}/train.txt
  heldout: {folder}/heldout.txt
sampling:
  steps: 3
  guidance: 2.0
  prompts_per_update: 3
  samples_per_prompt: 3
  micro_batch: 4
  plan:
    kind: plain
    last_step_noise: false
objective:
  clip_range: 0.01
  kl:
    kind: gaussian
    beta: 0.1
training:
  trainable: full
  learning_rate: 0.001
  eps: 1.0e-4 # AdamW then does not blow up the rounding of gradients that are all but zero
  max_grad_norm: 0.002 # below the norms that come: clipping is at work
  rollouts: 2
  updates_per_rollout: 1
  micro_batch: 4
  checkpoint:
    every: 1
    keep: 9
  ema:
    every: 1
    max_decay: 0.5
evaluation:
  steps: 2
  every: 1
  guidance: 2.0
  bootstrap_samples: 200
"""
NETWORK = "network/diffusion_pytorch_model.safetensors"
TOLERANCE = {"rtol": 1e-4, "atol": 2e-6}  # sums over processes in another order, then two steps of AdamW at 1e-3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_random_sd3(folder)
    write_redness(folder)
    (folder / "train.txt").write_text("a red circle\ntwo blue squares\na green cross\n")
    (folder / "heldout.txt").write_text("a red square\na green circle\na blue cross\n")
    (folder / "mine.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def train_here(inputs: Path, *settings: str) -> None:
    run_flow_grpo(prepare(load_config(inputs / "mine.yaml", settings)))


def train_sharded(inputs: Path, world: int, *settings: str, **more: str) -> None:
    arguments = [TRAIN, "--config", str(inputs / "mine.yaml"), *settings]
    codes = run(world, arguments, logs=inputs / "logs", more={**SHARDED, **more})
    assert codes == [0] * world, "\n".join(said(inputs / "logs"))


@pytest.fixture(scope="module")
def alone(inputs: Path) -> Path:
    folder = inputs / "alone"
    train_here(inputs, f"output_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def sharded(inputs: Path, alone: Path) -> Path:
    folder = inputs / "sharded"
    train_sharded(inputs, 2, f"output_dir={folder}")
    return folder


def assert_same(folder: Path, expected: Path) -> None:
    for name, value in load_file(expected / NETWORK).items():
        torch.testing.assert_close(load_file(folder / NETWORK)[name], value, **TOLERANCE)
    rows, wanted = rows_of(folder), rows_of(expected)
    assert [row["rows"] for row in rows] == [row["rows"] for row in wanted]
    for name in ("reward", "reward_std", "loss", "kl", "grad_norm", "ratio_mean"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in wanted], rel=1e-3, abs=1e-6), name
    for path in sorted((expected / "evaluations").glob("*.json")):
        other, mine = (json.loads((root / "evaluations" / path.name).read_text()) for root in (expected, folder))
        assert len(mine["records"]) == len(other["records"]) == 3
        for a, b in zip(mine["records"], other["records"], strict=True):
            assert a["scores"] == pytest.approx(b["scores"], abs=1e-5)


def test_two_sharded_processes_equal_one(sharded: Path, alone: Path) -> None:
    moved = max(
        float((a - b).abs().max())
        for a, b in zip(
            load_file(alone / "checkpoints/000000/weights.safetensors").values(),
            load_file(alone / "checkpoints/000002/weights.safetensors").values(),
            strict=True,
        )
    )
    assert moved > 1e-4  # far above the tolerance
    assert all(row["grad_norm"] > 0.002 for row in rows_of(alone))
    assert_same(sharded, alone)


def test_checkpoints_are_those_of_one_process(sharded: Path, alone: Path) -> None:
    assert [c.rollout for c in list_checkpoints(sharded)] == [0, 1, 2]
    for name in ("weights", "optimizer", "average"):
        for number in ("000000", "000001", "000002"):
            ours, theirs = (
                load_file(root / "checkpoints" / number / f"{name}.safetensors") for root in (sharded, alone)
            )
            assert ours.keys() == theirs.keys()
            for key, value in theirs.items():
                torch.testing.assert_close(ours[key], value, **TOLERANCE)


def test_saved_network_is_one_that_diffusers_knows(sharded: Path, alone: Path) -> None:
    from diffusers import SD3Transformer2DModel

    configs = [json.loads((root / "network" / "config.json").read_text()) for root in (sharded, alone)]
    assert configs[0] == configs[1]
    network = SD3Transformer2DModel.from_pretrained(sharded / "network")
    assert type(network) is SD3Transformer2DModel


def test_one_process_goes_on_from_two(inputs: Path, sharded: Path, alone: Path) -> None:
    folder = inputs / "two_then_one"
    shutil.copytree(sharded, folder)
    train_here(inputs, f"output_dir={folder}", "resume=000001")
    assert_same(folder, alone)


@pytest.mark.slow
def test_two_processes_go_on_from_one_and_keep_what_they_gathered(inputs: Path, alone: Path) -> None:
    """ZeRO stage 2: gathered blocks stay until their backward."""
    folder = inputs / "one_then_two"
    shutil.copytree(alone, folder)
    train_sharded(inputs, 2, f"output_dir={folder}", "resume=000001", FSDP_RESHARD_AFTER_FORWARD="false")
    assert_same(folder, alone)
