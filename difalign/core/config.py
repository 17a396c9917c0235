"""The configuration of a run: every option, its default, its range, and where the default comes from.

Values are checked strictly (no text for a number, no 1 for true), unknown keys are refused, and a configuration never
changes once made. ``difalign.core.overrides`` builds one from YAML and ``key.sub=value``.

Sources: FG = Flow-GRPO (Liu et al. 2025, arXiv 2505.05470) and its released configuration for SD3.5-Medium;
TF = TempFlow-GRPO (arXiv 2508.04324); MG = MixGRPO (arXiv 2507.21802); BG = BranchGRPO (arXiv 2509.06040);
DDPO = Black et al. 2023 (arXiv 2305.13301) and its released configurations;
B2 = B2-DiffuRL (Hu et al., CVPR 2025, arXiv 2503.11240) and its released script; D3PO = Yang et al. (arXiv 2311.13231);
DPOK = Fan et al. (arXiv 2305.16381);
own = chosen here, for the shipped tiny model or for the user's safety.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
from difalign.core.config_plans import BranchPlan, CurriculumConfig, PlainPlan, PlanConfig, leaves_per_seed
from difalign.core.config_rewards import RewardConfig
from difalign.core.cross_checks import contradictions
from difalign.core.user_path import user_path

Family = Literal["flow", "diffusion"]
RuleName = Literal["flow_grpo", "dance", "wan", "cps", "ddim_eta", "ddim"]
DtypeName = Literal["float32", "bfloat16", "float16"]
WeightName = Literal["uniform", "noise_aware", "inverse_step_size"]
LogProbName = Literal["gaussian", "squared_error"]
SurrogateName = Literal["clipped", "clamped", "score_function", "pair"]
RatioName = Literal["plain", "ratio_norm"]
StatisticsName = Literal["group", "rollout", "prompt_history", "stage_history"]
DrawName = Literal["passes", "uniform"]
TailName = Literal["flush", "drop"]
KLName = Literal["none", "flow_grpo", "gaussian", "velocity", "x0"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "swanlab"]
RollbackName = Literal["skipped_update", "kl_drift", "heldout_drift", "diversity_drift"]


class SamplingConfig(Section):
    """How the images that are trained on come about."""

    steps: StepCount = 10  # FG: 10 steps in training
    guidance: NonNegative = 1.0  # FG no-CFG recipes; 1 = no guidance, the policy absorbs it
    height: Count | None = None  # pixels; null = the card's
    width: Count | None = None  # pixels; null = the card's
    # Where these two are not given, a diffusion pipeline takes ddim and 1, as DDPO (arXiv 2305.13301); see families.
    rule: RuleName = "flow_grpo"  # FG: g(sigma) = a * sqrt(sigma / (1 - sigma))
    noise_level: Positive = 0.7  # FG: a = 0.7
    plan: PlanConfig = PlainPlan()  # FG
    # passes: all prompts once before any comes again; uniform: each is drawn anew, with replacement (DDPO, B2).
    draw: DrawName = "passes"  # own
    prompts_per_update: Count = 24  # FG: 48 prompts a rollout in two updates
    samples_per_prompt: Count = 24  # FG: 24 start noises a prompt; a plan's children multiply it
    same_latent: bool = False  # FG ablation: different start noise within a group is better; plain and window plans
    micro_batch: Count = 24  # rows a forward; memory only, results do not depend on it
    storage_dtype: DtypeName = "float32"  # own: exact first ratio; FG stores fp16
    offload: bool = False  # own: recorded steps wait for their update in main memory, not on the accelerator


class HistoryConfig(Section):
    """What is kept of every prompt's rewards."""

    # statistics: prompt_history
    buffer_size: Count = 16  # DDPO, compressibility; 32 for aesthetic quality and alignment
    min_count: Annotated[int, Field(ge=2)] = 16  # DDPO; below it a prompt is compared with the rollout
    # statistics: stage_history
    stages: Annotated[int, Field(ge=0)] = 8  # B2: rollouts before this one


class SelectionConfig(Section):
    """Of each group only the best and the worst are trained on, and only if they stand out."""

    positive: Annotated[float, Field(allow_inf_nan=False)] = 0.5  # B2: the best needs at least this advantage
    negative: Annotated[float, Field(allow_inf_nan=False)] = -0.5  # B2: the worst needs less than this


class AdvantageConfig(Section):
    """How rewards become advantages."""

    # group: the samples of one task (FG); rollout: all of a rollout (DDPO without tracking of prompts);
    # prompt_history: the last rewards of the prompt (DDPO with it); stage_history: its rewards of the last rollouts
    # (B2).
    statistics: StatisticsName = "group"  # FG
    history: HistoryConfig = HistoryConfig()
    std: Literal["group", "global", "none"] = "group"  # TF ablation: per-prompt std beats FG's global one
    ddof: Annotated[int, Field(ge=0, le=1)] = 0  # FG: np.std; B2: 1
    eps: NonNegative = 1e-4  # FG; DDPO: 1e-6 with prompt_history, 1e-8 with rollout; B2: 1e-8
    clip: Positive = 5.0  # FG: adv_clip_max; B2
    group_by: Literal["prompt", "seed"] = "prompt"  # FG; TF compares children of one seed
    selection: SelectionConfig | None = None  # B2: extremes of a group, by group_by
    positive_scale: NonNegative = 1.0  # B2: beta1, what positive advantages are multiplied by
    negative_scale: NonNegative = 1.0  # B2: beta2, likewise negative ones


class KLConfig(Section):
    """The pull towards the untrained policy."""

    kind: KLName = "none"  # FG FAQ: start without
    beta: NonNegative = 0.0  # FG GenEval and OCR: 0.04 with kind flow_grpo; 0 = only logged


class PairConfig(Section):
    """``surrogate: pair``: the best of a group is preferred to its worst, against the policy before training."""

    beta: Positive = 0.1  # D3PO
    clip: Fraction | None = 0.1  # D3PO: half-width of the clip of both ratios; null = DPO, without


class ObjectiveConfig(Section):
    """What is optimised."""

    advantage: AdvantageConfig = AdvantageConfig()
    # score_function: DDPO-SF, one update a rollout; clamped: DPOK; pair: D3PO.
    surrogate: SurrogateName = "clipped"  # FG, DDPO-IS, B2
    pair: PairConfig = PairConfig()
    ratio: RatioName = "plain"  # FG; ratio_norm: GRPO-Guard (arXiv 2510.22319)
    log_prob: LogProbName = "gaussian"  # own: the density; Flow-CPS's code (arXiv 2509.05952): squared_error
    clip_range: Positive = 1e-4  # FG, DDPO; B2: 0.1, which hardly ever acts; FG windows: 1e-5
    kl: KLConfig = KLConfig()
    weight: WeightName = "uniform"  # FG; TF: noise_aware; GRPO-Guard (arXiv 2510.22319): inverse_step_size
    timestep_fraction: Fraction = 0.99  # FG: drops the last step
    filter_zero_variance: bool = True  # FG: groups whose rewards are all equal teach nothing

    @property
    def uses_reference(self) -> bool:
        """Whether the policy before training is evaluated beside the one being trained."""
        return self.kl.kind != "none" or self.surrogate == "pair"


class LoraConfig(Section):
    """Low-rank adapters."""

    rank: Count = 32  # FG
    alpha: Count = 64  # FG
    targets: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = None  # null = the card's


class EMAConfig(Section):
    """A moving average of the trained weights, used for evaluation and for the weights that are saved."""

    enabled: bool = True  # FG
    max_decay: Decay = 0.9  # FG: min((1 + s) / (10 + s), 0.9)
    every: Count = 8  # FG: updates between two averages


class CheckpointConfig(Section):
    """What a run keeps on the way, so that it can be resumed."""

    every: Annotated[int, Field(ge=0)] = 20  # own: rollouts; 0 = only at the end and on an interrupt
    keep: Count = 2  # own: the newest, and one more should it be damaged


class TrainingConfig(Section):
    """The optimiser, its geometry and its limits."""

    trainable: Literal["lora", "full"] = "lora"  # FG
    lora: LoraConfig = LoraConfig()
    learning_rate: Positive = 3e-4  # FG
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.999)  # FG
    weight_decay: NonNegative = 1e-4  # FG
    eps: Positive = 1e-8  # FG
    max_grad_norm: Positive = 1.0  # FG
    rollouts: Count = 100  # own: sampling phases; FG runs until stopped
    updates_per_rollout: Count = 2  # FG: the first is on-policy, the second is not
    inner_epochs: Count = 1  # FG; B2: 2
    # Trajectories of one update, drawn anew from all that a rollout keeps; null = an update takes all of its prompts'.
    trajectories_per_update: Count | None = None  # FG; B2: 128
    tail: TailName = "flush"  # own: what is left over makes an update too; B2's code: drop
    micro_batch: Count = 24  # rows a forward and backward; memory only
    auto_micro_batch: bool = True  # own: halve it, before the first update, as long as it does not fit the memory
    detach_uncond: bool = True  # FG released train_sd3; TF lets gradient through
    ema: EMAConfig = EMAConfig()
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"  # own; FG: fp16 for SD3.5
    gradient_checkpointing: bool = False  # FG: off for SD3.5
    checkpoint: CheckpointConfig = CheckpointConfig()
    max_seconds: Positive | None = None  # stop after the rollout in which this has passed; null = no limit


class EvaluationConfig(Section):
    """Held-out prompts before, during and after: ODE, fixed seeds per prompt."""

    steps: StepCount = 40  # FG: 40 steps in evaluation
    guidance: NonNegative = 1.0  # same as in training, as FG does
    seeds_per_prompt: Count = 1  # FG
    every: Annotated[int, Field(ge=0)] = 0  # rollouts; 0 = only before and after
    limit: Count | None = None  # held-out prompts used; null = all
    micro_batch: Count = 24
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000  # own: for the 95 % interval of the gain


class TrackingConfig(Section):
    """Where figures go besides the run folder, which always has them."""

    trackers: Annotated[tuple[TrackerName, ...], Field(strict=False)] = ()  # own: the run folder is enough
    project: PlainName = "difalign"  # own
    online: bool = False  # own: nothing leaves the machine unasked; false keeps wandb and swanlab offline


class GuardsConfig(Section):
    """What a run watches over while it trains; every limit that is null is not watched."""

    enabled: bool = True  # own; off, only the first ratio and non-finite numbers are looked at
    max_skipped: Count = 3  # own: updates skipped in a row for a loss or gradient that is not finite
    max_kl: Positive | None = 0.1  # own: twenty times the KL of the demo, of kind gaussian
    min_diversity: Fraction | None = 0.5  # own: of the distance between a prompt's samples at the start
    heldout: bool = True  # own: whether a held-out score that falls is an alarm
    reload: bool = True  # own: whether the saved weights are read back through diffusers and compared
    keep_best: bool = True  # own: whether the weights of the best evaluation are kept in the folder best
    max_failed: Annotated[float, Field(ge=0, lt=1)] = 0.1  # own: share of a rollout's samples without a reward
    rollback: Annotated[tuple[RollbackName, ...], Field(strict=False)] = ()  # own: no run turns back unasked
    rollback_factor: Fraction = 0.5  # own: what the learning rate is multiplied by at every return


class DiagnosticsConfig(Section):
    """How often a run looks at the single steps of its chain and at the trees of its samples; changes no weight."""

    every: Annotated[int, Field(ge=0)] = 50  # own: rollouts, the first among them; 0 = never
    prompts: Annotated[int, Field(ge=0)] = 2  # own: prompts whose trees are kept, with their pictures


class ProcessesConfig(Section):
    """How long the processes of a run wait for one another."""

    silence_seconds: Positive = 60.0  # own: a process that gives no sign of life for so long is taken for dead
    wait_seconds: Positive = 1800.0  # gloo's default: the longest wait in one exchange, for slow and uneven work


class PromptsConfig(Section):
    """Prompt files: one prompt a line with ``#`` comments, .jsonl with {"prompt": ...}, .csv or .parquet."""

    train: FileName = "samples/prompts/tiny_train.jsonl"
    heldout: FileName = "samples/prompts/tiny_heldout.jsonl"


class RunConfig(Section):
    """A whole run."""

    name: PlainName = "run"  # names a folder
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    output_dir: FileName | None = None  # null = runs/NAME
    overwrite: bool = False  # own: an existing run is never replaced unasked
    resume: FileName | None = None  # "latest", or a checkpoint of the run; null = start anew
    resume_with_changes: bool = False  # own: a run goes on as it began unless told otherwise
    pipeline: FileName = "tiny-sd3"  # a card's name, or the path of a card or of a diffusers folder
    rewards: Annotated[dict[str, RewardConfig], Field(min_length=1)] = Field(
        default_factory=lambda: {"verifier": RewardConfig()}
    )
    prompts: PromptsConfig = PromptsConfig()
    sampling: SamplingConfig = SamplingConfig()
    curriculum: CurriculumConfig | None = None  # B2; null = the same steps throughout
    objective: ObjectiveConfig = ObjectiveConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    guards: GuardsConfig = GuardsConfig()
    tracking: TrackingConfig = TrackingConfig()
    processes: ProcessesConfig = ProcessesConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()

    @property
    def run_folder(self) -> Path:
        """Where everything the run leaves behind goes."""
        return user_path(self.output_dir) if self.output_dir is not None else Path("runs") / self.name

    @property
    def trainable_steps(self) -> int:
        """The first steps of the chain that may be trained on: floor(steps * timestep_fraction)."""
        # The small number repairs products such as 100 * 0.29 = 28.999999999999996.
        return math.floor(self.sampling.steps * self.objective.timestep_fraction + 1e-9)

    def interval(self, rollout: int) -> range:
        """The steps that may be trained on in one rollout, counted from 0."""
        length = self.sampling.steps if self.curriculum is None else self.curriculum.length(rollout)
        return range(self.sampling.steps - length, self.trainable_steps)

    @property
    def branch_steps(self) -> int:
        """How many steps a branch plan may fork at: those that may be trained on, but never the last."""
        return min(self.trainable_steps, self.sampling.steps - 1)

    @property
    def roots_per_prompt(self) -> int:
        """Start noises a prompt gets in one rollout; with same_latent one, whose walk forks at once."""
        return 1 if self.sampling.same_latent else self.sampling.samples_per_prompt

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts sampled in one rollout, over all processes."""
        return self.sampling.prompts_per_update * self.training.updates_per_rollout

    @property
    def updates(self) -> int:
        """Optimiser updates of the whole run, if no clock stops it; at most, where a rollout keeps what it selects."""
        training = self.training
        if training.trajectories_per_update is None:
            return training.rollouts * training.updates_per_rollout * training.inner_epochs
        leaves = self.leaves_per_rollout * training.inner_epochs
        return training.rollouts * math.ceil(leaves / training.trajectories_per_update)

    @property
    def leaves_per_rollout(self) -> int:
        """Samples generated in one rollout, over all processes; the most, where a curriculum changes how many."""
        plan, leaves = self.sampling.plan, leaves_per_seed(self.sampling.plan)
        if isinstance(plan, BranchPlan):
            leaves *= self.branch_steps if plan.mode == "all" else plan.k
        return leaves * self.sampling.samples_per_prompt * self.prompts_per_rollout

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole run: before, after, and every so many rollouts in between."""
        every = self.evaluation.every
        return 2 + ((self.training.rollouts - 1) // every if every else 0)

    @property
    def group_size(self) -> int:
        """How many rewards one reward is compared with, itself among them; the most, where a history grows."""
        leaves, advantage = leaves_per_seed(self.sampling.plan), self.objective.advantage
        match advantage.statistics:
            case "rollout":
                return leaves * self.sampling.samples_per_prompt * self.prompts_per_rollout
            case "prompt_history":
                return advantage.history.buffer_size
            case "stage_history":
                return leaves * self.sampling.samples_per_prompt * (1 + advantage.history.stages)
            case "group":
                return self.siblings

    @property
    def siblings(self) -> int:
        """How many samples form one group: those of a prompt, or of one start noise of it."""
        leaves = leaves_per_seed(self.sampling.plan)
        by_seed = self.objective.advantage.group_by == "seed"
        return leaves if by_seed else leaves * self.sampling.samples_per_prompt

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        found = contradictions(self)
        if found:
            raise ValueError("\n".join(found))
        return self
