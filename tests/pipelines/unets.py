"""The UNet adapters of the tests, and diffusers' answer to the same question."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.pipelines.sdxl import SDXL
from difalign.pipelines.stable_diffusion import STABLE_DIFFUSION
from difalign.pipelines.text_condition import TextCondition
from difalign.pipelines.unet import UNetFamily, UNetPipeline
from difalign.process.diffusion import DiffusionProcess
from tests.tiny_models import tiny_sd, tiny_sdxl

FAMILIES: dict[str, tuple[UNetFamily, Callable[[], Any]]] = {
    "sd": (STABLE_DIFFUSION, tiny_sd),
    "sdxl": (SDXL, tiny_sdxl),
}
EVERY_FAMILY = pytest.mark.parametrize("name", FAMILIES)


def make(name: str, **options: Any) -> UNetPipeline:
    family, build = FAMILIES[name]
    return family(build(), process=DiffusionProcess(), **options)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@torch.no_grad()
def walk(pipeline: UNetPipeline, condition: Condition, *, num_steps: int) -> Tensor:
    """The noise-free walk through the adapter and its process."""
    grid, x = pipeline.grid(num_steps), pipeline.initial_latents(generators(len(condition)))
    for i in range(num_steps):
        prediction = pipeline.predict(x, grid.model_time[i].expand(len(x)), condition)
        x = pipeline.process.transition(x, prediction, grid, i, 0.0).mean
    return x


def embeddings(condition: TextCondition) -> dict[str, Tensor]:
    """What ``pipe(...)`` takes in place of texts, which it would encode as one batch."""
    names = ("prompt_embeds", "pooled_prompt_embeds")
    given = dict(zip(names, condition.conditional(), strict=False))
    away = {
        f"negative_{name}": negative.expand_as(given[name])
        for name, negative in zip(names, condition.negative, strict=False)
    }
    return {**given, **away}


def diffusers_images(pipeline: UNetPipeline, condition: TextCondition, **options: Any) -> Tensor:
    pipe = pipeline.diffusers_pipeline
    return pipe(**embeddings(condition), generator=generators(len(condition)), **options).images
