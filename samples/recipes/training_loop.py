"""The loop of the recipes: a schedule, averaged weights, one flat all-reduce a step, checkpoints, progress.

A killed run goes on from its last checkpoint with the same command: what a step draws depends on the seed, the step and
the process alone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

EMA_DECAY = 0.999
WARMUP_STEPS = 200


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long, how fast, and how often to look."""

    steps: int  # over which the learning rate runs its course
    stop_at: int  # the step whose weights are shipped
    learning_rate: float  # at the peak
    decay_share: float  # of the steps, at the end
    report_every: int
    seed: int

    @property
    def last_step(self) -> int:
        """Where training ends."""
        return min(self.steps, self.stop_at)


@dataclass
class State:
    """Everything that a resumed run needs."""

    model: nn.Module
    ema: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        """Write aside, then rename: a killed run leaves the last complete file."""
        payload = {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(payload, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def load(self, path: Path) -> None:
        """Restore in place."""
        payload = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(payload["model"])
        self.ema.load_state_dict(payload["ema"])
        self.optimizer.load_state_dict(payload["optimizer"])
        self.step, self.seconds = payload["step"], payload["seconds"]

    @torch.no_grad()
    def update_ema(self) -> None:
        """Exponential moving average with a short warm-up."""
        decay = min(EMA_DECAY, (1 + self.step) / (10 + self.step))
        averaged, current = list(self.ema.parameters()), list(self.model.parameters())
        torch._foreach_lerp_(averaged, current, 1 - decay)


def learning_rate(step: int, total: int, peak: float, decay_share: float) -> float:
    """Warm-up, constant, then linear to 1 % over the last ``decay_share`` of the steps."""
    left = (total - step) / max(1.0, total * decay_share)
    return peak * min(1.0, (step + 1) / WARMUP_STEPS, max(0.01, left))


def average_gradients(parameters: list[torch.nn.Parameter], world: int) -> None:
    """All-reduce one flat gradient: a single collective a step."""
    if world == 1:
        return
    flat = torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world
    at = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[at : at + p.grad.numel()].view_as(p.grad))
            at += p.grad.numel()


def start_processes() -> torch.device:
    """Join the processes that torchrun started, or be the only one; returns the device of this one."""
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29511")
    cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if cuda else "gloo")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")


def optimise(
    state: State,
    schedule: Schedule,
    *,
    name: str,
    checkpoint: Path,
    loss: Callable[[torch.Generator], Tensor],
    report: Callable[[float], None],
) -> None:
    """Train until the last step of the schedule; weights stay identical on every process.

    Args:
        state: where to begin; the checkpoint, if there is one, is loaded into it.
        schedule: how long and how fast.
        name: shown beside the progress.
        checkpoint: written by the first process before every report.
        loss: of one batch of this process, drawn from the generator.
        report: called on the first process with the smoothed loss, now and then and at the end.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    if checkpoint.exists():
        state.load(checkpoint)
    parameters = list(state.model.parameters())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    smooth, last = math.nan, time.perf_counter()
    with Progress(*columns, disable=rank != 0) as progress:
        task = progress.add_task(name, total=schedule.last_step, completed=state.step)
        while state.step < schedule.last_step:
            generator = torch.Generator().manual_seed((schedule.seed * 1_000_003 + state.step) * 64 + rank)
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate(state.step, schedule.steps, schedule.learning_rate, schedule.decay_share)
            value = _update(state, loss(generator), parameters, world)
            smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
            now = time.perf_counter()
            state.seconds, last = state.seconds + now - last, now
            if rank == 0 and state.step % 20 == 0:
                progress.update(task, completed=state.step, description=f"{name} loss {smooth:.4f}")
            if rank == 0 and (state.step % schedule.report_every == 0 or state.step == schedule.last_step):
                state.save(checkpoint)
                report(smooth)
                last = time.perf_counter()


def _update(state: State, loss: Tensor, parameters: list[torch.nn.Parameter], world: int) -> float:
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    average_gradients(parameters, world)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    state.optimizer.step()
    state.step += 1
    state.update_ema()
    return loss.item()
