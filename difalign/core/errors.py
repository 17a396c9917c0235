"""Errors that end a program with one message: what a user can put right, and the loss of a process."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting, file, card or folder that the user can put right; the message names it and says how."""


class ProcessLost(RuntimeError):
    """Another process of the run died, or ended by an error; the message says which, and what it was doing."""


def in_one_message(problems: Sequence[str], *, source: str = "") -> str:
    """One problem as it is, several as a list; ``source`` names where they were found."""
    prefix = f"{source}: " if source else ""
    if len(problems) == 1:
        return f"{prefix}{problems[0]}"
    return "\n".join([f"{prefix}{len(problems)} problems", *(f"  {problem}" for problem in problems)])
