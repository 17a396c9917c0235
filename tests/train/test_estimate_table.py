"""What is read is what was stored, in any order; pictures are rounded to 8 bits whether they are kept or not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from difalign.train.estimate_store import FINAL, EstimateStore, ShardLabels, level_key, read_all_labels
from tests.train.distil_toys import TEACHER, filled, levels, pixels, table, teacher

ROWS = torch.tensor([14, 0, 7, 7, 3])
SIGMA = levels()[0.75]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EstimateStore:
    return filled(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def labels(store: EstimateStore) -> list[ShardLabels]:
    return read_all_labels(store, teacher=TEACHER)


def stored(store: EstimateStore, key: str) -> Tensor:
    return torch.cat([store.tensor(shard, key) for shard in range(4)])


def test_latents_are_read_as_they_are_sources_one_after_the_other(store: EstimateStore, labels: list[ShardLabels]):
    found = table(store, labels).latents(SIGMA, ROWS, ("state", "guided"))
    state, guided = (stored(store, level_key(source, SIGMA))[ROWS] for source in ("state", "guided"))
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.cat([state, guided], dim=1).float())


@pytest.mark.parametrize("cache", [False, True])
def test_pictures_are_of_8_bits(store: EstimateStore, labels: list[ShardLabels], cache: bool):
    read = table(store, labels, "state", cache=cache)
    wanted = (pixels(stored(store, level_key("state", SIGMA))[ROWS]) * 255).round() / 255
    for _ in range(2):
        assert torch.equal(read.media(SIGMA, ROWS), wanted)


def test_a_cache_decodes_each_row_of_a_level_once(store: EstimateStore, labels: list[ShardLabels]):
    decoded = []

    def count(latents: Tensor) -> Tensor:
        decoded.append(latents.shape[0])
        return pixels(latents)

    read = table(store, labels, decode=count, cache=True)
    for rows in (ROWS, torch.tensor([1, 0]), ROWS):
        read.media(SIGMA, rows)
    assert decoded == [4, 1]
    read.media(levels()[0.5], ROWS)
    read.media(SIGMA, ROWS)  # one level is kept at a time
    assert decoded == [4, 1, 4, 4]
    bare = table(store, labels, decode=count)
    for _ in range(2):
        bare.media(SIGMA, ROWS)
    assert decoded[4:] == [5, 5]


def test_targets_and_prompts_are_those_of_the_rows(store: EstimateStore, labels: list[ShardLabels]):
    read = table(store, labels)
    assert list(read.prompts) == ["0.5"] * 5 + ["-1"] * 5 + ["0.25"] * 5
    wanted = teacher().score(pixels(stored(store, FINAL)), ["x"] * 15).scores
    assert torch.allclose(read.target, wanted, atol=1e-6)


def test_rows_without_a_score_are_left_out(store: EstimateStore, labels: list[ShardLabels]):
    first = ShardLabels(TEACHER, (None, *labels[0].scores[1:3], None), {})
    read = table(store, [first, *labels[1:]])
    assert len(read.prompts) == read.target.numel() == 13
    kept = stored(store, level_key("guided", SIGMA))[[1, 2, 4]].float()
    assert torch.equal(read.latents(SIGMA, torch.tensor([0, 1, 2]), ["guided"]), kept)
    assert read.target[2] == labels[1].scores[0]
