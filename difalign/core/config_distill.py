"""The configuration of a distillation: a reward teaches copies of itself to read unfinished samples.

Sources: TTSnap = arXiv 2511.22242 and the settings of its released code; own = chosen here, for the shipped tiny model
or for the user's safety.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from difalign.core.config_errors import checked
from difalign.core.config_fields import (
    Count,
    Decay,
    FileName,
    Fraction,
    NonNegative,
    PlainName,
    Positive,
    Section,
    StepCount,
)
from difalign.core.config_rewards import OptionValue
from difalign.core.overrides import merge, parse_overrides, read_tree
from difalign.core.user_path import user_path

SourceName = Literal["guided", "conditional", "state"]
StoreName = Literal["latents", "pixels"]
Sigma = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sources = Annotated[tuple[SourceName, ...], Field(strict=False, min_length=1)]


class TeacherConfig(Section):
    """The reward that teaches, as it scores finished samples."""

    reward: FileName = "tiny-clip"  # a card's name or path; its score must come from one network
    options: dict[str, OptionValue] = Field(default_factory=dict)  # arguments of the card's target


class DistillPromptsConfig(Section):
    """What is drawn; held-out prompts are for the evaluation alone."""

    train: FileName | None = None  # a prompt file; or
    scenes: Count | None = None  # so many captions of the grammar of the shipped tiny models, none of them held out
    limit: Count | None = None  # so many of the file's, evenly through it; null = all. TTSnap: the first 5000
    heldout: FileName = "samples/prompts/tiny_heldout.jsonl"
    heldout_limit: Count | None = None  # likewise. TTSnap: the first 200

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.train is None) == (self.scenes is None):
            raise ValueError("train, scenes: give exactly one of them, a prompt file or a number of captions")
        if self.scenes is not None and self.limit is not None:
            raise ValueError("limit: is of a prompt file; with scenes, give that number itself")
        return self


class DistillSamplingConfig(Section):
    """How the samples come about, and what is kept of them."""

    steps: StepCount = 20  # TTSnap
    guidance: NonNegative = 1.0  # TTSnap: 3.5 for FLUX.1-dev, 5 for SDXL; what the search will use
    height: Count | None = None  # pixels; null = the card's. TTSnap: 512
    width: Count | None = None
    samples_per_prompt: Count = 8  # TTSnap
    micro_batch: Count = 16  # walks a forward; memory, and the last bits of what is stored
    sigmas: Annotated[tuple[Sigma, ...], Field(strict=False, min_length=1)]  # levels, each where a step starts
    sources: Sources = ("guided",)  # TTSnap; what is stored of each level
    store: StoreName = "latents"  # own: half precision, decoded when they are read; pixels: 8 bits, as decoded
    pixels: Count | None = None  # of the shorter side of stored pictures; null = as decoded
    shard_rows: Count = 256  # own: walks a file

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        if len(set(self.sigmas)) != len(self.sigmas):
            raise ValueError(f"sigmas = {list(self.sigmas)}: name each level once")
        if len(set(self.sources)) != len(self.sources):
            raise ValueError(f"sources = {list(self.sources)}: name each once")
        if self.store == "pixels" and "state" in self.sources:
            raise ValueError("sources: the state is noise and is stored as latents only; use store=latents")
        if self.store == "latents" and self.pixels is not None:
            raise ValueError("pixels: is of store: pixels; with store: latents leave it out")
        return self


class CopyStudentConfig(Section):
    """One bank of students that begin as copies of the teacher's network, taught level by level."""

    sources: Annotated[tuple[SourceName, ...], Field(strict=False, min_length=1, max_length=1)] = ("guided",)  # TTSnap
    sigmas: Annotated[tuple[Sigma, ...], Field(strict=False, min_length=1)] | None = None  # null = all that are stored
    learning_rate: Positive = 3e-6  # TTSnap: ImageReward; PickScore and HPSv2: 5e-7
    last_rate_share: Fraction = 0.5  # TTSnap
    epochs: Count = 1  # TTSnap; of each level
    batch_size: Count = 100  # TTSnap: of each process; here of all together
    max_grad_norm: Positive = 5.0  # TTSnap
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)  # TTSnap
    eps: Positive = 1e-8  # TTSnap
    weight_decay: NonNegative = 0.01  # TTSnap
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 2000  # TTSnap
    error_weight: NonNegative = 1.0  # TTSnap
    ranking_weight: NonNegative = 0.0  # TTSnap: an option that is off
    temperature: Positive = 0.5  # TTSnap
    replay: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0  # TTSnap; share of earlier levels in a batch
    cache: bool = False  # own: keep decoded estimates of a level in memory, 8 bits; for more than one epoch, no replay


class FullStudentConfig(CopyStudentConfig):
    """All weights of each copy are trained."""

    kind: Literal["full"] = "full"  # TTSnap


class LoraStudentConfig(CopyStudentConfig):
    """Adapters are trained beside the copy's linear layers."""

    kind: Literal["lora"]
    rank: Count = 8  # own
    alpha: Count = 16  # own
    targets: Annotated[tuple[str, ...], Field(strict=False)] = ()  # suffixes of layers' names; empty = all


class ModulatedStudentConfig(CopyStudentConfig):
    """One copy for all levels, whose layer normalisations are told sigma; it needs replay to remember the first."""

    kind: Literal["modulated"]
    frequencies: Count = 16  # own
    hidden: Count = 64  # own
    whole: bool = True  # own: train the teacher's own weights as well


class LatentStudentConfig(Section):
    """One student of latents, told the noise: all levels at once, nothing is decoded. All defaults are our own."""

    kind: Literal["latent"]
    sources: Sources = ("guided",)  # of what is stored, stacked along the channels
    sigmas: Annotated[tuple[Sigma, ...], Field(strict=False, min_length=1)] | None = None  # null = all that are stored
    reader: FileName | None = None  # the card of what makes vectors of prompts; null = the teacher
    # teacher: a CLIP teacher's picture tower, which knows already what random has to learn, with a new embedding of
    # patches that is fitted to latents.
    start: Literal["random", "teacher"] = "random"
    patch: Count = 2
    hidden: Count = 128
    depth: Count = 4
    heads: Count = 4
    learning_rate: Positive = 1e-3
    rate: Literal["linear", "cosine"] = "cosine"
    last_rate_share: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    warmup: Annotated[int, Field(ge=0)] = 100  # steps
    epochs: Count = 20  # in each of which every walk is seen once, at one level
    batch_size: Count = 256
    max_grad_norm: Positive = 1.0
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: NonNegative = 0.05
    average: Decay = 0.0  # of a moving average of the weights; 0 = none
    half: bool = False  # bfloat16 in forward and backward
    whole_range: bool = False  # answer every noise between the first and the last level
    checkpoint_every: Count = 200  # steps
    cache: bool = True  # read everything into memory once; false reads the files at every step
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    error_weight: NonNegative = 1.0
    ranking_weight: NonNegative = 0.0
    temperature: Positive = 0.5

    @model_validator(mode="after")
    def _has_one_make(self) -> Self:
        given = sorted({"patch", "hidden", "depth", "heads"} & self.model_fields_set)
        if self.start == "teacher" and given:
            raise ValueError(f"{', '.join(given)}: with start: teacher the teacher decides; leave them out")
        return self


StudentConfig = FullStudentConfig | LoraStudentConfig | ModulatedStudentConfig | LatentStudentConfig


class DistillEvaluationConfig(Section):
    """How banks and teacher are compared on held-out prompts."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 32  # own; TTSnap: 80
    keep: Fraction = 0.5  # own: of the share that a search keeps at a stage; is the best sample among them?
    micro_batch: Count = 64  # samples a scoring
    pictures: Annotated[int, Field(ge=0, le=12)] = 3  # own: prompts on the sheet of estimates


class DistillConfig(Section):
    """A whole distillation: what is drawn, who teaches, who learns, and what is measured."""

    name: PlainName = "distill"
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    folder: FileName | None = None  # null = runs/NAME
    pipeline: FileName = "tiny-sd3"
    teacher: TeacherConfig = TeacherConfig()
    prompts: DistillPromptsConfig
    sampling: DistillSamplingConfig
    students: Annotated[dict[PlainName, Annotated[StudentConfig, Field(discriminator="kind")]], Field(min_length=1)] = (
        Field(default_factory=lambda: {"full": FullStudentConfig()})
    )
    evaluation: DistillEvaluationConfig = DistillEvaluationConfig()
    wait_seconds: Positive = 86400.0  # own: the longest that processes wait for one another; their shares are uneven

    @property
    def run_folder(self) -> Path:
        """Where everything goes."""
        return user_path(self.folder) if self.folder is not None else Path("runs") / self.name

    @model_validator(mode="after")
    def _students_read_what_is_stored(self) -> Self:
        stored = self.sampling
        for name, student in self.students.items():
            lacking = [source for source in student.sources if source not in stored.sources]
            if lacking:
                raise ValueError(
                    f"students.{name}.sources: {', '.join(lacking)} is not stored; add it to sampling.sources = "
                    f"{list(stored.sources)}"
                )
            unknown = [sigma for sigma in student.sigmas or () if sigma not in stored.sigmas]
            if unknown:
                raise ValueError(
                    f"students.{name}.sigmas: {unknown} are not stored; name levels of sampling.sigmas = "
                    f"{list(stored.sigmas)}"
                )
        return self


def load_distill_config(path: Path, overrides: list[str]) -> DistillConfig:
    """The configuration of ``path`` with ``key.sub=value`` laid over it, checked; called after its file.

    Raises:
        ConfigError: naming every problem found, with its key, its value and what is allowed.
    """
    tree = merge(read_tree(path), parse_overrides(overrides))
    tree.setdefault("name", f"distill_{path.stem}")
    return checked(DistillConfig, tree, source=f"{path} with settings" if overrides else str(path))
