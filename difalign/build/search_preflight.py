"""Everything about a search that can be checked before a library for models is imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

from difalign.build.cards import Found, PipelineCard, load_pipeline_card
from difalign.build.definitions import find_file
from difalign.build.fingerprints import fingerprints
from difalign.build.forecast import rows_a_forward
from difalign.build.preflight import pipeline_weight_problems, reward_weight_problems
from difalign.build.score_pictures import Scorer, check_prompts, find_scorers
from difalign.build.search_methods import METHODS
from difalign.build.search_settings import (
    SearchDefaults,
    SearchSettings,
    StageWords,
    find_defaults,
    one_of,
    read_budget,
    read_rewards,
    read_shard,
    read_size,
    read_stages,
)
from difalign.core.config import DtypeName, RuleName
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.families import FAMILIES
from difalign.core.prompt_rows import Row
from difalign.core.prompts import Prompt, prompt_of, read_prompts
from difalign.core.user_path import user_path
from difalign.report.search_records import RUN_FILE

AGGREGATES = ("weighted", "rank-sum")
ACCOUNTINGS = ("exact", "published")
SAVES = ("winner", "survivors", "all")
LORA_FILE = "pytorch_lora_weights.safetensors"
_MOST_STEPS = 1000  # networks know a thousand levels of noise


@dataclass(frozen=True, slots=True)
class SearchInputs:
    """A checked search: every word of ``settings`` resolved."""

    settings: SearchSettings
    pipeline: Found[PipelineCard]
    lora: Path | None  # the file
    prompts: tuple[Prompt, ...]  # all of them
    mine: tuple[int, ...]  # positions in ``prompts`` that this shard searches
    method: str
    stages: tuple[StageWords, ...]
    rewards: Mapping[str, Scorer]
    previews: Mapping[str, Scorer] | None  # None: the rewards judge estimates as well
    budget: Mapping[str, float]
    steps: int
    guidance: float
    height: int | None
    width: int | None
    out: Path | None  # None only for a dry run

    @property
    def judged_by(self) -> str:
        """Who decides, in words."""
        return " + ".join(self.rewards)

    @property
    def previewed_by(self) -> str:
        """Who judges estimates, in words."""
        return " + ".join(self.rewards if self.previews is None else self.previews)

    @property
    def cards(self) -> dict[str, str]:
        """Digest of every card that is named."""
        named = {name: scorer.found for name, scorer in self.rewards.items()}
        named |= {f"{name} as preview": scorer.found for name, scorer in (self.previews or {}).items()}
        marks = fingerprints(self.pipeline, named, (), ())
        return {name: mark for name, mark in marks.items() if not name.startswith("prompts.")}


def prepare_search(settings: SearchSettings, *, check_output: bool = True) -> SearchInputs:
    """Read what the settings name and check that a search can start; nothing is written.

    Args:
        settings: as they are asked for.
        check_output: whether to look at the output folder; the first of several processes does.

    Raises:
        ConfigError: with what is wrong and the remedy.
    """
    _check_words(settings)
    pipeline = _pipeline(settings)
    defaults = find_defaults(pipeline.card.name)
    method = one_of("--method", settings.method or defaults.method, tuple(METHODS))
    budget = read_budget(settings, defaults)
    rewards = _rewards(settings, defaults)
    height, width = read_size(settings.size)
    inputs = SearchInputs(
        settings=settings,
        pipeline=pipeline,
        lora=_lora(settings),
        prompts=(prompts := _prompts(settings)),
        mine=tuple(range(len(prompts)))[slice(*_shard_slice(settings))],
        method=method,
        stages=_stages(settings, defaults, method),
        rewards=find_scorers(rewards),
        previews=_previews(settings, defaults, method, rewards),
        budget=budget,
        steps=settings.steps if settings.steps is not None else pipeline.card.steps,
        guidance=settings.guidance if settings.guidance is not None else pipeline.card.guidance,
        height=height,
        width=width,
        out=user_path(settings.out) if settings.out is not None else None,
    )
    problems = [*_numbers(inputs), *_model_problems(inputs), *_reward_problems(inputs)]
    problems += _budget_problems(inputs)
    if check_output:
        problems += _output_problems(inputs)
    if problems:
        raise ConfigError(in_one_message(problems))
    check_prompts(inputs.rewards, inputs.prompts)
    check_prompts(inputs.previews or {}, inputs.prompts)
    return inputs


def _check_words(settings: SearchSettings) -> None:
    one_of("--aggregate", settings.aggregate, AGGREGATES)
    one_of("--accounting", settings.accounting, ACCOUNTINGS)
    one_of("--save", settings.save, SAVES)
    if settings.dtype is not None:
        one_of("--dtype", settings.dtype, get_args(DtypeName))
    if settings.rule is not None:
        one_of("--rule", settings.rule, get_args(RuleName))
    if settings.out is None and not settings.dry_run:
        raise ConfigError("--out: is missing; give the folder for the results, or --dry-run to see the plan alone")


def _pipeline(settings: SearchSettings) -> Found[PipelineCard]:
    try:
        return load_pipeline_card(settings.pipeline)
    except ConfigError as error:
        raise ConfigError(f"--pipeline {settings.pipeline!r}: {error}") from None


def _lora(settings: SearchSettings) -> Path | None:
    if settings.lora is None:
        return None
    file = user_path(settings.lora) / LORA_FILE
    if not file.is_file():
        raise ConfigError(f"--lora {settings.lora!r}: holds no {LORA_FILE}; give the folder that a run exported")
    return file


def _prompts(settings: SearchSettings) -> tuple[Prompt, ...]:
    if (settings.prompts is None) == (not settings.prompt):
        given = "both" if settings.prompt else "neither"
        raise ConfigError(f"--prompts and --prompt: {given} given; give a file, or one or more texts")
    if settings.prompts is not None:
        try:
            return read_prompts(find_file(settings.prompts))
        except ConfigError as error:
            raise ConfigError(f"--prompts {settings.prompts!r}: {error}") from None
    prompts = []
    for text in settings.prompt:
        try:
            prompts.append(prompt_of(Row("", {"prompt": text})))
        except ValueError as error:
            raise ConfigError(f"--prompt {text!r}: {error}") from None
    repeated = next((p.text for i, p in enumerate(prompts) if p.text in {q.text for q in prompts[:i]}), None)
    if repeated is not None:
        raise ConfigError(f"--prompt {repeated!r}: is given twice and would give the same pictures; remove one")
    return tuple(prompts)


def _shard_slice(settings: SearchSettings) -> tuple[int, None, int]:
    index, count = read_shard(settings.shard)
    return index, None, count


def _stages(settings: SearchSettings, defaults: SearchDefaults, method: str) -> tuple[StageWords, ...]:
    if not METHODS[method].takes_stages:
        if settings.stages is not None:
            raise ConfigError(f"--stages {settings.stages!r}: --method {method} takes none; leave them out")
        return ()
    text = settings.stages if settings.stages is not None else defaults.stages
    if text is None:
        raise ConfigError(
            f"--method {method}: needs --stages SIGMA:KEEP,..., such as 0.8:0.5,0.6:0.5; there are no default ones for "
            f"pipeline {settings.pipeline!r}, and schedules transfer badly between models"
        )
    return read_stages(text)


def _rewards(settings: SearchSettings, defaults: SearchDefaults) -> dict[str, RewardConfig]:
    text = settings.reward if settings.reward is not None else defaults.reward
    if text is None:
        raise ConfigError(
            f"--reward: is missing, and pipeline {settings.pipeline!r} has no default one; "
            "`difalign rewards list` shows those known"
        )
    return read_rewards("--reward", text)


def _previews(
    settings: SearchSettings, defaults: SearchDefaults, method: str, rewards: Mapping[str, RewardConfig]
) -> dict[str, Scorer] | None:
    """The judges of estimates: those asked for, else what is known to read unfinished samples for each reward."""
    if not METHODS[method].looks:
        if settings.preview is not None:
            raise ConfigError(f"--preview {settings.preview!r}: --method {method} scores no estimates; leave it out")
        return None
    if settings.preview is not None:
        return find_scorers(read_rewards("--preview", settings.preview))
    if not any(name in defaults.previews for name in rewards):
        return None
    chosen = {defaults.previews.get(name, name): config for name, config in rewards.items()}
    named = {
        name: config if name in rewards else config.model_copy(update={"card": name}) for name, config in chosen.items()
    }
    return find_scorers(named)


def _numbers(inputs: SearchInputs) -> Iterator[str]:
    settings = inputs.settings
    for option, value in (("--micro-batch", settings.micro_batch), ("--prompts-in-flight", settings.prompts_in_flight)):
        if value < 1:
            yield f"{option} {value}: must be at least 1"
    if not 1 <= inputs.steps <= _MOST_STEPS:
        yield f"--steps {inputs.steps}: must be from 1 to {_MOST_STEPS}"
    if not 0 <= inputs.guidance < float("inf"):
        yield f"--guidance {inputs.guidance:g}: must be a finite number of at least 0; 1 is none"
    if settings.seed < 0:
        yield f"--seed {settings.seed}: must be at least 0"
    if settings.noise_level is not None and not 0 <= settings.noise_level < float("inf"):
        yield f"--noise-level {settings.noise_level:g}: must be a finite number of at least 0; 0 is the noise-free walk"
    if not inputs.mine:
        yield f"--shard {settings.shard}: has none of {len(inputs.prompts)} prompts; use fewer shards"
    if settings.accounting == "published" and any(isinstance(stage.keep, int) for stage in inputs.stages):
        yield f"--stages {settings.stages!r}: --accounting published knows shares only; write every keep as a share"


def _model_problems(inputs: SearchInputs) -> Iterator[str]:
    card, settings = inputs.pipeline.card, inputs.settings
    for name, side in (("height", inputs.height), ("width", inputs.width)):
        if side is not None and side % card.size_multiple:
            nearest = max(round(side / card.size_multiple), 1) * card.size_multiple
            yield (
                f"--size {settings.size}: {name} = {side}: pipeline {card.name!r} makes images whose sides are "
                f"multiples of {card.size_multiple} pixels; use {nearest}"
            )
    if card.guidance_kind == "none" and inputs.guidance > 1:
        yield f"--guidance {inputs.guidance:g}: the network of pipeline {card.name!r} takes none; use --guidance 1"
    rules = FAMILIES[card.family].rules
    if settings.rule is not None and settings.rule not in rules:
        yield (
            f"--rule {settings.rule}: is not a rule of {card.family} models, and pipeline {card.name!r} is one; "
            f"use one of: {', '.join(rules)}"
        )
    yield from pipeline_weight_problems(inputs.pipeline)


def _reward_problems(inputs: SearchInputs) -> Iterator[str]:
    scorers = {**inputs.rewards, **(inputs.previews or {})}
    yield from reward_weight_problems({name: scorer.found for name, scorer in scorers.items()})
    for name, scorer in scorers.items():
        if scorer.found.card.groupwise:
            yield f"--reward {name}: compares the samples of a prompt and cannot rank them; leave it out"


def _budget_problems(inputs: SearchInputs) -> Iterator[str]:
    nfe = inputs.budget.get("nfe")
    least = inputs.steps * rows_a_forward(inputs.guidance, inputs.pipeline.card.guidance_kind)
    if nfe is not None and nfe < least and inputs.settings.accounting == "exact":
        yield (
            f"--budget-nfe {nfe:g}: is below one candidate, which takes {least} evaluations of the network "
            f"({inputs.steps} steps{', two branches each' if least > inputs.steps else ''}); give at least {least}"
        )
    candidates = inputs.budget.get("candidates")
    if candidates is not None and candidates < 1:
        yield f"--n {candidates:g}: a search needs at least 1 candidate"


def _output_problems(inputs: SearchInputs) -> Iterator[str]:
    out, settings = inputs.out, inputs.settings
    if out is None or settings.dry_run:
        return
    key = f"--out {settings.out!r}"
    try:
        existing = next(parent for parent in (out, *out.absolute().parents) if os.path.lexists(parent))
        if not existing.is_dir():
            yield f"{key}: {existing} is not a folder; use another --out"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{key}: {existing} is not writable; change its permissions or use another --out"
        elif existing == out and any(out.iterdir()):
            if not (out / RUN_FILE).is_file():
                yield f"{key}: holds files that are not of a search, which are never overwritten; use another --out"
            elif not settings.resume:
                yield f"{key}: already holds a search; go on with it by --resume, or use another --out"
    except OSError as error:
        yield f"{key}: cannot be used ({error.strerror}); use another --out"


def as_given(settings: SearchSettings) -> dict[str, object]:
    """The settings that differ from what they are without being asked for, by name."""
    plain = SearchSettings()
    given = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in given.items() if value != getattr(plain, name)}
