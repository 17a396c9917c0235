"""The recipes of the shipped weights, shortened: they learn, go on after a kill, and export what diffusers loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline

from difalign.reward_models.clip import ClipReward

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "samples" / "recipes"
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
}

pytestmark = pytest.mark.slow


def run(command: list[str]) -> str:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    run([sys.executable, str(RECIPES / "train_tiny_vae.py"), "--out", str(folder), "--steps", "300"])
    return folder


def kill_at_first_checkpoint(command: list[str], out: Path, *, step: int) -> None:
    """Start a recipe and kill it, workers and all, once it has saved at ``step``."""
    started = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 600
    while not (out / "checkpoint.pt").exists():
        assert time.monotonic() < deadline
        assert started.poll() is None
        time.sleep(0.1)
    launcher = psutil.Process(started.pid)  # workers lead sessions of their own, out of reach of a signal to the group
    for process in (launcher, *launcher.children(recursive=True)):
        process.kill()
    started.wait()
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == step


def assert_equal_states(whole: Path, killed: Path, *, step: int) -> None:
    """Both runs ended at ``step`` with the same weights and the same average, bit for bit."""
    states = [torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (whole, killed)]
    assert states[0]["step"] == states[1]["step"] == step
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name]), name


def sd3_command(vae: Path, out: Path, *, processes: int = 1, steps: int = 60) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    sizes = ["--steps", str(steps), "--evaluate-every", "30", "--scenes", "1000", "--batch", "64"]
    return [*launch, str(RECIPES / "train_tiny_sd3.py"), "--vae", str(vae), "--out", str(out), *sizes]


def test_autoencoder(vae: Path) -> None:
    figures = json.loads((vae / "figures.json").read_text())
    assert figures["psnr"] > 20.0  # dB; a constant background gives about 13
    assert figures["strict_ground_truth"] == 1.0
    assert figures["latent_mean"] == pytest.approx(0.0, abs=0.15)
    assert figures["latent_std"] == pytest.approx(1.0, abs=0.15)


@pytest.mark.multiproc
def test_two_processes_train_together(vae: Path, tmp_path: Path) -> None:
    run(sd3_command(vae, tmp_path, processes=2, steps=4))
    (row,) = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert row["step"] == 4
    assert row["samples"] == 4 * 64
    assert (tmp_path / "pipeline" / "model_index.json").is_file()


def test_pipeline_is_the_same_after_a_kill(vae: Path, tmp_path: Path) -> None:
    """On one process: on two, gradients vary in the last bits from run to run, killed or not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(sd3_command(vae, whole))
    kill_at_first_checkpoint(sd3_command(vae, killed), killed, step=30)
    run(sd3_command(vae, killed))

    assert_equal_states(whole, killed, step=60)
    rows = [json.loads(line) for line in (whole / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [30, 60]
    assert rows[1]["loss"] < rows[0]["loss"] < 2.1  # 2: what predicting zero gives for noise - x0 of unit variance
    pipe = DiffusionPipeline.from_pretrained(whole / "pipeline")
    assert isinstance(pipe, StableDiffusion3Pipeline)
    assert pipe("a red circle", num_inference_steps=2, max_sequence_length=1).images[0].size == (36, 36)
    assert "_name_or_path" not in (whole / "pipeline" / "vae" / "config.json").read_text()


def clip_command(out: Path, *, processes: int = 1, steps: int = 6) -> list[str]:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    sizes = ["--steps", str(steps), "--evaluate-every", "3", "--batch", "32"]
    return [*launch, str(RECIPES / "train_tiny_clip.py"), "--out", str(out), *sizes]


def test_clip_is_the_same_after_a_kill(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(clip_command(whole))
    kill_at_first_checkpoint(clip_command(killed), killed, step=3)
    run(clip_command(killed))
    assert_equal_states(whole, killed, step=6)
    assert [json.loads(line)["step"] for line in (whole / "curve.jsonl").read_text().splitlines()] == [3, 6]
    reward = ClipReward.from_pretrained(whole / "model")
    assert reward.score(torch.rand(2, 3, 40, 40), ["a red circle", "two blue squares"]).scores.isfinite().all()


@pytest.mark.multiproc
def test_two_processes_train_clip_together(tmp_path: Path) -> None:
    run(clip_command(tmp_path, processes=2, steps=3))
    (row,) = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert row["samples"] == 3 * 32
    assert (tmp_path / "model" / "model.safetensors").is_file()
