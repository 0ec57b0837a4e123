"""A Report as one HTML file that needs nothing beside it and reads well on paper.

Invariant: everything from outside is escaped, nothing is fetched, and no script runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from imaging.report.heat import legend
from imaging.report.pictures import Picture
from imaging.report.report import Report

TEMPLATES = Environment(
    loader=PackageLoader("imaging.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters["dicom_date"] = lambda da: f"{da[:4]}-{da[4:6]}-{da[6:]}" if len(da) == 8 and da.isdigit() else da


def render_html(report: Report, pictures: Sequence[Picture]) -> str:
    """The page of a report with its key slices."""
    return TEMPLATES.get_template("report.html.j2").render(report=report, pictures=pictures, legend=legend())
