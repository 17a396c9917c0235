"""Every message that the troubleshooting page quotes is one that the package says."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house.repository import ROOT, package_sources

PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"  # in the page and in what is made of a literal: whatever differs from one message to the next
_CODE = re.compile(r"`((?:[^`]|``)+)`(?!`)")


def quoted_fragments(text: str) -> list[str]:
    """What stands between the gaps of the messages that a page quotes."""
    messages = [code for line in text.splitlines() if line.startswith("**Says**") for code in _CODE.findall(line)]
    fragments = [part.replace("``", "`").strip() for message in messages for part in message.split(GAP)]
    return list(dict.fromkeys(part for part in fragments if part))


def literals(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, an f-string with a gap for each of its values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@cache
def said_by_the_package() -> tuple[str, ...]:
    return tuple(text for path in package_sources() for text in literals(ast.parse(Path(path).read_text())))


@pytest.mark.parametrize("fragment", quoted_fragments(PAGE.read_text()))
def test_quoted_message_is_in_the_source(fragment: str):
    assert any(fragment in text for text in said_by_the_package())


def test_a_message_that_is_nowhere_is_noticed():
    page = "`not this`\n**Says** `out of … memory`, `correct ``path`` in the card`\n"
    assert quoted_fragments(page) == ["out of", "memory", "correct `path` in the card"]
    assert next(literals(ast.parse("f'a {b} c' 'd'"))) == "a … cd"
    assert not any("no package says this" in text for text in said_by_the_package())


def test_page_is_in_the_table_of_contents():
    assert "troubleshooting" in (ROOT / "docs" / "index.md").read_text().splitlines()
