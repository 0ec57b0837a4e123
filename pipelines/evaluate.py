"""Measure a checkpoint on cases that its weights were not fitted on, by the code that serves it.

Invariant: each mask is compared on its image's own grid, as a user gets it; what is calibrated comes from the
validation cases, and the test cases only say whether it holds.
"""

from __future__ import annotations

from typing import Any

from imaging.calibrate import conformal_ratio
from imaging.manifest import Case
from imaging.mask_scores import summary
from imaging.predict import Predictor
from pipelines.score import default_tolerance, score_case

# Validation sets of some 30 cases cannot show more than this (see `conformal_ratio`).
VOLUME_COVERAGE = 0.9

# For each side and structure the true and the predicted volumes in mm3.
_Volumes = dict[str, dict[str, tuple[list[float], list[float]]]]


def evaluate(predictor: Predictor, sides: dict[str, list[Case]]) -> dict[str, Any]:
    """Scores on each side's cases, on each image's own grid.

    Returns
    -------
    dict
        For each side what `imaging.mask_scores.summary` gives; and ``volume_interval``, the conformal factors from the
        validation cases with their coverage on test.
    """
    config = predictor.checkpoint.segmenter()
    tolerance = default_tolerance(config)
    metrics: dict[str, Any] = {}
    volumes: _Volumes = {}
    for side, cases in sides.items():
        scored = [score_case(predictor, case, tolerance_mm=tolerance).score for case in cases]
        metrics[side] = summary(scored, config.labels, tolerance_mm=tolerance)
        volumes[side] = {
            label.name: (
                [case.structures[label.name].truth_mm3 for case in scored],
                [case.structures[label.name].found_mm3 for case in scored],
            )
            for label in config.labels
        }
    metrics["volume_interval"] = {label.name: _volume_interval(volumes, label.name) for label in config.labels}
    return metrics


def _volume_interval(volumes: _Volumes, name: str) -> dict[str, Any] | None:
    """The factors between which the true volume lies, from validation, and how often they held on test."""
    factors = (
        conformal_ratio(*volumes["validation"][name], coverage=VOLUME_COVERAGE) if "validation" in volumes else None
    )
    if factors is None:
        return None
    low, high = factors
    interval: dict[str, Any] = {"coverage": VOLUME_COVERAGE, "low": round(low, 4), "high": round(high, 4)}
    if "test" in volumes:
        truths, founds = volumes["test"][name]
        held = [low * found <= truth <= high * found for truth, found in zip(truths, founds, strict=True)]
        interval["held_on_test"] = round(sum(held) / len(held), 3)
        interval["test_cases"] = len(held)
    return interval
