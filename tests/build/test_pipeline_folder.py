"""A whole folder has no problems, and each thing that a diffusers folder needs is missed when it is gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from difalign.build.pipeline_folder import INDEX_FILE, folder_problems, pipeline_class
from tests.house.repository import ROOT

SHIPPED = ROOT / "pipelines" / "tiny-sd3"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(SHIPPED, tmp_path / "model")


def test_shipped_pipeline_is_whole():
    assert list(folder_problems(SHIPPED)) == []
    assert pipeline_class(SHIPPED) == "StableDiffusion3Pipeline"


def test_every_file_but_those_for_people_is_needed(folder: Path):
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.parent != folder):
        kept = file.read_bytes()
        file.unlink()
        problems = list(folder_problems(folder))
        assert len(problems) == 1, file
        assert file.parent.name in problems[0]
        file.write_bytes(kept)
    assert list(folder_problems(folder)) == []


def test_every_problem_is_named(folder: Path):
    shutil.rmtree(folder / "vae")
    (folder / "transformer" / "config.json").write_text("[]")
    problems = list(folder_problems(folder))
    assert len(problems) == 2
    assert "transformer/config.json is not JSON" in problems[0]
    assert "'vae' (AutoencoderKL) is missing" in problems[1]


def test_parts_that_a_pipeline_was_saved_without_are_not_missed(folder: Path):
    index = json.loads((folder / INDEX_FILE).read_text())
    (folder / INDEX_FILE).write_text(json.dumps({**index, "vae": [None, None], "requires_safety_checker": False}))
    shutil.rmtree(folder / "vae")
    assert list(folder_problems(folder)) == []


def test_shards_are_counted(folder: Path):
    vae = folder / "vae"
    weights = vae / "diffusion_pytorch_model.safetensors"
    for shard in ("a-1.safetensors", "a-2.safetensors"):
        shutil.copy(weights, vae / shard)
    weights.unlink()
    names = {"x": "a-1.safetensors", "y": "a-2.safetensors"}
    (vae / "a.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert list(folder_problems(folder)) == []
    (vae / "a-2.safetensors").unlink()
    assert "there is no " in next(folder_problems(folder))


def test_older_weights_need_only_be_there(folder: Path):
    vae = folder / "vae"
    (vae / "diffusion_pytorch_model.safetensors").unlink()
    (vae / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    assert list(folder_problems(folder)) == []
    (vae / "diffusion_pytorch_model.bin").write_bytes(b"")
    assert "is empty" in next(folder_problems(folder))
