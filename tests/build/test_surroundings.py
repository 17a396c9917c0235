"""What the variables of a launcher mean, and where the hub's models are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.build.surroundings import Launch, cache_problems, environment_problems, hub_cache, read_launch
from difalign.core.config import RunConfig
from difalign.core.errors import ConfigError

TWO = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def test_launch_is_what_the_launcher_says():
    assert read_launch({}) == Launch(0, 1)
    assert read_launch(TWO) == Launch(1, 2)
    assert read_launch({"WORLD_SIZE": "1", "RANK": "0"}) == Launch(0, 1)


def test_every_contradiction_is_named():
    with pytest.raises(ConfigError) as error:
        read_launch({"WORLD_SIZE": "2", "RANK": "7", "MASTER_ADDR": "a"})
    assert "2 problems" in str(error.value)
    assert "RANK = 7: must be below WORLD_SIZE = 2" in str(error.value)
    assert "MASTER_PORT: is not set" in str(error.value)


@pytest.mark.parametrize("devices", ["", "0", "0,1", " 0 , 3 ", "-1", "GPU-1b2c-3d", "MIG-GPU-1b/1/0,MIG-2c"])
def test_devices_as_cuda_takes_them(devices: str):
    assert list(environment_problems(RunConfig(), {"CUDA_VISIBLE_DEVICES": devices})) == []


@pytest.mark.parametrize("devices", ["cuda:0", "0;1", "0,", "all", "1-3"])
def test_devices_as_cuda_does_not_take_them(devices: str):
    assert len(list(environment_problems(RunConfig(), {"CUDA_VISIBLE_DEVICES": devices}))) == 1


def test_precision_of_the_launcher_may_be_the_same():
    config = RunConfig.model_validate({"training": {"mixed_precision": "bf16"}})
    assert list(environment_problems(config, {"ACCELERATE_MIXED_PRECISION": "bf16"})) == []
    assert list(environment_problems(config, {"ACCELERATE_MIXED_PRECISION": "no"})) == []
    assert len(list(environment_problems(config, {"ACCELERATE_MIXED_PRECISION": "fp16"}))) == 1


def test_cached_models_need_neither_a_network_nor_a_writable_cache(tmp_path: Path):
    environ = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    assert len(list(cache_problems("a/b", environ))) == 1
    assert list(cache_problems("a/b", {"HF_HOME": str(tmp_path)})) == []
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    assert list(cache_problems("a/b", environ)) == []


def test_cache_is_where_huggingface_hub_has_it():
    assert hub_cache({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}) == Path("/a")
    assert hub_cache({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}) == Path("/b/hub")
    assert hub_cache({"XDG_CACHE_HOME": "/c"}) == Path("/c/huggingface/hub")
    assert hub_cache({}) == Path.home() / ".cache" / "huggingface" / "hub"
