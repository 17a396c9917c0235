"""Plans as data: where noise enters a walk, where it forks, and which of its steps are trained on.

Every builder is pure and returns one plan (a tuple with one ``StepPlan`` a step of the grid) or, for single-step
branching, several plans that the engine runs over the same roots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from difalign.core.rng import generator
from difalign.core.types import Plan, StepPlan

_ODE = StepPlan()


def deterministic(num_steps: int) -> Plan:
    """The ODE at every step and nothing recorded: for evaluation and for forward-process objectives.

    Raises:
        ValueError: if num_steps is below 1.
    """
    return (_ODE,) * _checked_num_steps(num_steps)


def plain(
    num_steps: int,
    noise_level: float,
    *,
    timestep_fraction: float = 0.99,  # Flow-GRPO config/base: drops the last step
    last_step_noise: bool = False,
    children: int = 1,
) -> Plan:
    """Noise at every step (Flow-GRPO, arXiv 2505.05470, section 4).

    The first ``floor(num_steps * timestep_fraction)`` steps are recorded, as in the released training loop, less the
    last step where that one is deterministic. ``children`` > 1 forks the initial latent: the samples of a root then
    share their start and differ in their noise (the ``same_latent`` option of the released code).

    Raises:
        ValueError: if the fraction records no step or lies outside (0, 1], or any count is out of range.
    """
    _checked_num_steps(num_steps)
    if not 0.0 < timestep_fraction <= 1.0:
        raise ValueError(f"timestep_fraction must lie in (0, 1], got {timestep_fraction}")
    stochastic = num_steps if last_step_noise else num_steps - 1
    # The small number repairs products such as 100 * 0.29 = 28.999999999999996.
    recorded = min(math.floor(num_steps * timestep_fraction + 1e-9), stochastic)
    if recorded < 1:
        raise ValueError(
            f"timestep_fraction {timestep_fraction} of {num_steps} steps records nothing to train on; "
            "raise timestep_fraction or num_steps"
        )
    return _walk(num_steps, noise_level, noisy=range(stochastic), recorded=range(recorded), fan_out={0: children})


def window(num_steps: int, noise_level: float, *, start: int, size: int, children: int = 1) -> Plan:
    """Noise inside ``[start, start + size)``, the ODE outside; the window is recorded.

    MixGRPO (arXiv 2507.21802) and Flow-GRPO-Fast. ``children`` > 1 forks at the window's first step, so that the
    samples of a root share the ODE prefix.

    Raises:
        ValueError: if the window is empty or does not fit in the walk, or children is below 1.
    """
    _checked_num_steps(num_steps)
    if size < 1 or start < 0 or start + size > num_steps:
        raise ValueError(
            f"window [{start}, {start + size}) must hold at least one step and lie in [0, {num_steps}); "
            "change start or size"
        )
    steps = range(start, start + size)
    return _walk(num_steps, noise_level, noisy=steps, recorded=steps, fan_out={start: children})


def branch(num_steps: int, noise_level: float, *, children: int, at: Sequence[int]) -> tuple[Plan, ...]:
    """One plan for every step of ``at``: noise and ``children`` children there, the ODE before and after.

    TempFlow-GRPO (arXiv 2508.04324): the terminal reward of a leaf is credited to the one stochastic step it came
    through. The plans share the deterministic trunk, which the engine computes once. See ``all_steps``,
    ``early_steps`` and ``sampled_steps`` for ``at``.

    Raises:
        ValueError: if a step is repeated, outside the walk or the last one, or children is below 1.
    """
    _checked_num_steps(num_steps)
    _checked_steps("at", at, num_steps)
    if not at:
        raise ValueError("at is empty: name at least one step to branch at")
    if num_steps - 1 in at:
        raise ValueError(
            f"at contains the last step {num_steps - 1}, which is never branched (almost no noise is left there); "
            f"use steps 0 to {num_steps - 2}"
        )
    return tuple(
        _walk(num_steps, noise_level, noisy=(step,), recorded=(step,), fan_out={step: children}) for step in at
    )


def all_steps(num_steps: int) -> tuple[int, ...]:
    """Every step but the last, TempFlow-GRPO's released mode."""
    return early_steps(num_steps, num_steps - 1)


def early_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """The ``count`` noisiest steps, where explorations differ most; the trunk then stops after them.

    Raises:
        ValueError: if count is not between 1 and num_steps - 1.
    """
    return tuple(range(_checked_branch_count(num_steps, count)))


def sampled_steps(num_steps: int, count: int, *, seed: int, epoch: int) -> tuple[int, ...]:
    """``count`` distinct steps but the last, drawn uniformly by (seed, epoch), in rising order.

    Raises:
        ValueError: if count is not between 1 and num_steps - 1.
    """
    _checked_branch_count(num_steps, count)
    order = torch.randperm(num_steps - 1, generator=generator("branch steps", seed, epoch))
    return tuple(sorted(order[:count].tolist()))


def split(
    num_steps: int,
    noise_level: float,
    *,
    at: int,
    children: int,
    last_step_noise: bool = False,
    train_prefix: bool = False,
) -> Plan:
    """A shared stochastic prefix, one fork at step ``at``, stochastic tails; the suffix is recorded.

    B2-DiffuRL (arXiv 2503.11240) with interval length s is ``at = num_steps - s``; ``at = 0`` shares only the initial
    latent. ``last_step_noise`` is for processes whose last step has a density (DDIM at eta 1). ``train_prefix``
    records the shared steps as well; their reward is the mean over the children.

    Raises:
        ValueError: if ``at`` is outside the walk, deterministic, or children is below 2.
    """
    _checked_num_steps(num_steps)
    _checked_steps("at", (at,), num_steps)
    if children < 2:
        raise ValueError(f"a split needs at least 2 children to compare, got {children}; use plain for one")
    stochastic = num_steps if last_step_noise else num_steps - 1
    if at >= stochastic:
        raise ValueError(f"at={at} is the deterministic last step; split earlier or set last_step_noise=True")
    recorded = range(0 if train_prefix else at, stochastic)
    return _walk(num_steps, noise_level, noisy=range(stochastic), recorded=recorded, fan_out={at: children})


def cascade(
    num_steps: int,
    noise_level: float,
    *,
    at: Sequence[int],
    children: int,
    noisy: Sequence[int] | None = None,
    last_step_noise: bool = False,
) -> Plan:
    """Forks at every step of ``at``, so that leaves multiply; every stochastic edge is recorded.

    BranchGRPO (arXiv 2509.06040) is 20 steps, ``at=(0, 3, 6, 9)``, 2 children, ``last_step_noise=True``: 16 leaves. Its
    mixed variant keeps noise only in a window: ``noisy`` names the steps that are stochastic besides the forks (all
    by default, less the last one unless ``last_step_noise``).

    Raises:
        ValueError: if a step is repeated or outside the walk, a fork is deterministic, or children is below 2.
    """
    _checked_num_steps(num_steps)
    _checked_steps("at", at, num_steps)
    if not at or children < 2:
        raise ValueError(
            f"a cascade forks at one step or more into at least 2 children, got at={at}, {children} children"
        )
    last = num_steps - 1
    if last in at and not last_step_noise:
        raise ValueError(f"at contains the deterministic last step {last}; fork earlier or set last_step_noise=True")
    if noisy is None:
        noisy = range(num_steps if last_step_noise else last)
    _checked_steps("noisy", noisy, num_steps)
    stochastic = {*noisy, *at}
    return _walk(num_steps, noise_level, noisy=stochastic, recorded=stochastic, fan_out=dict.fromkeys(at, children))


def validate(plans: Sequence[Plan]) -> None:
    """Check that the plans can be run together over one grid.

    Raises:
        ValueError: if there is none, their lengths differ, two are equal, or a step is inconsistent.
    """
    if not plans:
        raise ValueError("no plan to run: pass at least one")
    lengths = sorted({len(plan) for plan in plans})
    if len(lengths) != 1 or lengths[0] < 1:
        raise ValueError(f"plans must have one length, at least 1, got lengths {lengths}; build them for one grid")
    if len(set(plans)) != len(plans):
        raise ValueError("two plans are equal and would give the same samples; pass each once or raise its fan_out")
    for plan in plans:
        for step, entry in enumerate(plan):
            _check_entry(step, entry)


def _walk(
    num_steps: int,
    noise_level: float,
    *,
    noisy: Iterable[int],
    recorded: Iterable[int],
    fan_out: dict[int, int],
) -> Plan:
    steps = [_ODE] * num_steps
    for step in noisy:
        steps[step] = StepPlan(noise_level=noise_level)
    for step in recorded:
        steps[step] = replace(steps[step], record=True)
    for step, children in fan_out.items():
        steps[step] = replace(steps[step], fan_out=children)
    plan = tuple(steps)
    validate((plan,))
    return plan


def _check_entry(step: int, entry: StepPlan) -> None:
    if not (math.isfinite(entry.noise_level) and entry.noise_level >= 0.0):
        raise ValueError(f"step {step}: noise_level must be finite and at least 0, got {entry.noise_level}")
    if entry.fan_out < 1:
        raise ValueError(f"step {step}: fan_out (children) must be at least 1, got {entry.fan_out}")
    if entry.record and entry.noise_level == 0.0:
        raise ValueError(
            f"step {step} is recorded but deterministic (noise_level 0), and a deterministic step has no density; "
            "raise noise_level or do not record it"
        )


def _checked_num_steps(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    return num_steps


def _checked_steps(name: str, steps: Sequence[int], num_steps: int) -> None:
    outside = [step for step in steps if not 0 <= step < num_steps]
    if outside:
        raise ValueError(f"{name} holds {outside}, outside the walk of {num_steps} steps; use 0 to {num_steps - 1}")
    if len(set(steps)) != len(steps):
        raise ValueError(f"{name} repeats a step: {list(steps)}; name each once")


def _checked_branch_count(num_steps: int, count: int) -> int:
    _checked_num_steps(num_steps)
    if not 1 <= count <= num_steps - 1:
        raise ValueError(
            f"cannot branch at {count} of {num_steps} steps: the last step is never branched, use 1 to {num_steps - 1}"
        )
    return count
