"""A Report as one HTML file that needs nothing beside it and reads well on a phone and on paper.

Invariant: everything from outside is escaped, nothing is fetched, and no script runs; nothing is told by colour alone.
The same report and pictures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from imaging.dicom.values import told_date
from imaging.report.conclusion import by_urgency, conclusion_of, kind_of
from imaging.report.heat import legend
from imaging.report.marked_words import words_of
from imaging.report.pictures import Picture
from imaging.report.report import Disagreement, Report

TEMPLATES = Environment(
    loader=PackageLoader("imaging.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def _why(missing: Sequence[str], part: str) -> str:
    """Why one of the three scores is missing: what is said of that part, or else all that is said."""
    own = [reason.partition(":")[2].strip() for reason in missing if reason.startswith(f"{part}:")]
    return "; ".join(own or missing)


TEMPLATES.filters |= {"dicom_date": told_date, "why": _why}


def render_html(report: Report, pictures: Sequence[Picture]) -> str:
    """The page of a report with its key slices; a picture of what is disputed stands beside the words."""
    disputed = [_of(item, pictures)[:1] for item in report.disagreements]
    beside = {id(picture) for each in disputed for picture in each}
    return TEMPLATES.get_template("report.html.j2").render(
        report=report,
        conclusion=conclusion_of(report),
        findings=[(finding, kind_of(finding)) for finding in by_urgency(report)],
        disputed=disputed,
        pictures=[picture for picture in pictures if id(picture) not in beside],
        texts=[words_of(entry, report.disagreements) for entry in report.texts],
        legend=legend(),
    )


def _of(item: Disagreement, pictures: Sequence[Picture]) -> list[Picture]:
    """The pictures that show where the picture says what the words do not."""
    shown = (picture for picture in pictures if picture.heat is not None and picture.heat.name == item.name)
    return [picture for picture in shown if picture.series_uid == item.series_uid]
