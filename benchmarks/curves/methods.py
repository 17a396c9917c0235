"""The table of what is compared: every method is a configuration, a base file with a few keys laid over it.

Nothing here is code of a method. What two methods share is written once, so that they differ only in what their names
say: the plan, the group, the standard deviation, the weight, the curriculum. The geometry of each is chosen so that a
rollout with its update costs about the same processor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from difalign.build.definitions import find_definition
from difalign.core.config import RunConfig
from difalign.core.overrides import load_config

Settings = Mapping[str, str]  # key.sub -> YAML; a later layer replaces a key of an earlier one


@dataclass(frozen=True, slots=True)
class Method:
    """One line of a picture."""

    name: str
    label: str
    settings: Settings
    about: str  # what it adds, for the table


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods of which one is said to be better."""

    better: str
    baseline: str


@dataclass(frozen=True, slots=True)
class Probe:
    """How the policy is scored along the way: samples of evenly spaced prompts, from fixed noise."""

    steps: int
    guidance: float
    prompts: int
    seeds_per_prompt: int  # two or more, since diversity is measured within a prompt
    noise_level: float = 0.0  # at every step; 0 is the ODE
    micro_batch: int = 64


@dataclass(frozen=True, slots=True)
class Family:
    """The methods of one pipeline; they share base, optimiser, adapters and the way they are scored."""

    pipeline: str  # also the name of the comparison, with what is particular of it behind
    base: str  # a file of configs/
    shared: Settings
    probe: Probe
    methods: tuple[Method, ...]
    comparisons: tuple[Comparison, ...]
    pictures: Mapping[str, tuple[str, ...]]  # name of a picture -> its methods, in order of the colours
    seconds: float  # training seconds of a run unless told otherwise

    def method(self, name: str) -> Method:
        """The method of that name.

        Raises:
            ValueError: if there is none.
        """
        for method in self.methods:
            if method.name == name:
                return method
        raise ValueError(
            f"{name!r} is no method of {self.pipeline}; use one of: {', '.join(m.name for m in self.methods)}"
        )

    def config(self, name: str, *, seed: int, changes: Settings | None = None) -> RunConfig:
        """The checked configuration of a method; ``changes`` are laid over it.

        Raises:
            ConfigError: if the configuration does not hold.
        """
        layers = {**self.shared, **self.method(name).settings, **(changes or {}), "seed": str(seed), "name": name}
        file = find_definition("configs", self.base)
        return load_config(file, [f"{key}={value}" for key, value in layers.items()])


# --- B2-DiffuRL's parts, for both families ----------------------------------------------------------------------

# The released script trains the last 14 of 20 steps at first and all of them at the end; here 6 of 8, and 8.
_INTERVALS = {"curriculum": "{schedule: linear_floor, first: 6, last: 8, stages: 60}"}  # a run has some more rollouts
_WHOLE_CHAIN = {"curriculum": "{schedule: linear_floor, first: 8, last: 8, stages: 1}"}
# One split where the interval begins; of its children the best and the worst, if they stand out from the prompt's
# rewards of this stage and the eight before it.
_SPLIT = {
    "sampling.plan": "{kind: split, at: null, children: 5, last_step_noise: true}",
    "objective.advantage.statistics": "stage_history",
    "objective.advantage.group_by": "seed",
    "objective.advantage.selection": "{positive: 0.5, negative: -0.5}",
    "objective.advantage.ddof": "1",
    "objective.advantage.eps": "1.0e-8",
    "objective.clip_range": "0.1",
    "training.inner_epochs": "2",
}

# --- tiny-sd3: a flow model -------------------------------------------------------------------------------------

_PROMPT_STD = {"objective.advantage.std": "group"}
_NOISE_AWARE = {"objective.weight": "noise_aware"}
# A start noise has its trunk and children at each of the first seven steps, the steps that Flow-GRPO trains here.
# Prompts count more than start noises: ten prompts with one noise each did better than five with two (one trial each),
# and a group of one start noise needs no second one.
_BRANCHES = {
    "sampling.plan": "{kind: branch, mode: all, children: 3}",
    "sampling.prompts_per_update": "10",
    "sampling.samples_per_prompt": "2",
}
_SEED_GROUP = {
    "sampling.plan": "{kind: branch, mode: all, children: 6}",
    "sampling.prompts_per_update": "10",
    "sampling.samples_per_prompt": "1",
    "objective.advantage.group_by": "seed",
}

_FLOW = (
    Method(
        "flow_grpo_global",
        "Flow-GRPO (global std)",
        {"objective.advantage.std": "global"},
        "every step stochastic; rewards divided by the standard deviation of all samples, as released",
    ),
    Method(
        "flow_grpo",
        "Flow-GRPO (prompt std)",
        _PROMPT_STD,
        "the same, divided by the standard deviation of the prompt: the fair baseline",
    ),
    Method(
        "flow_grpo_early",
        "Flow-GRPO (first half)",
        {**_PROMPT_STD, "objective.timestep_fraction": "0.6"},
        "trained on the first four steps only, which is to say on those that decide: chosen by hand for this model",
    ),
    Method("branching", "+ branching", {**_PROMPT_STD, **_BRANCHES}, "TempFlow's branches, uniform weights"),
    Method("weighting", "+ weighting", {**_PROMPT_STD, **_NOISE_AWARE}, "Flow-GRPO's plan, noise-aware weights"),
    Method(
        "tempflow",
        "TempFlow-GRPO",
        {**_PROMPT_STD, **_BRANCHES, **_NOISE_AWARE},
        "branches and weights, compared within a prompt",
    ),
    Method(
        "tempflow_seed",
        "TempFlow-GRPO (seed group)",
        {**_PROMPT_STD, **_SEED_GROUP, **_NOISE_AWARE},
        "the same, compared within a prompt and start noise, with six children of one start noise",
    ),
    Method(
        "b2_flow",
        "B²-DiffuRL on flow",
        {
            **_SPLIT,
            **_INTERVALS,
            "sampling.plan": "{kind: split, at: null, children: 6, last_step_noise: false}",
            "sampling.prompts_per_update": "20",
            "sampling.samples_per_prompt": "2",
        },
        "one split where the interval begins, its best and worst child, intervals that grow backwards",
    ),
    Method(
        "tempflow_b2",
        "TempFlow + B²",
        {
            **_PROMPT_STD,
            **_SEED_GROUP,
            **_NOISE_AWARE,
            **_INTERVALS,
            "objective.advantage.selection": "{positive: 0.5, negative: -0.5}",
        },
        "TempFlow's branches inside B²'s intervals, of which the best and the worst are trained on",
    ),
)

TINY_SD3 = Family(
    pipeline="tiny-sd3",
    base="flow_grpo_tiny_sd3",
    shared={
        "pipeline": "tiny-sd3",
        "objective.timestep_fraction": "0.99",  # as published, all three: every step but the last
        "training.learning_rate": "6.0e-4",  # 1.5e-4 and 3e-4 are slower; at 1e-3 Flow-GRPO falls apart
    },
    probe=Probe(steps=8, guidance=1.0, prompts=157, seeds_per_prompt=3),
    methods=_FLOW,
    comparisons=(
        Comparison("flow_grpo", "flow_grpo_global"),
        Comparison("flow_grpo_early", "flow_grpo"),
        Comparison("branching", "flow_grpo"),
        Comparison("weighting", "flow_grpo"),
        Comparison("tempflow", "flow_grpo"),
        Comparison("tempflow", "flow_grpo_global"),
        Comparison("tempflow_seed", "flow_grpo"),
        Comparison("tempflow_seed", "tempflow"),
        Comparison("tempflow_seed", "flow_grpo_early"),
        Comparison("b2_flow", "flow_grpo"),
        Comparison("tempflow_b2", "flow_grpo"),
        Comparison("tempflow_b2", "tempflow_seed"),
    ),
    pictures={
        "tempflow": ("flow_grpo_global", "flow_grpo", "branching", "weighting", "tempflow", "tempflow_seed"),
        "early": ("flow_grpo", "flow_grpo_early", "tempflow_seed"),
        "b2": ("flow_grpo", "tempflow_seed", "b2_flow", "tempflow_b2"),
    },
    seconds=240.0,
)

# --- tiny-sd15: a diffusion model -------------------------------------------------------------------------------

_DDPO = {
    "sampling.plan": "{kind: plain, last_step_noise: true}",
    "objective.advantage.statistics": "prompt_history",
    "objective.advantage.history": "{buffer_size: 32, min_count: 8}",
    "objective.advantage.eps": "1.0e-6",
    "sampling.prompts_per_update": "6",
    "sampling.samples_per_prompt": "8",
}
_DIFFUSION_SPLIT = {**_SPLIT, "sampling.prompts_per_update": "8", "sampling.samples_per_prompt": "2"}

TINY_SD15 = Family(
    pipeline="tiny-sd15",
    base="flow_grpo_tiny_sd3",
    shared={
        "pipeline": "tiny-sd15",
        # DDPO and B2-DiffuRL train every step; without the last two of these eight DDPO did better (one trial each).
        "objective.timestep_fraction": "0.75",
        "training.lora.targets": "[to_q, to_k, to_v, to_out.0]",  # as both; a step costs half of one with convolutions
        "training.learning_rate": "3.0e-4",  # at 1e-3 both DDPO and B2-DiffuRL got worse
        "sampling.micro_batch": "16",
        "training.micro_batch": "16",
    },
    # DDPO and B2-DiffuRL sample with eta = 1; with so few steps the ODE is another sampler, and a worse one.
    probe=Probe(steps=8, guidance=1.0, prompts=105, seeds_per_prompt=2, noise_level=1.0, micro_batch=16),
    methods=(
        Method("ddpo", "DDPO", _DDPO, "every step stochastic, compared with the last rewards of the prompt"),
        Method(
            "ddpo_branching",
            "+ branching",
            {**_DIFFUSION_SPLIT, **_WHOLE_CHAIN},
            "five children of each start noise, of which the best and the worst are trained on; the whole chain",
        ),
        Method("ddpo_intervals", "+ intervals", {**_DDPO, **_INTERVALS}, "DDPO on intervals that grow backwards"),
        Method(
            "b2_diffurl",
            "B²-DiffuRL",
            {**_DIFFUSION_SPLIT, **_INTERVALS},
            "both: one split where the interval begins, its best and worst child",
        ),
    ),
    comparisons=(
        Comparison("b2_diffurl", "ddpo"),
        Comparison("ddpo_branching", "ddpo"),
        Comparison("ddpo_intervals", "ddpo"),
        Comparison("b2_diffurl", "ddpo_branching"),
    ),
    pictures={"b2": ("ddpo", "ddpo_branching", "ddpo_intervals", "b2_diffurl")},
    seconds=420.0,
)

# The claim of B2-DiffuRL is about sparse rewards: here a sample is right or it is not.
TINY_SD15_STRICT = replace(
    TINY_SD15,
    pipeline="tiny-sd15-strict",
    shared={**TINY_SD15.shared, "rewards.verifier.options.strict_share": "1.0"},
    methods=(TINY_SD15.method("ddpo"), TINY_SD15.method("b2_diffurl")),
    comparisons=(Comparison("b2_diffurl", "ddpo"),),
    pictures={"b2": ("ddpo", "b2_diffurl")},
)

FAMILIES: Mapping[str, Family] = {family.pipeline: family for family in (TINY_SD3, TINY_SD15, TINY_SD15_STRICT)}
