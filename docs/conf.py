"""Sphinx configuration: MyST pages under the furo theme."""

from __future__ import annotations

import difalign

project = "difalign"
author = "The difalign authors"
project_copyright = author
version = release = difalign.__version__

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = "difalign"
html_static_path: list[str] = []
