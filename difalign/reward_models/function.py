"""A plain function as a reward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor

from difalign.core.types import Metadata, RewardOutput


@dataclass(frozen=True, slots=True)
class FunctionReward:
    """``function(media, prompts)``, which may also take ``metadata`` and ``sigma``.

    It returns a number a sample, as a tensor or as any sequence of numbers; or a mapping with ``scores`` and further
    named ones, which are logged; or a ``RewardOutput``.
    """

    function: Callable[..., Any]
    name: str = "function"
    differentiable: bool = False
    groupwise: bool = False
    _passed: tuple[str, ...] = field(init=False)  # of metadata and sigma, those that the function takes

    def __post_init__(self) -> None:
        known = inspect.signature(self.function).parameters
        object.__setattr__(self, "_passed", tuple(key for key in ("metadata", "sigma") if key in known))

    @classmethod
    def made_of(
        cls, function: Callable[..., Any], options: Mapping[str, object], *, differentiable: bool, groupwise: bool
    ) -> Self:
        """The function with ``options`` as further keyword arguments, under its own name."""
        return cls(partial(function, **options), function.__name__, differentiable, groupwise)

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        """What the function says, [N] float32; raises what it raises.

        Raises:
            ValueError: if it returns something else than numbers.
        """
        given = {"metadata": metadata, "sigma": sigma}
        said = self.function(media, prompts, **{key: given[key] for key in self._passed})
        if isinstance(said, RewardOutput):
            return said
        named = dict(said) if isinstance(said, Mapping) else {"scores": said}
        if "scores" not in named:
            raise ValueError(f"reward {self.name} returned a mapping without 'scores', only {sorted(named)}")
        tensors = {key: self._numbers(value, media.device) for key, value in named.items()}
        return RewardOutput(tensors.pop("scores"), tensors)

    def _numbers(self, values: object, device: torch.device) -> Tensor:
        try:
            return torch.as_tensor(values, dtype=torch.float32, device=device)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"reward {self.name} returned {type(values).__name__} {str(values)[:80]!r}; return one number a sample"
            ) from None


def scores_media(target: object) -> bool:
    """Whether a card's target is a function that scores, and not a class or something that makes a reward.

    Such a function has ``prompts`` as its second parameter.
    """
    return inspect.isfunction(target) and list(inspect.signature(target).parameters)[1:2] == ["prompts"]
