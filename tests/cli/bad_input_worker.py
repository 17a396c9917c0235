"""Run command lines in an interpreter whose imports of some libraries fail, and say what they did."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType
from typing import Any


class Refusal:
    """A finder that lets no library of a list be imported."""

    def __init__(self, libraries: Sequence[str]) -> None:
        self.libraries = frozenset(libraries)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.partition(".")[0] in self.libraries:
            raise AssertionError(f"{name} was imported")


def answer(folder: str, arguments: Sequence[str], environment: dict[str, str]) -> dict[str, Any]:
    """Exit code and output of ``difalign`` with arguments, in a folder."""
    from difalign.cli.app import main

    kept = dict(os.environ)
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["difalign", *arguments]
    out, err = io.StringIO(), io.StringIO()
    code: object = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:  # noqa: BLE001  # it is what the test wants to see
            traceback.print_exc()
    os.environ.clear()
    os.environ.update(kept)
    return {"code": code, "stdout": out.getvalue(), "stderr": err.getvalue()}


if __name__ == "__main__":
    sys.meta_path.insert(0, Refusal(sys.argv[1:]))
    jobs = json.load(sys.stdin)
    answers = [answer(**job) for job in jobs]
    sys.stdout.write(json.dumps(answers))
