"""Measure a checkpoint on cases that its weights were not fitted on, by the code that serves it.

Invariant: each mask is compared on its image's own grid, as a user gets it; what is calibrated comes from the
validation cases, and the test cases only say whether it holds.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from imaging.calibrate import conformal_ratio
from imaging.data import load_case
from imaging.manifest import Case
from imaging.metrics import bootstrap_means, dice
from imaging.predict import Predictor

# Validation sets of some 30 cases cannot show more than this (see `conformal_ratio`).
VOLUME_COVERAGE = 0.9

# For each side and structure the true and the predicted volumes in mm3.
_Volumes = dict[str, dict[str, tuple[list[float], list[float]]]]


def evaluate(predictor: Predictor, sides: dict[str, list[Case]]) -> dict[str, Any]:
    """Dice and volumes on each side's cases, on each image's own grid.

    Returns
    -------
    dict
        For each side ``cases``, ``dice`` (mean and 95 % bootstrap interval for each label) and ``each`` (Dice of every
        case); and ``volume_interval``, the conformal factors from the validation cases with their coverage on test.
    """
    labels = predictor.checkpoint.segmenter().labels
    metrics: dict[str, Any] = {}
    volumes: _Volumes = {}
    for side, cases in sides.items():
        scores: dict[str, list[float]] = {}
        volumes[side] = {label.name: ([], []) for label in labels}
        for case in cases:
            image, mask = load_case(case, labels=len(labels))
            truth = mask.array[0]
            found = predictor(image).mask_XYZ
            scores[case.name] = [dice(found, truth, label.id) for label in labels]
            for label in labels:
                truths, founds = volumes[side][label.name]
                truths.append(float((truth == label.id).sum()) * image.voxel_volume)
                founds.append(float((found == label.id).sum()) * image.voxel_volume)
        means = bootstrap_means(np.array(list(scores.values())))
        metrics[side] = {
            "cases": len(cases),
            "dice": {label.name: mean.as_dict() for label, mean in zip(labels, means, strict=True)},
            "each": {
                name: [None if np.isnan(score) else round(score, 5) for score in row] for name, row in scores.items()
            },
        }
    metrics["volume_interval"] = {label.name: _volume_interval(volumes, label.name) for label in labels}
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
