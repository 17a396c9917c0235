"""diffusers' schedulers as references; untyped, since their attributes change type as they are used."""

from __future__ import annotations

from typing import Any


def flow_scheduler(**options: Any) -> Any:
    """A FlowMatchEulerDiscreteScheduler."""
    from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def ddim_scheduler(**options: Any) -> Any:
    """A DDIMScheduler."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler(**options)


def ddpm_scheduler(**options: Any) -> Any:
    """A DDPMScheduler."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler(**options)
