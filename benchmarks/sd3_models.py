"""The pipelines and prompts that the benchmarks of the SD3 adapter run on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from difalign.build.cards import PipelineCard, load_pipeline_card
from difalign.build.factory import build_pipeline, build_process
from difalign.core.config import RuleName
from difalign.pipelines.sd3 import SD3Pipeline

RANDOM = "random"
_DEFAULT_TOKENS = 256  # of diffusers' own call
_RULE: RuleName = "flow_grpo"  # noise-free walks do not depend on it
_TEXTS = tuple(
    f"a {colour} {shape}"
    for shape in ("circle", "square", "cross", "triangle")
    for colour in ("red", "green", "blue", "yellow")
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A pipeline and what its card says about calling it."""

    pipeline: SD3Pipeline
    tokens: int  # max_sequence_length

    @property
    def diffusers(self) -> Any:
        """The diffusers pipeline inside; Any, since its annotations refuse much of what it takes."""
        return self.pipeline.diffusers_pipeline


def load(name: str, *, guidance: float | None) -> Loaded:
    """A pipeline by its card's name or its folder, or ``random`` for one with random weights.

    Args:
        name: of the pipeline.
        guidance: default: the card's.

    Raises:
        ValueError: if it is not of the SD3 family.
    """
    quiet_libraries()
    if name == RANDOM:
        from tests.tiny_models import tiny_sd3

        scale = 4.5 if guidance is None else guidance  # SD3.5 medium
        made = SD3Pipeline(tiny_sd3(), process=build_process(_RULE), guidance_scale=scale, max_sequence_length=1)
        made.diffusers_pipeline.set_progress_bar_config(disable=True)
        return Loaded(made, tokens=1)
    found = load_pipeline_card(name)
    card = found.card
    scale = card.guidance if guidance is None else guidance
    pipeline = build_pipeline(found, process=build_process(_RULE), guidance=scale, device="cpu")
    if not isinstance(pipeline, SD3Pipeline):
        raise ValueError(f"{name} is a {type(pipeline).__name__}: this benchmark needs a pipeline of the SD3 family")
    pipeline.diffusers_pipeline.set_progress_bar_config(disable=True)
    return Loaded(pipeline, tokens=tokens_of(card))


def tokens_of(card: PipelineCard) -> int:
    """The ``max_sequence_length`` that a card asks for."""
    tokens = card.options.get("max_sequence_length")
    return tokens if isinstance(tokens, int) else _DEFAULT_TOKENS


def prompts(count: int, *, distinct: int) -> list[str]:
    """``count`` captions, of which ``distinct`` differ, taking turns.

    Raises:
        ValueError: if that many different ones cannot be had.
    """
    if not 1 <= distinct <= len(_TEXTS):
        raise ValueError(f"distinct is {distinct}; give 1 to {len(_TEXTS)}")
    return [_TEXTS[i % distinct] for i in range(count)]


def quiet_libraries() -> None:
    """No progress bars while loading: the output is JSON lines."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
