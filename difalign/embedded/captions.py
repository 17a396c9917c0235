"""Captions of the scene grammar by number: many to learn from, none of a composition that is held out."""

from __future__ import annotations

import numpy as np

from difalign.embedded.scenes import KINDS, all_specs, is_held_out


def training_captions(number: int, *, seed: int) -> tuple[str, ...]:
    """So many captions that are not held out, drawn without repetition from all kinds in turn.

    Kinds have an equal share each, as far as they have that many; a smaller number is the beginning of a larger one.

    Raises:
        ValueError: if the grammar has fewer.
    """
    rng = np.random.default_rng(seed)
    pools = [[spec.caption for spec in all_specs(kind) if not is_held_out(spec)] for kind in KINDS]
    most = sum(map(len, pools))
    if not 1 <= number <= most:
        raise ValueError(f"{number} captions: the grammar has {most} that are not held out; ask for 1 to {most}")
    orders = [[pool[place] for place in rng.permutation(len(pool))] for pool in pools]
    turns = (order[turn] for turn in range(max(map(len, orders))) for order in orders if turn < len(order))
    return tuple(caption for caption, _ in zip(turns, range(number), strict=False))
