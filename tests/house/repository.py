"""Where the repository is and which of its files the house rules look at."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "difalign"
DEFINITION_FOLDERS = ("pipelines", "reward_models", "configs")

_TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".json", ".jsonl", ".cfg", ".jinja", ".html", ".css"}
_TEXT_NAMES = {"Makefile", "run", ".gitignore", ".gitattributes"}
_FOLDERS = ("difalign", "pipelines", "reward_models", "configs", "samples", "benchmarks", "tests", "docs", ".ci")
_GENERATED = {"__pycache__", "_build"}


def package_sources() -> list[Path]:
    """Every Python file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def text_files() -> list[Path]:
    """Every text file that belongs to the project, at the root and in its own folders."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in _FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.is_file()]
    return sorted(
        path
        for path in found
        if (path.suffix in _TEXT_SUFFIXES or path.name in _TEXT_NAMES) and not _GENERATED & set(path.parts)
    )


def relative(path: Path) -> str:
    """The path as it is written in a message, from the root of the repository."""
    return path.relative_to(ROOT).as_posix()
