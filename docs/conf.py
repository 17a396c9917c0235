"""Sphinx configuration: MyST pages under the furo theme."""

from __future__ import annotations

import sys
from pathlib import Path

import difalign

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "difalign"
author = "The difalign authors"
project_copyright = author
version = release = difalign.__version__

extensions = ["myst_parser", "sphinx.ext.mathjax", "reward_card"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "_ext"]

html_theme = "furo"
html_title = "difalign"
html_static_path: list[str] = []
