"""Environment variables that contradict one another, the configuration, or sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.bad_input import Bad, Outcome, assert_refused, meet, meet_alone, named

_TWO = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
_HUB = ("pipeline=sd15", "prompts.train=a.txt", "prompts.heldout=a.txt", "rewards.verifier=null")
_HUB = (*_HUB, "rewards.compressibility.weight=1", "sampling.prompts_per_update=1", "training.updates_per_rollout=1")
_HUB = (*_HUB, "sampling.rule=ddim", "sampling.noise_level=1.0")


def surrounded(name: str, environment: dict[str, str], *said: str, settings: tuple[str, ...] = ()) -> Bad:
    return Bad(name, ("train", *settings), said, {"a.txt": "a cat\n"}, environment)


CASES = [
    # processes
    surrounded("rank in letters", {**_TWO, "RANK": "one"}, "RANK = 'one'", "accelerate launch"),
    surrounded("negative world", {"WORLD_SIZE": "-1"}, "WORLD_SIZE = '-1'", "unset WORLD_SIZE"),
    surrounded("no world", {"WORLD_SIZE": "0"}, "WORLD_SIZE = 0", "at least 1"),
    surrounded("rank beyond the world", {**_TWO, "RANK": "2"}, "RANK = 2", "below WORLD_SIZE = 2"),
    surrounded("local rank beyond the rank", {**_TWO, "LOCAL_RANK": "3"}, "LOCAL_RANK = 3", "above RANK = 0"),
    surrounded("world without ranks", {"WORLD_SIZE": "2"}, "RANK: is not set, and WORLD_SIZE = 2", "accelerate launch"),
    surrounded("no main address", {**_TWO, "MASTER_ADDR": ""}, "MASTER_ADDR: is not set", "accelerate launch"),
    surrounded("no main port", {**_TWO, "MASTER_PORT": ""}, "MASTER_PORT: is not set"),
    surrounded("port in letters", {**_TWO, "MASTER_PORT": "http"}, "MASTER_PORT = 'http'", "from 1 to 65535"),
    surrounded("port out of range", {**_TWO, "MASTER_PORT": "70000"}, "MASTER_PORT = '70000'", "a free port"),
    surrounded(
        "more processes than prompts",
        {**_TWO, "WORLD_SIZE": "4"},
        "sampling.prompts_per_update = 2",
        "sampling.prompts_per_update=4 or fewer processes",
        settings=("sampling.prompts_per_update=2",),
    ),
    # devices, threads, precision
    surrounded("devices by name", {"CUDA_VISIBLE_DEVICES": "gpu0"}, "CUDA_VISIBLE_DEVICES = 'gpu0'", "such as 0,1"),
    surrounded("devices with a gap", {"CUDA_VISIBLE_DEVICES": "0,,1"}, "CUDA_VISIBLE_DEVICES = '0,,1'", "unset it"),
    surrounded("threads in words", {"OMP_NUM_THREADS": "many"}, "OMP_NUM_THREADS = 'many'", "a number of threads >= 1"),
    surrounded("no threads", {"OMP_NUM_THREADS": "0"}, "OMP_NUM_THREADS = '0'", "a number of threads >= 1"),
    surrounded(
        "two precisions",
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        "training.mixed_precision = no",
        "--mixed_precision bf16",
        "use training.mixed_precision=bf16",
    ),
    surrounded(
        "two precisions, both mixed",
        {"ACCELERATE_MIXED_PRECISION": "bf16"},
        "training.mixed_precision = fp16",
        "use training.mixed_precision=bf16",
        settings=("training.mixed_precision=fp16",),
    ),
    surrounded("unknown precision", {"ACCELERATE_MIXED_PRECISION": "fp8"}, "'fp8'", "must be one of no, fp16, bf16"),
    # caches
    surrounded(
        "cache that cannot be written",
        {"HF_HOME": "/dev/null/cache", "HF_HUB_CACHE": "", "HF_HUB_OFFLINE": "0"},
        "cannot be downloaded to /dev/null/cache/hub",
        "set HF_HOME to a folder that is",
        settings=_HUB,
    ),
    surrounded(
        "model that may not be downloaded",
        {"HF_HOME": "/nowhere", "HF_HUB_CACHE": "", "HF_HUB_OFFLINE": "1"},
        "is not in /nowhere/hub",
        "HF_HUB_OFFLINE",
        "unset it, or copy the model there",
        settings=_HUB,
    ),
]
SOUND = {  # what the same checks let pass
    "two processes": _TWO,
    "one process": {**_TWO, "WORLD_SIZE": "1"},
    "two devices": {"CUDA_VISIBLE_DEVICES": "0, 1"},
    "no device": {"CUDA_VISIBLE_DEVICES": "-1"},
    "devices by identifier": {"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"},
    "threads by level": {"OMP_NUM_THREADS": "4,2"},
    "launcher that was told nothing": {"ACCELERATE_MIXED_PRECISION": "no"},
}
CONTROLS = [Bad(name, ("config", "validate"), (), {}, environment) for name, environment in SOUND.items()]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    return meet([*CASES, *CONTROLS], tmp_path_factory.mktemp("environment"))


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_environment_is_refused(bad: Bad, outcomes: dict[str, Outcome]):
    assert_refused(bad, outcomes[bad.name])


@pytest.mark.parametrize("name", SOUND)
def test_sound_environment_passes(name: str, outcomes: dict[str, Outcome]):
    assert (outcomes[name].code, outcomes[name].stderr) == (0, "")
    assert outcomes[name].stdout.startswith("ok: ")


@pytest.mark.parametrize("bad", named(CASES, "world without ranks"), ids=lambda bad: bad.name)
def test_environment_is_refused_by_a_process_of_its_own(bad: Bad, tmp_path: Path):
    assert_refused(bad, meet_alone(bad, tmp_path))


def test_only_the_first_process_speaks(tmp_path: Path):
    for rank, speaks in (("0", True), ("1", False)):
        bad = surrounded(f"rank {rank}", {**_TWO, "RANK": rank}, settings=("sampling.stepz=4",))
        outcome = meet_alone(bad, tmp_path / rank)
        assert outcome.code == 2
        assert ("sampling.stepz: unknown key" in outcome.stderr) is speaks
        assert bool(outcome.stderr.strip()) is speaks
