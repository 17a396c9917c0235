"""Search methods as data: a schedule, a rule that ranks on the way, and one that ranks finished samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from difalign.core.protocols import RewardModel
from difalign.core.types import Branch, NoiseGrid, Reading
from difalign.search.budget import Walk
from difalign.search.ranking import Ranking, at_random, by_score
from difalign.search.reading import reading_of
from difalign.search.schedule import Rounding, Stage, half_up, halving, resolve


@dataclass(frozen=True, slots=True)
class Method:
    """How candidates become one winner; best-of-N as it stands."""

    stages: tuple[Stage, ...] = ()
    ranking: Ranking = by_score
    scored: bool = True  # whether ``ranking`` reads scores; where not, nothing is decoded on the way
    final: Ranking = by_score  # of finished samples, on scores of the reward for clean pictures
    rounding: Rounding = half_up

    def walk(self, grid: NoiseGrid, *, judge: RewardModel, branches: int = 1) -> Walk:
        """What decides the cost of this method on a grid.

        Args:
            grid: the chain, T steps.
            judge: of the estimates.
            branches: evaluations of the network a row, 2 under classifier-free guidance.

        Raises:
            ValueError: if a stage does not fit the grid or the judge, or the noise does not fall from stage to stage.
        """

        def reads(sigma: float, branch: Branch | None) -> Reading:
            return reading_of(judge, sigma=sigma, branch=branch) if self.scored else Reading()

        return Walk(resolve(self.stages, grid, reads=reads), grid.num_steps, branches, self.scored, self.rounding)


def best_of_n(*, final: Ranking = by_score) -> Method:
    """Every candidate is walked to the end and the best is taken."""
    return Method(final=final)


def pruned(stages: Sequence[Stage], *, ranking: Ranking = by_score, final: Ranking | None = None) -> Method:
    """The best clean estimates of every stage are walked on (TTSnap, arXiv 2511.22242).

    With an un-adapted reward as judge of the estimates this is the control that the paper's code calls TTSp.

    Args:
        stages: falling in sigma.
        ranking: of estimates.
        final: of finished samples; None is ``ranking``.
    """
    return Method(tuple(stages), ranking, final=ranking if final is None else final)


def random_pruning(stages: Sequence[Stage], *, final: Ranking = by_score) -> Method:
    """The same numbers survive, drawn without looking: best-of-N among those that are left, for fewer evaluations."""
    return Method(tuple(stages), at_random, scored=False, final=final)


def successive_halving(
    num_steps: int, *, rounds: int, first_step: int, keep: float = 0.5, ranking: Ranking = by_score
) -> Method:
    """Pruning at geometrically spaced steps by one share; see ``schedule.halving``."""
    return pruned(halving(num_steps, rounds=rounds, first_step=first_step, keep=keep), ranking=ranking)
