"""Measure a segmenter, by the code that serves it: one case, or the held-out cases of a training.

Invariant: each mask is compared on its image's own grid, as a user gets it, not on what a network sees; what is
calibrated comes from the validation cases, and the test cases only say whether it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from imaging.calibrate import conformal_ratio
from imaging.config import Label, SegmentConfig
from imaging.data import load_case
from imaging.manifest import Case
from imaging.mask_scores import CaseScore, score_structures, summary
from imaging.predict import Prediction, Predictor

# Validation sets of some 30 cases cannot show more than this (see `conformal_ratio`).
VOLUME_COVERAGE = 0.9


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

    Axes along which each image keeps its own spacing are not counted; without any other it is 1 mm.

    For the Decathlon's hippocampus this is the 1 mm of its challenge (Antonelli et al., Nature Communications 13:4128,
    2022).
    """
    return float(max((step for step in config.preprocess.spacing_mm if step is not None), default=1.0))


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
    scored = {
        side: [score_case(predictor, case, tolerance_mm=tolerance).score for case in cases]
        for side, cases in sides.items()
    }
    metrics: dict[str, Any] = {
        side: summary(scores, config.labels, tolerance_mm=tolerance) for side, scores in scored.items()
    }
    metrics["volume_interval"] = volume_intervals(config.labels, scored.get("validation", ()), scored.get("test", ()))
    return metrics


def volume_intervals(
    labels: Sequence[Label], held_out: Sequence[CaseScore], tested: Sequence[CaseScore]
) -> dict[str, dict[str, Any] | None]:
    """For each structure the factors between which the true volume lies, and how often they held on test.

    Parameters
    ----------
    labels
        The structures.
    held_out
        Cases that no weight was fitted on; the factors come from these (`imaging.calibrate.conformal_ratio`).
    tested
        Other such cases.

    Returns
    -------
    dict
        ``coverage``, ``low`` and ``high``, and where there are test cases ``held_on_test`` and ``test_cases``; None
        where there are too few cases.
    """
    return {label.name: _volume_interval(label.name, held_out, tested) for label in labels}


def _volume_interval(name: str, held_out: Sequence[CaseScore], tested: Sequence[CaseScore]) -> dict[str, Any] | None:
    calibrating = [case.structures[name] for case in held_out]
    factors = conformal_ratio(
        [score.truth_mm3 for score in calibrating],
        [score.found_mm3 for score in calibrating],
        coverage=VOLUME_COVERAGE,
    )
    if factors is None:
        return None
    low, high = factors
    interval: dict[str, Any] = {"coverage": VOLUME_COVERAGE, "low": round(low, 4), "high": round(high, 4)}
    if tested:
        scores = [case.structures[name] for case in tested]
        held = [low * score.found_mm3 <= score.truth_mm3 <= high * score.found_mm3 for score in scores]
        interval["held_on_test"] = round(sum(held) / len(held), 3)
        interval["test_cases"] = len(held)
    return interval
