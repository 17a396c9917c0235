"""Configurations of tests: a base, and what a test says differently."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lay_over(base: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``sections`` over it: a mapping is laid over a mapping key by key, once; all else replaces."""
    merged = dict(base)
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, Mapping) else value
    return merged
