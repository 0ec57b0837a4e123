"""How well a segmenter does on a data set, as one HTML page that needs nothing beside it.

Invariant: every number on the page is in metrics.json or predictions.csv; everything from outside is escaped, nothing
is fetched, and no script runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imaging.config import Label
from imaging.interval import Interval
from imaging.mask_scores import TITLES, CaseScore
from imaging.report.html import TEMPLATES
from imaging.report.mask_plots import agreement_plot, dice_plot
from imaging.report.pictures import Picture


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A case with the slice on which the masks differ most: as the checkpoint drew it, and as a person did."""

    case: CaseScore
    found: Picture
    truth: Picture


def render_masks(
    metrics: Mapping[str, Any], labels: Sequence[Label], cases: Sequence[CaseScore], worst: Sequence[WorstCase]
) -> str:
    """The page.

    Parameters
    ----------
    metrics
        As metrics.json has them.
    labels
        The checkpoint's structures.
    cases
        Every case that was measured.
    worst
        Those to be shown, the worst first.
    """
    agreement = [agreement_plot(label, cases) for label in labels]
    return TEMPLATES.get_template("mask_page.html.j2").render(
        metrics=metrics, cross_validation=metrics.get("cross_validation"),
        labels=labels, cases=sorted(cases, key=_worst_first), worst=worst, titles=TITLES,
        plots=[dice_plot(labels, cases, metrics), *(plot for plot in agreement if plot)],
        interval=lambda value: str(Interval(**value)),
    )  # fmt: skip


def _worst_first(case: CaseScore) -> tuple[float, str]:
    return (math.inf if math.isnan(case.mean_dice) else case.mean_dice, case.name)
