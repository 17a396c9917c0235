"""The error of everything a user can put right before a run starts."""

from __future__ import annotations

from collections.abc import Sequence


class ConfigError(ValueError):
    """A setting, file, card or folder that the user can put right; the message names it and says how."""


def in_one_message(problems: Sequence[str], *, source: str = "") -> str:
    """One problem as it is, several as a list; ``source`` names where they were found."""
    prefix = f"{source}: " if source else ""
    if len(problems) == 1:
        return f"{prefix}{problems[0]}"
    return "\n".join([f"{prefix}{len(problems)} problems", *(f"  {problem}" for problem in problems)])
