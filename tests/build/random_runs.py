"""The files of a small run on a model with random weights: card, reward, prompts, configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.sections import lay_over
from tests.train.small_runs import write_redness


def write_run(card: Path, *, train: Sequence[str], heldout: Sequence[str], **sections: Any) -> Path:
    """Write ``mine.yaml`` and what it needs beside the card of a pipeline; ``sections`` are laid over the base."""
    folder = card.parent
    base: dict[str, Any] = {
        "pipeline": str(card),
        "rewards": {"colour": {"card": str(write_redness(folder))}},
        "prompts": {"train": str(folder / "train.txt"), "heldout": str(folder / "heldout.txt")},
        "sampling": {"prompts_per_update": 2},
        "training": {"learning_rate": 0.02, "lora": {"rank": 2, "alpha": 6}, "rollouts": 2, "updates_per_rollout": 1},
        "evaluation": {"guidance": 2.0, "bootstrap_samples": 200},
    }
    (folder / "train.txt").write_text("\n".join(train))
    (folder / "heldout.txt").write_text("\n".join(heldout))
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(lay_over(base, sections), sort_keys=False))
    return file
