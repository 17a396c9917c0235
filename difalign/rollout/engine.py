"""The rollout engine: runs any set of plans over the same roots and keeps the recorded edges and the leaves.

Plans are merged on equal prefixes, so a shared prefix is computed once. At every step the rows of all live nodes are
evaluated together, each exactly once, in micro-batches; every edge that leaves a node then moves those rows on. A
fork therefore costs one evaluation, and a step from which both the deterministic trunk and a stochastic branch go on
costs one as well. The number of evaluated rows equals ``trie.count_forwards``.

Noise depends on (root seed, step, row under the root) and on nothing else: the samples of a root are the same at any
micro-batch, beside any other roots, on any number of processes, and whichever other plans are run. Plans that are
stochastic at the same step draw the same noise there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from difalign.core import gaussian
from difalign.core.gaussian import LogProb, compute_dtype
from difalign.core.protocols import Condition, Pipeline
from difalign.core.rng import generator
from difalign.core.types import NoiseGrid, Plan, StepPlan, Trajectories
from difalign.rollout.trie import Edge, Level, Trie, layout, merge

Progress = Callable[[int, int], None]  # (rows evaluated, rows in all)


@torch.no_grad()
def rollout(
    pipeline: Pipeline,
    plans: Sequence[Plan],
    *,
    condition: Condition,
    prompt_index: Tensor,
    root_seeds: Sequence[int],
    grid: NoiseGrid | None = None,
    micro_batch: int = 16,
    storage_dtype: torch.dtype = torch.float32,
    storage_device: torch.device | str | None = None,
    log_prob: LogProb = gaussian.log_prob,
    keep_mean: bool = False,
    progress: Progress | None = None,
) -> Trajectories:
    """Walk every root down every plan, without gradients.

    A latent is rounded to ``storage_dtype`` as soon as it exists, its log-prob is taken from the rounded value and
    the walk goes on from it. Recomputing the log-prob from the stored edge hence repeats the same arithmetic on the
    same numbers, and the first importance ratio is exactly 1.

    Order of the result: everything of one root is contiguous, roots in the order given. Within a root, edges come by
    step, then by node (nodes in order of the first plan through them), then by row; leaves come by plan, then by row.

    Args:
        pipeline: the policy; its ``process`` makes the steps.
        plans: one or more plans of one length; see ``difalign.rollout.plans``.
        condition: one row a distinct prompt; gathered a micro-batch at a time.
        prompt_index: [R] int64, the row of ``condition`` that root r follows.
        root_seeds: R seeds; ``torch.Generator().manual_seed(seed)`` draws the root's initial latent, and the seed
            keys all of its later noise. Two roots with one seed share their noise.
        grid: defaults to ``pipeline.grid(len(plans[0]))``.
        micro_batch: the most rows in one forward.
        storage_dtype: of latents between steps and of the recorded edges; float64 is kept, less is upcast to float32
            for arithmetic.
        storage_device: of the recorded edges, which are most of what a rollout keeps; None is the pipeline's. "cpu"
            leaves accelerator memory to the network. Leaves stay where the pipeline is.
        log_prob: the log-density of a recorded step; the objective must replay with the same one.
        keep_mean: whether the mean of every recorded step is kept too, in the dtype of the arithmetic: a rounded one
            would differ from the replayed one on unchanged weights.
        progress: called with (rows evaluated, rows in all) after every forward.

    Raises:
        ValueError: if the plans are inconsistent, the roots and prompts do not match, the grid has another length,
            or a recorded step has no density under the pipeline's process.
    """
    trie = merge(plans)
    grid = pipeline.grid(len(trie.levels)) if grid is None else grid
    _check_arguments(
        trie, grid, condition=condition, prompt_index=prompt_index, root_seeds=root_seeds, micro_batch=micro_batch
    )
    start = pipeline.initial_latents([torch.Generator().manual_seed(seed) for seed in root_seeds])
    start = start.to(pipeline.device, storage_dtype)
    _check_densities(pipeline, trie, grid, start)

    walk = _Walk(pipeline, grid, condition, prompt_index, tuple(root_seeds), micro_batch, log_prob, keep_mean)
    edges = sum(edge.rows for _, edge in trie.recorded)
    device = start.device if storage_device is None else storage_device
    record = _Record.empty(start, edges=edges, device=device, keep_mean=keep_mean)
    meter = _Meter(total=len(root_seeds) * sum(level.rows for level in trie.levels), progress=progress)
    leaves = _walk_down(walk, trie, start, record, meter)
    return _assemble(record, leaves, trie, forwards=meter.done)


def _walk_down(walk: _Walk, trie: Trie, start: Tensor, record: _Record, meter: _Meter) -> list[Tensor]:
    """Take every step of every plan; fills the record and returns the leaves of every plan, [R * rows, *latent]."""
    nodes = [start]
    recorded = 0
    for i, level in enumerate(trie.levels):
        predictions = []
        for prediction in walk.predictions(i, level, nodes):
            predictions.append(prediction)
            meter.add(prediction.shape[0])
        by_node = torch.cat(predictions).split([x.shape[0] for x in nodes])
        noise = step_noise(walk.root_seeds, i, rows=level.noise_rows, latent=start.shape[1:])
        children = []
        for edge in level.edges:
            x, prediction = nodes[edge.parent], by_node[edge.parent]
            descent = walk.descend(i, edge, x, prediction, noise)
            if edge.entry.record:
                record.write(recorded, edge, x, descent)
                recorded += edge.rows
            children.append(descent.x_next)
        nodes = children
    return nodes


@dataclass(slots=True)
class _Meter:
    """Counts evaluated rows and tells the caller."""

    total: int
    progress: Progress | None
    done: int = 0

    def add(self, rows: int) -> None:
        self.done += rows
        if self.progress is not None:
            self.progress(self.done, self.total)


@dataclass(frozen=True, slots=True)
class _Descent:
    """All rows of one edge after its step."""

    x_next: Tensor  # [N, *latent] storage dtype
    log_prob: Tensor | None  # [N]; None if the edge is not recorded
    mean: Tensor | None  # [N, *latent]; None if it is not kept


@dataclass(frozen=True, slots=True)
class _Walk:
    """What stays the same from step to step."""

    pipeline: Pipeline
    grid: NoiseGrid
    condition: Condition
    prompt_index: Tensor  # [R]
    root_seeds: tuple[int, ...]  # R
    micro_batch: int
    log_prob: LogProb
    keep_mean: bool

    def predictions(self, step: int, level: Level, nodes: Sequence[Tensor]) -> Iterator[Tensor]:
        """The network on every row of every node once, in micro-batches that may span nodes."""
        x = _join(nodes)
        roots = torch.arange(len(self.root_seeds))
        root = torch.cat([roots.repeat_interleave(rows) for rows in level.node_rows])
        prompt = self.prompt_index[root.to(self.prompt_index.device)]
        for low in range(0, x.shape[0], self.micro_batch):
            rows = slice(low, low + self.micro_batch)
            yield predict_rows(
                self.pipeline,
                self.grid,
                x[rows],
                torch.full((x[rows].shape[0],), step, device=x.device),
                self.condition.rows(prompt[rows]),
            )

    def descend(self, step: int, edge: Edge, x: Tensor, prediction: Tensor, noise: Tensor) -> _Descent:
        """Take one edge from all rows of its parent."""
        count = len(self.root_seeds) * edge.rows
        children, log_probs, means = [], [], []
        for low in range(0, count, self.micro_batch):
            child = torch.arange(low, min(low + self.micro_batch, count))
            parent = (child // edge.entry.fan_out).to(x.device)
            distribution = self.pipeline.process.transition(
                x[parent],
                prediction[parent],
                self.grid,
                torch.full(child.shape, step, device=x.device),
                torch.full(child.shape, edge.entry.noise_level, dtype=torch.float32, device=x.device),
            )
            x_next = distribution.mean
            if edge.entry.noise_level > 0.0:
                drawn = noise[child // edge.rows, child % edge.rows]
                x_next = gaussian.sample(distribution, drawn.to(x_next))
            x_next = x_next.to(x.dtype)  # before the log-prob: what is stored is what is scored
            children.append(x_next)
            if edge.entry.record:
                log_probs.append(self.log_prob(distribution, x_next))
            if edge.entry.record and self.keep_mean:
                means.append(distribution.mean)
        return _Descent(
            x_next=_join(children),
            log_prob=torch.cat(log_probs) if log_probs else None,
            mean=torch.cat(means) if means else None,
        )


@dataclass(frozen=True, slots=True)
class _Record:
    """Room for exactly the recorded edges of every root, filled as the walk goes."""

    x: Tensor  # [R, edges a root, *latent] storage dtype
    x_next: Tensor  # [R, edges a root, *latent] storage dtype
    log_prob: Tensor  # [R, edges a root] float32
    mean: Tensor | None  # [R, edges a root, *latent] float32

    @classmethod
    def empty(cls, start: Tensor, *, edges: int, device: torch.device | str, keep_mean: bool) -> _Record:
        shape, dtype = (start.shape[0], edges, *start.shape[1:]), compute_dtype(start)
        return cls(
            x=start.new_empty(shape, device=device),
            x_next=start.new_empty(shape, device=device),
            log_prob=start.new_empty(shape[:2], dtype=dtype, device=device),
            mean=start.new_empty(shape, dtype=dtype, device=device) if keep_mean else None,
        )

    def write(self, offset: int, edge: Edge, x: Tensor, descent: _Descent) -> None:
        assert descent.log_prob is not None
        block = (self.x.shape[0], edge.rows)
        rows = slice(offset, offset + edge.rows)
        self.x[:, rows] = x.repeat_interleave(edge.entry.fan_out, dim=0).unflatten(0, block)
        self.x_next[:, rows] = descent.x_next.unflatten(0, block)
        self.log_prob[:, rows] = descent.log_prob.unflatten(0, block)
        if self.mean is not None and descent.mean is not None:
            self.mean[:, rows] = descent.mean.unflatten(0, block)


def step_noise(root_seeds: Sequence[int], step: int, *, rows: int, latent: torch.Size) -> Tensor:
    """Noise of every root at one step, [R, rows, *latent] float32 on CPU; a function of seed, step and row alone.

    Row by row from one generator a root: a single larger draw would not begin with the numbers of a smaller one,
    and the noise of a row would depend on how many rows follow it.
    """
    noise = torch.empty(len(root_seeds), rows, *latent)
    if rows > 0:
        for seed, of_root in zip(root_seeds, noise.unbind(), strict=True):
            source = generator("step noise", seed, step)
            for row in of_root.unbind():
                row.normal_(generator=source)
    return noise


def predict_rows(pipeline: Pipeline, grid: NoiseGrid, x: Tensor, step: Tensor, condition: Condition) -> Tensor:
    """The network on stored rows ``x`` [N, *latent] at steps ``step`` [N], conditioned by ``condition`` (N rows)."""
    model_time = grid.model_time.to(x.device)[step]
    return pipeline.predict(x.to(compute_dtype(x)), model_time, condition)


def _join(parts: Sequence[Tensor], *, dim: int = 0) -> Tensor:
    """Latents one after the other, outside autocast: of 16-bit numbers it joins those of its own kind only."""
    with torch.autocast(parts[0].device.type, enabled=False):
        return torch.cat(list(parts), dim=dim)


def _assemble(record: _Record, leaves: Sequence[Tensor], trie: Trie, *, forwards: int) -> Trajectories:
    """Root-major tensors and the indices that join edges to leaves."""
    num_roots, num_edges = record.log_prob.shape
    local = layout(trie)
    num_leaves = len(local.leaf_plan)
    device = record.x.device
    roots = torch.arange(num_roots, device=device)
    descent = torch.tensor(local.descent, dtype=torch.int64, device=device).reshape(-1, 2).T  # [2, E a root]
    shift = torch.stack([roots * num_edges, roots * num_leaves])  # [2, R]
    final = [x.unflatten(0, (num_roots, rows)) for x, rows in zip(leaves, trie.leaf_rows, strict=True)]
    return Trajectories(
        x=record.x.flatten(0, 1),
        x_next=record.x_next.flatten(0, 1),
        log_prob=record.log_prob.flatten(),
        step=torch.tensor(local.step, dtype=torch.int64, device=device).repeat(num_roots),
        noise_level=torch.tensor(local.noise_level, dtype=torch.float32, device=device).repeat(num_roots),
        root=roots.repeat_interleave(num_edges),
        descent=(descent[:, None, :] + shift[:, :, None]).flatten(1),
        final=_join(final, dim=1).flatten(0, 1),
        final_root=roots.repeat_interleave(num_leaves),
        final_plan=torch.tensor(local.leaf_plan, dtype=torch.int64, device=device).repeat(num_roots),
        forwards=forwards,
        mean=None if record.mean is None else record.mean.flatten(0, 1),
    )


def _check_arguments(
    trie: Trie,
    grid: NoiseGrid,
    *,
    condition: Condition,
    prompt_index: Tensor,
    root_seeds: Sequence[int],
    micro_batch: int,
) -> None:
    if grid.num_steps != len(trie.levels):
        raise ValueError(f"the plans have {len(trie.levels)} steps and the grid {grid.num_steps}; make them equal")
    if not root_seeds:
        raise ValueError("root_seeds is empty: pass one seed for every initial latent")
    if prompt_index.shape != (len(root_seeds),):
        raise ValueError(
            f"prompt_index must name one prompt a root, shape ({len(root_seeds)},), got {tuple(prompt_index.shape)}"
        )
    low, high = int(prompt_index.min()), int(prompt_index.max())
    if low < 0 or high >= len(condition):
        raise ValueError(f"prompt_index spans {low} to {high} but the condition has {len(condition)} rows")
    if micro_batch < 1:
        raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")


def _check_densities(pipeline: Pipeline, trie: Trie, grid: NoiseGrid, start: Tensor) -> None:
    """Refuse recorded steps without a density before any network runs."""
    probe = start[:1]
    entries: set[tuple[int, StepPlan]] = {(i, edge.entry) for i, edge in trie.recorded}
    for i, entry in sorted(entries, key=lambda item: item[0]):
        step = torch.tensor([i], device=probe.device)
        noise_level = torch.tensor([entry.noise_level], device=probe.device)
        std = pipeline.process.transition(probe, torch.zeros_like(probe), grid, step, noise_level).std
        if not bool((std > 0).all()):
            raise ValueError(
                f"step {i} is recorded with noise_level {entry.noise_level}, but its std is {float(std.min())} under "
                "this process (a last step to zero noise often is deterministic); do not record it"
            )
