"""What the README promises exists, and continuous integration runs it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.repository import ROOT, relative, text_files

README_COMMANDS = {"demo", "test"}
CI_COMMANDS = {"check", "test"}
TARGETS = {"install", "demo", "test", "test-all", "check", "check-install", "bench", "docs"}


def makefile_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def commands(text: str) -> set[str]:
    """Targets of the lines that start with ``make``."""
    return set(re.findall(r"^make ([a-z-]+)", text, flags=re.MULTILINE))


def test_makefile_has_every_target():
    assert makefile_targets() >= TARGETS


def test_readme_names_the_two_commands_first():
    assert commands((ROOT / "README.md").read_text()) >= README_COMMANDS
    assert makefile_targets() >= README_COMMANDS


def test_ci_runs_check_and_test_and_nothing_else_of_the_makefile():
    assert commands((ROOT / ".ci" / "run").read_text()) == CI_COMMANDS


PAGE_PATTERNS = ("*.md", "docs/*.md", "docs/rewards/*.md", "samples/*.md", "benchmarks/*.md", "pipelines/*/*.md")
PAGES = sorted(page for pattern in PAGE_PATTERNS for page in ROOT.glob(pattern))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page: Path):
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    local = [target for target in targets if not re.match(r"[a-z]+:", target)]
    missing = [target for target in local if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to files that do not exist: {missing}"


def test_rows_of_fidelity_are_numbered_and_whole():
    """A letter a section, 1, 2, 3 and so on; a test in the last column, or the file that does without."""
    sections = re.split(r"^## ", (ROOT / "docs" / "fidelity.md").read_text(), flags=re.MULTILINE)[1:]
    letters = []
    for section in sections:
        rows = [re.split(r" \| ", line[2:-2]) for line in section.splitlines() if re.match(r"\| [A-Z]\d", line)]
        if not rows:
            continue
        letters.append(rows[0][0][0])
        assert [row[0] for row in rows] == [f"{letters[-1]}{number}" for number in range(1, len(rows) + 1)]
        assert {len(row) for row in rows} == {6}
        assert all(re.search(r"`[\w/]+\.py`", row[-1]) for row in rows)
    assert len(set(letters)) == len(letters) >= 6


def test_fidelity_names_tests_that_exist():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "fidelity.md").read_text()))
    assert named
    assert not sorted(name for name in named if not (ROOT / name).is_file())


def test_no_text_holds_a_path_of_one_machine():
    # Examples may use the home of `me`. The pattern is put together so that it does not find itself.
    homes = re.compile("(?<![\\w.:/])/" + "(home|Users|root|work)" + "/(?!me/)[\\w.-]")
    found = [
        f"{relative(path)}:{number}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if homes.search(line)
    ]
    assert not found
