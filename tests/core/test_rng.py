"""Random keys are stable, distinct, and independent of who asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from difalign.core.rng import derive_seed, generator, row_seed


def test_seeds_are_stable_across_versions() -> None:
    assert derive_seed("row", 0, "a red circle", 1, 2) == row_seed(0, "a red circle", 1, 2)
    assert derive_seed(0) == 5254295370254170289
    assert row_seed(42, "a red circle", 0, 0) == 450263621803548094


def test_any_difference_in_the_key_changes_the_seed() -> None:
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1), (10, "a", 0, 0)]
    seeds = {row_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert derive_seed("1") != derive_seed(1)
    assert derive_seed("a", "b") != derive_seed("ab")
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_integers_of_other_libraries_are_the_same_number() -> None:
    three = torch.tensor(3)
    assert derive_seed(np.int64(3)) == derive_seed(3)  # pyright: ignore[reportArgumentType]
    assert derive_seed(three) == derive_seed(3)  # pyright: ignore[reportArgumentType]


def test_floats_are_no_keys() -> None:
    with pytest.raises(TypeError):
        derive_seed(0.5)  # pyright: ignore[reportArgumentType]


def test_seeds_fit_a_torch_generator() -> None:
    assert all(0 <= derive_seed(i) < 2**63 for i in range(200))


def test_a_row_draws_the_same_noise_alone_and_in_a_batch() -> None:
    alone = torch.randn(4, generator=generator("noise", 7))
    batch = torch.stack([torch.randn(4, generator=generator("noise", i)) for i in (3, 7, 5)])
    assert torch.equal(batch[1], alone)


def test_a_generator_does_not_touch_the_global_state() -> None:
    before = torch.random.get_rng_state()
    torch.randn(3, generator=generator(1))
    assert torch.equal(torch.random.get_rng_state(), before)
