"""Write the prompt lists of the scene grammar: training prompts, and held-out compositions no training ever sees.

    python samples/recipes/write_tiny_prompts.py --out samples/prompts

One JSON object a line: the prompt and its kind. The draw is fixed; running it again writes the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from difalign.embedded.scenes import KINDS, Kind, all_specs, is_held_out

TRAIN_PER_KIND: dict[Kind, int] = {
    "single": 19,
    "place": 60,
    "count": 54,
    "two": 120,
    "relation": 150,
    "count_pair": 120,
}
HELD_OUT_PER_KIND: dict[Kind, int] = {
    "single": 5,
    "place": 21,
    "count": 18,
    "two": 80,
    "relation": 100,
    "count_pair": 90,
}


def prompt_lines(per_kind: dict[Kind, int], *, held_out: bool, seed: int) -> list[str]:
    """JSON lines, kinds in order, compositions drawn without repetition.

    Raises:
        ValueError: if a kind has fewer compositions than asked for.
    """
    rng = np.random.default_rng(seed)
    lines = []
    for kind in KINDS:
        pool = [spec for spec in all_specs(kind) if is_held_out(spec) == held_out]
        if len(pool) < per_kind[kind]:
            raise ValueError(f"kind {kind} has {len(pool)} compositions, {per_kind[kind]} were asked for")
        rows = sorted(rng.choice(len(pool), size=per_kind[kind], replace=False))
        lines += [json.dumps({"prompt": pool[row].caption, "kind": kind}) for row in rows]
    return lines


def main() -> None:
    """Write both lists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, per_kind, held_out in (("tiny_train", TRAIN_PER_KIND, False), ("tiny_heldout", HELD_OUT_PER_KIND, True)):
        lines = prompt_lines(per_kind, held_out=held_out, seed=0)
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
