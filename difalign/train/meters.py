"""What one update says about itself, over all processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from difalign.objective.advantages import Advantages
from difalign.objective.surrogate import Surrogate
from difalign.train.runtime import Runtime


@final
class Meter:
    """Collects sums on this process; ``row`` adds them over all processes in two collectives."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._deviation = 0.0
        self._loss = 0.0
        self._norm = 0.0

    def rewards(self, rewards: Mapping[str, Tensor], advantages: Advantages) -> None:
        """Rewards of the samples ([L] each; NaN is left out) and the groups they were compared in."""
        for name, values in rewards.items():
            scored = values[~values.isnan()].double()
            self._add(f"reward/{name}", float(scored.sum()), scored.numel())
            if name == "total":
                self._add("reward_square", float(scored.square().sum()), scored.numel())
                if scored.numel() < values.numel():
                    self._add("without_reward", values.numel() - scored.numel(), values.numel())
        self._add("zero_variance_groups", float(advantages.zero_variance.sum()), advantages.zero_variance.numel())
        self._add("group_std", float(advantages.std.sum()), advantages.std.numel())

    def distances(self, distances: Tensor) -> None:
        """How far apart the samples of each prompt are, [G]; nothing if that was not looked at."""
        if distances.numel():
            self._add("diversity", float(distances.double().sum()), distances.numel())

    def chunk(self, surrogate: Surrogate, divergence: Tensor | None, loss: Tensor) -> None:
        """One micro-batch of the update; its loss is already divided by the global row count."""
        rows = surrogate.ratio.numel()
        self._loss += float(loss.detach())
        self._add("ratio_mean", float(surrogate.ratio.sum()), rows)
        self._add("policy_loss", float(surrogate.loss.detach().sum()), rows)
        for name in ("clip_fraction", "clip_fraction_high", "clip_fraction_low", "approx_kl"):
            self._add(name, float(getattr(surrogate, name)) * rows, rows)
        if divergence is not None:
            self._add("kl", float(divergence.detach().sum()), rows)
        self._deviation = max(self._deviation, float((surrogate.ratio - 1.0).abs().max()))

    def gradient(self, norm: float) -> None:
        """The gradient norm before clipping, equal on all processes."""
        self._norm = norm

    def row(self) -> dict[str, float]:
        """Means over all processes, one number a name."""
        names = sorted({name for part in self._runtime.gather([*self._sums]) for name in [part]})
        sums = self._runtime.total([self._sums.get(n, 0.0) for n in names] + [self._loss])
        counts = self._runtime.total([self._counts.get(n, 0.0) for n in names])
        means = {name: s / c if c else 0.0 for name, s, c in zip(names, sums, counts, strict=False)}
        square = means.pop("reward_square", 0.0)
        mean = means.get("reward/total", 0.0)
        variance = torch.tensor(square - mean * mean).clamp_min(0.0)
        means["reward"] = means.pop("reward/total", 0.0)
        means["reward_std"] = float(variance.sqrt())
        means["loss"] = sums[-1]
        means["grad_norm"] = self._norm
        means["ratio_max_deviation"] = max(self._runtime.gather([self._deviation]))
        return means

    def _add(self, name: str, value: float, count: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._counts[name] = self._counts.get(name, 0.0) + count
