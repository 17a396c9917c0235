"""What a distillation needs and whether it is there, before a library for models is imported."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from difalign.build.cards import Found, PipelineCard, RewardCard, load_reward_card
from difalign.build.distill_students import STUDENT_KINDS
from difalign.build.preflight import Inputs, prepare
from difalign.build.prompt_readers import meaning_of
from difalign.build.surroundings import writable
from difalign.core.config import RunConfig
from difalign.core.config_distill import DistillConfig, LatentStudentConfig, StudentConfig
from difalign.core.config_errors import checked
from difalign.core.errors import ConfigError, in_one_message
from difalign.core.prompts import Prompt
from difalign.embedded.captions import training_captions

STAGES = ("generate", "label", "train", "evaluate")
SETS = ("train", "heldout")

_TEACHER = "teacher"  # as a reward of the run that is checked
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class DistillInputs:
    """A checked distillation: its configuration with the cards and prompts that it names."""

    config: DistillConfig
    run: Inputs  # pipeline and teacher, as a run that samples and scores would have them
    prompts: Mapping[str, tuple[Prompt, ...]]  # by ``SETS``

    @property
    def pipeline(self) -> Found[PipelineCard]:
        """The card of the pipeline."""
        return self.run.pipeline

    @property
    def teacher(self) -> Found[RewardCard]:
        """The card of the teacher."""
        return self.run.rewards[_TEACHER]

    def reader(self, student: StudentConfig) -> Found[RewardCard] | None:
        """The card of what makes vectors of prompts for a student; None = the teacher does."""
        name = student.reader if isinstance(student, LatentStudentConfig) else None
        return None if name is None else load_reward_card(name)

    @property
    def teacher_digest(self) -> str:
        """Changes with the teacher's card and options; its weights are not read for it."""
        card = self.run.fingerprints[f"rewards.{_TEACHER}"]
        options = sorted(self.config.teacher.options.items())
        return hashlib.sha256(repr((card, options)).encode()).hexdigest()

    def data_settings(self, which: str) -> dict[str, Any]:
        """What decides the content of a store besides prompts and seed, as JSON has it."""
        sampling = self.config.sampling
        keys = ("steps", "guidance", "height", "width", "sigmas", "sources", "store", "pixels")
        chosen = {key: value for key, value in sampling.model_dump(mode="json").items() if key in keys}
        card = {"pipeline": self.pipeline.card.name, "pipeline_card": self.run.fingerprints["pipeline"]}
        return {**card, **chosen, "set": which}

    def samples(self, which: str) -> int:
        """Of each prompt of a set."""
        config = self.config
        return {"train": config.sampling, "heldout": config.evaluation}[which].samples_per_prompt


def prepare_distill(config: DistillConfig, *, check_weights: bool = True) -> DistillInputs:
    """Read what the configuration names and check that its stages can start; nothing is written.

    Args:
        config: the distillation.
        check_weights: whether this machine must be able to load pipeline and teacher.

    Raises:
        ConfigError: naming every problem found, with the key, the value and the remedy.
    """
    problems = [line for name, student in config.students.items() for line in _student(config, name, student)]
    problems += _folder(config)
    run = None
    try:
        run = prepare(_as_run(config), check_output=False, check_weights=check_weights)
    except ConfigError as error:
        problems += str(error).replace(f"rewards.{_TEACHER}", _TEACHER).splitlines()
    if run is None:
        raise ConfigError(in_one_message(problems))
    prompts: dict[str, tuple[Prompt, ...]] = {"heldout": _spread(run.heldout_prompts, config.prompts.heldout_limit)}
    try:
        prompts["train"] = _training_prompts(config, run)
        problems += _leaks(prompts["train"], prompts["heldout"])
    except ConfigError as error:
        problems += str(error).splitlines()
    if problems:
        raise ConfigError(in_one_message(problems))
    return DistillInputs(config, run, prompts)


def _as_run(config: DistillConfig) -> RunConfig:
    """A run that samples from the pipeline and scores by the teacher, so that it is checked as one."""
    sampling, prompts = config.sampling, config.prompts
    tree = {
        "name": config.name,
        "pipeline": config.pipeline,
        "rewards": {_TEACHER: {"card": config.teacher.reward, "options": config.teacher.options}},
        "prompts": {"train": prompts.train or prompts.heldout, "heldout": prompts.heldout},
        "sampling": {
            "steps": sampling.steps,
            "guidance": sampling.guidance,
            "height": sampling.height,
            "width": sampling.width,
            "prompts_per_update": 1,
        },
        "training": {"updates_per_rollout": 1},
        "objective": {"timestep_fraction": 1.0} if sampling.steps == 1 else {},
    }
    return checked(RunConfig, tree, source="settings")


def _training_prompts(config: DistillConfig, run: Inputs) -> tuple[Prompt, ...]:
    number = config.prompts.scenes
    if number is None:
        return _spread(run.train_prompts, config.prompts.limit)
    try:
        prompts = tuple(Prompt(caption) for caption in training_captions(number, seed=config.seed))
    except ValueError as error:
        raise ConfigError(f"prompts.scenes = {number}: {error}") from None
    reader = run.rewards[_TEACHER].card.prompt_reader
    if reader is None:
        return prompts
    for prompt in prompts:
        try:
            meaning_of(prompt, reader)
        except ValueError as error:
            raise ConfigError(f"prompts.scenes: the teacher cannot score {prompt.text!r}: {error}") from None
    return prompts


def _spread(prompts: tuple[Prompt, ...], limit: int | None) -> tuple[Prompt, ...]:
    """So many prompts, evenly through the file: files often go from one kind of prompts to the next."""
    if limit is None or limit >= len(prompts):
        return prompts
    return tuple(prompts[place * len(prompts) // limit] for place in range(limit))


def _leaks(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> list[str]:
    """Prompts that are learned from and evaluated on."""
    seen = {prompt.text for prompt in train}
    both = [prompt.text for prompt in heldout if prompt.text in seen]
    if not both:
        return []
    shown = ", ".join(map(repr, both[:_SHOWN])) + (", ..." if len(both) > _SHOWN else "")
    return [
        f"prompts.heldout: {len(both)} prompts are in prompts.train as well ({shown}); what is measured on them says "
        "nothing: remove them from one of the files"
    ]


def _student(config: DistillConfig, name: str, student: StudentConfig) -> Iterator[str]:
    if not STUDENT_KINDS[student.kind].decoded and config.sampling.store != "latents":
        yield (
            f"students.{name}.kind = {student.kind}: reads latents, and sampling.store = pixels keeps none; "
            "use sampling.store=latents"
        )
    if isinstance(student, LatentStudentConfig) and student.reader is not None:
        try:
            load_reward_card(student.reader)
        except ConfigError as error:
            yield f"students.{name}.reader = {student.reader!r}: {error}"


def _folder(config: DistillConfig) -> list[str]:
    folder = config.run_folder
    if os.path.lexists(folder) and not folder.is_dir():
        return [f"folder = {str(folder)!r}: is not a folder; use another"]
    if not writable(folder):
        return [f"folder = {str(folder)!r}: cannot be written; change its permissions or use another"]
    return []
