"""Templates to pages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from difalign.report.chart import Chart


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page of a template in ``report/templates``; every text is escaped, and a missing name is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("difalign.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["chart_data"] = _chart_data
    return templates.get_template(template).render(content)


def _chart_data(chart: Chart) -> str:
    """What the page's script needs to show values under the pointer."""
    curves = [
        {"name": curve.name, "colour": curve.colour, "points": curve.points, "labels": curve.labels}
        for curve in chart.curves
    ]
    return json.dumps({"positions": chart.positions, "curves": curves}, separators=(",", ":"))
