"""Stored walks are those of the rollout, whoever makes them and however often; scores are the teacher's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from difalign.core.errors import ConfigError
from difalign.core.types import Metadata, RewardOutput
from difalign.rollout.estimates import walk_estimates
from difalign.train.estimate_generation import generate, half_precision, label
from difalign.train.estimate_store import FINAL, EstimateStore, level_key, open_store, read_all_labels
from tests.train.distil_toys import STEPS, TEACHER, Solo, filled, levels, pipeline, pixels, plan, silent, teacher, walk


def files(store: EstimateStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


def test_a_stored_row_is_the_walk_of_its_prompt_and_seed(tmp_path: Path):
    store, model = filled(tmp_path, labelled=False), pipeline()
    for row in (0, 6, 14):
        shard, place = divmod(row, 4)
        alone = walk_estimates(
            model,
            condition=model.encode([store.plan.prompt_of(row).text]),
            prompt_index=torch.zeros(1, dtype=torch.int64),
            seeds=[store.plan.seed_of(row)],
            num_steps=STEPS,
            sigmas=[0.75, 0.5],
            sources=("guided", "state"),
        )
        assert torch.equal(store.tensor(shard, FINAL)[place], alone.final[0])
        for source in ("guided", "state"):
            for sigma, shown in zip(alone.sigmas, alone.clean[source], strict=True):
                assert torch.equal(store.tensor(shard, level_key(source, sigma))[place], shown[0].half())


def test_only_what_is_missing_is_made_and_it_is_the_same(tmp_path: Path):
    store = filled(tmp_path)
    before = files(store)
    store.shard_path(1).unlink()
    store.shard_path(3).unlink()
    model, again = pipeline(), open_store(tmp_path, plan(), levels=levels())
    assert generate(model, again, walk(), team=Solo(), progress=silent) == 7
    assert sum(model.batches) == 7 * STEPS
    assert files(again) == before


def test_processes_share_the_shards_out(tmp_path: Path):
    whole = filled(tmp_path / "whole", labelled=False)
    store = open_store(tmp_path / "parts", plan(), levels=levels())
    wanted = [
        generate(pipeline(), store, walk(), team=_Agreed(rank, [0, 1, 2, 3]), progress=silent) for rank in range(2)
    ]
    assert wanted == [8, 7]
    assert files(store) == files(whole)


class _Agreed(Solo):
    """One of two processes that looked at the folder at the same time."""

    def __init__(self, rank: int, missing: list[int]) -> None:
        super().__init__(rank, 2)
        self.missing = missing

    def agree(self, value):
        return self.missing


def test_progress_counts_what_this_process_evaluates(tmp_path: Path):
    store, seen = open_store(tmp_path, plan(), levels=levels()), []
    generate(pipeline(), store, walk(micro_batch=16), team=Solo(), progress=lambda *at: seen.append(at))
    assert seen[-1] == (60, 60)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {60}


@pytest.mark.parametrize("value", [1e6, float("nan")])
def test_latents_that_do_not_fit_half_precision(value: float):
    with pytest.raises(ValueError, match=r"sampling\.store=pixels"):
        half_precision(torch.tensor([1.0, value]))


def test_the_label_is_the_teachers_score_of_the_finished_sample(tmp_path: Path):
    store = filled(tmp_path)
    found = read_all_labels(store, teacher=TEACHER)
    finished = torch.cat([store.tensor(shard, FINAL) for shard in range(4)])
    wanted = teacher().score(pixels(finished), ["x"] * 15).scores
    assert torch.allclose(torch.tensor([score for labels in found for score in labels.scores]), wanted, atol=1e-6)


class Picky:
    """Cannot score some rows, and says of one that it is no number."""

    name, differentiable = "picky", False

    def __init__(self) -> None:
        self.calls = 0
        self.metadata: list[object] = []

    def score(
        self, media: Tensor, prompts: Sequence[str], *, metadata: Metadata | None = None, sigma: float | None = None
    ) -> RewardOutput:
        assert sigma is None
        self.calls += 1
        self.metadata += list(metadata or ())
        scores = media.flatten(1).mean(dim=1)
        scores[0] = float("nan")
        valid = torch.ones(len(prompts), dtype=torch.bool)
        valid[-1] = False
        return RewardOutput(scores, valid=valid, errors={len(prompts) - 1: "no scene"})


def test_rows_that_cannot_be_scored_are_listed(tmp_path: Path):
    store, picky = filled(tmp_path, labelled=False), Picky()

    def score_all() -> int:
        return label(picky, store, teacher=TEACHER, pixels=pixels, micro_batch=4, team=Solo(), progress=silent)

    assert score_all() == 8
    found = read_all_labels(store, teacher=TEACHER)
    assert [labels.valid for labels in found] == [(1, 2), (1, 2), (1, 2), (1,)]
    assert found[0].errors == {0: "the score is not finite", 3: "no scene"}
    assert picky.metadata[:6] == [{"kind": "0.5"}] * 5 + [{"kind": "-1"}]
    assert (score_all(), picky.calls) == (8, 4)  # nothing is scored twice


def test_walks_come_before_scores(tmp_path: Path):
    store = filled(tmp_path, labelled=False)
    store.shard_path(2).unlink()
    with pytest.raises(ConfigError, match="1 of 4 shards are missing; generate first"):
        label(teacher(), store, teacher=TEACHER, pixels=pixels, micro_batch=4, team=Solo(), progress=silent)
