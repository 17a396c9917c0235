"""A checked search becomes objects: the pipeline, the judges, the method on its grid, prices, and the forecast."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from difalign.build.factory import build_pipeline, build_process, build_reward
from difalign.build.score_pictures import Scorer, check_device
from difalign.build.search_methods import METHODS, Ingredients
from difalign.build.search_preflight import SearchInputs
from difalign.core.errors import ConfigError
from difalign.core.families import FAMILIES
from difalign.core.prompts import Prompt

if TYPE_CHECKING:
    import torch

    from difalign.core.config import DtypeName, RuleName
    from difalign.core.protocols import Pipeline, RewardModel
    from difalign.core.types import NoiseGrid, Plan
    from difalign.search.budget import Forecast, Walk
    from difalign.search.methods import Method
    from difalign.search.prices import Prices
    from difalign.search.ranking import Ranking

# What a reward or a model may raise over one prompt; anything else is a fault of the program and ends it.
OF_ONE_PROMPT = (ValueError, RuntimeError, OSError, ArithmeticError, LookupError, TypeError, AttributeError)
Agree = Callable[[Any], Any]  # the main process's value, on every process


@dataclass(frozen=True, slots=True)
class SearchTask:
    """Everything that a search works on."""

    inputs: SearchInputs
    pipeline: Pipeline
    reward: RewardModel  # decides
    judge: RewardModel  # of estimates
    method: Method
    grid: NoiseGrid
    noise: Plan
    walk: Walk
    prices: Prices
    plan: Forecast  # of each prompt

    def deciding(self) -> dict[str, Any]:
        """Every setting that the result of a prompt depends on, plain values; equal ones give the same winners."""
        inputs, settings = self.inputs, self.inputs.settings
        return {
            "pipeline": inputs.pipeline.card.name,
            "lora": None if inputs.lora is None else _sha256(inputs.lora.read_bytes()),
            "cards": inputs.cards,
            "method": inputs.method,
            "stages": [
                [check.step, check.sigma, check.keep, *check.reading.sources, check.reading.decoded]
                for check in self.walk.checks
            ],
            "rounding": self.walk.rounding.__name__,
            "reward": _described(inputs.rewards),
            "preview": None if inputs.previews is None else _described(inputs.previews),
            "aggregate": settings.aggregate,
            "candidates": self.plan.candidates,
            "steps": inputs.steps,
            "height": inputs.height,
            "width": inputs.width,
            "guidance": inputs.guidance,
            "seed": settings.seed,
            "rule": settings.rule,
            "noise_level": max(entry.noise_level for entry in self.noise),
            "dtype": settings.dtype or inputs.pipeline.card.dtype,
        }

    def key(self, prompt: Prompt) -> str:
        """Names the search of one prompt: what was found under an equal key need not be searched again."""
        told = [prompt.text, sorted((name, repr(value)) for name, value in prompt.metadata.items())]
        return _sha256(json.dumps([told, self.deciding()], sort_keys=True).encode())


def build_search(
    inputs: SearchInputs, *, device: torch.device, agree: Agree, candidates: int | None = None
) -> SearchTask:
    """Load what the search works on, measure prices, and plan.

    Args:
        inputs: the checked search.
        device: where this process computes.
        agree: hands out what the main process measured, so that all plan alike.
        candidates: of each prompt, where an earlier run has already made it of the budget.

    Raises:
        ConfigError: if something cannot be loaded, a stage does not fit the grid or its judge, or the budget does not
            pay for one candidate, with the least that does.
    """
    from difalign.search.prices import measure
    from difalign.search.probe import evaluations_a_row

    check_device(str(device))
    pipeline = _pipeline(inputs, device)
    reward = build_reward(*_split(inputs.rewards), device=device)
    judge = reward if inputs.previews is None else _judge(inputs.previews, device)
    grid = pipeline.grid(inputs.steps)
    try:
        method = _method(inputs)
        branches = evaluations_a_row(pipeline, inputs.prompts[0].text, grid)
        walk = method.walk(grid, judge=judge, branches=branches)
        for check in walk.checks if walk.scored else ():
            _check_level(judge, check.sigma)
    except ValueError as error:
        raise ConfigError(f"--method {inputs.method}: {error}") from error
    prices = agree(_measured(inputs, partial(measure, pipeline, reward, judge, walk=walk, grid=grid)))
    plan = _plan(inputs, walk, prices, candidates)
    return SearchTask(inputs, pipeline, reward, judge, method, grid, _noise(inputs), walk, prices, plan)


def _pipeline(inputs: SearchInputs, device: torch.device) -> Pipeline:
    settings, card = inputs.settings, inputs.pipeline.card
    pipeline = build_pipeline(
        inputs.pipeline,
        process=build_process(cast("RuleName", settings.rule) or FAMILIES[card.family].rules[0]),
        guidance=inputs.guidance,
        device=device,
        height=inputs.height,
        width=inputs.width,
        dtype=cast("DtypeName | None", settings.dtype),
    )
    if inputs.lora is not None:
        load = getattr(pipeline.tuning, "load_lora", None)
        if load is None:
            raise ConfigError(f"--lora {settings.lora!r}: the adapter of pipeline {card.name!r} cannot read one")
        try:
            load(inputs.lora.parent)
        except ValueError as error:
            raise ConfigError(f"--lora {settings.lora!r}: {error}") from error
        pipeline.network.requires_grad_(False).eval()
    return pipeline


def _split(scorers: Mapping[str, Scorer]) -> tuple[dict[str, Any], dict[str, Any]]:
    return (
        {name: scorer.found for name, scorer in scorers.items()},
        {name: scorer.config for name, scorer in scorers.items()},
    )


def _judge(previews: Mapping[str, Scorer], device: torch.device) -> RewardModel:
    """The judge of estimates: a single one as it is, since it may read something else than pictures."""
    from difalign.core.protocols import ReadsEstimates

    joined = build_reward(*_split(previews), device=device)
    parts = {name: term.reward for name, term in joined.terms.items()}
    if len(parts) == 1:
        return next(iter(parts.values()))
    latent = [name for name, part in parts.items() if isinstance(part, ReadsEstimates)]
    if latent:
        raise ConfigError(
            f"--preview {', '.join(parts)}: {latent[0]} says what it reads and judges alone; name it alone"
        )
    return joined


def _check_level(judge: RewardModel, sigma: float) -> None:
    """A bank of students must know the level; it says so itself, before anything is walked."""
    from difalign.reward_models.noise_aware import NoiseAwareReward

    terms = getattr(judge, "terms", None)
    for part in [judge] if terms is None else [term.reward for term in terms.values()]:
        if isinstance(part, NoiseAwareReward):
            part.level_of(sigma)


def _method(inputs: SearchInputs) -> Method:
    from difalign.search.budget import ACCOUNTINGS
    from difalign.search.schedule import Stage

    stages = tuple(Stage(stage.keep, sigma=stage.sigma, branch=stage.branch) for stage in inputs.stages)
    final = _ranking(inputs, inputs.rewards)
    looks = final if inputs.previews is None else _ranking(inputs, inputs.previews)
    method = METHODS[inputs.method].make(Ingredients(inputs.steps, stages, looks, final))
    rounding = ACCOUNTINGS[inputs.settings.accounting].rounding
    return method if rounding is None else replace(method, rounding=rounding)


def _ranking(inputs: SearchInputs, scorers: Mapping[str, Scorer]) -> Ranking:
    from difalign.search.ranking import by_score, rank_sum

    if inputs.settings.aggregate == "weighted" or len(scorers) == 1:  # one rank orders as its score does
        return by_score
    return rank_sum({name: scorer.config.weight for name, scorer in scorers.items()})


def _noise(inputs: SearchInputs) -> Plan:
    from difalign.core.types import StepPlan
    from difalign.rollout.plans import deterministic, plain

    settings = inputs.settings
    family = FAMILIES[inputs.pipeline.card.family]
    level = settings.noise_level
    if level is None:
        level = 0.0 if settings.rule is None else family.noise_level
    if level == 0.0 or inputs.steps == 1:  # the last step is noise-free anyway
        return deterministic(inputs.steps)
    return tuple(StepPlan(entry.noise_level) for entry in plain(inputs.steps, level))


def _measured(inputs: SearchInputs, measure: Callable[..., Prices]) -> Prices:
    """Prices on the first prompts together; where one of them fails, on the first that does not."""
    few = [inputs.prompts[i] for i in inputs.mine[: inputs.settings.prompts_in_flight]]
    failed: Exception | None = None
    for chosen in (few, *([prompt] for prompt in few)):
        texts, told = [prompt.text for prompt in chosen], [prompt.metadata for prompt in chosen]
        try:
            return measure(texts, metadata=told, micro_batch=inputs.settings.micro_batch)
        except OF_ONE_PROMPT as error:
            failed = error
    raise ConfigError(f"none of the first {len(few)} prompts can be scored: {failed}") from failed


def _plan(inputs: SearchInputs, walk: Walk, prices: Prices, candidates: int | None) -> Forecast:
    from difalign.search.budget import Budget

    if candidates is not None:
        return Budget(candidates=candidates).plan(walk, accounting=inputs.settings.accounting)
    ((unit, amount),) = inputs.budget.items()
    options = {"candidates": "--n", "nfe": "--budget-nfe", "tflops": "--budget-tflops", "seconds": "--budget-seconds"}
    try:
        budget = {
            "candidates": lambda: Budget(candidates=int(amount)),
            "nfe": lambda: Budget(nfe=amount),
            "tflops": lambda: Budget(tflops=amount),
            "seconds": lambda: Budget(seconds=amount),
        }[unit]()
        return budget.plan(walk, prices=prices.of, accounting=inputs.settings.accounting)
    except ValueError as error:
        raise ConfigError(f"{options[unit]} {amount:g}: {error}") from error


def _described(scorers: Mapping[str, Scorer]) -> dict[str, Any]:
    return {
        name: [scorer.found.card.name, scorer.config.weight, dict(scorer.config.options)]
        for name, scorer in scorers.items()
    }


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
