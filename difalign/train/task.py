"""What a run works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from difalign.core.prompts import Prompt
from difalign.core.protocols import RewardModel, TrainablePipeline
from difalign.train.collector import PlanSchedule


@dataclass(frozen=True, slots=True)
class Task:
    """The objects a run works on, built from its configuration."""

    pipeline: TrainablePipeline  # guidance as in training, adapters attached
    reward: RewardModel
    prompts: Sequence[Prompt]
    heldout: Sequence[Prompt]
    plans: PlanSchedule
    fingerprints: Mapping[str, str] = field(default_factory=dict)  # of the files it was built from
