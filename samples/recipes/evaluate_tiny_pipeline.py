"""Measure a pipeline that draws scenes with diffusers alone and the verifier, and draw its contact sheet.

    python samples/recipes/evaluate_tiny_pipeline.py --card tiny-sd3 --out runs/tiny-sd3-figures
    python samples/recipes/evaluate_tiny_pipeline.py --card tiny-sd15 --pipeline runs/tiny-sd15/pipeline --out runs/new

The card names the folder, the steps and the guidance; ``--pipeline`` measures another folder under the same. Every kind
of prompt gets the same number of pictures, from fixed seeds, with guidance and without. Leaves ``figures.json`` (strict
and partial correctness by kind, with standard errors) and ``sheet.png`` (every 23rd picture of each kind, good or bad).
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline
from rich.progress import track

from difalign.build.cards import load_pipeline_card
from difalign.embedded.scenes import KINDS, parse_caption
from difalign.embedded.verifier import verify
from difalign.report.images import labelled_grid, save_grid
from difalign.report.records import SampleRecord

BATCH = 64
CALL_OPTIONS = ("max_sequence_length",)  # of a card, which the diffusers call takes as well


def draw_prompts(path: Path, per_kind: int) -> list[str]:
    """``per_kind`` prompts of each kind, kinds in order, the prompts of a kind in turn until there are enough."""
    listed = [json.loads(line)["prompt"] for line in path.read_text().splitlines()]
    pools = {kind: [text for text in listed if parse_caption(text).kind == kind] for kind in KINDS}
    return [pools[kind][i % len(pools[kind])] for kind in KINDS for i in range(per_kind)]


@torch.no_grad()
def draw(pipe: Any, prompts: Sequence[str], *, steps: int, guidance: float, options: Mapping[str, Any]) -> np.ndarray:
    """Pictures of the prompts, [N, 3, H, W] in [0, 1]; the seed of a picture is its position."""
    parts = []
    for start in track(range(0, len(prompts), BATCH), description=f"guidance {guidance:g}"):
        rows = range(start, min(start + BATCH, len(prompts)))
        images = pipe(
            [prompts[row] for row in rows],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(row) for row in rows],
            output_type="np",
            **options,
        ).images
        parts.append(images.transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def mean_and_error(values: np.ndarray) -> dict[str, float]:
    """The mean and its standard error."""
    return {"mean": round(float(values.mean()), 4), "se": round(float(values.std(ddof=1) / len(values) ** 0.5), 4)}


def measure(
    pipe: Any, prompts: Sequence[str], *, steps: int, guidance: float, options: Mapping[str, Any]
) -> tuple[dict[str, Any], np.ndarray]:
    """Strict and partial correctness by kind and as the mean over kinds; and the pictures."""
    images = draw(pipe, prompts, steps=steps, guidance=guidance, options=options)
    scores = verify(images.astype(np.float32), prompts)
    per_kind = len(prompts) // len(KINDS)
    figures: dict[str, Any] = {"steps": steps, "guidance": guidance, "images_per_kind": per_kind}
    for name, values in (("strict", scores.strict), ("partial", scores.partial)):
        by_kind = values.reshape(len(KINDS), per_kind)
        figures[name] = {kind: mean_and_error(row) for kind, row in zip(KINDS, by_kind, strict=True)}
        spread = (by_kind.var(axis=1, ddof=1).sum() / per_kind) ** 0.5 / len(KINDS)
        figures[name]["overall"] = {"mean": round(float(by_kind.mean()), 4), "se": round(float(spread), 4)}
    return figures, images


def sheet_rows(per_kind: int, columns: int) -> list[int]:
    """Which pictures the sheet shows: of each kind every 23rd, wherever that leads."""
    return [k * per_kind + (23 * i) % per_kind for k in range(len(KINDS)) for i in range(columns)]


def main() -> None:
    """Measure held-out and training compositions, with guidance and without."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", default="tiny-sd3")
    parser.add_argument("--pipeline", type=Path, help="default: the card's")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, default=Path("samples/prompts"))
    parser.add_argument("--per-kind", type=int, default=200)
    parser.add_argument("--sheet-columns", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = load_pipeline_card(args.card)
    card = found.card
    options = {name: value for name, value in card.options.items() if name in CALL_OPTIONS}
    pipe = DiffusionPipeline.from_pretrained(args.pipeline or found.weights(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    report: dict[str, Any] = {}
    started = time.process_time()
    for split in ("heldout", "train"):
        prompts = draw_prompts(args.prompts / f"tiny_{split}.jsonl", args.per_kind)
        for guidance in (card.guidance, 1.0):
            figures, images = measure(pipe, prompts, steps=card.steps, guidance=guidance, options=options)
            report[f"{split}, guidance {guidance:g}"] = figures
            print(split, guidance, {kind: row["mean"] for kind, row in figures["strict"].items()})
            if (split, guidance) == ("heldout", card.guidance):
                shown = sheet_rows(args.per_kind, args.sheet_columns)
                records = [
                    SampleRecord(prompts[row], parse_caption(prompts[row]).kind, row, {"total": float(score)}, row)
                    for row, score in zip(
                        shown, verify(images[shown], [prompts[row] for row in shown]).strict, strict=True
                    )
                ]
                save_grid(labelled_grid(images[shown], records, columns=args.sheet_columns), args.out / "sheet.png")
    report["versions"] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "python": platform.python_version(),
    }
    report["processor_seconds"] = round(time.process_time() - started, 1)
    (args.out / "figures.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
