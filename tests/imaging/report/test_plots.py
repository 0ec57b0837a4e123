"""A plot shows what it says, in words too, and nothing from outside gets into the drawing."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from imaging.config import Label
from imaging.interval import Interval
from imaging.mask_scores import CaseScore, StructureScore
from imaging.report.class_plots import class_plots
from imaging.report.mask_plots import agreement_plot, dice_plot
from imaging.report.plots import Axis, Drawing, Plot, round_numbers
from imaging.scores import reliability, scores_of

HOSTILE = '</title><script>alert("1")</script>&'


def parsed(plot: Plot) -> ElementTree.Element:
    return ElementTree.fromstring(str(plot.svg))


def points_of(plot: Plot, kind: str) -> list[tuple[float, float]]:
    lines = [line for line in parsed(plot).iter("polyline") if line.get("class") == kind]
    return [tuple(map(float, point.split(","))) for line in lines for point in (line.get("points") or "").split()]


# ----------------------------------------------------------------------------------------------------------- the axes


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.8, 1, [0.8, 0.85, 0.9, 0.95, 1]),
        (-0.23, 0.23, [-0.2, -0.1, 0, 0.1, 0.2]),
        (0, 50_000, [0, 10_000, 20_000, 30_000, 40_000, 50_000]),
        (3, 3, [3]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, expected: list[float]) -> None:
    assert round_numbers(low, high) == expected


@pytest.mark.parametrize("seed", range(20))
def test_ticks_lie_on_the_axis(seed: int) -> None:
    low, high = np.sort(np.random.default_rng(seed).normal(0, 10.0**seed, 2)).tolist()
    ticks = round_numbers(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] and ticks[-1] <= high


def test_value_lies_where_the_axis_puts_it() -> None:
    drawing = Drawing(Axis("x", 0, 10), Axis("y", 0, 1))
    middle = (drawing.across(0) + drawing.across(10)) / 2
    assert drawing.across(5) == pytest.approx(middle)
    assert drawing.down(1) < drawing.down(0), "upwards on the screen is less"


def test_drawing_has_a_title_a_description_and_its_axes_names() -> None:
    drawing = Drawing(Axis("Time, s"), Axis("Length, mm"))
    drawing.line([0, 1], [0, 1])
    plot = drawing.finished("Growth", "It grows.", more="By one.")
    root = parsed(plot)
    named = (root.get("aria-labelledby") or "").split()
    assert [element.text for element in root.iter() if element.get("id") in named] == ["Growth", "It grows. By one."]
    assert {"Time, s", "Length, mm"} <= {text.text for text in root.iter("text")}


def test_what_comes_from_outside_stays_text() -> None:
    drawing = Drawing(Axis(HOSTILE), Axis("y"))
    drawing.dot(0.5, 0.5, HOSTILE, colour='red"onload="x')
    drawing.word(0.5, 0.5, HOSTILE)
    root = parsed(drawing.finished(HOSTILE, HOSTILE))
    assert not [element for element in root.iter() if element.tag == "script" or element.get("onload")]
    assert [element.text for element in root.iter() if element.text == HOSTILE] == [HOSTILE] * 5


def test_straight_stretches_of_a_line_are_drawn_as_one() -> None:
    drawing = Drawing(Axis("x"), Axis("y"))
    drawing.line([0, 0.1, 0.2, 0.5, 0.5, 0.5, 1], [0, 0, 0, 0, 0.3, 0.9, 0.9])
    assert len(points_of(drawing.finished("t", "d"), "curve")) == 4


# ---------------------------------------------------------------------------------------------------------- classifiers


def plots_of(truth: np.ndarray, probability: np.ndarray, threshold: float = 0.5) -> dict[str, Plot]:
    figures = {
        name: Interval(None if np.isnan(value) else value, None, None).as_dict()
        for name, value in scores_of(truth, probability, threshold).items()
    }
    bins = [
        {"low": part.low, "high": part.high, "cases": part.cases, "probability": part.probability, "share": part.share}
        for part in reliability(truth, probability)
    ]
    return {plot.title: plot for plot in class_plots("Pneumonia", truth, probability, figures, bins)}


@pytest.fixture
def sample() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    truth = generator.random(300) < 0.4
    return truth, np.clip(generator.normal(0.4 + 0.2 * truth, 0.2), 0, 1)


def area_under(points: list[tuple[float, float]], drawing: Drawing) -> float:
    """Of a curve, in the units of axes from 0 to 1."""
    left, right, bottom, top = drawing.across(0), drawing.across(1), drawing.down(0), drawing.down(1)
    xs = [(x - left) / (right - left) for x, _ in points]
    ys = [(bottom - y) / (bottom - top) for _, y in points]
    return float(np.trapezoid(ys, xs))


def test_area_of_the_drawn_curves_is_the_auc_and_the_auprc(sample: tuple[np.ndarray, np.ndarray]) -> None:
    plots, figures = plots_of(*sample), scores_of(*sample, 0.5)
    drawing = Drawing(Axis("x"), Axis("y"))
    assert area_under(points_of(plots["ROC curve"], "curve"), drawing) == pytest.approx(figures["auc"], abs=2e-3)
    found = area_under(points_of(plots["Precision and recall"], "curve"), drawing)
    assert found == pytest.approx(figures["auprc"], abs=2e-3)


def test_working_point_lies_on_the_curve(sample: tuple[np.ndarray, np.ndarray]) -> None:
    plots, figures = plots_of(*sample), scores_of(*sample, 0.5)
    (point,) = [dot for dot in parsed(plots["ROC curve"]).iter("circle") if dot.get("class") == "point"]
    drawing = Drawing(Axis("x"), Axis("y"))
    assert float(point.get("cx") or 0) == pytest.approx(drawing.across(1 - figures["specificity"]), abs=0.06)
    assert float(point.get("cy") or 0) == pytest.approx(drawing.down(figures["sensitivity"]), abs=0.06)
    assert f"sensitivity {figures['sensitivity']:.3f}" in plots["ROC curve"].told


def test_reliability_counts_every_case_once(sample: tuple[np.ndarray, np.ndarray]) -> None:
    plot = plots_of(*sample)["Reliability"]
    counts = [int(text.text or 0) for text in parsed(plot).iter("text") if text.get("class") == "count"]
    assert sum(counts) == 300
    assert sum(map(int, re.findall(r"(\d+) cases,", str(plot.svg)))) == 300
    assert "as if no patient had two cases" in plot.told, "these intervals alone are not over patients"


def test_without_a_threshold_there_is_no_working_point(sample: tuple[np.ndarray, np.ndarray]) -> None:
    plots = plots_of(*sample, threshold=float("nan"))
    assert 'class="point"' not in str(plots["ROC curve"].svg)
    assert "where it works" not in plots["ROC curve"].told


@pytest.mark.parametrize(
    ("truth", "drawn"), [(False, ["Reliability"]), (True, ["Precision and recall", "Reliability"])]
)
def test_curve_that_the_cases_cannot_show_is_not_drawn(truth: bool, drawn: list[str]) -> None:
    assert list(plots_of(np.full(30, truth), np.linspace(0, 1, 30))) == drawn


# --------------------------------------------------------------------------------------------------------------- masks

LABELS = [
    Label(id=n, name=name, title=name.title(), category={"value": "1", "meaning": "m"},
          code={"value": "1", "meaning": "m"}, colour="#112233")
    for n, name in ((1, "head"), (2, "tail"))
]  # fmt: skip


def scored(name: str, dice: float, found: float, truth: float) -> CaseScore:
    one = StructureScore(dice, 1.0, 1.0, 0.0, found, truth)
    none = StructureScore(float("nan"), float("nan"), float("nan"), float("nan"), 0.0, 0.0)
    return CaseScore(name, name, {"head": one, "tail": none})


METRICS = {"dice": {"head": {"mean": 0.8, "low": 0.7, "high": 0.9}, "tail": {"mean": None, "low": None, "high": None}}}


def test_dice_has_a_dot_a_case_and_none_for_a_structure_that_no_case_has() -> None:
    cases = [scored(f"c{n}", 0.7 + n / 100, 1000, 1000) for n in range(9)]
    plot = dice_plot(LABELS, cases, METRICS)
    told = [title.text for dot in parsed(plot).iter("circle") for title in dot]
    assert sorted(told) == [f"c{n}: {0.7 + n / 100:.3f}" for n in range(9)]
    assert "median 0.740, quartiles 0.720 and 0.760" in plot.told
    assert "Tail:" not in plot.told


def test_of_very_many_cases_only_the_outliers_are_dots() -> None:
    cases = [scored(f"c{n}", 0.8 + 0.0001 * n, 1000, 1000) for n in range(500)] + [scored("lost", 0.1, 1, 1000)]
    plot = dice_plot(LABELS, cases, METRICS)
    assert [title.text for dot in parsed(plot).iter("circle") for title in dot] == ["lost: 0.100"]
    assert "only the 1 outliers of 501 cases" in plot.told


def test_limits_of_agreement_are_those_of_bland_and_altman() -> None:
    cases = [scored(f"c{n}", 0.9, found, 1000) for n, found in enumerate((1100, 1200, 1300))]
    plot = agreement_plot(LABELS[0], cases)
    assert plot is not None
    assert "+0.200 mL" in plot.told
    assert "+0.004 and +0.396 mL" in plot.told, "0.2 -+ 1.96 * 0.1"
    assert len(list(parsed(plot).iter("circle"))) == 3


def test_one_case_agrees_with_nothing() -> None:
    assert agreement_plot(LABELS[0], [scored("c", 0.9, 1000, 1000)]) is None
    assert agreement_plot(LABELS[1], [scored(f"c{n}", 0.9, 1000, 1000) for n in range(5)]) is None
