"""Measure a segmenter, by the code that serves it: one case, or the held-out cases of a training.

Invariant: each mask is compared on its image's own grid, as a user gets it, not on what a network sees; what is
calibrated comes from the validation cases, and the test cases only say whether it holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from imaging.calibrate import conformal_ratio
from imaging.config import SegmentConfig
from imaging.data import load_case
from imaging.manifest import Case
from imaging.mask_scores import CaseScore, score_structures, summary
from imaging.predict import Prediction, Predictor

# Validation sets of some 30 cases cannot show more than this (see `conformal_ratio`).
VOLUME_COVERAGE = 0.9

# For each side and structure the true and the predicted volumes in mm3.
_Volumes = dict[str, dict[str, tuple[list[float], list[float]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A case's score, and what it rests on.

    Attributes
    ----------
    score
        What it is worth.
    prediction
        What the checkpoint said.
    truth_XYZ
        The manual mask, on the same grid.
    """

    score: CaseScore
    prediction: Prediction
    truth_XYZ: NDArray[Any]


def default_tolerance(config: SegmentConfig) -> float:
    """The tolerance of the surface Dice in mm: the longest edge of the network's voxels, the least that it can see.

    For the Decathlon's hippocampus this is the 1 mm of its challenge (Antonelli et al., Nature Communications 13:4128,
    2022).
    """
    return float(max(config.preprocess.spacing_mm))


def score_case(predictor: Predictor, case: Case, *, tolerance_mm: float) -> Scored:
    """Predict a case and score it.

    Raises
    ------
    LabelMismatch, InputRefused
        If the case cannot be read, its mask does not belong to it, or the checkpoint does not take it.
    """
    config = predictor.checkpoint.segmenter()
    labels = config.labels
    image, mask = load_case(case, labels=len(labels), channels=len(config.scales))
    truth = mask.array[0]
    prediction = predictor(image)
    structures = score_structures(
        prediction.mask_XYZ,
        truth,
        labels,
        spacing_mm=image.spacing,
        voxel_mm3=image.voxel_volume,
        tolerance_mm=tolerance_mm,
    )
    return Scored(CaseScore(case.name, case.patient, structures), prediction, truth)


def measure_segmenter(predictor: Predictor, sides: dict[str, list[Case]]) -> dict[str, Any]:
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
