"""Threshold and error rate are both kept: where they disagree, nobody is told normal or abnormal."""

from __future__ import annotations

import pytest

from imaging.conformal import Conformal
from imaging.judgement import assess

OVERLAPPING = Conformal(0.1, True, 0.3, 0.6, 100)
APART = Conformal(0.1, True, 0.6, 0.3, 100)


@pytest.mark.parametrize(
    ("bounds", "probability", "assessment", "told"),
    [
        (None, 0.5, "abnormal", "At or above the threshold"),
        (None, 0.49, "normal", "Below the threshold"),
        (OVERLAPPING, 0.61, "abnormal", "Nothing else is left open at an error rate of 10%"),
        (OVERLAPPING, 0.6, "indeterminate", "Neither normal nor abnormal can be left out"),
        (OVERLAPPING, 0.3, "indeterminate", "Neither normal nor abnormal can be left out"),
        (OVERLAPPING, 0.29, "normal", "Nothing else is left open"),
        (APART, 0.45, "indeterminate", "like neither"),
        (APART, 0.55, "indeterminate", "like neither"),
        (APART, 0.6, "abnormal", "Nothing else"),
        (Conformal(0.1, True, 0.2, 0.1, 100), 0.3, "indeterminate", "only abnormal is left open"),
    ],
)
def test_assessments(bounds: Conformal | None, probability: float, assessment: str, told: str) -> None:
    found, reason = assess(probability, 0.5, bounds, goal="95%")
    assert found == assessment
    assert told in reason
