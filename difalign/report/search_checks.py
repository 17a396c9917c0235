"""Whether the record of a search agrees with itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from difalign.report.search_records import LookRecord, ScoresRecord


def check_scores(scores: ScoresRecord, name: str) -> None:
    """What types cannot say: candidates exist and are lost in order, and the winner won.

    Args:
        scores: of one prompt.
        name: of the file, for the message.

    Raises:
        ValueError: for the first contradiction, with its key.
    """
    alive: set[int] = set(range(len(scores.seeds)))
    for key, look in [*((f"looks.{i}", look) for i, look in enumerate(scores.looks)), ("finish", scores.finish)]:
        _check_look(look, alive, f"{name}: {key}", finished=key == "finish")
        alive = set(look.kept)
    steps = [look.step for look in scores.looks]
    if steps != sorted(set(steps)):
        raise ValueError(f"{name}: looks stand at steps {steps}, which do not rise")
    strangers = sorted(set(scores.candidates) - set(range(len(scores.seeds))))
    if strangers:
        raise ValueError(f"{name}: candidates.{strangers[0]} has a picture, but there is no such candidate")
    _check_winner(scores, name)


def _check_look(look: LookRecord, alive: set[int], name: str, *, finished: bool) -> None:
    rows = len(look.index)
    if len(set(look.index)) != rows or not rows:
        raise ValueError(f"{name}.index is {list(look.index)}; it must name one or more candidates, each once")
    strangers = sorted(set(look.index) - alive)
    # A limit may have dropped all but the leader before the end; no look can lose anybody.
    missing = [] if finished else sorted(alive - set(look.index))
    if strangers or missing:
        raise ValueError(f"{name}.index and who was alive before differ in candidate {(strangers + missing)[0]}")
    for key, values in (("scores", look.scores), *((f"components.{n}", v) for n, v in look.components.items())):
        if len(values) != rows:
            raise ValueError(f"{name}.{key} has {len(values)} entries for {rows} candidates")
    for key, named in (("kept", look.kept), ("errors", tuple(look.errors))):
        unknown = [candidate for candidate in named if candidate not in look.index]
        if unknown or len(set(named)) != len(named):
            raise ValueError(f"{name}.{key} is {list(named)}; it must name candidates of index, each at most once")
    if (look.sigma is None) != finished:
        raise ValueError(f"{name}.sigma is {look.sigma}; it is null for finished samples and for them alone")
    if not look.kept and not finished:
        raise ValueError(f"{name}.kept is empty; somebody has to survive")


def _check_winner(scores: ScoresRecord, name: str) -> None:
    finish, winner = scores.finish, scores.winner
    judged = {i: score for i, score in zip(finish.index, finish.scores, strict=True) if score is not None}
    expected = () if winner is None else (winner.index,)
    if finish.kept != expected:
        raise ValueError(f"{name}: finish.kept is {list(finish.kept)} and the winner {list(expected)}; they must agree")
    if winner is None:
        if judged:
            raise ValueError(f"{name}: winner is null, but candidate {min(judged)} has a score")
        return
    if scores.seeds[winner.index] != winner.seed:
        raise ValueError(f"{name}: winner.seed is not that of candidate {winner.index}, {scores.seeds[winner.index]}")
    if judged.get(winner.index) != winner.score:
        raise ValueError(f"{name}: winner.score is {winner.score}, but finish says {judged.get(winner.index)}")
    best = max(judged, key=lambda i: (judged[i], -i))
    if scores.ranked_by == "score" and best != winner.index:
        raise ValueError(
            f"{name}: winner.index is {winner.index} with {winner.score}, but candidate {best} has {judged[best]}"
        )
