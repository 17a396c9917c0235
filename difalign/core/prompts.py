"""Prompt files: text, JSON lines, CSV or Parquet; what is wrong is named with file and line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difalign.core.errors import ConfigError
from difalign.core.prompt_rows import Row, read_rows

_LONGEST_PROMPT = 10_000  # characters; a longer one is a file of another kind
_SHOWN_PROBLEMS = 3
_OWN_KEYS = ("prompt", "kind", "metadata")  # of a row; every other becomes metadata


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, the category it is reported under, and whatever else a reward needs to know about it."""

    text: str
    kind: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file in its order.

    ``.jsonl`` files hold an object a line: ``prompt``, optionally ``kind`` (or GenEval's ``tag``), and further keys
    that become metadata; the columns of ``.csv`` and ``.parquet`` files are such keys, of which empty cells are left
    out. Any other file holds a prompt a line; blank lines and lines that begin with ``#`` are skipped. No prompt may
    occur twice: the noise of a sample derives from its prompt, so both would give the same images.

    Raises:
        ConfigError: naming file and line, if the file is missing, empty, not UTF-8 or malformed.
    """
    prompts: list[Prompt] = []
    first_place: dict[str, str] = {}
    problems: list[str] = []
    for row in read_rows(path):
        try:
            prompt = prompt_of(row)
            if prompt.text in first_place:
                raise ValueError(f"repeats {first_place[prompt.text]} ({prompt.text!r}); remove one of them")
        except ValueError as error:
            problems.append(f"{path}, {row.place}: {error}")
            continue
        first_place[prompt.text] = row.place
        prompts.append(prompt)
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise ConfigError("\n".join(problems[:_SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])))
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt; write one a line")
    return tuple(prompts)


def prompt_of(row: Row) -> Prompt:
    """The prompt that a row holds; ValueError says what is wrong with it."""
    if row.problem is not None:
        raise ValueError(row.problem)
    entry = row.entry
    text, kind, nested = entry.get("prompt"), entry.get("kind", entry.get("tag", "")), entry.get("metadata", {})
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"prompt = {text!r}: must be text, not empty; give every row a prompt such as a red circle")
    if not _is_text(text):
        raise ValueError(f"prompt = {text!r}: holds zero bytes or halves of characters, so it is no text; correct it")
    if len(text) > _LONGEST_PROMPT:
        raise ValueError(f"has {len(text)} characters, more than {_LONGEST_PROMPT}; write one prompt a line")
    if not isinstance(kind, str):
        raise ValueError(f"kind = {kind!r}: must be text")
    if not isinstance(nested, Mapping):
        raise ValueError(f"metadata = {nested!r}: must be an object; in a table, give each key a column of its own")
    rest = {key: value for key, value in entry.items() if key not in _OWN_KEYS}
    return Prompt(text.strip(), kind, {**rest, **nested})


def _is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8, which half of a surrogate pair cannot, and ends where it ends."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return "\x00" not in text
