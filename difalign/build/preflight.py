"""Everything that can be checked before a library for models is imported: cards, prompts, sizes, folders, processes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from difalign.build.cards import (
    Found,
    PipelineCard,
    RewardCard,
    fixed_scale,
    load_pipeline_card,
    load_reward_card,
    reward_options,
    wrapped_class,
)
from difalign.build.definitions import find_file
from difalign.build.fingerprints import fingerprints
from difalign.build.pipeline_folder import INDEX_FILE, folder_problems, pipeline_class
from difalign.build.prompt_readers import meaning_of
from difalign.build.surroundings import cache_problems, environment_problems
from difalign.build.targets import check_target
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.families import family_contradictions, with_family_defaults
from difalign.core.prompts import Prompt, read_prompts
from difalign.train.resume import ResumePoint, find_resume_point

_RUN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "summary.json")  # any of them marks a run's folder
_SHOWN_PROMPTS = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Inputs:
    """A checked run: its configuration, defaults of the pipeline's family filled in, with its cards and prompts."""

    config: RunConfig
    pipeline: Found[PipelineCard]
    rewards: Mapping[str, Found[RewardCard]]
    train_prompts: tuple[Prompt, ...]
    heldout_prompts: tuple[Prompt, ...]
    fingerprints: Mapping[str, str]  # of what the files hold that the configuration only names
    resume: ResumePoint | None = None  # on the first process, if the run goes on from a checkpoint


def prepare(
    config: RunConfig,
    *,
    processes: int = 1,
    check_output: bool = True,
    check_weights: bool = True,
    roots: Sequence[Path] | None = None,
) -> Inputs:
    """Read what the configuration names and check that a run can start; nothing is written.

    Args:
        config: the run.
        processes: how many processes will train together.
        check_output: whether to refuse a folder that holds a run, and to find the checkpoint that ``resume`` asks for;
            only the first process can say, since it fills the folder.
        check_weights: whether this machine must be able to load pipeline and rewards: to refuse folders that are
            missing or not whole and an environment that says what cannot be; counting needs neither.
        roots: where the definition folders are; the checkout and the installed package by default.

    Raises:
        ConfigError: naming every problem, each with the key, the value and the remedy.
    """
    problems: list[str] = []
    pipeline = _collect(problems, lambda: _pipeline(config, roots))
    if pipeline is not None:
        config = with_family_defaults(config, pipeline.card.family)
    rewards = {name: _collect(problems, lambda name=name: _reward(config, name, roots)) for name in config.rewards}
    known = {name: found for name, found in rewards.items() if found is not None}
    train = _collect(problems, lambda: _prompts("prompts.train", config.prompts.train, known))
    heldout = _collect(problems, lambda: _prompts("prompts.heldout", config.prompts.heldout, known))
    checks = [*_geometry(config, processes), *_trackers(config)]
    if check_weights:
        checks += [*environment_problems(config), *_targets(pipeline, known), *reward_weight_problems(known)]
        checks += _reward_modules(known)
    if train is not None:
        checks += _enough_prompts(config, train)
    if pipeline is not None:
        checks += family_contradictions(config, pipeline.card.family, pipeline=pipeline.card.name)
        checks += [
            *_size(config, pipeline),
            *_guidance(config, pipeline),
            *(pipeline_weight_problems(pipeline) if check_weights else ()),
        ]
    if check_output:
        checks += _output_folder(config)
    problems += checks
    if problems or pipeline is None or train is None or heldout is None:
        raise ConfigError(in_one_message(problems))
    marks = fingerprints(pipeline, known, train, heldout)
    point = find_resume_point(config, marks) if check_output else None
    return Inputs(config, pipeline, known, train, heldout, marks, point)


def _collect(problems: list[str], read: Callable[[], _T]) -> _T | None:
    try:
        return read()
    except ConfigError as error:
        problems += str(error).splitlines()
        return None


def _pipeline(config: RunConfig, roots: Sequence[Path] | None) -> Found[PipelineCard]:
    try:
        return load_pipeline_card(config.pipeline, roots)
    except ConfigError as error:
        raise ConfigError(f"pipeline = {config.pipeline!r}: {error}") from None


def _reward(config: RunConfig, name: str, roots: Sequence[Path] | None) -> Found[RewardCard]:
    try:
        entry = config.rewards[name]
        found = load_reward_card(entry.card or name, roots)
        reward_options(found.card, entry)
        fixed_scale(found.card, entry)
        if found.card.prompt_reader is not None:
            check_target(found.card.prompt_reader)
    except ConfigError as error:
        raise ConfigError(f"rewards.{name}: {error}") from None
    return found


def _targets(pipeline: Found[PipelineCard] | None, rewards: Mapping[str, Found[RewardCard]]) -> Iterator[str]:
    """Targets whose package is not installed here; what a package lacks shows when it is imported."""
    cards = {f"rewards.{name}": found.card.target for name, found in rewards.items()}
    if pipeline is not None:
        cards[f"pipeline = {pipeline.card.name!r}"] = pipeline.card.target
    for key, target in cards.items():
        try:
            check_target(target)
        except ConfigError as error:
            yield f"{key}: {error}"


def _prompts(key: str, name: str, rewards: Mapping[str, Found[RewardCard]]) -> tuple[Prompt, ...]:
    file = find_file(name)
    try:
        prompts = read_prompts(file)
    except ConfigError as error:
        raise ConfigError(f"{key} = {name!r}: {error}") from None
    for reward, found in rewards.items():
        _check_metadata(key, file, prompts, reward, found.card.needs)
        if found.card.prompt_reader is not None:
            prompts = _understood(key, file, prompts, reward, found.card.prompt_reader)
    return prompts


def _check_metadata(key: str, file: Path, prompts: Sequence[Prompt], reward: str, needs: Sequence[str]) -> None:
    """Refuse a file that lacks what a reward must be told beside a prompt."""
    lacking = [(prompt.text, name) for prompt in prompts for name in needs if name not in prompt.metadata]
    if lacking:
        text, name = lacking[0]
        raise ConfigError(
            f"{key} = {str(file)!r}: rewards.{reward} needs {name!r} beside every prompt, and {text!r} has none (nor "
            f"have {len({text for text, _ in lacking}) - 1} others); add the key in a .jsonl file, or change rewards"
        )


def _understood(key: str, file: Path, prompts: tuple[Prompt, ...], reward: str, reader: str) -> tuple[Prompt, ...]:
    """The prompts, categorised where they are not, once a reward has said that it can score them all."""
    problems: list[str] = []
    understood: list[Prompt] = []
    for prompt in prompts:
        try:
            meaning = meaning_of(prompt, reader)
        except ValueError as error:
            problems.append(f"{key} = {str(file)!r}: rewards.{reward} cannot score {prompt.text!r}: {error}")
            continue
        understood.append(prompt if prompt.kind else replace(prompt, kind=str(getattr(meaning, "kind", ""))))
    if problems:
        more = len(problems) - _SHOWN_PROMPTS
        raise ConfigError("\n".join(problems[:_SHOWN_PROMPTS] + ([f"... and {more} more prompts"] if more > 0 else [])))
    return tuple(understood)


def _enough_prompts(config: RunConfig, train: Sequence[Prompt]) -> Iterator[str]:
    needed, updates = config.prompts_per_rollout, config.training.updates_per_rollout
    if len(train) >= needed or config.sampling.draw == "uniform":
        return
    fewer = len(train) // updates
    remedy = f"use sampling.prompts_per_update={fewer}" if fewer else "use training.updates_per_rollout=1"
    yield (
        f"prompts.train = {config.prompts.train!r}: holds {len(train)} prompts, fewer than the {needed} of a rollout "
        f"(sampling.prompts_per_update = {config.sampling.prompts_per_update} x training.updates_per_rollout = "
        f"{updates}); add prompts, or {remedy}"
    )


def _geometry(config: RunConfig, processes: int) -> Iterator[str]:
    prompts = config.sampling.prompts_per_update
    if prompts < processes:
        yield (
            f"sampling.prompts_per_update = {prompts}: leaves some of {processes} processes without work, since a "
            f"prompt's samples stay on one of them; use sampling.prompts_per_update={processes} or fewer processes"
        )


def _trackers(config: RunConfig) -> Iterator[str]:
    for name in config.tracking.trackers:
        if importlib.util.find_spec(name) is None:
            yield (
                f"tracking.trackers = {list(config.tracking.trackers)}: {name} is not installed; "
                f"pip install difalign[track], or leave {name} out"
            )


def _size(config: RunConfig, pipeline: Found[PipelineCard]) -> Iterator[str]:
    unit = pipeline.card.size_multiple
    for key in ("height", "width"):
        side = getattr(config.sampling, key)
        if side is not None and side % unit:
            nearest = max(round(side / unit), 1) * unit
            yield (
                f"sampling.{key} = {side}: pipeline {pipeline.card.name!r} makes images whose sides are multiples of "
                f"{unit} pixels; use sampling.{key}={nearest}"
            )


def _guidance(config: RunConfig, pipeline: Found[PipelineCard]) -> Iterator[str]:
    if pipeline.card.guidance_kind != "none":
        return
    for section, scale in (("sampling", config.sampling.guidance), ("evaluation", config.evaluation.guidance)):
        if scale > 1.0:
            yield (
                f"{section}.guidance = {scale:g}: the network of pipeline {pipeline.card.name!r} takes no guidance; "
                f"use {section}.guidance=1"
            )


def pipeline_weight_problems(pipeline: Found[PipelineCard]) -> Iterator[str]:
    """Why this machine cannot load a pipeline, as far as its files say."""
    key, source = f"pipeline = {pipeline.card.name!r}", pipeline.weights()
    if not isinstance(source, Path):
        assert source is not None  # a pipeline's card has a path or an id
        yield from (f"{key}: {problem}" for problem in cache_problems(source))
        return
    if not (source / INDEX_FILE).is_file():
        yield (
            f"{key}: its weights are not at {source}, where a diffusers folder with "
            f"{INDEX_FILE} is expected; put them there or correct `path` in the card"
        )
        return
    stored, wrapped = pipeline_class(source), wrapped_class(pipeline.card.target)
    if stored is not None and wrapped is not None and stored != wrapped:
        yield (
            f"{key}: {source} holds a {stored}, and its card's target = {pipeline.card.target!r} is for a {wrapped}; "
            "correct `path` or `target` in the card"
        )
        return
    if stored is not None or wrapped is not None:  # the user's own adapter may read a folder of another shape
        yield from (f"{key}: {problem}" for problem in folder_problems(source))


def reward_weight_problems(rewards: Mapping[str, Found[RewardCard]]) -> Iterator[str]:
    """Folders of weights that cards name and that are not there."""
    for name, found in rewards.items():
        folder = found.weights()
        if isinstance(folder, Path) and not folder.is_dir():
            yield f"rewards.{name}: its weights are not at {folder}; put them there or correct `path` in {found.file}"


def _reward_modules(rewards: Mapping[str, Found[RewardCard]]) -> Iterator[str]:
    for name, found in rewards.items():
        missing = [module for module in found.card.requires if importlib.util.find_spec(module) is None]
        if missing:
            yield f"rewards.{name}: needs {', '.join(missing)}, not installed here; pip install 'difalign[rewards]'"


def _output_folder(config: RunConfig) -> Iterator[str]:
    folder = config.run_folder
    key = f"output_dir = {str(folder)!r}"
    try:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.stat()  # a name that is too long, or a circle of links, is said by the system only when asked
        existing = next(parent for parent in (folder, *folder.absolute().parents) if os.path.lexists(parent))
        if not existing.is_dir():
            yield f"{key}: {existing} is not a folder; use another output_dir"
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield f"{key}: {existing} is not writable; change its permissions or use another output_dir"
        elif existing == folder and config.resume is None and any(folder.iterdir()):
            yield from _filled_folder(config, folder, key)
    except OSError as error:
        yield f"{key}: cannot be used ({error.strerror}); use another output_dir"


def _filled_folder(config: RunConfig, folder: Path, key: str) -> Iterator[str]:
    if not any((folder / name).is_file() for name in _RUN_FILES):
        yield f"{key}: holds files that are not of a run, which are never overwritten; use another output_dir"
    elif not config.overwrite:
        free = next(name for n in range(2, 1_000_000) if not (name := folder.with_name(f"{folder.name}-{n}")).exists())
        yield f"{key}: already holds a run; use output_dir={free}, or overwrite=true to replace it"
