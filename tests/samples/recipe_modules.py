"""Modules of the recipes, which import one another as scripts of one folder do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "samples" / "recipes"


def recipe_module(name: str) -> Any:
    """A module of samples/recipes by its name."""
    if str(RECIPES) not in sys.path:
        sys.path.insert(0, str(RECIPES))
    return importlib.import_module(name)
