"""Is a reward what its card says: shapes, repeatability, independence of the batch, prompt, gradient, stored values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from difalign.build.cards import REWARDS, Found, RewardCard
from difalign.build.check_pictures import CheckPicture, check_pictures, digest
from difalign.build.definitions import definition_roots, find_shipped
from difalign.build.reward_files import obstacles
from difalign.build.score_pictures import Scorer, load_scorer, unreadable
from difalign.core.config_rewards import RewardConfig
from difalign.core.errors import ConfigError
from difalign.core.prompts import Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from difalign.core.protocols import RewardModel
    from difalign.core.types import RewardOutput

VALUES_FILE = "check_values.json"
STORED_TOLERANCE = 1e-4  # of the largest |score|, against the stored values: other machines round differently
BATCH_TOLERANCE = 1e-5  # of the largest |score|, between batches on one machine
_GROUP_PROMPT = "a picture"  # of all, for a reward that compares the pictures of a prompt
_DIGITS = 7  # significant ones of a stored value


@dataclass(frozen=True, slots=True)
class StoredValues:
    """What the rewards gave on the pictures, where they were written down."""

    pictures: str  # digest
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # card's name -> a score a picture
    reads_prompt: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one reward."""

    name: str
    status: Literal["ok", "failed", "skipped"]
    remarks: tuple[str, ...]  # what failed, or why it was skipped; for "ok" what there is to know
    scores: tuple[float, ...] = ()
    reads_prompt: bool | None = None


def read_stored(file: Path | None = None) -> StoredValues | None:
    """The stored values that are shipped, or of a file; None where there are none."""
    found = find_shipped(f"{REWARDS}/{VALUES_FILE}") if file is None else file
    if found is None or not found.is_file():
        return None
    content = json.loads(found.read_text(encoding="utf-8"))
    rewards = content["rewards"]
    return StoredValues(
        content["pictures"],
        {name: tuple(entry["scores"]) for name, entry in rewards.items()},
        {name: entry["reads_prompt"] for name, entry in rewards.items()},
    )


def write_stored(results: Sequence[CheckResult], file: Path | None = None) -> Path:
    """Store the values of every reward that was checked beside those of the others; returns the file.

    Raises:
        ConfigError: if a reward has failed, whose values must not become the rule.
    """
    path = definition_roots()[0] / REWARDS / VALUES_FILE if file is None else file
    failed = [result.name for result in results if result.status == "failed" and not _only_moved(result)]
    if failed:
        raise ConfigError(f"{', '.join(failed)} failed; values of a reward that fails are not stored")
    pictures = digest(check_pictures())
    old = read_stored(path)
    rewards: dict[str, object] = {}
    if old is not None and old.pictures == pictures:
        rewards = {
            name: {"reads_prompt": old.reads_prompt[name], "scores": list(old.scores[name])} for name in old.scores
        }
    for result in results:
        if result.scores:
            scores = [float(f"{score:.{_DIGITS}g}") for score in result.scores]
            rewards[result.name] = {"reads_prompt": result.reads_prompt, "scores": scores}
    content = {
        "pictures": pictures,
        "tolerance": f"{STORED_TOLERANCE:g} of the largest |score| of a reward",
        "rewards": dict(sorted(rewards.items())),
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def check_reward(found: Found[RewardCard], stored: StoredValues | None, *, device: str = "cpu") -> CheckResult:
    """Load a reward and check it, or say why it cannot be loaded here without a download.

    A reward fails where it breaks what its card says; without stored values it is checked for everything else.
    """
    card = found.card
    missing = tuple(obstacles(found))
    if missing:
        return CheckResult(card.name, "skipped", missing)
    scorer = Scorer(found, RewardConfig())
    pictures = [
        picture
        for picture in check_pictures()
        if not list(unreadable(scorer, [Prompt(picture.prompt, metadata=picture.metadata)]))
    ]
    if len(pictures) < 2:
        return CheckResult(card.name, "skipped", ("none of the pictures has a prompt that it can read",))
    try:
        reward = load_scorer(card.name, scorer, device)
    except ConfigError as error:
        return CheckResult(card.name, "failed", (str(error),))
    seen = _Seen()
    try:
        for batch in _Batch.by_size(pictures, groupwise=card.groupwise):
            _look(reward, batch, seen, differentiable=card.differentiable)
    except ValueError as error:
        return CheckResult(card.name, "failed", (f"refused the pictures: {error}",))
    if reward.differentiable != card.differentiable:
        seen.problems.append(
            f"says differentiable = {reward.differentiable}, and its card {card.differentiable}: correct one of them"
        )
    notes: list[str] = []
    if stored is None or card.name not in stored.scores:
        notes.append("no stored values")
    elif not seen.problems:
        seen.problems += _moved(card.name, seen.scores, seen.reads_prompt, stored)
    status = "failed" if seen.problems else "ok"
    remarks = tuple(dict.fromkeys(seen.problems or notes))
    return CheckResult(card.name, status, remarks, tuple(seen.scores), seen.reads_prompt)


@dataclass(slots=True)
class _Seen:
    """What the batches have shown so far."""

    scores: list[float] = field(default_factory=list)
    reads_prompt: bool = False
    problems: list[str] = field(default_factory=list)


def _look(reward: RewardModel, batch: _Batch, seen: _Seen, *, differentiable: bool) -> None:
    import torch

    with torch.no_grad():
        scores, problems = _measure(reward, batch)
        seen.problems += problems
        if scores is None:
            return
        seen.scores += scores.tolist()
        seen.reads_prompt = seen.reads_prompt or _reads_prompt(reward, batch, scores)
    if differentiable:
        seen.problems += _gradient_problems(reward, batch)


@dataclass(frozen=True, slots=True)
class _Batch:
    media: Tensor  # [N, 3, H, W]
    prompts: list[str]
    metadata: list[Mapping[str, object]]

    @classmethod
    def by_size(cls, pictures: Sequence[CheckPicture], *, groupwise: bool) -> Iterator[_Batch]:
        """Pictures of one size together, in their order."""
        import numpy as np
        import torch

        for size in dict.fromkeys(picture.pixels.shape for picture in pictures):
            chosen = [picture for picture in pictures if picture.pixels.shape == size]
            pixels = np.stack([picture.pixels for picture in chosen])
            yield cls(
                torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0,
                [_GROUP_PROMPT if groupwise else picture.prompt for picture in chosen],
                [picture.metadata for picture in chosen],
            )

    def rows(self, rows: Sequence[int]) -> _Batch:
        return _Batch(self.media[list(rows)], [self.prompts[row] for row in rows], [self.metadata[row] for row in rows])

    def score(self, reward: RewardModel) -> RewardOutput:
        return reward.score(self.media, self.prompts, metadata=self.metadata)


def _measure(reward: RewardModel, batch: _Batch) -> tuple[Tensor | None, list[str]]:
    """The scores of the whole batch, and what is wrong with them; None where they are no scores at all."""
    import torch

    output = batch.score(reward)
    count = len(batch.prompts)
    if output.scores.shape != (count,) or output.scores.dtype != torch.float32:
        shape = f"{tuple(output.scores.shape)} {str(output.scores.dtype).removeprefix('torch.')}"
        return None, [f"gave scores of shape {shape} for {count} pictures; must be ({count},) float32"]
    if not torch.isfinite(output.scores).all():
        why = next(iter(output.errors.values()), "without saying why")
        return None, [f"could not score {int((~torch.isfinite(output.scores)).sum())} of {count} pictures: {why}"]
    scores = output.scores.detach().cpu()
    problems = []
    if not _close(batch.score(reward).scores, scores):
        problems.append("gives other scores the second time")
    if getattr(reward, "groupwise", False):
        order = list(range(count))[::-1]
        if not _close(batch.rows(order).score(reward).scores.flip(0), scores):
            problems.append("gives other scores when the pictures of a prompt come in another order")
    else:
        alone = torch.cat([batch.rows([row]).score(reward).scores.cpu() for row in range(count)])
        if not _close(alone, scores):
            apart = float((alone - scores).abs().max())
            problems.append(f"scores a picture otherwise alone than in a batch, by up to {apart:.3g}")
    return scores, problems


def _reads_prompt(reward: RewardModel, batch: _Batch, scores: Tensor) -> bool:
    """Whether scores change when every picture gets the next one's prompt."""
    order = [*range(1, len(batch.prompts)), 0]
    other = batch.rows(order)
    return not _close(_Batch(batch.media, other.prompts, other.metadata).score(reward).scores, scores)


def _gradient_problems(reward: RewardModel, batch: _Batch) -> Iterator[str]:
    import torch

    media = batch.media.clone().requires_grad_(True)
    with torch.enable_grad():
        scores = _Batch(media, batch.prompts, batch.metadata).score(reward).scores
        if not scores.requires_grad:
            yield "is differentiable by its card, and its scores carry no gradient"
            return
        # Of the first score alone: what reaches other pictures comes from batch mates.
        (gradient,) = torch.autograd.grad(scores[0], media)
    if not torch.isfinite(gradient).all():
        yield "has a gradient that is not finite"
    elif not gradient[0].any():
        yield "has a gradient of zero"
    elif gradient[1:].any() and not getattr(reward, "groupwise", False):
        yield "has a score whose gradient reaches other pictures of the batch"


def _moved(name: str, values: Sequence[float], reads_prompt: bool | None, stored: StoredValues) -> Iterator[str]:
    """How values differ from the stored ones."""
    if stored.pictures != digest(check_pictures()):
        yield f"{_MOVED}: the pictures are not those that the values were stored for"
        return
    kept = stored.scores[name]
    if len(kept) != len(values):
        yield f"{_MOVED}: {len(kept)} values are stored, and {len(values)} pictures were scored"
        return
    allowed = STORED_TOLERANCE * max(map(abs, kept))
    worst, value, old = max((abs(value - old), value, old) for value, old in zip(values, kept, strict=True))
    if worst > allowed:
        yield f"{_MOVED}: {value:.7g} in place of {old:.7g}, more than {allowed:.2g} apart"
    if reads_prompt != stored.reads_prompt[name]:
        yield f"{_MOVED}: it {'reads' if reads_prompt else 'no longer reads'} the prompt"


_MOVED = "differs from what is stored"


def _only_moved(result: CheckResult) -> bool:
    return bool(result.scores) and all(remark.startswith(_MOVED) for remark in result.remarks)


def _close(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach().cpu(), b.detach().cpu()
    return bool(((a - b).abs() <= BATCH_TOLERANCE * b.abs().max()).all())
