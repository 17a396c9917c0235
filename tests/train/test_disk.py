"""A disk that fills up, or is read-only, ends a run in one message; what was whole stays whole, and the run goes on."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from difalign.core.errors import ConfigError
from difalign.train.checkpoint import find_damage, list_checkpoints
from difalign.train.disk import refused_by_disk
from difalign.train.policy_gradient import PolicyGradient
from tests.folders import file_contents
from tests.train.cut_short import assert_same_end, config_of
from tests.train.small_runs import run_toy


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file grows beyond ``size`` bytes: the kernel refuses with EFBIG, for root and in any container."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # What pytest catches of a test's output goes to files as well.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def mount(folder: Path, *, size: int = 0, read_only: bool = False) -> bool:
    """Mount a small disk on ``folder``, or bind it to itself read-only; False where a container forbids it."""
    call = ctypes.CDLL(None, use_errno=True).mount
    if not read_only:
        return call(b"tmpfs", bytes(folder), b"tmpfs", 0, f"size={size}".encode()) == 0
    bind, remount_read_only = 4096, 4096 | 32 | 1  # MS_BIND; MS_BIND | MS_REMOUNT | MS_RDONLY
    if call(bytes(folder), bytes(folder), None, bind, None) != 0:
        return False
    if call(None, bytes(folder), None, remount_read_only, None) == 0:
        return True
    unmount(folder)
    return False


def unmount(folder: Path) -> None:
    assert ctypes.CDLL(None, use_errno=True).umount(bytes(folder)) == 0


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EROFS, "Read-only file system"), True),
        (OSError(errno.ENOENT, "No such file or directory"), False),
        (OSError("weights.safetensors could not be written: I/O error: full (os error 28)"), True),
        (RuntimeError("I/O error: No such file (os error 2)"), False),
        (ValueError("28"), False),
    ],
    ids=str,
)
def test_disk_is_told_from_other_errors(error: Exception, refused: bool) -> None:
    assert refused_by_disk(error) is refused


def test_every_error_of_safetensors_tells_its_number(tmp_path: Path) -> None:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with files_up_to(100), pytest.raises(SafetensorError) as error:
        save_file({"a": torch.zeros(1000)}, tmp_path / "a.safetensors")
    assert refused_by_disk(error.value)


def fill_up(patch: pytest.MonkeyPatch, folder: Path, *, rollouts: int) -> None:
    """After some rollouts, let rows go to the device that is always full: the kernel answers ENOSPC."""
    run = PolicyGradient.run

    def filled(self: PolicyGradient, index: int, report: Any) -> list[dict[str, float]]:
        if index == rollouts:
            (folder / "metrics.jsonl").rename(folder / "rows")
            (folder / "metrics.jsonl").symlink_to("/dev/full")
        return run(self, index, report)

    patch.setattr(PolicyGradient, "run", filled)


def test_full_disk_keeps_the_checkpoints_and_the_run_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    sections = {"evaluation": {"every": 2}}
    with pytest.MonkeyPatch.context() as patch:
        fill_up(patch, tmp_path, rollouts=3)
        with pytest.raises(ConfigError) as error:
            run_toy(config_of(tmp_path, **sections))
    said = str(error.value)
    assert said.count("\n") == 0
    assert f"output_dir = {str(tmp_path)!r}: can no longer be written ([Errno 28] No space left on device" in said
    assert "the checkpoint 000003 is whole: make room, then the same command with resume=latest" in said
    assert all(find_damage(checkpoint) is None for checkpoint in list_checkpoints(tmp_path))
    (tmp_path / "rows").rename(tmp_path / "metrics.jsonl")
    run_toy(config_of(tmp_path, resume="latest", **sections))
    assert_same_end(tmp_path, undisturbed)


def test_full_disk_before_the_first_checkpoint_says_to_start_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with files_up_to(700), pytest.raises(ConfigError, match=r"make room, .*start the run again with overwrite=true"):
        run_toy(config_of(folder))
    run_toy(config_of(folder, overwrite=True))


def test_no_room_at_all_is_noticed_before_training_and_leaves_nothing(tmp_path: Path) -> None:
    """A disk of 64 kB where one can be mounted, else files that cannot hold a byte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if mount(disk, size=64 << 10):
        try:
            with pytest.raises(ConfigError, match=r"has 0\.\d MB free, and the run will write about .*make room"):
                run_toy(config_of(disk / "run"))
            assert file_contents(disk) == {}
        finally:
            unmount(disk)
        return
    with files_up_to(0), pytest.raises(ConfigError, match=r"cannot be written \(File too large\).*another output_dir"):
        run_toy(config_of(disk / "run"))
    assert file_contents(disk) == {}


def test_output_that_no_permission_opens_is_refused_before_training(tmp_path: Path) -> None:
    """Root passes every permission, but cannot make a folder among the processes' files."""
    with pytest.raises(ConfigError, match=r"output_dir = '/proc/difalign-run': cannot be written .*another output_dir"):
        run_toy(config_of(Path("/proc/difalign-run")))


def test_read_only_disk_costs_an_earlier_run_nothing(tmp_path: Path) -> None:
    """A read-only mount where one can be made; where not, a folder under a file stands for it."""
    folder = tmp_path / "run"
    run_toy(config_of(folder))
    before = file_contents(folder)
    output = folder
    mounted = mount(folder, read_only=True)
    if not mounted:
        output = folder / "config.yaml" / "run"
    try:
        assert not os.access(output, os.W_OK)
        with pytest.raises(ConfigError, match=r"cannot be written \((Read-only file system|Not a directory)\)"):
            run_toy(config_of(output, overwrite=True))
    finally:
        if mounted:
            unmount(folder)
    assert file_contents(folder) == before
