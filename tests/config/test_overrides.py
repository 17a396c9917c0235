"""YAML, its base and key.sub=value end in one checked configuration, and to_yaml leads back to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from difalign.core.config import RunConfig
from difalign.core.config_plans import BranchPlan, PlainPlan, WindowPlan
from difalign.core.config_yaml import parse_yaml, to_yaml
from difalign.core.errors import ConfigError
from difalign.core.overrides import load_config, merge, parse_overrides


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_nothing_given_is_the_defaults():
    assert load_config(None) == RunConfig()


def test_settings_lie_over_the_file_and_the_file_over_its_base(tmp_path: Path):
    write(tmp_path / "base.yaml", "seed: 1\nsampling: {steps: 5, guidance: 2.0}\nobjective: {clip_range: 0.5}\n")
    file = write(tmp_path / "run.yaml", "base: base.yaml\nsampling: {steps: 6, noise_level: 0.3}\n")
    config = load_config(file, ["sampling.noise_level=0.9"])
    assert (config.seed, config.objective.clip_range) == (1, 0.5)
    assert (config.sampling.steps, config.sampling.guidance, config.sampling.noise_level) == (6, 2.0, 0.9)


def test_run_is_called_after_its_file_unless_it_has_a_name(tmp_path: Path):
    file = write(tmp_path / "mine.yaml", "seed: 1\n")
    assert load_config(file).name == "mine"
    assert load_config(file).run_folder == Path("runs/mine")
    assert load_config(file, ["name=yours"]).run_folder == Path("runs/yours")
    assert load_config(file, ["output_dir=out"]).run_folder == Path("out")


def test_new_kind_of_plan_drops_the_options_of_the_old_one(tmp_path: Path):
    file = write(tmp_path / "run.yaml", "sampling: {plan: {kind: branch, k: 2, mode: early_k, children: 4}}\n")
    assert load_config(file, ["sampling.plan.k=1"]).sampling.plan == BranchPlan(
        kind="branch", k=1, mode="early_k", children=4
    )
    assert load_config(file, ["sampling.plan.size=2", "sampling.plan.kind=window"]).sampling.plan == WindowPlan(
        kind="window", size=2
    )
    assert load_config(file, ["sampling.plan.kind=plain"]).sampling.plan == PlainPlan()


def test_null_removes_a_reward(tmp_path: Path):
    file = write(tmp_path / "run.yaml", "rewards: {a: {weight: 1.0}, b: {weight: 2.0}}\n")
    assert set(load_config(file, ["rewards.a=null"]).rewards) == {"b"}
    assert set(load_config(file, ["rewards.c.weight=3"]).rewards) == {"a", "b", "c"}


def test_merge_leaves_its_arguments_alone():
    lower, upper = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert merge(lower, upper) == {"a": {"b": 1, "c": 2}}
    assert (lower, upper) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_overrides_are_nested_and_typed():
    assert parse_overrides(["a.b=1", "a.c=[x, 2.5]", "d=", "e=1e-4", "f=a=b"]) == {
        "a": {"b": 1, "c": ["x", 2.5]},
        "d": None,
        "e": 1e-4,
        "f": "a=b",
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("12:30", "12:30"),
        ("010", "010"),
        ("2020-01-01", "2020-01-01"),
        ("true", True),
        ("null", None),
        ("", None),
    ],
)
def test_scalars_are_what_people_mean(text: str, value: object):
    parsed = parse_yaml(text, name="text")
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("name", ["12:30", "no", "1e-4", "0x1f", "a#b", "true", "null", "2020-01-01", "naïve"])
def test_configuration_survives_yaml(tmp_path: Path, name: str):
    config = load_config(
        None, [f"name='{name}'", "sampling.plan={kind: cascade, at: [0, 3]}", "training.learning_rate=1e-7"]
    )
    assert load_config(write(tmp_path / "config.yaml", to_yaml(config))) == config


def test_python_objects_are_not_made(tmp_path: Path):
    file = write(tmp_path / "run.yaml", "seed: 1\nname: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="line 2: not YAML"):
        load_config(file)


def test_binary_and_deep_files_are_refused(tmp_path: Path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="nested too deeply"):
        load_config(write(tmp_path / "b.yaml", "[" * 1000))
    with pytest.raises(ConfigError, match="is a folder"):
        load_config(tmp_path)


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().seed = 3  # pyright: ignore[reportAttributeAccessIssue]
