"""How well a classifier does on a data set, as one HTML page that needs nothing beside it.

Invariant: every number on the page is in metrics.json or predictions.csv; everything from outside is escaped, nothing
is fetched, and no script runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from imaging.config import JudgedConfig
from imaging.interval import Interval
from imaging.judgement import Assessment, Target, targets_of
from imaging.report.class_plots import class_plots
from imaging.report.html import TEMPLATES
from imaging.report.pictures import Picture
from imaging.report.plots import Plot, cell
from imaging.scores import TITLES
from imaging.subgroups import SMALLEST_GROUP

_FEW = ("auc", "sensitivity", "specificity", "ppv", "npv")
_MOST_ROWS = 500
_TITLES = {name: title[0].upper() + title[1:] for name, title in TITLES.items()}


@dataclass(frozen=True, slots=True)
class TargetResult:
    """What was said of one thing that a case is judged by, beside what is true; `threshold` is None without one."""

    truth: bool
    probability: float
    threshold: float | None
    assessment: Assessment

    @property
    def wrong(self) -> bool:
        """Whether the threshold puts it on the wrong side; without one nothing is wrong."""
        return self.threshold is not None and (self.probability >= self.threshold) != self.truth


@dataclass(frozen=True, slots=True)
class CaseResult:
    """What was said of one case: its true classes, the probability of every class, and each target, by their names."""

    name: str
    classes: tuple[str, ...]
    probability: Mapping[str, float]
    targets: Mapping[str, TargetResult]


@dataclass(frozen=True, slots=True)
class Film:
    """A case that is shown; a text has no picture."""

    name: str
    probability: float
    assessment: str
    truth: str
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class _Cell:
    count: int
    share: str
    style: Markup


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    cells: tuple[_Cell, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    """What the page says of one target."""

    target: Target
    figures: Mapping[str, Any]
    undecided: str | None
    said: str
    plots: Sequence[Plot]
    confusion: Sequence[_Row]
    missed: Sequence[Film]
    false_alarms: Sequence[Film]


def surest_mistakes(results: Sequence[CaseResult], target: str, *, most: int = 4) -> list[CaseResult]:
    """The cases that are farthest on the wrong side of the threshold.

    Returns
    -------
    list of CaseResult
        First those that have the target and were given least, then those that do not and were given most; of either
        at most so many.
    """
    wrong = [result for result in results if result.targets[target].wrong]
    missed = sorted((r for r in wrong if r.targets[target].truth), key=lambda r: r.targets[target].probability)
    false = sorted((r for r in wrong if not r.targets[target].truth), key=lambda r: -r.targets[target].probability)
    return [*missed[:most], *false[:most]]


def render_classes(
    metrics: Mapping[str, Any],
    config: JudgedConfig,
    results: Sequence[CaseResult],
    pictures: Mapping[str, Picture],
) -> str:
    """The page.

    Parameters
    ----------
    metrics
        As metrics.json has them.
    config
        The checkpoint's.
    results
        Every case that was measured.
    pictures
        Of `surest_mistakes`, by the case's name; texts have none.
    """
    targets = targets_of(config)
    parts = [_part(target, metrics, results, pictures) for target in targets]
    judged = [target for target in targets if target.abnormal]
    likeliest = metrics.get("likeliest")
    return TEMPLATES.get_template("class_page.html.j2").render(
        metrics=metrics, cross_validation=metrics.get("cross_validation"), parts=parts,
        titles=_TITLES, few={name: _TITLES[name] for name in _FEW}, most=_MOST_ROWS,
        results=sorted(results, key=lambda result: _wrongest_first(result, targets)),
        classes=config.classes, judged=judged, smallest=SMALLEST_GROUP, calibration=metrics.get("calibration") or {},
        likeliest=_likeliest(likeliest) if likeliest and len(likeliest["classes"]) > 2 else None,
        interval=lambda value: str(Interval(**value)),
    )  # fmt: skip


def _wrongest_first(result: CaseResult, targets: Sequence[Target]) -> tuple[float, str]:
    found = [result.targets[target.name] for target in targets]
    return (-max(abs(one.probability - one.truth) for one in found), result.name)


def _part(
    target: Target, metrics: Mapping[str, Any], results: Sequence[CaseResult], pictures: Mapping[str, Picture]
) -> _Part:
    own = [result.targets[target.name] for result in results]
    truth, probability = np.array([one.truth for one in own]), np.array([one.probability for one in own])
    figures = metrics["scores"][target.name]
    films = [_film(result, target.name, pictures) for result in surest_mistakes(results, target.name)]
    shown = {result.name for result in results if result.targets[target.name].truth}
    return _Part(
        target=target,
        figures=figures,
        undecided=str(Interval(**share)) if (share := metrics["indeterminate"].get(target.name)) else None,
        said=_said(target, metrics),
        plots=class_plots(target.title, truth, probability, figures, metrics["reliability"][target.name]),
        confusion=_confusion(target, metrics["confusion"][target.name]),
        missed=[film for film in films if film.name in shown],
        false_alarms=[film for film in films if film.name not in shown],
    )


def _said(target: Target, metrics: Mapping[str, Any]) -> str:
    """By what the target is called there or not."""
    calibration = metrics.get("calibration") or {}
    threshold = (calibration.get("thresholds") or {}).get(target.name)
    if "cross_validation" in metrics:
        return "Each case is judged by the threshold that the cases of the other folds chose."
    if threshold is None:
        return "The checkpoint has no threshold for it."
    goal = f"chosen on {calibration['cases']} validation cases for a sensitivity of at least"
    judged = "" if target.abnormal else " Its presence alone is called neither normal nor abnormal."
    return f"Threshold {threshold:.4f}, {goal} {calibration['sensitivity']:.0%}.{judged}"


def _film(result: CaseResult, target: str, pictures: Mapping[str, Picture]) -> Film:
    own, truth = result.targets[target], ", ".join(result.classes) or "none of the classes"
    return Film(result.name, own.probability, own.assessment, truth, pictures.get(result.name))


def _confusion(target: Target, counts: Mapping[str, int] | None) -> list[_Row]:
    if counts is None:
        return []
    return [
        _row(target.title, (counts["false_negative"], counts["true_positive"])),
        _row(f"Not {target.title}", (counts["true_negative"], counts["false_positive"])),
    ]


def _likeliest(found: Mapping[str, Any]) -> dict[str, Any]:
    rows = [_row(name, counts) for name, counts in zip(found["classes"], found["counts"], strict=True)]
    return {"names": found["classes"], "rows": rows}


def _row(name: str, counts: Sequence[int]) -> _Row:
    total = sum(counts)
    shares = [count / total if total else 0.0 for count in counts]
    return _Row(
        name,
        tuple(
            _Cell(count, f"{100 * share:.1f} %" if total else "no case", cell(share))
            for count, share in zip(counts, shares, strict=True)
        ),
    )
