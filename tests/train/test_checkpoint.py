"""A checkpoint is whole or absent, whenever the process dies; damage is seen; old ones go only after new ones came."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from difalign.train.checkpoint import (
    Checkpoint,
    Write,
    find_damage,
    list_checkpoints,
    remove_checkpoint,
    save_checkpoint,
    sweep,
)
from difalign.train.state import TrainerState, read_trainer_state


def files(number: int) -> dict[str, Write]:
    """Three files whose content tells which checkpoint they belong to."""
    return {
        "weights.safetensors": lambda path: save_file({"w": torch.full((5,), float(number))}, path),
        "moments.safetensors": lambda path: save_file({}, path),
        "run.json": lambda path: path.write_text(json.dumps({"number": number})),
    }


def save(folder: Path, *numbers: int, keep: int = 2) -> None:
    for number in numbers:
        save_checkpoint(folder, number, files(number), keep=keep)


def numbers(folder: Path) -> list[int]:
    return [checkpoint.rollout for checkpoint in list_checkpoints(folder)]


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_checkpoint_holds_its_files_and_their_digests(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, 7, files(7), keep=1)
    assert checkpoint.folder == tmp_path / "checkpoints" / "000007"
    assert checkpoint.rollout == 7
    assert {path.name for path in checkpoint.folder.iterdir()} == {*files(7), "manifest.json"}
    manifest = json.loads((checkpoint.folder / "manifest.json").read_text())
    assert set(manifest["files"]) == set(files(7))
    assert all(len(entry["sha256"]) == 64 for entry in manifest["files"].values())
    assert find_damage(checkpoint) is None
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in checkpoint.folder.iterdir())


def test_the_newest_stay(tmp_path: Path) -> None:
    save(tmp_path, 0, 1, 2, 10, 1_000_000, keep=3)
    assert numbers(tmp_path) == [2, 10, 1_000_000]
    save(tmp_path, 1_000_001, keep=1)
    assert entries(tmp_path) == ["1000001"]


def test_same_number_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 3)
    save_checkpoint(tmp_path, 3, files(4), keep=2)
    assert entries(tmp_path) == ["000003"]
    assert json.loads((tmp_path / "checkpoints/000003/run.json").read_text()) == {"number": 4}


def test_what_a_user_puts_beside_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    (tmp_path / "checkpoints" / "123.txt").write_text("mine")
    save(tmp_path, 1, 2, 3, keep=1)
    remove_checkpoint(list_checkpoints(tmp_path)[0])
    assert entries(tmp_path) == ["123.txt", "best"]


def test_no_folder_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == ()
    sweep(tmp_path / "nowhere")


# --- a process that dies -----------------------------------------------------------------------------------------


class Died(BaseException):
    """The process is gone: nothing that comes after takes place."""


OPERATIONS = (
    (os, "open"),  # of every sync
    (os, "fsync"),
    (Path, "mkdir"),
    (Path, "rename"),
    (Path, "write_text"),
    (Path, "chmod"),
    (shutil, "rmtree"),
)


def dies_at(patch: pytest.MonkeyPatch, moment: int) -> Callable[[], int]:
    """From the ``moment``-th file operation on, none is carried out any more; says how many were asked for."""
    asked = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        inside = False

        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal asked, inside
            if inside:  # an operation that is made of others, such as rmtree
                return function(*arguments, **options)
            asked += 1
            if asked >= moment:
                raise Died
            inside = True
            try:
                return function(*arguments, **options)
            finally:
                inside = False

        return call

    for owner, name in OPERATIONS:
        patch.setattr(owner, name, wrap(getattr(owner, name)))
    return lambda: asked


def deaths(folder: Path, act: Callable[[Path], object]) -> Iterator[tuple[int, Path]]:
    """A copy of ``folder`` for every operation of ``act`` at which a process can die, as it was left behind."""
    for moment in range(1, 1000):
        copy = folder.with_name(f"died-{moment}")
        shutil.copytree(folder, copy)
        with pytest.MonkeyPatch.context() as patch:
            asked = dies_at(patch, moment)
            try:
                act(copy)
            except Died:
                pass
            else:
                assert asked() == moment - 1
                return
        yield moment, copy


def test_every_moment_leaves_sound_checkpoints_and_the_next_save_tidies_up(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder, 1, 2)
    seen = set()
    moments = 0
    for moment, left in deaths(folder, lambda copy: save(copy, 3)):
        moments = moment
        found = numbers(left)
        seen.add(tuple(found))
        assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(left))
        assert found in ([1, 2], [1, 2, 3], [2, 3])  # the older two are whole until the new one is
        save(left, 3, 4)
        assert entries(left) == ["000003", "000004"]
    assert seen == {(1, 2), (1, 2, 3), (2, 3)}
    assert moments > 15


def test_removal_that_is_cut_off_leaves_no_half_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(folder, 1, 2)
    for _, left in deaths(folder, lambda copy: remove_checkpoint(list_checkpoints(copy)[-1])):
        assert numbers(left) in ([1, 2], [1])
        assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(left))
        sweep(left)
        assert entries(left) == [f"{number:06d}" for number in numbers(left)]


def test_full_disk_costs_no_older_checkpoint_and_leaves_no_litter(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)

    def fail(path: Path) -> None:
        path.write_bytes(b"begun")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 3, {**files(3), "average.safetensors": fail}, keep=2)
    assert entries(tmp_path) == ["000001", "000002"]


# --- damage ------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = {
    "bit": flip_a_bit,
    "cut": cut_in_half,
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b" "),
    "missing": Path.unlink,
    "folder": become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", files(0))
def test_damage_is_seen_and_the_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint = save_checkpoint(tmp_path, 5, files(5), keep=1)
    DAMAGES[damage](checkpoint.folder / name)
    assert (find_damage(checkpoint) or "").startswith(name)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "longer"])  # white space says nothing
def test_damaged_manifest_is_seen(tmp_path: Path, damage: str) -> None:
    checkpoint = save_checkpoint(tmp_path, 5, files(5), keep=1)
    DAMAGES[damage](checkpoint.folder / "manifest.json")
    assert find_damage(checkpoint) is not None


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    """Whatever bit flips, the manifest says the same as before or the damage is seen."""
    checkpoint = save_checkpoint(tmp_path, 5, files(5), keep=1)
    path = checkpoint.folder / "manifest.json"
    content = path.read_bytes()
    for position in range(len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 4]) + content[position + 1 :])
        assert find_damage(checkpoint) is not None, position


@pytest.mark.parametrize(
    ("change", "said"),
    [({"format": 2}, "format 2"), ({"rollout": 6}, "rollout 6"), ({"files": {"a": {}}}, "cannot be read")],
)
def test_foreign_manifest_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    checkpoint = save_checkpoint(tmp_path, 5, files(5), keep=1)
    path = checkpoint.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert said in (find_damage(checkpoint) or "")


def test_renamed_checkpoint_is_not_taken_for_another(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(tmp_path, 5, files(5), keep=1)
    renamed = checkpoint.folder.rename(checkpoint.folder.with_name("000009"))
    assert "rollout 5" in (find_damage(Checkpoint(renamed)) or "")


# --- what the files hold -----------------------------------------------------------------------------------------


def test_state_reads_back_to_the_last_bit(tmp_path: Path) -> None:
    state = TrainerState(
        weights={"a.b": torch.randn(3, 4).t(), "scalar": torch.tensor(1 / 3), "half": torch.randn(5).bfloat16()},
        optimizer={"a.b:exp_avg": torch.randn(4, 3), "a.b:step": torch.tensor(3.0)},
        average={},
        counters={"updates": 3},
        loss_scaling={"scale": 65536.0, "growth_factor": 2.0},
    )
    checkpoint = save_checkpoint(tmp_path, 1, state.files(), keep=1)
    again = read_trainer_state(checkpoint.folder)
    for name in ("weights", "optimizer", "average"):
        before, after = getattr(state, name), getattr(again, name)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) and before[key].dtype == after[key].dtype for key in before)
    assert (again.counters, again.loss_scaling) == (state.counters, state.loss_scaling)


def test_nothing_is_pickled(tmp_path: Path) -> None:
    state = TrainerState({"w": torch.ones(2)}, {}, {}, {"updates": 0})
    checkpoint = save_checkpoint(tmp_path, 1, state.files(), keep=1)
    assert {path.suffix for path in checkpoint.folder.iterdir()} == {".safetensors", ".json"}


def test_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """Whatever the writer of tensors calls it."""
    write = TrainerState({"w": torch.ones(2)}, {}, {}, {}).files()["weights.safetensors"]
    with pytest.raises(OSError, match=r"missing|directory|could not be written"):
        write(tmp_path / "missing" / "weights.safetensors")
