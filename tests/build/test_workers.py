"""Environments of their own: made in steps that can be gone on with, and removed only if they are ours."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

import pytest

from difalign.build.definitions import find_shipped
from difalign.build.workers import (
    Worker,
    WorkerRecipe,
    create_worker,
    list_recipes,
    load_recipe,
    remove_worker,
    worker_at,
)
from difalign.core.errors import ConfigError

# Stands for an interpreter: makes the "environment" by a link to itself, and notes what pip is asked for.
FAKE = """#!{python}
import os, pathlib, sys
here = pathlib.Path({folder!r})
with (here / "calls").open("a") as stream:
    stream.write(" ".join(sys.argv[1:]) + "\\n")
if sys.argv[1:3] == ["-m", "venv"]:
    target = pathlib.Path(sys.argv[3]) / "bin"
    target.mkdir(parents=True)
    os.symlink(__file__, target / "python")
else:
    print("Collecting torch")
    print("  a line that tells nothing")
    if (here / "broken").exists():
        print("ERROR: No matching distribution found for torch==0.0")
        sys.exit(1)
"""


@pytest.fixture
def interpreter(tmp_path: Path) -> str:
    file = tmp_path / "python"
    file.write_text(FAKE.format(python=sys.executable, folder=str(tmp_path)))
    file.chmod(0o755)
    return str(file)


def recipe(**more: object) -> WorkerRecipe:
    base = {
        "name": "image-reward",
        "summary": "a scorer",
        "licence": "MIT",
        "python": "3.11",
        "requirements": ["torch==0.0", "old"],
        "without_dependencies": ["pins-too-much==1.5"],
        "scorer": "image_reward_scorer",
        "port": 18088,
        "tried": "not run",
    }
    return WorkerRecipe.model_validate({**base, **more})


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_an_environment_is_made_and_its_command_serves(tmp_path: Path, interpreter: str):
    worker, said = Worker(recipe(), tmp_path / "w"), []
    assert worker.state == "missing"
    create_worker(worker, say=said.append, interpreter=interpreter)
    assert worker.state == "ready"
    assert calls(tmp_path) == [
        f"-m venv {tmp_path}/w/venv",
        "-m pip install --no-input torch==0.0 old",
        "-m pip install --no-input --no-deps pins-too-much==1.5",
    ]
    assert "  Collecting torch" in said
    assert not any("tells nothing" in line for line in said)
    assert "tells nothing" in (tmp_path / "w" / "install.log").read_text()
    python, server, *options = worker.command(random_weights=True)
    assert Path(python).exists()
    shipped = find_shipped("samples/reward_server.py")
    assert shipped is not None
    assert Path(server).read_bytes() == shipped.read_bytes()
    assert (tmp_path / "w" / "image_reward_scorer.py").is_file()
    assert options[:4] == ["--scorer", "image_reward_scorer:score", "--identity", worker.recipe.digest]
    assert options[4:] == ["--port", "18088", "--random-weights"]
    create_worker(worker, say=said.append, interpreter=interpreter)
    assert "is there already" in said[-1]
    assert len(calls(tmp_path)) == 3


def test_a_failure_shows_what_pip_said_last_and_is_gone_on_with(tmp_path: Path, interpreter: str):
    worker = Worker(recipe(), tmp_path / "w")
    (tmp_path / "broken").touch()
    with pytest.raises(ConfigError, match=r"ERROR: No matching distribution found for torch==0\.0") as caught:
        create_worker(worker, say=str, interpreter=interpreter)
    assert "install.log" in str(caught.value)
    assert "difalign rewards worker remove image-reward" in str(caught.value)
    assert worker.state == "unfinished"
    (tmp_path / "broken").unlink()
    create_worker(worker, say=str, interpreter=interpreter)
    assert worker.state == "ready"
    assert sum(call.startswith("-m venv") for call in calls(tmp_path)) == 1


def test_another_recipe_is_not_mixed_in(tmp_path: Path, interpreter: str):
    create_worker(Worker(recipe(), tmp_path / "w"), say=str, interpreter=interpreter)
    newer = Worker(recipe(requirements=["torch==1.0"]), tmp_path / "w")
    assert newer.state == "outdated"
    with pytest.raises(ConfigError, match="was made of another recipe; remove it"):
        create_worker(newer, say=str, interpreter=interpreter)
    remove_worker(newer)
    assert not (tmp_path / "w").exists()


def test_folders_of_others_are_left_alone(tmp_path: Path, interpreter: str):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").touch()
    worker = Worker(recipe(), tmp_path / "w")
    with pytest.raises(ConfigError, match="is no worker and not empty"):
        create_worker(worker, say=str, interpreter=interpreter)
    with pytest.raises(ConfigError, match="holds no worker; nothing was removed"):
        remove_worker(worker)
    assert (tmp_path / "w" / "thesis.tex").exists()


def test_a_missing_interpreter_is_named_with_a_remedy(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"needs Python 2\.99.*give one with --python"):
        create_worker(Worker(recipe(python="2.99"), tmp_path / "w"), say=str)
    assert not (tmp_path / "w").exists()


def test_a_mark_that_cannot_be_read_is_none(tmp_path: Path):
    for text in ("", "[1]", "{"):
        (tmp_path / "worker.json").write_text(text)
        assert Worker(recipe(), tmp_path).state == "missing"


def test_workers_lie_in_the_cache_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert worker_at(recipe()).folder == tmp_path / "difalign" / "workers" / "image-reward"
    assert worker_at(recipe(), tmp_path).folder == tmp_path


RECIPES = {found.name: found for found in list_recipes()}


def test_the_recipes_are_there():
    assert {"hpsv2", "image-reward", "hpsv3", "video-reward", "video-score", "deqa", "geneval"} <= RECIPES.keys()
    assert len({found.port for found in RECIPES.values()}) == len(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_names_a_scorer_that_the_server_can_call(name: str):
    found = load_recipe(name)
    assert any(requirement.startswith("safetensors") for requirement in found.requirements)  # the server's
    file = find_shipped(f"samples/workers/{found.scorer}.py")
    assert file is not None
    functions = {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}
    assert len(functions["score"].args.args) in (2, 3)
    assert [argument.arg for argument in functions["load"].args.args] == ["random_weights"]


def test_every_scorer_has_a_recipe():
    folder = find_shipped("samples/workers")
    assert folder is not None
    assert {path.stem for path in folder.glob("*.py")} == {found.scorer for found in RECIPES.values()}


def test_the_digest_is_of_what_is_installed():
    assert recipe().digest == recipe(summary="other words", tried="today").digest
    assert recipe().digest != recipe(requirements=["torch==0.1"]).digest
    assert json.loads(recipe().model_dump_json())["name"] == "image-reward"
