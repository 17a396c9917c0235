"""The last stage of a distillation: on held-out prompts, how well does who rank unfinished samples at which noise?

Each judge is asked level by level; what it said is kept on disk, so that an evaluation that was cut short goes on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from difalign.core.protocols import RewardModel
from difalign.objective.ranking import Estimate, agreement, over_prompts, shortfall
from difalign.report.agreement_page import AgreementRow, Measure, Measured
from difalign.report.log import write_text_atomically
from difalign.train.distill_reward import prompt_numbers
from difalign.train.team import Team

Progress = Callable[[str, int, int], None]  # (what is scored, rows done, rows in all)
Estimates = Callable[[float, Tensor], Tensor]  # (sigma, rows [B] int64) -> pixels or latents, [B, ...]

MEASURES = (
    Measure("spearman", "Spearman"),
    Measure("kendall", "Kendall τ-b"),
    Measure("survival", "Tacc"),
    Measure("shortfall", "Tgap", digits=4),
    Measure("top", "top-1 kept"),
    Measure("squared_error", "squared error", digits=5),
)


@dataclass(frozen=True, slots=True)
class Judge:
    """Who is asked, and about what."""

    name: str
    reward: Callable[[], RewardModel]  # loads it
    estimates: Estimates  # what it is handed of some rows at a level
    sigmas: tuple[float, ...]  # where it is asked
    identity: str  # changes when what it would say may change


def score_levels(
    judges: Sequence[Judge],
    folder: Path,
    *,
    prompts: Sequence[str],
    micro_batch: int,
    team: Team,
    progress: Progress,
) -> None:
    """Ask every judge at every one of its levels, and keep the scores; what is there already is not asked again.

    Args:
        judges: each with a name of its own.
        folder: for the scores.
        prompts: of the rows, N.
        micro_batch: rows a scoring.
        team: the processes, which share judges and levels out.
        progress: called after every scoring.

    Raises:
        ValueError: what scoring raises, or if a score is not finite.
    """
    wanted = [(judge, sigma) for judge in judges for sigma in judge.sigmas]
    missing = team.agree([place for place, (judge, sigma) in enumerate(wanted) if _read(folder, judge, sigma) is None])
    rewards: dict[str, RewardModel] = {}
    for place in team.share(missing):
        judge, sigma = wanted[place]
        if judge.name not in rewards:
            rewards[judge.name] = judge.reward()
        parts: list[Tensor] = []
        for rows in torch.arange(len(prompts)).split(micro_batch):
            parts.append(_score(rewards[judge.name], judge, sigma, rows, [prompts[int(row)] for row in rows]))
            progress(f"{judge.name} at sigma {sigma:.4f}", int(rows[-1]) + 1, len(prompts))
        scores = torch.cat(parts)
        content = {"judge": judge.name, "sigma": sigma, "identity": judge.identity, "scores": scores.tolist()}
        write_text_atomically(_path(folder, judge, sigma), json.dumps(content, allow_nan=False) + "\n")
    team.barrier()


def compare(
    judges: Sequence[Judge], folder: Path, *, prompts: Sequence[str], target: Tensor, keep: float
) -> list[AgreementRow]:
    """What the kept scores of every judge and level are worth, against the teacher's of the finished samples.

    Args:
        judges: all of them.
        folder: where ``score_levels`` kept what they said.
        prompts: of the rows, N.
        target: the teacher's scores of the finished samples, [N].
        keep: the share of a prompt's samples that is kept, for ``top``: is a best one among them?
    """
    belong = prompt_numbers(prompts)
    share = Fraction(keep).limit_denominator(1000)
    rows = []
    for judge in judges:
        for sigma in judge.sigmas:
            scores = _read(folder, judge, sigma)
            assert scores is not None, (judge.name, sigma)
            found = agreement(scores, target, belong)
            top = over_prompts([float(shortfall(scores[of], target[of], share) == 0.0) for of in _groups(belong)])
            measures = {name: _measured(getattr(found, name)) for name in found.__slots__} | {"top": _measured(top)}
            rows.append(AgreementRow(judge.name, sigma, top.prompts, measures))
    return rows


def as_json(rows: Sequence[AgreementRow], facts: Mapping[str, object]) -> str:
    """The rows as a JSON document, with what else is known of the evaluation; no figure is null."""
    levels = [
        {
            "judge": row.judge,
            "sigma": row.sigma,
            "prompts": row.prompts,
            "measures": {
                name: {"mean": _or_none(value.mean), "standard_error": _or_none(value.standard_error)}
                for name, value in row.measures.items()
            },
        }
        for row in rows
    ]
    return json.dumps({"format": 1, **facts, "rows": levels}, indent=2, allow_nan=False) + "\n"


@torch.no_grad()
def _score(reward: RewardModel, judge: Judge, sigma: float, rows: Tensor, texts: Sequence[str]) -> Tensor:
    scores = reward.score(judge.estimates(sigma, rows), texts, sigma=sigma).scores.float().cpu()
    wrong = rows[~scores.isfinite()].tolist()
    if wrong:
        raise ValueError(
            f"{judge.name} at sigma {sigma:g}: the scores of rows {wrong[:6]} are not finite; look at its weights"
        )
    return scores


def _path(folder: Path, judge: Judge, sigma: float) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', judge.name)}_{sigma:.6g}.json"


def _read(folder: Path, judge: Judge, sigma: float) -> Tensor | None:
    """The scores that were kept, None where there are none of this judge as it is now."""
    try:
        content = json.loads(_path(folder, judge, sigma).read_text(encoding="utf-8"))
        if content["identity"] == judge.identity and content["judge"] == judge.name:
            return torch.tensor(content["scores"], dtype=torch.float32)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _groups(belong: Tensor) -> list[Tensor]:
    return [belong == one for one in belong.unique()]


def _measured(value: Estimate) -> Measured:
    return Measured(value.mean, value.standard_error)


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
