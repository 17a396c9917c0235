"""Measure a tiny-clip folder: retrieval, captions with one change, and agreement with the verifier.

    python samples/recipes/evaluate_tiny_clip.py --model reward_models/tiny-clip --out runs/tiny-clip-figures

Agreement is measured on pictures that a pipeline draws from held-out prompts, many of each prompt: whether the reward
orders them as the verifier does, and what picking the best by the reward gives. Leaves ``figures.json`` and
``sheet.png`` (one prompt of each kind, its pictures from the highest score to the lowest).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from clip_measures import FRAME, preferences, retrieval
from diffusers import DiffusionPipeline
from evaluate_tiny_pipeline import CALL_OPTIONS, draw, draw_prompts
from numpy.typing import NDArray
from scipy.stats import rankdata, spearmanr

from difalign.build.cards import load_pipeline_card
from difalign.embedded.scenes import KINDS, SIZE, parse_caption
from difalign.embedded.verifier import verify
from difalign.report.images import labelled_grid, save_grid
from difalign.report.records import SampleRecord
from difalign.reward_models.clip import ClipReward

PAIRS = 512
RESAMPLED = 500
SHOWN = 8  # pictures of a prompt on the sheet

Matrix = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Scored:
    """Pictures of prompts, and what verifier and reward say of them."""

    prompts: list[str]  # P
    images: Matrix  # [P, K, 3, H, W]
    strict: Matrix  # [P, K]
    partial: Matrix  # [P, K]
    reward: Matrix  # [P, K]


def draw_scored(reward: ClipReward, name: str, prompts: list[str], per_prompt: int) -> Scored:
    """``per_prompt`` pictures of each prompt by a pipeline as its card has it; a picture's seed is its position."""
    found = load_pipeline_card(name)
    pipe = DiffusionPipeline.from_pretrained(found.weights(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    options = {key: value for key, value in found.card.options.items() if key in CALL_OPTIONS}
    texts = [prompt for prompt in prompts for _ in range(per_prompt)]
    drawn = draw(pipe, texts, steps=found.card.steps, guidance=found.card.guidance, options=options)
    images = drawn.astype(np.float32)
    verdicts = verify(images, texts)
    with torch.no_grad():
        scores = reward.score(torch.from_numpy(images), texts).scores.numpy()
    shape = (len(prompts), per_prompt)
    strict, partial, scores = (values.reshape(shape) for values in (verdicts.strict, verdicts.partial, scores))
    return Scored(prompts, images.reshape(*shape, *images.shape[1:]), strict, partial, scores)


def area_under_curve(scores: Matrix, right: Matrix) -> float:
    """How often a picture that is right scores higher than one that is wrong, ties half; both must occur."""
    positive = right.astype(bool)
    ranks = rankdata(scores)
    number = positive.sum()
    return float((ranks[positive].sum() - number * (number + 1) / 2) / (number * (~positive).sum()))


def best_of(values: Matrix, by: Matrix) -> Matrix:
    """The value of each prompt's picture that is highest by another measure, [P]."""
    return np.take_along_axis(values, by.argmax(axis=1, keepdims=True), axis=1)[:, 0]


def over_prompts(values: Sequence[float] | Matrix) -> dict[str, float]:
    """Mean over prompts with its standard error, and how many prompts."""
    array = np.asarray(values, dtype=np.float64)
    return {
        "mean": round(float(array.mean()), 4),
        "se": round(float(array.std(ddof=1) / len(array) ** 0.5), 4),
        "n": len(array),
    }


def resampled(measure: Callable[[NDArray[np.intp]], float], prompts: int, seed: int) -> dict[str, float]:
    """A measure over all prompts, with the deviation that drawing the prompts anew gives it."""
    rng = np.random.default_rng(seed)
    values = [measure(rng.integers(prompts, size=prompts)) for _ in range(RESAMPLED)]
    return {"mean": round(measure(np.arange(prompts)), 4), "se": round(float(np.std(values)), 4), "n": prompts}


def agreement(scored: Scored) -> dict[str, Any]:
    """Order and choice by the reward, held against the verifier."""
    strict, partial, reward = scored.strict, scored.partial, scored.reward
    number = len(scored.prompts)
    varied = [p for p in range(number) if np.ptp(partial[p]) > 0]
    mixed = [p for p in range(number) if 0 < strict[p].mean() < 1]
    exact = strict + partial  # what is right comes before what is nearly so
    choices = {"one": None, "by_reward": reward, "by_verifier": exact}
    return {
        "pictures_per_prompt": strict.shape[1],
        "spearman_within_prompt": over_prompts([spearmanr(reward[p], partial[p]).statistic for p in varied]),
        "spearman_over_all": resampled(
            lambda rows: float(spearmanr(reward[rows].ravel(), partial[rows].ravel()).statistic), number, 0
        ),
        "auc_strict_within_prompt": over_prompts([area_under_curve(reward[p], strict[p]) for p in mixed]),
        "auc_strict_over_all": resampled(
            lambda rows: area_under_curve(reward[rows].ravel(), strict[rows].ravel()), number, 0
        ),
        "best_of": {
            name: {
                measure: over_prompts(values.mean(axis=1) if by is None else best_of(values, by))
                for measure, values in (("strict", strict), ("partial", partial))
            }
            for name, by in choices.items()
        },
    }


def recognition(reward: ClipReward, *, pairs: int, per_change: int, seed: int) -> dict[str, Any]:
    """Retrieval and preferences on both splits, at the model's own size and framed as tiny-sd15's pictures are."""
    figures: dict[str, Any] = {}
    for split in ("heldout", "train"):
        for side in (SIZE, FRAME):
            found = retrieval(reward, split, number=pairs, seed=seed, side=side)
            shares = preferences(reward, split, number=per_change, seed=seed, side=side)
            figures[f"{split}, {side} pixels"] = {
                "retrieval": asdict(found),
                "prefers_true_caption": {change: share.plain() for change, share in shares.items()},
            }
    return figures


def save_sheet(scored: Scored, path: Path) -> None:
    """Of each kind the first prompt with right and wrong pictures, its pictures by falling score, every other one."""
    chosen = []
    for kind in KINDS:
        rows = [p for p, prompt in enumerate(scored.prompts) if parse_caption(prompt).kind == kind]
        chosen.append(next((p for p in rows if 0 < scored.strict[p].mean() < 1), rows[0]))
    images, records = [], []
    for p in chosen:
        ranked = (-scored.reward[p]).argsort()
        for k in ranked[np.linspace(0, len(ranked) - 1, SHOWN).round().astype(int)]:
            verdict = "correct" if scored.strict[p, k] else "wrong"
            images.append(scored.images[p, k])
            text = f"{scored.prompts[p]}: {verdict}"
            kind = parse_caption(scored.prompts[p]).kind
            records.append(SampleRecord(text, kind, int(k), {"total": float(scored.reward[p, k])}, p))
    save_grid(labelled_grid(np.stack(images), records, columns=SHOWN), path)


def main() -> None:
    """Measure everything and write the figures and the sheet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--card", default="tiny-sd3", help="the pipeline whose pictures are scored")
    parser.add_argument("--prompts", type=Path, default=Path("samples/prompts/tiny_heldout.jsonl"))
    parser.add_argument("--prompts-per-kind", type=int, default=16)
    parser.add_argument("--pictures-per-prompt", type=int, default=16)
    parser.add_argument("--per-change", type=int, default=500, help="pairs of captions for each kind of change")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.process_time()
    reward = ClipReward.from_pretrained(args.model)
    report = recognition(reward, pairs=PAIRS, per_change=args.per_change, seed=args.seed)
    scored = draw_scored(reward, args.card, draw_prompts(args.prompts, args.prompts_per_kind), args.pictures_per_prompt)
    report["agreement"] = {"pictures_by": args.card, **agreement(scored)}
    save_sheet(scored, args.out / "sheet.png")
    report["seed"] = args.seed
    report["versions"] = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
    report["processor_seconds"] = round(time.process_time() - started, 1)
    (args.out / "figures.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
