"""Environments of their own for scorers whose libraries do not install beside today's."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from difalign.build.definitions import definition_roots, find_definition, find_shipped, known_names
from difalign.core.config_errors import checked
from difalign.core.config_fields import Section
from difalign.core.config_yaml import read_yaml
from difalign.core.errors import ConfigError

WORKERS = "reward_models/workers"
_PROGRAMS = "samples/workers"  # the scorers
_SERVER = "samples/reward_server.py"
_MARK = "worker.json"  # what was made of which recipe; a folder without it is not ours
_LOG = "install.log"
_SHOWN_LINES = 12  # of what pip said last
_SHOWN_STEPS = ("Collecting ", "Downloading ", "Building ", "Installing ", "Successfully installed ")
_WIDTH = 110  # characters of a line of progress

Say = Callable[[str], object]  # is told a line of progress
_Names = Annotated[tuple[str, ...], Field(strict=False)]


class WorkerRecipe(Section):
    """What the environment of a scorer consists of."""

    name: str
    summary: str
    licence: str  # of the scorer's code and weights
    python: str  # such as "3.11"; the interpreter must be on this machine
    requirements: _Names  # for pip, in one call
    without_dependencies: _Names = ()  # for pip afterwards, with --no-deps: what pins what it does not need
    scorer: str  # a module of samples/workers
    package_files: _Names = ()  # of difalign itself, that the scorer imports: pure Python
    port: int
    tried: str  # what of this recipe has been run, in a sentence
    needs: str = ""  # what must be there before the first score: a GPU, weights, a checkout

    @property
    def digest(self) -> str:
        """Of what the environment is made of."""
        made_of = self.model_dump(include={"python", "requirements", "without_dependencies", "scorer"})
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Worker:
    """A folder with an environment, or where one would be."""

    recipe: WorkerRecipe
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "venv" / "bin" / "python"

    @property
    def state(self) -> str:
        """One of ready, unfinished, outdated (made of another recipe) and missing."""
        mark = _read_mark(self.folder)
        if mark is None:
            return "missing"
        if mark.get("digest") != self.recipe.digest:
            return "outdated"
        return "ready" if mark.get("finished") else "unfinished"

    def command(self, *, random_weights: bool = False) -> list[str]:
        """What serves its scores."""
        server = [str(self.python), str(self.folder / Path(_SERVER).name)]
        options = ["--scorer", f"{self.recipe.scorer}:score", "--identity", self.recipe.digest]
        more = ["--random-weights"] if random_weights else []
        return [*server, *options, "--port", str(self.recipe.port), *more]


def list_recipes(roots: Sequence[Path] | None = None) -> tuple[WorkerRecipe, ...]:
    """Every recipe that can be found by name."""
    return tuple(load_recipe(name, roots) for name in known_names(WORKERS, roots))


def load_recipe(name: str, roots: Sequence[Path] | None = None) -> WorkerRecipe:
    """A recipe by its name or file.

    Raises:
        ConfigError: if there is none, or it is malformed.
    """
    file = find_definition(WORKERS, name, definition_roots() if roots is None else roots)
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold `key: value` lines")
    return checked(WorkerRecipe, {str(key): value for key, value in content.items()}, source=str(file))


def worker_at(recipe: WorkerRecipe, folder: Path | None = None) -> Worker:
    """The worker in ``folder``, by default in the user's cache."""
    if folder is not None:
        return Worker(recipe, folder)
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Worker(recipe, Path(cache) / "difalign" / "workers" / recipe.name)


def create_worker(worker: Worker, *, say: Say, interpreter: str | None = None) -> None:
    """Make the environment, or go on where an earlier attempt ended.

    Args:
        worker: which, and where.
        say: is told what happens.
        interpreter: the Python to use; default: the recipe's version, as ``pythonX.Y`` on the path.

    Raises:
        ConfigError: if the folder holds something else, the interpreter is missing, or pip fails, with its last words.
    """
    recipe, folder = worker.recipe, worker.folder
    if worker.state == "outdated":
        raise ConfigError(
            f"{folder}: was made of another recipe; remove it: difalign rewards worker remove {recipe.name}"
        )
    if worker.state == "missing" and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is no worker and not empty; give another --path")
    if worker.state == "ready":
        say(f"{recipe.name}: is there already, in {folder}")
        return
    python = interpreter or shutil.which(f"python{recipe.python}")
    if python is None:
        raise ConfigError(
            f"worker {recipe.name}: needs Python {recipe.python}, and there is no python{recipe.python} on the path; "
            "install it, or give one with --python"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _write_mark(worker, finished=False)
    if not worker.python.exists():
        say(f"{recipe.name}: environment with {python}")
        _run([python, "-m", "venv", str(worker.folder / "venv")], worker, say)
    for packages, options in ((recipe.requirements, ()), (recipe.without_dependencies, ("--no-deps",))):
        if packages:
            say(f"{recipe.name}: installing {', '.join(packages)}")
            _run([str(worker.python), "-m", "pip", "install", "--no-input", *options, *packages], worker, say)
    _copy_programs(worker)
    _write_mark(worker, finished=True)
    say(f"{recipe.name}: ready in {folder}")


def remove_worker(worker: Worker) -> None:
    """Delete the environment.

    Raises:
        ConfigError: if the folder is no worker.
    """
    if worker.state == "missing":
        raise ConfigError(f"{worker.folder}: holds no worker; nothing was removed")
    shutil.rmtree(worker.folder)


def _copy_programs(worker: Worker) -> None:
    programs = [_SERVER, f"{_PROGRAMS}/{worker.recipe.scorer}.py"]
    for program in programs:
        found = find_shipped(program)
        if found is None:
            raise ConfigError(f"{program}: is not there; install difalign again")
        shutil.copy(found, worker.folder)
    package = Path(__file__).resolve().parents[1]
    for file in worker.recipe.package_files:
        if not (package / file).is_file():
            raise ConfigError(f"difalign/{file}: is not there; install difalign again")
        target = worker.folder / "difalign" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / file, target)


def _run(command: Sequence[str], worker: Worker, say: Say) -> None:
    """Run a step; its output goes to a log, the telling lines of it to ``say``.

    Raises:
        ConfigError: with the last lines, if it fails.
    """
    last: deque[str] = deque(maxlen=_SHOWN_LINES)
    log = worker.folder / _LOG
    with (
        log.open("a", encoding="utf-8") as stream,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as step,
    ):
        assert step.stdout is not None
        for line in step.stdout:
            stream.write(line)
            last.append(line.rstrip())
            if line.lstrip().startswith(_SHOWN_STEPS):
                say(f"  {line.strip()[:_WIDTH]}")
    if step.returncode:
        said = "\n".join(f"  {line}" for line in last)
        raise ConfigError(
            f"worker {worker.recipe.name}: {command[0]} ended with {step.returncode}; it said last\n{said}\n"
            f"All of it is in {log}. The same command goes on from here; "
            f"difalign rewards worker remove {worker.recipe.name} clears it away"
        )


def _read_mark(folder: Path) -> dict[str, object] | None:
    try:
        mark = json.loads((folder / _MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _write_mark(worker: Worker, *, finished: bool) -> None:
    mark = {"name": worker.recipe.name, "digest": worker.recipe.digest, "finished": finished}
    (worker.folder / _MARK).write_text(json.dumps(mark), encoding="utf-8")
