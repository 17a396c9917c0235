"""The search engine: walks the candidates of several prompts together, and at every stage keeps the best.

All candidates stand at the same step, so rows of different prompts share micro-batches and the device stays full as
candidates fall away. What becomes of a candidate depends on its own seed alone; who survives depends on the candidates
of its prompt alone. On kernels whose rows do not depend on their batch the result is therefore the same to the last bit
at any micro-batch and beside any other prompts.

A stage looks at the clean estimates that the evaluations of its step give, and these evaluations move the survivors
on: looking costs a decode and a score, and no evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difalign.core import gaussian
from difalign.core.protocols import Condition, Pipeline, RewardModel
from difalign.core.rng import derive_seed
from difalign.core.types import Metadata, NoiseGrid, Plan, Reading
from difalign.rollout.branches import branch_rows, estimates
from difalign.rollout.engine import step_noise
from difalign.search.budget import Cost, Walk, forecast
from difalign.search.candidates import Candidates, candidate_seeds, start
from difalign.search.judging import Judge, Verdict, joined, unjudged
from difalign.search.limits import Limit
from difalign.search.methods import Method
from difalign.search.ranking import Judged, Ranking
from difalign.search.results import Found, Look, SearchResult
from difalign.search.schedule import Check, survivors
from difalign.search.state import State

Progress = Callable[[Cost, Cost], None]  # (spent, planned)


@torch.no_grad()
def search(
    pipeline: Pipeline,
    reward: RewardModel,
    prompts: Sequence[str],
    *,
    method: Method,
    candidates: int,
    plan: Plan,
    seed: int = 0,
    preview: RewardModel | None = None,
    branches: int = 1,
    micro_batch: int = 16,
    metadata: Metadata | None = None,
    grid: NoiseGrid | None = None,
    limit: Limit | None = None,
    keep_pictures: bool = False,
    state: State | None = None,
    after_look: Callable[[State], None] | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search every prompt and return its winner, judged as a finished picture.

    Args:
        pipeline: the policy; its ``process`` makes the steps.
        reward: decides at the end, asked with ``sigma=None``; higher is better.
        prompts: all walked together; hand over as many as latents fit.
        method: stages and ranking rules.
        candidates: N, of each prompt.
        plan: noise of every step, one walk: ``plans.deterministic(T)`` or ``plans.plain(T, level)``.
        seed: with prompt and index it keys all noise of a candidate.
        preview: judges clean estimates, asked with their level's sigma; None is ``reward``.
        branches: evaluations of the network a row, for the count of cost: 2 under classifier-free guidance.
        micro_batch: the most rows in one forward, decode or score.
        metadata: what the prompt file says beside each prompt.
        grid: defaults to ``pipeline.grid(len(plan))``.
        limit: a cap on what is spent; near it, the leader of every prompt is finished and the others are dropped.
        keep_pictures: whether looks keep the pictures that were judged.
        state: take up this search where ``after_look`` was handed it.
        after_look: called with what ``state`` takes, after every stage.
        progress: called after every micro-batch.

    Raises:
        ValueError: if arguments do not fit each other, a reward compares samples of a prompt, the limit does not pay
            for one candidate of each prompt, or the state is of another search.
    """
    grid = pipeline.grid(len(plan)) if grid is None else grid
    judge = reward if preview is None else preview
    walk = method.walk(grid, judge=judge, branches=branches)
    _check_arguments(prompts, plan, grid, (reward, preview), micro_batch=micro_batch, metadata=metadata)
    planned = forecast(candidates, walk).cost.times(len(prompts))
    engine = _Engine(
        pipeline,
        grid,
        plan,
        walk,
        method,
        pipeline.encode(prompts),
        micro_batch,
        judge=Judge(pipeline, tuple(prompts), metadata),
        reward=reward,
        preview=judge,
        keep_pictures=keep_pictures,
        meter=_Meter(planned, limit=limit, progress=progress),
    )
    key = _key(prompts, walk, plan, candidates=candidates, seed=seed)
    if state is None:
        state = State(key, 0, start(pipeline, prompts, count=candidates, seed=seed), ((),) * len(prompts), Cost())
        engine.check_limit(len(prompts))
    elif state.key != key:
        raise ValueError("the state is of another search: its prompts, candidates, seed, steps or stages differ")
    engine.meter.spent = state.cost
    state = replace(state, alive=state.alive.at(state.alive.latents.to(pipeline.device)))
    while state.step < walk.num_steps:
        looked = len(state.looks[0])
        state = engine.advance(state)
        if after_look is not None and len(state.looks[0]) > looked:
            after_look(state)
    found = engine.finish(state, [candidate_seeds(seed, prompt, candidates) for prompt in prompts])
    return SearchResult(found, engine.meter.spent, planned, state.cut_short)


@dataclass(slots=True)
class _Meter:
    """Counts what is spent, tells the caller, and knows the cap."""

    planned: Cost
    limit: Limit | None
    progress: Progress | None
    spent: Cost = Cost()  # noqa: RUF009  # frozen

    def add(self, cost: Cost) -> None:
        self.spent = self.spent + cost
        if self.progress is not None:
            self.progress(self.spent, self.planned)

    def allows(self, ahead: Cost) -> bool:
        return self.limit is None or self.limit.allows(self.spent, ahead=ahead)


@dataclass(frozen=True, slots=True)
class _Moved:
    """Candidates after a step."""

    alive: Candidates
    seen: Tensor | None  # [R, k*C, ...], what the judge of a look is to see
    cut: bool  # whether the limit left only the leaders


@dataclass(frozen=True, slots=True)
class _Engine:
    """What stays the same from step to step."""

    pipeline: Pipeline
    grid: NoiseGrid
    plan: Plan
    walk: Walk
    method: Method
    condition: Condition
    micro_batch: int
    judge: Judge
    reward: RewardModel
    preview: RewardModel
    keep_pictures: bool
    meter: _Meter

    def check_limit(self, prompts: int) -> None:
        least = self._to_finish(prompts, step=0)
        limit = self.meter.limit
        if limit is not None and not limit.allows(Cost(), ahead=least):
            needed = limit.price.of(least)
            raise ValueError(
                f"a limit of {limit.amount:g} does not pay for one candidate of each of {prompts} prompts, which "
                f"costs {needed:.10g}; raise it or pass fewer prompts"
            )

    def advance(self, state: State) -> State:
        """One step of all candidates, and the look that may stand at it."""
        check = next((check for check in self.walk.checks if check.step == state.step), None)
        moved = self._move(state, check.reading if check is not None and self.method.scored else None)
        alive, looks, cut = moved.alive, state.looks, state.cut_short or moved.cut
        if check is not None and not cut:
            verdict = self._look(moved, check)
            if verdict is None:
                alive, cut = alive.rows(_leaders(alive)), True
            else:
                alive, new = self._keep(alive, verdict, check)
                looks = tuple((*before, look) for before, look in zip(looks, new, strict=True))
        return State(state.key, state.step + 1, alive, looks, self.meter.spent, cut)

    def finish(self, state: State, seeds: Sequence[tuple[int, ...]]) -> tuple[Found, ...]:
        """Judge the finished samples as clean pictures and choose."""
        alive = state.alive
        parts = [self._judge(self.reward, alive, alive.latents, rows, None, keep=True) for rows in self._chunks(alive)]
        verdict = joined(parts)
        found = []
        for prompt, positions in alive.by_prompt().items():
            judged = verdict.of(positions, index=alive.index, seeds=alive.seeds)
            best = _ranked(self.method.final, judged)[0]
            scored = judged.scores[best] == judged.scores[best]  # not NaN
            winner = judged.index[best] if scored else None
            kept = () if winner is None else (winner,)
            look = _seen(verdict, alive, positions, step=self.walk.num_steps, sigma=None, kept=kept)
            picture = None if winner is None or verdict.pictures is None else verdict.pictures[positions[best]]
            found.append(
                Found(
                    prompt=self.judge.prompts[prompt],
                    seeds=seeds[prompt],
                    looks=state.looks[prompt],
                    finish=look if self.keep_pictures else replace(look, pictures=None),
                    latents=alive.latents[positions].cpu(),
                    winner=winner,
                    picture=picture,
                )
            )
        return tuple(found)

    def _move(self, state: State, reading: Reading | None) -> _Moved:
        """Evaluate and step all rows, or the leaders where the limit ends the search."""
        alive, step = state.alive, state.step
        ends, seen = [], []
        reserve = self._to_finish(len(alive.by_prompt()), step=step)
        for rows in self._chunks(alive):
            if not state.cut_short and not self.meter.allows(self._evaluations(len(rows)) + reserve):
                return self._move_leaders(alive, step, ends)
            end, shown = self._step(alive.rows(rows), step, reading)
            ends.append(end)
            seen.append(shown)
        return _Moved(alive.at(torch.cat(ends)), None if reading is None else torch.cat(seen), cut=False)

    def _move_leaders(self, alive: Candidates, step: int, ends: list[Tensor]) -> _Moved:
        """The leader of every prompt after the step; the first rows have been moved, to ``ends``."""
        leaders, done = _leaders(alive), sum(len(end) for end in ends)
        there = [i for i in leaders if i < done]
        missing = alive.rows([i for i in leaders if i >= done])
        moved = [torch.cat(ends)[there]] if there else []
        moved += [self._step(missing.rows(rows), step, None)[0] for rows in self._chunks(missing)]
        return _Moved(alive.rows(leaders).at(torch.cat(moved)), None, cut=True)

    def _step(self, rows: Candidates, step: int, reading: Reading | None) -> tuple[Tensor, Tensor]:
        """One micro-batch: where it goes, [B, *latent], and what is read of it, [B, k*C, ...] (k = 0 for nothing)."""
        x = rows.latents
        at = torch.full((len(rows),), step, device=x.device)
        level = self.plan[step].noise_level
        sources = () if reading is None else reading.sources
        condition = self.condition.rows(torch.tensor(rows.prompt))
        conditional = "conditional" in sources
        branches = branch_rows(self.pipeline, self.grid, x, at, condition, conditional=conditional)
        self.meter.add(self._evaluations(len(rows)))
        process = self.pipeline.process
        levels = torch.full(at.shape, level, dtype=torch.float32, device=x.device)
        ahead = process.transition(x, branches.guided, self.grid, at, levels)
        end = ahead.mean
        if level > 0.0:
            noise = step_noise(rows.seeds, step, rows=1, latent=x.shape[1:])[:, 0]
            end = gaussian.sample(ahead, noise.to(end))
        return end.to(x.dtype), estimates(process, x, branches, self.grid, at, sources=sources)

    def _look(self, moved: _Moved, check: Check) -> Verdict | None:
        """Scores of the clean estimates; None if the limit does not allow to ask for all."""
        alive = moved.alive
        if not self.method.scored:
            return unjudged(len(alive))
        reserve = self._to_finish(len(alive.by_prompt()), step=check.step + 1)
        parts = []
        for rows in self._chunks(alive):
            if not self.meter.allows(_looked(len(rows), check.reading) + reserve):
                return None
            assert moved.seen is not None
            parts.append(self._judge(self.preview, alive, moved.seen, rows, check, keep=self.keep_pictures))
        return joined(parts)

    def _judge(
        self, reward: RewardModel, alive: Candidates, latents: Tensor, rows: range, check: Check | None, *, keep: bool
    ) -> Verdict:
        """One micro-batch, as what a check reads or as finished samples."""
        part = slice(rows.start, rows.stop)
        reading, sigma = (Reading(), None) if check is None else (check.reading, check.sigma)
        verdict = self.judge.part(reward, latents[part], alive.prompt[part], sigma=sigma, keep=keep, reading=reading)
        self.meter.add(Cost(0, len(rows), len(rows)) if check is None else _looked(len(rows), check.reading))
        return verdict

    def _keep(self, alive: Candidates, verdict: Verdict, check: Check) -> tuple[Candidates, list[Look]]:
        """The survivors, best first, and what was seen of every prompt."""
        chosen, looks = [], []
        for positions in alive.by_prompt().values():
            judged = verdict.of(positions, index=alive.index, seeds=alive.seeds)
            count = survivors(len(positions), check.keep, rounding=self.walk.rounding)
            kept = [positions[i] for i in _ranked(self.method.ranking, judged)[:count]]
            chosen += kept
            names = tuple(alive.index[i] for i in kept)
            looks.append(_seen(verdict, alive, positions, step=check.step, sigma=check.sigma, kept=names))
        return alive.rows(chosen), looks

    def _chunks(self, alive: Candidates) -> Iterator[range]:
        for low in range(0, len(alive), self.micro_batch):
            yield range(low, min(low + self.micro_batch, len(alive)))

    def _evaluations(self, rows: int) -> Cost:
        return Cost(nfe=rows * self.walk.branches)

    def _to_finish(self, prompts: int, *, step: int) -> Cost:
        """What one candidate of every prompt costs from ``step`` to its final score."""
        return Cost((self.walk.num_steps - step) * self.walk.branches, 1, 1).times(prompts)


def _looked(rows: int, reading: Reading) -> Cost:
    """The cost of a look at some estimates."""
    return Cost(0, rows if reading.decoded else 0, rows, rows)


def _leaders(alive: Candidates) -> list[int]:
    """The first of every prompt: the best of the last look, or candidate 0."""
    return [positions[0] for positions in alive.by_prompt().values()]


def _ranked(ranking: Ranking, judged: Judged) -> list[int]:
    order = ranking(judged)
    if sorted(order) != list(range(len(judged.index))):
        raise ValueError(f"a ranking rule must order all {len(judged.index)} candidates once, got {order}")
    return order


def _seen(
    verdict: Verdict,
    alive: Candidates,
    positions: Sequence[int],
    *,
    step: int,
    sigma: float | None,
    kept: tuple[int, ...],
) -> Look:
    """What a look saw of one prompt."""
    judged = verdict.of(positions, index=alive.index, seeds=alive.seeds)
    return Look(
        step=step,
        sigma=sigma,
        index=judged.index,
        scores=judged.scores,
        components={name: tuple(values) for name, values in judged.components.items()},
        errors={alive.index[i]: verdict.errors[i] for i in positions if i in verdict.errors},
        kept=kept,
        pictures=None if verdict.pictures is None else verdict.pictures[list(positions)],
    )


def _key(prompts: Sequence[str], walk: Walk, plan: Plan, *, candidates: int, seed: int) -> str:
    """Names a search: what has to be equal for a state to be taken up."""
    checks = [(check.step, check.sigma, check.keep, check.reading) for check in walk.checks]
    levels = [entry.noise_level for entry in plan]
    described = repr((list(prompts), checks, walk.branches, walk.scored, walk.rounding.__name__, levels))
    return f"{derive_seed('search', described, candidates, seed):016x}"


def _check_arguments(
    prompts: Sequence[str],
    plan: Plan,
    grid: NoiseGrid,
    rewards: Sequence[RewardModel | None],
    *,
    micro_batch: int,
    metadata: Metadata | None,
) -> None:
    if not prompts or isinstance(prompts, str):
        raise ValueError(f"prompts must be one or more texts in a sequence, got {prompts!r}")
    if len(plan) != grid.num_steps:
        raise ValueError(f"the plan has {len(plan)} steps and the grid {grid.num_steps}; make them equal")
    if any(entry.fan_out != 1 for entry in plan):
        raise ValueError("the plan of a search may not fork: every candidate is one walk")
    if micro_batch < 1:
        raise ValueError(f"micro_batch must be at least 1, got {micro_batch}")
    if metadata is not None and len(metadata) != len(prompts):
        raise ValueError(f"metadata has {len(metadata)} entries for {len(prompts)} prompts; give one each")
    for reward in rewards:
        if reward is not None and getattr(reward, "groupwise", False):
            raise ValueError(
                f"reward {reward.name} compares the samples of a prompt and cannot rank them; leave it out"
            )
