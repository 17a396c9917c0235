"""Slow damage: what the figures of a run say about where it is heading.

Everything here is decided from numbers that all processes share, so all of them decide alike. A condition that lasts
gives one alarm; it can give another once it has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

from difalign.core.config import RunConfig
from difalign.report.alarms import Alarm
from difalign.report.records import Evaluation
from difalign.report.statistics import pair_scores, paired_gain, scored_in_both
from difalign.train.alarms import Alarms

_MEMORY = 0.8  # of a running mean, an update: about five updates
_OPENING = 3  # updates that say how things were at the start


@dataclass
class _Trends:
    """Running means, and how things were; plain numbers, so that a checkpoint can hold them."""

    reward: float | None = None
    kl: float | None = None
    diversity: float | None = None
    opening: list[float] = field(default_factory=list)  # the first values of the diversity
    reward_at_best: float | None = None  # the running reward at the best evaluation
    sounding: list[str] = field(default_factory=list)  # conditions that last and have given their alarm


@final
class DriftWatch:
    """Watches the rows of metrics and the evaluations of a run."""

    def __init__(self, config: RunConfig, alarms: Alarms) -> None:
        self._config = config
        self._guards = config.guards
        self._alarms = alarms
        self._trends = _Trends()
        self._best: Evaluation | None = None

    @property
    def best(self) -> Evaluation | None:
        """The best evaluation so far, the earliest of equals; None before the first."""
        return self._best

    def state(self) -> dict[str, Any]:
        """What ``restore`` needs beside the best evaluation, as plain containers."""
        return asdict(self._trends)

    def restore(self, state: Mapping[str, Any], *, best: Evaluation | None) -> None:
        """Go on from what ``state`` once was."""
        self._trends = _Trends(**state)
        self._best = best

    def row(self, row: Mapping[str, float]) -> None:
        """Look at one update."""
        trends = self._trends
        trends.reward = _running(trends.reward, row["reward"])
        trends.kl = _running(trends.kl, row.get("kl"))
        trends.diversity = _running(trends.diversity, row.get("diversity"))
        if "diversity" in row and len(trends.opening) < _OPENING:
            trends.opening.append(row["diversity"])
        if self._guards.enabled:
            self._spread(row)
            self._kl(row)
            self._diversity(row)

    def evaluation(self, evaluation: Evaluation, *, update: int) -> None:
        """Look at one evaluation, the base among them."""
        best = self._best
        if best is None or evaluation.mean > best.mean:
            self._best = evaluation
            self._trends.reward_at_best = self._trends.reward
        if best is not None and self._guards.enabled and self._guards.heldout:
            self._heldout(evaluation, best, update)

    # --- what is looked at --------------------------------------------------------------------------------------

    def _spread(self, row: Mapping[str, float]) -> None:
        share = row.get("zero_variance_groups", 0.0)
        reward, size = row["reward"], self._config.group_size
        self._sound(
            share >= 1.0,
            _alarm(
                "no_reward_spread",
                row,
                seen=f"all samples of every group scored alike (mean reward {reward:.4g}, groups of {size}), so "
                "there was nothing to learn from",
                remedy="look at the samples and at what the reward gives them: a scorer that fails quietly, a score "
                "that is too strict, prompts that are too hard or too easy, or too few samples_per_prompt",
                value=share,
                limit=1.0,
            ),
        )

    def _kl(self, row: Mapping[str, float]) -> None:
        value, limit = self._trends.kl, self._guards.max_kl
        if value is None or limit is None:
            return
        self._sound(
            value > limit,
            _alarm(
                "kl_drift",
                row,
                seen=f"the running {self._config.objective.kl.kind} KL is {value:.3g}, above guards.max_kl = {limit:g}",
                remedy="raise objective.kl.beta, lower training.learning_rate, or stop here and take the folder best",
                value=value,
                limit=limit,
            ),
        )

    def _diversity(self, row: Mapping[str, float]) -> None:
        value, share, opening = self._trends.diversity, self._guards.min_diversity, self._trends.opening
        if value is None or share is None or len(opening) < _OPENING:
            return
        limit = share * sum(opening) / len(opening)
        self._sound(
            value < limit,
            _alarm(
                "diversity_drift",
                row,
                seen=f"the samples of a prompt are {value:.3g} apart, below {limit:.3g}, which is "
                f"guards.min_diversity = {share:g} of what it was",
                remedy="look at the samples for one picture that comes again and again; raise objective.kl.beta, lower "
                "training.learning_rate, or reward variety",
                value=value,
                limit=limit,
            ),
        )

    def _heldout(self, evaluation: Evaluation, best: Evaluation, update: int) -> None:
        pairs = pair_scores(*scored_in_both(best.records, evaluation.records))
        resamples = self._config.evaluation.bootstrap_samples
        gain = paired_gain(pairs.base, pairs.tuned, pairs.prompt, seed=self._config.seed, resamples=resamples)
        then, now = self._trends.reward_at_best, self._trends.reward
        rising = now is not None and (then is None or now > then)
        trend, remedy = (
            (
                "while the training reward rises",
                "the reward is being gamed or the prompts learnt by heart: add objective.kl, a second reward or more "
                "prompts, and take the folder best",
            )
            if rising
            else ("and the training reward does not rise", "lower training.learning_rate, and take the folder best")
        )
        self._sound(
            gain.ci95 is not None and gain.ci95[1] < 0.0,
            Alarm(
                "heldout_drift",
                evaluation.rollout,
                update,
                seen=f"the held-out score is {gain.tuned:.4f}, {-gain.gain:.4f} below the {gain.base:.4f} after "
                f"{best.rollout} rollouts, more than its 95 % interval, {trend}",
                remedy=remedy,
                value=gain.tuned,
                limit=gain.base,
            ),
        )

    def _sound(self, condition: bool, alarm: Alarm) -> None:
        """Give the alarm if its condition has just come about."""
        sounding = self._trends.sounding
        if condition and alarm.name not in sounding:
            sounding.append(alarm.name)
            self._alarms.give(alarm)
        elif not condition and alarm.name in sounding:
            sounding.remove(alarm.name)


def _alarm(name: str, row: Mapping[str, float], *, seen: str, remedy: str, value: float, limit: float) -> Alarm:
    return Alarm(name, int(row["rollout"]), int(row["update"]), seen=seen, remedy=remedy, value=value, limit=limit)


def _running(mean: float | None, value: float | None) -> float | None:
    if value is None:
        return mean
    return value if mean is None else _MEMORY * mean + (1 - _MEMORY) * value
