"""The table of what is compared: every method is a configuration, a base file with a few keys laid over it.

Nothing here is code of a method. What two methods share is written once, so that they differ only in what their names
say: the plan, the group, the standard deviation, the weight, the curriculum. The geometry of each is chosen so that a
rollout with its update costs about the same processor time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    """How the policy is scored along the way: noise-free samples of evenly spaced prompts, from fixed noise."""

    steps: int
    guidance: float
    prompts: int
    seeds_per_prompt: int  # two or more, since diversity is measured within a prompt
    micro_batch: int = 64


@dataclass(frozen=True, slots=True)
class Family:
    """The methods of one pipeline; they share base, optimiser, adapters and the way they are scored."""

    pipeline: str
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


# --- tiny-sd3: a flow model -------------------------------------------------------------------------------------

_PROMPT_STD = {"objective.advantage.std": "group"}
_NOISE_AWARE = {"objective.weight": "noise_aware"}
# A start noise has its trunk and six children at each of the first four steps, the steps that Flow-GRPO trains here.
_BRANCHES = {
    "sampling.plan": "{kind: branch, mode: all, children: 6}",
    "sampling.prompts_per_update": "5",
    "sampling.samples_per_prompt": "2",
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
        {**_PROMPT_STD, **_BRANCHES, **_NOISE_AWARE, "objective.advantage.group_by": "seed"},
        "the same, compared within a prompt and start noise",
    ),
)

TINY_SD3 = Family(
    pipeline="tiny-sd3",
    base="flow_grpo_tiny_sd3",
    shared={"pipeline": "tiny-sd3"},
    probe=Probe(steps=8, guidance=1.0, prompts=157, seeds_per_prompt=2),
    methods=_FLOW,
    comparisons=(
        Comparison("flow_grpo", "flow_grpo_global"),
        Comparison("branching", "flow_grpo"),
        Comparison("weighting", "flow_grpo"),
        Comparison("tempflow", "flow_grpo"),
        Comparison("tempflow", "flow_grpo_global"),
        Comparison("tempflow_seed", "flow_grpo"),
        Comparison("tempflow_seed", "tempflow"),
    ),
    pictures={
        "tempflow": ("flow_grpo_global", "flow_grpo", "branching", "weighting", "tempflow", "tempflow_seed"),
    },
    seconds=240.0,
)

FAMILIES: Mapping[str, Family] = {family.pipeline: family for family in (TINY_SD3,)}
