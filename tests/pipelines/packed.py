"""The adapters with packed latents, on random pipelines, and diffusers' answer to the same question."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from difalign.core.protocols import Condition
from difalign.pipelines.flux import FLUX
from difalign.pipelines.packed import PackedFamily, PackedPipeline
from difalign.pipelines.qwen_image import QWEN_IMAGE
from difalign.pipelines.text_condition import TextCondition
from difalign.process.flow import FlowProcess
from tests.tiny_packed import tiny_flux, tiny_qwen_image

SIZE = {"height": 16, "width": 16}
LATENT = (4, 8, 8)
TEXT_TOKENS = 12


@dataclass(frozen=True, slots=True)
class Case:
    """A family, a tiny pipeline of it, its scale, and how diffusers' call is told of scale and embeddings."""

    family: PackedFamily
    build: Callable[[], Any]
    scale: float
    told: Callable[[float, TextCondition], dict[str, Any]]


def _flux_told(scale: float, condition: TextCondition) -> dict[str, Any]:
    embeds, pooled = condition.conditional()
    return {"guidance_scale": scale, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled}


def _qwen_told(scale: float, condition: TextCondition) -> dict[str, Any]:
    embeds, *mask = condition.conditional()
    (negative,) = condition.unconditional()
    full = torch.ones(embeds.shape[:2], dtype=torch.bool)
    told = {"true_cfg_scale": scale, "prompt_embeds": embeds, "prompt_embeds_mask": mask[0] if mask else full}
    if scale <= 1.0:
        return told
    return {
        **told,
        "negative_prompt_embeds": negative,
        "negative_prompt_embeds_mask": torch.ones(negative.shape[:2], dtype=torch.bool),
    }


CASES: dict[str, Case] = {
    "flux": Case(FLUX, tiny_flux, 3.5, _flux_told),
    "schnell": Case(FLUX, lambda: tiny_flux(schnell=True), 1.0, _flux_told),
    "qwen": Case(QWEN_IMAGE, tiny_qwen_image, 4.0, _qwen_told),
}
EVERY_CASE = pytest.mark.parametrize("name", CASES)


def make(name: str, *, pipe: Any = None, **options: Any) -> PackedPipeline:
    case = CASES[name]
    chosen = {"max_sequence_length": TEXT_TOKENS, "guidance_scale": case.scale, **SIZE, **options}
    return case.family(case.build() if pipe is None else pipe, process=FlowProcess(), **chosen)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@torch.no_grad()
def walk(pipeline: PackedPipeline, condition: Condition, *, num_steps: int) -> Tensor:
    """The noise-free walk through the adapter and its process."""
    grid, x = pipeline.grid(num_steps), pipeline.initial_latents(generators(len(condition)))
    for i in range(num_steps):
        v = pipeline.predict(x, grid.model_time[i].expand(len(x)), condition)
        x = pipeline.process.transition(x, v, grid, i, 0.0).mean
    return x


def diffusers_images(name: str, pipeline: PackedPipeline, condition: TextCondition, **options: Any) -> Tensor:
    """What ``pipe(...)`` makes of the same embeddings: given texts, it would encode them as one batch."""
    told = CASES[name].told(pipeline.guidance_scale, condition)
    call = {"generator": generators(len(condition)), **SIZE, **told, **options}
    return pipeline.diffusers_pipeline(**call).images
