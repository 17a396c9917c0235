"""Prompt files: one prompt a line, or JSON lines; what is wrong is named with file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from difalign.core.errors import ConfigError

_LONGEST_PROMPT = 10_000  # characters; a longer line is a file of another kind
_SHOWN_PROBLEMS = 3


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, the category it is reported under, and whatever else a reward needs to know about it."""

    text: str
    kind: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)


def read_prompts(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file in its order.

    ``.jsonl`` files hold an object a line: ``prompt``, optionally ``kind`` (or GenEval's ``tag``), and further keys
    that become metadata. Any other file holds a prompt a line; blank lines and lines that begin with ``#`` are
    skipped. No prompt may occur twice: the noise of a sample derives from its prompt, so both would give the same
    images.

    Raises:
        ConfigError: naming file and line, if the file is missing, empty, not UTF-8 or malformed.
    """
    prompts: list[Prompt] = []
    first_line: dict[str, int] = {}
    problems: list[str] = []
    for number, line in _numbered_lines(path):
        try:
            prompt = _parse_json(line) if path.suffix == ".jsonl" else _parse_text(line)
            if prompt.text in first_line:
                raise ValueError(f"repeats line {first_line[prompt.text]} ({prompt.text!r}); remove one of them")
        except ValueError as error:
            problems.append(f"{path}, line {number}: {error}")
            continue
        first_line[prompt.text] = number
        prompts.append(prompt)
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        raise ConfigError("\n".join(problems[:_SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else [])))
    if not prompts:
        raise ConfigError(f"{path}: holds no prompt; write one a line")
    return tuple(prompts)


def _numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines that hold something, without comments in text files."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a prompt file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give the path of a prompt file") from None
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            line = raw.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise ConfigError(f"{path}, line {number}: is not UTF-8 text; save the file as UTF-8") from None
        if line and (path.suffix == ".jsonl" or not line.startswith("#")):
            yield number, line


def _parse_text(line: str) -> Prompt:
    if not line.isprintable():
        raise ValueError("holds control characters, so it is no prompt; write one prompt a line")
    if len(line) > _LONGEST_PROMPT:
        raise ValueError(f"has {len(line)} characters, more than {_LONGEST_PROMPT}; write one prompt a line")
    return Prompt(line)


def _parse_json(line: str) -> Prompt:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f'is not JSON ({error.msg} at column {error.colno}); write {{"prompt": ...}}') from None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt"), str) or not entry["prompt"].strip():
        raise ValueError('must be an object with the text "prompt"; write {"prompt": "a red circle"}')
    kind = entry.get("kind", entry.get("tag", ""))
    if not isinstance(kind, str):
        raise ValueError(f"kind = {kind!r}: must be text")
    nested = entry.get("metadata", {})
    if not isinstance(nested, dict):
        raise ValueError(f"metadata = {nested!r}: must be an object")
    rest = {key: value for key, value in entry.items() if key not in ("prompt", "kind", "metadata")}
    return Prompt(entry["prompt"].strip(), kind, {**rest, **nested})
