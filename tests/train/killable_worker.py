"""A process that has everything imported and forks a child for every run, so that each can be killed for real.

It reads one job a line from its standard input and answers each with the exit status of the child. A child that is
to be killed has one function replaced: at its n-th call it sends itself SIGKILL, before the function's work, after
it, or with the file that it has just written cut in half. The package knows nothing of this.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Moment = Literal["before", "after", "half", "inside"]


@dataclass(frozen=True)
class Kill:
    """Where a process ends: the ``call``-th time that ``target`` is called."""

    target: str  # "module:name" or "module:Class.name"
    call: int = 1
    moment: Moment = "before"

    def __str__(self) -> str:
        return f"{self.moment} {self.target.rpartition(':')[2]} {self.call}"


def die() -> None:
    """End this process as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def lie_in_wait(kill: Kill) -> None:
    """Replace the target by one that dies when its turn comes."""
    module, _, path = kill.target.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    setattr(owner, name, _mortal(getattr(owner, name), kill))


def _mortal(function: Callable[..., Any], kill: Kill) -> Callable[..., Any]:
    calls = 0

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.call and kill.moment == "before":
            die()
        if calls == kill.call and kill.moment == "inside":  # of a backward pass: its gradients begin to flow
            arguments[1].register_hook(lambda gradient: die())
        result = function(*arguments, **options)
        if calls == kill.call and kill.moment == "half":
            written = next(Path(value) for value in arguments if isinstance(value, str | Path))
            os.truncate(written, written.stat().st_size // 2)
        if calls == kill.call and kill.moment != "inside":
            die()
        return result

    return call


def send(job: dict[str, Any], kill: Kill | None) -> str:
    """A job as the line that the worker reads."""
    return json.dumps({"job": job, "kill": None if kill is None else asdict(kill)}) + "\n"


def run_in_child(line: str) -> int:
    """Run a job in a child; its exit code, or minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        _run(json.loads(line))
        code = 0
    finally:
        os._exit(code)


def _run(message: dict[str, Any]) -> None:
    from tests.train.small_runs import run_toy, toy_run_config

    sys.stderr = Path(message["job"]["folder"] + ".log").open("a")  # noqa: SIM115  # for as long as the process lives
    if message["kill"] is not None:
        lie_in_wait(Kill(**message["kill"]))
    job = message["job"]
    try:
        run_toy(toy_run_config(Path(job["folder"]), **job["sections"]))
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        raise


def main() -> None:
    """Import what a run needs, say so, and serve."""
    import torch
    import torch._dynamo  # the optimiser would import it in every child

    import difalign.report.images
    import difalign.report.page  # noqa: F401
    import tests.train.small_runs  # noqa: F401

    torch.set_num_threads(1)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(f"{run_in_child(line)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
