"""How well masks fit over a whole data set, drawn: the Dice of every case, and how far volumes agree.

Invariant: a case that has no number is in no plot; what is drawn is in predictions.csv, or is reckoned from it as said.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imaging.config import Label
from imaging.interval import Interval
from imaging.mask_scores import CaseScore
from imaging.report.plots import Axis, Drawing, Plot, widened

_ROW = 64.0
# Dots in a column stand one above the other; with more cases than this only the outliers are drawn.
_DOT, _MOST_DOTS = 5.0, 400


def dice_plot(labels: Sequence[Label], cases: Sequence[CaseScore], metrics: Mapping[str, Any]) -> Plot:
    """The Dice of every case as a dot above a box of its quartiles, and the mean with its interval; a row a structure.

    Tukey, *Exploratory Data Analysis* (1977), section 2D: outliers lie more than 1.5 times the box's length from it.
    """
    values = [case.structures[label.name].dice for case in cases for label in labels]
    start = math.floor(10 * min([value for value in values if not math.isnan(value)], default=0)) / 10
    drawing = Drawing(
        Axis("Dice", min(start, 0.9), 1.0), Axis("", 0, len(labels)), height=_ROW * len(labels) + 56, left=14
    )
    told = []
    for number, label in enumerate(labels):
        top = len(labels) - number
        scored = [(case.structures[label.name].dice, case.name) for case in cases]
        scored = sorted((dice, name) for dice, name in scored if not math.isnan(dice))
        drawing.word(min(start, 0.9), top, label.title, anchor="start", dy=14, kind="name")
        if scored:
            told.append(f"{label.title}: {_row(drawing, label, scored, top, metrics)}")
    return drawing.finished(
        "Dice of each case",
        "A dot a case, the box its quartiles and median, below it the mean with its 95 % interval. " + " ".join(told),
        y_ticks=False,
    )


def _row(
    drawing: Drawing, label: Label, scored: Sequence[tuple[float, str]], top: float, metrics: Mapping[str, Any]
) -> str:
    """One structure's dots, box and mean; gives them in words."""
    low, middle, high = np.percentile([dice for dice, _ in scored], [25, 50, 75]).tolist()
    drawing.bar(low, high, top - 0.82, top - 0.62, "box")
    drawing.line([middle, middle], [top - 0.82, top - 0.62], "mean")
    reach = 1.5 * (high - low)
    shown = [(d, name) for d, name in scored if len(scored) <= _MOST_DOTS or not low - reach <= d <= high + reach]
    columns: dict[int, list[tuple[float, str]]] = defaultdict(list)
    for dice, name in shown:
        columns[round(drawing.across(dice) / _DOT)].append((dice, name))
    for column in columns.values():
        step = min(_DOT / _ROW, 0.3 / len(column))
        for at, (dice, name) in enumerate(column):
            drawing.dot(dice, top - 0.57 + at * step, f"{name}: {dice:.3f}", radius=2.6, colour=label.colour)
    mean = Interval(**metrics["dice"][label.name])
    if mean.mean is not None:
        ends = [mean.mean if bound is None else bound for bound in (mean.low, mean.high)]
        drawing.line(ends, [top - 0.92, top - 0.92], "mean")
        drawing.line([mean.mean, mean.mean], [top - 0.88, top - 0.96], "mean")
    hidden = f"; only the {len(shown)} outliers of {len(scored)} cases have a dot" if len(shown) < len(scored) else ""
    return f"mean {mean}, median {middle:.3f}, quartiles {low:.3f} and {high:.3f}{hidden}."


def agreement_plot(label: Label, cases: Sequence[CaseScore]) -> Plot | None:
    """The difference of a structure's volumes against their mean, with bias and limits of agreement.

    None where fewer than two cases have the structure in either mask.

    Bland and Altman, *Statistical methods for assessing agreement between two methods of clinical measurement*, Lancet
    327 (1986) 307-310: 95 % of the differences are expected within 1.96 standard deviations of their mean.
    """
    pairs = [(case.name, case.structures[label.name]) for case in cases]
    pairs = [(name, found) for name, found in pairs if found.found_mm3 or found.truth_mm3]
    if len(pairs) < 2:
        return None
    means = np.array([(found.found_mm3 + found.truth_mm3) / 2000 for _, found in pairs])
    differences = np.array([(found.found_mm3 - found.truth_mm3) / 1000 for _, found in pairs])
    bias, deviation = float(differences.mean()), float(differences.std(ddof=1))
    low, high = bias - 1.96 * deviation, bias + 1.96 * deviation
    edges = widened([*differences.tolist(), low, high, 0.0])
    drawing = Drawing(
        Axis("Mean of both volumes, mL", *widened(means)),
        Axis("Checkpoint \N{MINUS SIGN} manual, mL", *edges),
        left=58,
    )
    ends = list(widened(means))
    drawing.line(ends, [0, 0], "axis")
    drawing.line(ends, [bias, bias], "mean")
    for limit in (low, high):
        drawing.line(ends, [limit, limit], "guide")
    for (name, _), mean, difference in zip(pairs, means.tolist(), differences.tolist(), strict=True):
        drawing.dot(mean, difference, f"{name}: {difference:+.3f} mL at {mean:.3f} mL", colour=label.colour)
    outside = int(((differences < low) | (differences > high)).sum())
    return drawing.finished(
        f"Volume of {label.title}",
        f"A dot a case, {len(pairs)} of them. The checkpoint's volume differs from the manual one by {bias:+.3f} mL on"
        f" average (thick line); limits of agreement {low:+.3f} and {high:+.3f} mL (dashed: 1.96 standard deviations"
        f" either side), beyond which {outside} cases lie.",
    )
