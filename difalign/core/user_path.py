"""Paths as people write them."""

from __future__ import annotations

import os.path
from pathlib import Path


def user_path(name: str) -> Path:
    """``name`` as a path, with ``~`` for the home folder; of a user who has none it stays as it is written."""
    return Path(os.path.expanduser(name))
