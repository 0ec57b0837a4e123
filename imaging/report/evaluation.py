"""How well a checkpoint does on a data set, as one HTML page that needs nothing beside it.

Invariant: every number on the page is in metrics.json or predictions.csv; everything from outside is escaped, nothing
is fetched, and no script runs.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imaging.config import Label
from imaging.interval import Interval
from imaging.mask_scores import CaseScore
from imaging.report.html import TEMPLATES
from imaging.report.pictures import Picture

_WIDTH, _ROW, _DOT = 640.0, 54.0, 5.0
_MARGIN = 12.0


@dataclass(frozen=True, slots=True)
class WorstCase:
    """A case with the slice on which the masks differ most: as the checkpoint drew it, and as a person did."""

    case: CaseScore
    found: Picture
    truth: Picture


@dataclass(frozen=True, slots=True)
class Strip:
    """The Dice of every case for one structure, as dots along a line; positions in the drawing's own units."""

    title: str
    colour: str
    y: float
    dots: tuple[tuple[float, float, str], ...]
    mean: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class Strips:
    """One strip a structure over a common axis that ends at 1."""

    width: float
    height: float
    ticks: tuple[tuple[float, str], ...]
    rows: tuple[Strip, ...]


def render_evaluation(
    metrics: Mapping[str, Any],
    labels: Sequence[Label],
    cases: Sequence[CaseScore],
    worst: Sequence[WorstCase],
    titles: Mapping[str, str],
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
    titles
        What each score is called.
    """
    ordered = sorted(cases, key=_worst_first)
    return TEMPLATES.get_template("evaluation.html.j2").render(
        metrics=metrics, labels=labels, cases=ordered, worst=worst, titles=titles,
        cross_validation=metrics.get("cross_validation"),
        strips=strips(metrics, labels, cases), interval=lambda value: str(Interval(**value)),
    )  # fmt: skip


def _worst_first(case: CaseScore) -> tuple[float, str]:
    return (math.inf if math.isnan(case.mean_dice) else case.mean_dice, case.name)


def strips(metrics: Mapping[str, Any], labels: Sequence[Label], cases: Sequence[CaseScore]) -> Strips:
    """Where each case's Dice goes; equal ones lie above and below each other."""
    values = [case.structures[label.name].dice for case in cases for label in labels]
    start = math.floor(10 * min([value for value in values if not math.isnan(value)], default=0)) / 10
    start = min(start, 0.9)

    def place(dice: float) -> float:
        return _MARGIN + (dice - start) / (1 - start) * (_WIDTH - 2 * _MARGIN)

    rows = []
    for number, label in enumerate(labels):
        # The mean and its interval are drawn below the dots.
        middle = _ROW * (number + 0.4)
        columns: dict[int, list[tuple[float, str]]] = defaultdict(list)
        for case in cases:
            score = case.structures[label.name].dice
            if not math.isnan(score):
                columns[round(place(score) / _DOT)].append((place(score), f"{case.name}: {score:.3f}"))
        dots = []
        for column in columns.values():
            step = min(_DOT, (_ROW - 24) / len(column))
            dots += [(x, middle + (at - (len(column) - 1) / 2) * step, told) for at, (x, told) in enumerate(column)]
        mean = metrics["dice"][label.name]
        low, centre, high = (None if mean[key] is None else place(mean[key]) for key in ("low", "mean", "high"))
        rows.append(Strip(label.title, label.colour, middle, tuple(dots), centre, low, high))
    steps = round((1 - start) * 10)
    ticks = tuple((place(start + step / 10), f"{start + step / 10:.1f}") for step in range(steps + 1))
    return Strips(_WIDTH, _ROW * len(labels), ticks, tuple(rows))
