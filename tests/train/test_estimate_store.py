"""Shards are whole or absent, and a folder is gone on with only for what it was begun for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from difalign.core.errors import ConfigError
from difalign.core.rng import row_seed
from difalign.train.estimate_store import (
    FINAL,
    ShardLabels,
    StoredPrompt,
    level_key,
    open_store,
    read_all_labels,
    read_labels,
    sweep,
    write_labels,
)
from tests.train.distil_toys import TEACHER, filled, levels, plan


def test_rows_are_prompt_by_prompt_and_seeds_are_who_the_row_is():
    wanted = plan()
    assert (wanted.rows, wanted.shards) == (15, 4)
    assert [list(wanted.rows_of(shard)) for shard in (0, 3)] == [[0, 1, 2, 3], [12, 13, 14]]
    assert [wanted.prompt_of(row).text for row in (0, 4, 5, 14)] == ["0.5", "0.5", "-1", "0.25"]
    assert wanted.seed_of(7) == row_seed(3, "-1", 2, 0)
    assert len({wanted.seed_of(row) for row in range(15)}) == 15


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"a": 2, "b": "x"}}, r"a = 1 there, 2 here; b = null there, \"x\" here"),
        ({"samples": 6}, "samples = 5 there, 6 here"),
        ({"seed": 4}, "seed = 3 there, 4 here"),
        ({"shard_rows": 5}, "shard_rows = 4 there, 5 here"),
        ({"prompts": (StoredPrompt("0.5", {}),)}, r"other prompts \(3 there, 1 here\)"),
    ],
)
def test_a_folder_of_other_settings_is_refused_with_what_differs(tmp_path: Path, change: dict, said: str):
    open_store(tmp_path, plan(), levels=levels())
    open_store(tmp_path, plan())
    with pytest.raises(ConfigError, match=said):
        open_store(tmp_path, plan(**change))


def test_levels_are_found_by_how_they_were_asked_for(tmp_path: Path):
    open_store(tmp_path, plan(), levels={0.7333: 0.73329997, 0.5: 0.5})
    store = open_store(tmp_path, plan())
    assert store.sigmas == (0.7333, 0.5)
    assert store.level(0.7333) == 0.73329997


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 1, "settings": {}}'])
def test_an_index_that_is_none(tmp_path: Path, content: str):
    (tmp_path / "index.json").write_text(content)
    with pytest.raises(ConfigError, match="is no index of estimates"):
        open_store(tmp_path, plan())


def test_an_index_of_another_format(tmp_path: Path):
    open_store(tmp_path, plan(), levels=levels())
    path = tmp_path / "index.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ConfigError, match="format 9, but this version reads format 1"):
        open_store(tmp_path, plan())


def test_nothing_generated_yet(tmp_path: Path):
    with pytest.raises(ConfigError, match="run the stage generate first"):
        open_store(tmp_path, plan())


def test_what_was_left_half_written_is_swept_up(tmp_path: Path):
    store = filled(tmp_path / "train")
    kept = sorted(tmp_path.rglob("*"))
    for name in (".shard_00001.safetensors.writing", ".index.json.x1.tmp"):
        (store.folder / name).write_bytes(b"half")
    (tmp_path / ".bank.json.writing").write_bytes(b"half")
    sweep(tmp_path)
    assert sorted(tmp_path.rglob("*")) == kept


def test_rows_are_read_from_the_file(tmp_path: Path):
    store = open_store(tmp_path, plan(), levels=levels())
    stored = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)).half()
    store.write(3, {FINAL: torch.ones(3, 1), level_key("guided", 0.5): stored})
    assert store.missing() == [0, 1, 2]
    assert torch.equal(store.tensor(3, "guided/0.5"), stored)
    assert store.shard_path(3).stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("size", [0, 5, 60])
def test_a_damaged_shard_is_named(tmp_path: Path, size: int):
    store = filled(tmp_path, labelled=False)
    path = store.shard_path(2)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ConfigError, match=r"shard_00002.*is damaged.*remove it and run the stage generate again"):
        store.tensor(2, FINAL)


def test_a_shard_of_other_rows_is_named(tmp_path: Path):
    store = filled(tmp_path, labelled=False)
    store.shard_path(0).write_bytes(store.shard_path(3).read_bytes())
    with pytest.raises(ConfigError, match="does not hold 4 walks"):
        store.tensor(0, FINAL)


def test_labels_come_back_to_the_last_bit(tmp_path: Path):
    store = open_store(tmp_path, plan(), levels=levels())
    scores = torch.tensor([1 / 3, -1e-7, 12345.678], dtype=torch.float32).tolist()
    labels = ShardLabels(TEACHER, (*scores, None), {3: "no face"})
    write_labels(store, 0, labels)
    assert read_labels(store, 0, teacher=TEACHER) == labels
    assert labels.valid == (0, 1, 2)
    assert json.loads(store.labels_path(0).read_text())["dtype"] == "float32"
    assert read_labels(store, 1, teacher=TEACHER) is None


def test_labels_of_another_teacher_or_shard_are_refused(tmp_path: Path):
    store = open_store(tmp_path, plan(), levels=levels())
    write_labels(store, 0, ShardLabels(TEACHER, (0.0,) * 4, {}))
    with pytest.raises(ConfigError, match="another teacher's, or of other weights"):
        read_labels(store, 0, teacher="someone")
    with pytest.raises(ConfigError, match="3 shards have no scores yet; run the stage label first"):
        read_all_labels(store, teacher=TEACHER)
    write_labels(store, 0, ShardLabels(TEACHER, (0.0,), {}))
    with pytest.raises(ConfigError, match="holds no scores of its shard"):
        read_labels(store, 0, teacher=TEACHER)
    store.labels_path(0).write_text("{")
    with pytest.raises(ConfigError, match="holds no scores of its shard"):
        read_labels(store, 0, teacher=TEACHER)


def test_the_mark_changes_with_the_content(tmp_path: Path):
    store = open_store(tmp_path, plan(), levels=levels())
    other = open_store(tmp_path / "other", replace(plan(), seed=4), levels=levels())
    assert store.mark != other.mark
    assert store.mark == open_store(tmp_path, plan()).mark
