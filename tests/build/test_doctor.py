"""Every finding of the doctor that is a problem comes with its remedy, and only needed things are problems."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from difalign.build import doctor
from difalign.build.doctor import (
    Finding,
    cache_finding,
    device_findings,
    examine,
    library_findings,
    probe_imports,
    python_finding,
    space_finding,
    threads_finding,
    torchvision_finding,
)
from difalign.build.requirements import Library
from difalign.build.surroundings import hub_cache

TORCH = Library("torch", ">=2.11", "2.12.0", None)


def only(library: Library, broken: Mapping[str, str] | None = None) -> Finding:
    return next(iter(library_findings([library], broken or {})))


def test_a_sound_installation_has_no_problem() -> None:
    asked: list[str] = []

    def probe(modules: Sequence[str]) -> Mapping[str, str]:
        asked.extend(modules)
        return {}

    found = {finding.subject: finding for finding in examine(probe=probe)}
    assert {"torch", "diffusers", "transformers", "accelerate", "peft"} <= set(asked)
    wrong = [finding for finding in found.values() if finding.level == "problem" and finding.subject != "torchvision"]
    assert not wrong
    assert {"python", "torchvision", "cpu", "disk", "hub cache", "offline", "shipped models"} <= found.keys()
    assert all(finding.remedy for finding in found.values() if finding.level != "ok")


def test_old_python() -> None:
    assert python_finding((3, 11, 0)).level == "ok"
    old = python_finding((3, 10, 4))
    assert (old.level, old.remedy) == ("problem", "make an environment with Python 3.11 or newer")


def test_libraries() -> None:
    assert only(TORCH) == Finding("torch", "ok", "2.12.0 (>=2.11)")
    missing = only(Library("peft", ">=0.21", None, None))
    assert (missing.level, missing.remedy) == ("problem", "pip install 'peft>=0.21'")
    old = only(Library("torch", ">=2.11", "2.4.0", None))
    assert (old.level, old.found) == ("problem", "2.4.0, supported: >=2.11")
    broken = only(TORCH, {"torch": "ImportError: libc10.so"})
    assert broken.level == "problem"
    assert "does not import: ImportError: libc10.so" in broken.found
    optional = only(Library("wandb", ">=0.19", None, "track"))
    assert (optional.level, optional.remedy) == ("note", "optional; pip install 'difalign[track]'")
    assert only(Library("xformers", ">=0.0.30", "0.0.1", "xformers")).level == "note"


def test_libraries_of_developers_and_torchvision_which_has_its_own_finding_are_left_out() -> None:
    libraries = [Library("ruff", ">=0.14", None, "dev"), Library("torchvision", ">=0.26", "0.29.2", "rewards")]
    assert not list(library_findings(libraries, {}))


def test_libraries_of_rewards() -> None:
    open_clip = Library("open_clip_torch", ">=3", "3.3.0", "rewards")
    assert only(open_clip) == Finding("open_clip_torch", "ok", "3.3.0 (>=3)")
    broken = only(open_clip, {"open_clip": "RuntimeError: operator nms does not exist"})
    assert (broken.level, broken.found) == ("note", "3.3.0 does not import: RuntimeError: operator nms does not exist")
    missing = only(Library("open_clip_torch", ">=3", None, "rewards"))
    assert missing.remedy == "optional; pip install 'difalign[rewards]'"


def test_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torchvision_finding("2.12.0", None, {}).level == "ok"
    monkeypatch.setattr(doctor, "torchvision_mismatch", lambda torch, torchvision: None)
    assert torchvision_finding("2.12.0", "0.27.0", {}).level == "ok"
    broken = torchvision_finding("2.12.0", "0.27.0", {"torchvision": "RuntimeError: operator nms does not exist"})
    assert broken.level == "problem"
    assert "nms" in broken.found
    assert "torchvision==0.27.*" in broken.remedy
    assert "pip uninstall torchvision" in broken.remedy
    monkeypatch.setattr(doctor, "torchvision_mismatch", lambda torch, torchvision: "was made for torch==2.11.0")
    assert torchvision_finding("2.12.0", "0.26.0", {}).level == "problem"


def write_module(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(code)


def test_imports_are_tried_in_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "sound_module", "import sys; print('chatter')\n")
    write_module(tmp_path, "torn_module", "raise OSError('libgone.so: cannot open\\nand more')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe_imports(["sound_module", "torn_module"]) == {"torn_module": "OSError: libgone.so: cannot open"}
    assert "torn_module" not in sys.modules


def test_a_module_that_takes_the_interpreter_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "sound_module", "")
    write_module(tmp_path, "deadly_module", "import os; os._exit(7)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    broken = probe_imports(["sound_module", "deadly_module"])
    assert list(broken) == ["deadly_module"]
    assert "exit 7" in broken["deadly_module"]


def test_a_torchvision_without_its_operators_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_module(tmp_path, "torchvision", "")
    write_module(tmp_path, "torch", "class ops:\n    class torchvision:\n        pass\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "nms" in probe_imports(["torchvision"])["torchvision"]


def test_a_gpu_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = list(device_findings({}))
    assert [finding.level for finding in found] == ["problem"]
    assert "CUDA" in found[0].remedy
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)
    assert [finding.level for finding in device_findings({})] == ["note"]
    assert not list(device_findings({"torch": "broken"}))


def test_gpus_are_listed_with_their_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda index: (30e9 + index, 80e9))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: "Example GPU")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: False)
    found = list(device_findings({}))
    assert [finding.subject for finding in found] == ["cuda:0", "cuda:1"]
    assert found[0].found == "Example GPU, 30.0 GB of 80.0 GB free, no bf16"


def test_threads() -> None:
    assert threads_finding(2, 2).level == "ok"
    crowded = threads_finding(8, 2)
    assert (crowded.level, crowded.remedy) == ("note", "more threads than processors are slow; set OMP_NUM_THREADS=2")


def test_space_is_looked_up_where_a_folder_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = space_finding("disk", tmp_path / "not" / "yet")
    assert finding.found.endswith(str(tmp_path))
    monkeypatch.setattr(doctor, "_SMALL_DISK", float("inf"))
    assert space_finding("disk", tmp_path).level == "problem"


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert hub_cache() == tmp_path / "home" / "hub"
    assert cache_finding(hub_cache()).level == "ok"
    (tmp_path / "home").write_text("a file where a folder belongs")
    blocked = cache_finding(hub_cache())
    assert (blocked.level, "HF_HOME" in blocked.remedy) == ("problem", True)


def test_offline_flags_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = {finding.subject: finding for finding in examine(probe=lambda modules: {}, libraries=[])}
    assert "HF_HUB_OFFLINE=1" in found["offline"].found
