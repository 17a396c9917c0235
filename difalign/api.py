"""The public functions: load, sample, search, score, train. Each takes a card's name, a path, or an object made before.

Example::

    import difalign

    pipeline = difalign.load_pipeline("tiny-sd3")
    samples = difalign.sample(pipeline, ["a red circle", "two blue squares"], seed=7, rewards="verifier")
    samples.images[0].save("circle.png")
    samples.scores  # [2], higher is better
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from difalign.core.config import RuleName
from difalign.core.config_rewards import OptionValue, RewardConfig
from difalign.core.protocols import Pipeline, RewardModel
from difalign.core.rng import row_seed
from difalign.core.types import RewardOutput

if TYPE_CHECKING:
    from PIL.Image import Image

    from difalign.core.protocols import TrainablePipeline
    from difalign.search.budget import Budget
    from difalign.search.methods import Method
    from difalign.search.results import SearchResult


@dataclass(frozen=True, slots=True)
class Samples:
    """Finished samples, one a prompt and seed, prompts in the order given."""

    images: list[Image]
    pixels: Tensor  # [N, C, H, W] in [0, 1] on CPU
    prompts: tuple[str, ...]  # N
    scores: Tensor | None  # [N] float32, if a reward was given
    components: Mapping[str, Tensor]  # name -> [N]
    forwards: int  # rows the network was evaluated on


def load_pipeline(
    name_or_path: str | Path,
    *,
    guidance: float | None = None,
    rule: RuleName | None = None,
    device: str | torch.device = "cpu",
) -> TrainablePipeline:
    """Load a pipeline by its card's name, from the file of a card, or from a diffusers folder.

    Args:
        name_or_path: such as "tiny-sd3"; ``difalign pipelines list`` shows the known ones.
        guidance: classifier-free guidance scale, 1 = none; default: the card's.
        rule: how noise enters stochastic steps; default: the first of the pipeline's family. Noise-free sampling does
            not depend on it.
        device: where it computes.

    Raises:
        ValueError: if nothing of that name is known, with the nearest one, or the rule is of another family.
    """
    from difalign.build.cards import load_pipeline_card
    from difalign.build.factory import build_pipeline, build_process
    from difalign.core.families import FAMILIES

    found = load_pipeline_card(str(name_or_path))
    rules = FAMILIES[found.card.family].rules
    if rule is not None and rule not in rules:
        raise ValueError(f"rule {rule!r} is not one of {found.card.family} models; use one of: {', '.join(rules)}")
    scale = found.card.guidance if guidance is None else guidance
    process = build_process(rules[0] if rule is None else rule)
    return build_pipeline(found, process=process, guidance=scale, device=device)


def load_reward(
    name_or_path: str | Path,
    *,
    options: Mapping[str, OptionValue] | None = None,
    device: str | torch.device = "cpu",
) -> RewardModel:
    """Load a reward by its card's name or path, with the card's options overridden by ``options``.

    Raises:
        ValueError: if nothing of that name is known or an option is not the card's.
    """
    from difalign.build.cards import load_reward_card
    from difalign.build.factory import build_reward

    found = load_reward_card(str(name_or_path))
    name = found.card.name
    config = RewardConfig(options=dict(options or {}))
    return build_reward({name: found}, {name: config}, device=device).terms[name].reward


def sample(
    pipeline: str | Path | Pipeline,
    prompts: str | Sequence[str],
    *,
    seed: int = 0,
    samples_per_prompt: int = 1,
    steps: int | None = None,
    guidance: float | None = None,
    rewards: str | RewardModel | None = None,
    micro_batch: int = 16,
) -> Samples:
    """Sample prompts by the noise-free chain and, if a reward is given, score what comes out.

    The noise of a sample depends on (seed, prompt, which sample of the prompt) alone: the same picture comes back in
    any batch.

    Args:
        pipeline: a loaded one, or what ``load_pipeline`` takes.
        prompts: one or several.
        seed: of the noise.
        samples_per_prompt: samples of each prompt, side by side in the result.
        steps: default: the card's, 28 for a pipeline object.
        guidance: default: the card's, or the pipeline's own.
        rewards: a reward object or what ``load_reward`` takes.
        micro_batch: rows a forward and a decode.

    Raises:
        ValueError: for an unknown name, no prompts, or numbers out of range.
    """
    from difalign.rollout.engine import rollout
    from difalign.rollout.plans import deterministic
    from difalign.train.scoring import decode_in_batches

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts or samples_per_prompt < 1:
        raise ValueError(
            f"got {len(texts)} prompts and samples_per_prompt={samples_per_prompt}; both must be at least 1"
        )
    model, default_steps = _resolve(pipeline, guidance)
    prompt_index = torch.arange(len(texts)).repeat_interleave(samples_per_prompt)
    walk = rollout(
        model,
        (deterministic(default_steps if steps is None else steps),),
        condition=model.encode(texts),
        prompt_index=prompt_index,
        root_seeds=[row_seed(seed, text, s, 0) for text in texts for s in range(samples_per_prompt)],
        micro_batch=micro_batch,
    )
    pixels = decode_in_batches(model, walk.final, micro_batch=micro_batch)
    row_prompts = tuple(texts[i] for i in prompt_index.tolist())
    scored = score(rewards, pixels, row_prompts) if rewards is not None else None
    return Samples(
        images=_to_pil(pixels),
        pixels=pixels,
        prompts=row_prompts,
        scores=None if scored is None else scored.scores,
        components={} if scored is None else scored.components,
        forwards=walk.forwards,
    )


def search(
    pipeline: str | Path | Pipeline,
    prompts: str | Sequence[str],
    *,
    budget: int | Budget,
    method: Method | None = None,
    reward: str | RewardModel = "verifier",
    preview: str | RewardModel | None = None,
    seed: int = 0,
    steps: int | None = None,
    guidance: float | None = None,
    micro_batch: int = 16,
    keep_pictures: bool = False,
) -> SearchResult:
    """Start many candidates of every prompt, walk the promising ones to the end, and return the best of these.

    A candidate is the sample that ``sample`` draws from the same seed: the winner is one of its pictures.

    Args:
        pipeline: a loaded one, or what ``load_pipeline`` takes.
        prompts: one or several; all are walked together.
        budget: of each prompt: a number of candidates, or a ``Budget`` in evaluations of the network.
        method: see ``difalign.search.methods``; default: best-of-N.
        reward: decides at the end; a reward object or what ``load_reward`` takes.
        preview: judges clean estimates on the way; default: ``reward``.
        seed: of the noise.
        steps: default: the card's, 28 for a pipeline object.
        guidance: default: the card's, or the pipeline's own.
        micro_batch: rows a forward, a decode and a score.
        keep_pictures: whether every picture that was judged is kept, besides the winners.

    Raises:
        ValueError: for an unknown name, no prompts, stages that do not fit the steps, or a budget below one candidate,
            with the least that works.
    """
    from difalign.rollout.plans import deterministic
    from difalign.search.budget import Budget
    from difalign.search.engine import search as run_search
    from difalign.search.methods import best_of_n
    from difalign.search.probe import evaluations_a_row

    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not texts:
        raise ValueError("got no prompts; give at least 1")
    model, default_steps = _resolve(pipeline, guidance)
    method = best_of_n() if method is None else method
    grid = model.grid(default_steps if steps is None else steps)
    branches = evaluations_a_row(model, texts[0], grid)
    wanted = Budget(candidates=budget) if isinstance(budget, int) else budget
    final = load_reward(reward) if isinstance(reward, str) else reward
    judge = load_reward(preview) if isinstance(preview, str) else preview
    walk = method.walk(grid, judge=final if judge is None else judge, branches=branches)
    return run_search(
        model,
        final,
        texts,
        method=method,
        candidates=wanted.plan(walk).candidates,
        plan=deterministic(grid.num_steps),
        seed=seed,
        preview=judge,
        branches=branches,
        micro_batch=micro_batch,
        grid=grid,
        keep_pictures=keep_pictures,
    )


def score(reward: str | RewardModel, images: Tensor | Sequence[Image], prompts: Sequence[str]) -> RewardOutput:
    """Score images, pixels [N, C, H, W] in [0, 1] or PIL, against prompts; higher is better.

    Raises:
        ValueError: for an unknown reward, unequal numbers, or what the reward itself refuses.
    """
    model = load_reward(reward) if isinstance(reward, str) else reward
    pixels = images if isinstance(images, Tensor) else torch.stack([_from_pil(image) for image in images])
    if len(pixels) != len(prompts):
        raise ValueError(f"{len(pixels)} images but {len(prompts)} prompts; give one prompt an image")
    return model.score(pixels, prompts)


def train(config: str | Path | None = None, *, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Run a training configuration in this process and return its summary.

    Args:
        config: a YAML file or the name of a shipped one; default: the demo.
        overrides: ``key.sub=value`` settings laid over it.

    Raises:
        ValueError: for anything in the configuration that cannot work, before a model is loaded.
        difalign.train.interrupt.Interrupted: after SIGINT or SIGTERM, once a checkpoint is saved.
    """
    from difalign.build.definitions import find_definition
    from difalign.build.preflight import prepare
    from difalign.build.run import run_flow_grpo
    from difalign.core.overrides import load_config

    file = find_definition("configs", str(config) if config is not None else "demo")
    return run_flow_grpo(prepare(load_config(file, overrides)))


def _resolve(pipeline: str | Path | Pipeline, guidance: float | None) -> tuple[Pipeline, int]:
    """The pipeline under the guidance asked for, and its default number of steps."""
    if isinstance(pipeline, (str, Path)):
        from difalign.build.cards import load_pipeline_card

        return load_pipeline(pipeline, guidance=guidance), load_pipeline_card(str(pipeline)).card.steps
    if guidance is None:
        return pipeline, 28
    return cast("TrainablePipeline", pipeline).with_guidance(guidance), 28


def _to_pil(pixels: Tensor) -> list[Image]:
    from PIL import Image as pil

    array = (pixels * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [pil.fromarray(image) for image in array]


def _from_pil(image: Image) -> Tensor:
    import numpy as np

    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0).permute(2, 0, 1)
