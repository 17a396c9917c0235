"""What the shipped pipelines are all held to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors import safe_open

import difalign
from difalign.build.cards import load_pipeline_card
from difalign.embedded.verifier import verify

ROOT = Path(__file__).parents[2]


def load_plain(folder: Path) -> Any:
    """The pipeline as diffusers alone makes it, without a bar."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def recorded_figures(folder: Path) -> dict[str, Any]:
    """What the card's table was made of."""
    return json.loads((folder / "figures.json").read_text())


def images_of(pipe: Any, prompts: list[str], *, steps: int, guidance: float, **options: Any) -> np.ndarray:
    """Pictures [N, H, W, 3] in [0, 1]; the seed of a picture is its position."""
    return pipe(
        prompts,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(row) for row in range(len(prompts))],
        output_type="np",
        **options,
    ).images


def strict_share(images: np.ndarray, prompts: list[str]) -> float:
    """The share of pictures in which everything is right."""
    return float(verify(images.transpose(0, 3, 1, 2).astype(np.float32), prompts).strict.mean())


def assert_small_and_in_half_precision(folder: Path, *, files: int, megabytes: int) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= megabytes * 2**20
    weights = sorted(folder.rglob("*.safetensors"))
    assert len(weights) == files
    for path in weights:
        with safe_open(path, framework="pt") as file:
            kinds = {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118  # no mapping
        assert kinds <= {"F16", "I64"}, path


def assert_diffusers_alone_draws(folder: Path, *, kind: str, side: int) -> None:
    script = (
        "import sys\n"
        "sys.modules['difalign'] = None  # an import of it fails\n"
        "from diffusers import DiffusionPipeline\n"
        f"pipe = DiffusionPipeline.from_pretrained({str(folder)!r})\n"
        "image = pipe('a red circle', num_inference_steps=2).images[0]\n"
        "sys.stdout.write(f'{type(pipe).__name__} {image.size}')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout == f"{kind} ({side}, {side})"


def assert_plain_diffusers_reads_adapters(name: str, folder: Path, written: Path, **options: Any) -> None:
    """Adapters on every layer of the card, moved off their zero start, give the same pictures there."""
    card = load_pipeline_card(name).card
    ours: Any = difalign.load_pipeline(name, guidance=card.guidance)
    assert card.lora_targets
    ours.tuning.attach_lora(rank=4, alpha=8, targets=card.lora_targets, seed=0)
    source = torch.Generator().manual_seed(1)
    for parameter in ours.tuning.trainable_parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source)
    ours.tuning.save_lora(written)
    theirs, expected = load_plain(folder), ours.diffusers_pipeline
    expected.set_progress_bar_config(disable=True)

    def draw(pipe: Any) -> np.ndarray:
        return images_of(pipe, ["two blue squares"], steps=card.steps, guidance=card.guidance, **options)

    untouched = draw(theirs)
    theirs.load_lora_weights(written)
    assert np.array_equal(draw(theirs), draw(expected))
    assert not np.allclose(draw(theirs), untouched, atol=0.05)


def assert_figures_are_reproduced(name: str, folder: Path, out: Path, *, per_kind: int) -> None:
    """A fresh measurement with fewer pictures agrees with the recorded one within four standard errors."""
    recipe = ROOT / "samples" / "recipes" / "evaluate_tiny_pipeline.py"
    command = [sys.executable, str(recipe), "--card", name, "--out", str(out), "--per-kind", str(per_kind)]
    subprocess.run([*command, "--prompts", str(ROOT / "samples" / "prompts")], check=True, timeout=1800)
    figures, measured = recorded_figures(folder), recorded_figures(out)
    cases = [case for case in figures if "guidance" in case]
    assert len(cases) == 4
    for case in cases:
        for score in ("strict", "partial"):
            now, then = measured[case][score]["overall"], figures[case][score]["overall"]
            assert now["mean"] == pytest.approx(then["mean"], abs=4 * (now["se"] ** 2 + then["se"] ** 2) ** 0.5)
    assert (out / "sheet.png").stat().st_size > 10_000
