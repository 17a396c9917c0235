"""The shipped files for ``accelerate launch``: accelerate knows every key, and those that a CPU can run are run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

from difalign.core.errors import ConfigError
from difalign.train.launching import requested_sharding
from difalign.train.runtime import Runtime
from difalign.train.sharding import Sharding
from tests.house.repository import ROOT, relative
from tests.train.launched import cpu_environment, free_port
from tests.train.small_runs import rows_of, write_random_sd3, write_redness
from tests.train.test_sharded_run import CONFIG

FOLDER = ROOT / "configs" / "accelerate"
FILES = sorted(FOLDER.glob("*.yaml"))
SHARDED = ("fsdp2", "zero2", "zero3")


def test_all_are_there() -> None:
    assert [path.stem for path in FILES] == ["ddp", "fsdp2", "multi_node", "single", "zero2", "zero3"]


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_accelerate_knows_every_key(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")  # it asks for the GPUs that gpu_ids means
    config = load_config_from_file(str(file))  # raises for a key that it does not know
    kinds = {"single": DistributedType.NO, "ddp": DistributedType.MULTI_GPU, "multi_node": DistributedType.MULTI_GPU}
    assert config.distributed_type == kinds.get(file.stem, DistributedType.FSDP)
    options = launch_command_parser().parse_args(["--config_file", str(file), "train_flow_grpo.py"])
    validated = _validate_launch_command(options)[0]
    assert validated.num_processes == config.num_processes
    assert bool(validated.use_fsdp) == (file.stem in SHARDED)
    known = {key.dest for key in launch_command_parser()._actions}
    assert set(config.fsdp_config) <= known
    if file.stem in SHARDED:
        assert str(validated.fsdp_version) == "2"
        assert str(validated.fsdp_reshard_after_forward).lower() == str(file.stem != "zero2").lower()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"DEEPSPEED: is not supported; use .*zero2\.yaml"),
        ({"ACCELERATE_USE_FSDP": "true"}, r"fsdp_version = 1: is not supported; use 2"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_ACTIVATION_CHECKPOINTING": "true"},
            r"training\.gradient_checkpointing=true",
        ),
    ],
)
def test_what_is_not_supported_is_refused_before_anything_starts(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        Runtime()


def test_layers_and_stage_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requested_sharding() is None
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}.items():
        monkeypatch.setenv(name, value)
    assert requested_sharding() == Sharding()
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    monkeypatch.setenv("FSDP_TRANSFORMER_CLS_TO_WRAP", "Attention, FeedForward")
    assert requested_sharding() == Sharding(reshard_after_forward=False, layers=("Attention", "FeedForward"))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_random_sd3(folder)
    write_redness(folder)
    (folder / "train.txt").write_text("a red circle\ntwo blue squares\na green cross\n")
    (folder / "heldout.txt").write_text("a red square\na green circle\na blue cross\n")
    (folder / "mine.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def launch(name: str, inputs: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    port = ["--main_process_port", str(free_port())] if name != "single" else []
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    script = [str(ROOT / "train_flow_grpo.py"), "--config", str(inputs / "mine.yaml"), *settings]
    return subprocess.run(
        [*accelerate, *port, "--num_cpu_threads_per_process", "1", *script],
        cwd=ROOT,
        env=cpu_environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.multiproc
@pytest.mark.parametrize(
    ("name", "trainable", "processes"),
    [
        pytest.param("single", "lora", 1),
        pytest.param("ddp", "lora", 2, marks=pytest.mark.slow),
        pytest.param("fsdp2", "full", 2, marks=pytest.mark.slow),
        pytest.param("zero2", "full", 2, marks=pytest.mark.slow),
        pytest.param("zero3", "full", 2, marks=pytest.mark.slow),
    ],
)
def test_two_updates(inputs: Path, tmp_path: Path, name: str, trainable: str, processes: int) -> None:
    folder = tmp_path / "run"
    done = launch(name, inputs, f"output_dir={folder}", f"training.trainable={trainable}", "evaluation.every=0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(rows_of(folder)) == 2
    assert json.loads((folder / "summary.json").read_text())["processes"] == processes


@pytest.mark.slow
@pytest.mark.multiproc
def test_adapters_in_parts_are_refused(inputs: Path, tmp_path: Path) -> None:
    done = launch("fsdp2", inputs, f"output_dir={tmp_path / 'run'}", "training.trainable=lora")
    assert done.returncode != 0
    assert "training.trainable = 'lora': adapters are not taken apart (FSDP2)" in done.stderr
    assert not (tmp_path / "run").exists()
