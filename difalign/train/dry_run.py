"""A forward and a backward before anything is sampled: a micro-batch that does not fit shows in the first minute.

Results hardly depend on micro-batches: gradients are sums over rows. So one that does not fit is halved until it does,
on all processes alike. The passes leave nothing behind: no gradient, no changed buffer, no drawn number.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from difalign.core import gaussian
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError
from difalign.core.prompts import Prompt
from difalign.core.protocols import Condition, TrainablePipeline
from difalign.core.types import NoiseGrid, Plan
from difalign.rollout.engine import predict_rows
from difalign.rollout.trie import Trie, merge
from difalign.train.runtime import Runtime

_MOMENTS = 2  # of AdamW, as large as the weights each; they do not exist before the first step

Attempt = Callable[[int], None]  # a pass over so many rows


def fit_micro_batches(
    config: RunConfig,
    pipeline: TrainablePipeline,
    prompts: Sequence[Prompt],
    plans: Sequence[Plan],
    runtime: Runtime,
    *,
    say: Callable[[str], object],
) -> RunConfig:
    """The configuration with micro-batches that fit the memory of every process; itself if they all do.

    Sampling and training keep equal micro-batches if they have them, which keeps the first importance ratio exact.
    Weights in parts are tried but never halved: a process that runs out of memory leaves the others in an exchange.

    Args:
        config: the run; ``training.auto_micro_batch: false`` leaves it as it is.
        pipeline: as it is trained.
        prompts: the first is taken.
        plans: of the first rollout.
        runtime: this process.
        say: tells the user.

    Raises:
        ConfigError: if a single row does not fit.
    """
    if not config.training.auto_micro_batch:
        return config
    trie, roots = merge(plans), _roots(config, runtime)
    passes = _Passes(config, pipeline, prompts, trie, runtime)
    sizes = {"sampling": config.sampling.micro_batch, "training": config.training.micro_batch}
    edges = roots * sum(edge.rows for _, edge in trie.recorded)
    live = roots * max(level.rows for level in trie.levels)
    with _nothing_left_behind(pipeline.network):
        fitting = {
            "training": _largest("training", sizes["training"], edges, passes.train, runtime),
            "sampling": _largest("sampling", sizes["sampling"], live, passes.sample, runtime),
        }
    if sizes["sampling"] == sizes["training"]:
        fitting = dict.fromkeys(fitting, min(fitting.values()))
    sections = {}
    for name, size in fitting.items():
        if size != sizes[name]:
            say(
                f"WARNING: {name}.micro_batch = {sizes[name]} does not fit the memory; going on with {size}, which "
                f"changes results by rounding only. Set {name}.micro_batch={size} to spare the attempt"
            )
            sections[name] = getattr(config, name).model_copy(update={"micro_batch": size})
    return config.model_copy(update=sections)


def _roots(config: RunConfig, runtime: Runtime) -> int:
    """Start noises of the busiest process in one update."""
    return -(-config.sampling.prompts_per_update // runtime.world) * config.roots_per_prompt


def _largest(name: str, size: int, rows: int, attempt: Attempt, runtime: Runtime) -> int:
    """``size``, or the first of its halves that every process has memory for; none ever has more than ``rows``."""
    while True:
        fits = _fits(min(size, rows), attempt, may_fail=not runtime.shards)
        if all(runtime.gather([fits])):
            return size
        runtime.free_memory()
        if min(size, rows) == 1:
            raise ConfigError(
                f"{name}.micro_batch = 1: a single row does not fit the memory; use "
                "training.gradient_checkpointing=true, smaller images, adapters instead of training.trainable=full, or "
                "configs/accelerate/fsdp2.yaml with more processes"
            )
        size = min(size, rows) // 2


def _fits(rows: int, attempt: Attempt, *, may_fail: bool) -> bool:
    try:
        attempt(rows)
    except torch.OutOfMemoryError:
        if not may_fail:
            raise
        return False
    return True


class _Passes:
    """What is tried; one row is as good as another, so all belong to the first prompt and the first recorded step."""

    def __init__(
        self,
        config: RunConfig,
        pipeline: TrainablePipeline,
        prompts: Sequence[Prompt],
        trie: Trie,
        runtime: Runtime,
    ) -> None:
        self._config = config
        self._pipeline = pipeline
        self._text = prompts[0].text
        self._step, edge = min(trie.recorded, key=lambda found: found[0])
        self._noise_level = edge.entry.noise_level
        self._grid: NoiseGrid = pipeline.grid(config.sampling.steps)
        self._runtime = runtime

    def train(self, rows: int) -> None:
        """A forward and backward beside everything that an update keeps in memory."""
        tuning = self._pipeline.tuning
        parameters = tuning.trainable_parameters()
        moments = [torch.empty_like(parameter) for parameter in parameters for _ in range(_MOMENTS)]
        x, step, condition = self._rows(rows)
        try:
            with self._runtime.autocast():
                prediction = predict_rows(self._pipeline, self._grid, x, step, condition)
            if self._config.objective.uses_reference:
                with torch.no_grad(), tuning.reference(), self._runtime.autocast():
                    predict_rows(self._pipeline, self._grid, x, step, condition)
            level = torch.full((rows,), self._noise_level, device=x.device)
            distribution = self._pipeline.process.transition(x, prediction, self._grid, step, level)
            gaussian.log_prob(distribution, x).mean().backward()
        finally:
            del moments
            for parameter in parameters:
                parameter.grad = None

    @torch.no_grad()
    def sample(self, rows: int) -> None:
        """A forward without gradient, and the decoding that comes after the last of them."""
        with self._runtime.whole_network():
            x, step, condition = self._rows(rows)
            with self._runtime.autocast():
                predict_rows(self._pipeline, self._grid, x, step, condition)
            self._pipeline.decode(x)

    def _rows(self, rows: int) -> tuple[Tensor, Tensor, Condition]:
        x = self._pipeline.initial_latents([torch.Generator().manual_seed(row) for row in range(rows)])
        x = x.to(self._pipeline.device)
        condition = self._pipeline.encode([self._text]).rows(torch.zeros(rows, dtype=torch.int64))
        return x, torch.full((rows,), self._step, device=x.device), condition


@contextmanager
def _nothing_left_behind(network: nn.Module) -> Iterator[None]:
    """Give back the buffers of the network and the state of torch's generators."""
    kept = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            with torch.no_grad():
                for name, buffer in network.named_buffers():
                    buffer.copy_(kept[name])
            gc.collect()
