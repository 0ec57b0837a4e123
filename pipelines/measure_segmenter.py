"""Measure a segmenter by the code that serves it: on the held-out cases of its training, or on any others.

Invariant: each mask is compared on its image's own grid, as a user gets it, not on what a network sees; what is
calibrated comes from the validation cases, and the test cases only say whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from imaging.calibrate import conformal_ratio
from imaging.config import Label, SegmentConfig
from imaging.dataset_check import OnCase
from imaging.errors import ImagingError
from imaging.manifest import Case
from imaging.mask_scores import CaseScore, score_structures, summary
from imaging.predict import Prediction, Predictor
from imaging.report.mask_page import WorstCase, render_masks
from imaging.report.pictures import comparison
from imaging.samples import load_case
from imaging.structures import truth_of
from pipelines.predictions import mask_rows
from pipelines.result import Measured, Result, of_side, provenance

# Validation sets of some 30 cases cannot show more than this (see `conformal_ratio`).
VOLUME_COVERAGE = 0.9
# How many of the worst cases are shown.
_SHOWN = 4


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A case's score, and what it rests on.

    Attributes
    ----------
    score
        What it is worth.
    prediction
        What the checkpoint said.
    truth
        The manual mask on the same grid, as `imaging.structures` has masks.
    """

    score: CaseScore
    prediction: Prediction
    truth: NDArray[Any]


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
    image, mask = load_case(case, values=config.mask_values, channels=len(config.scales))
    truth = truth_of(mask.array[0], config)
    prediction = predictor(image)
    structures = score_structures(
        prediction.found,
        truth,
        labels,
        spacing_mm=image.spacing,
        voxel_mm3=image.voxel_volume,
        tolerance_mm=tolerance_mm,
    )
    return Scored(CaseScore(case.name, case.patient, structures), prediction, truth)


@dataclass(frozen=True, slots=True, eq=False)
class ScoredCases:
    """Some cases that were scored.

    Attributes
    ----------
    scores
        Of each.
    worst
        Those with the least Dice, the worst first, with their pictures.
    refused
        Why others were left out.
    """

    scores: Sequence[CaseScore]
    worst: Sequence[WorstCase]
    refused: Sequence[ImagingError]


def score_each(
    predictor: Predictor, cases: Sequence[Case], *, tolerance_mm: float, on_case: OnCase | None = None
) -> ScoredCases:
    """Score every case that can be scored."""
    scores: list[CaseScore] = []
    worst: list[WorstCase] = []
    refused: list[ImagingError] = []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        try:
            scored = score_case(predictor, case, tolerance_mm=tolerance_mm)
        except ImagingError as error:
            refused.append(error)
            continue
        scores.append(scored.score)
        # Only the pictures of the worst so far are kept: a data set's volumes would not fit in memory.
        if not math.isnan(scored.score.mean_dice) and _is_worse(scored.score, worst):
            worst.append(WorstCase(scored.score, *comparison(scored.prediction, scored.truth)))
            worst = list(worst_of(worst))
    return ScoredCases(scores, worst, refused)


def worst_of(cases: Sequence[WorstCase]) -> tuple[WorstCase, ...]:
    """Those that a page shows, the worst first."""
    return tuple(sorted(cases, key=lambda item: item.case.mean_dice)[:_SHOWN])


def _is_worse(score: CaseScore, worst: Sequence[WorstCase]) -> bool:
    return len(worst) < _SHOWN or score.mean_dice < worst[-1].case.mean_dice


def evaluate_segmenter(
    predictor: Predictor, cases: Sequence[Case], *, data: str, tolerance_mm: float, on_case: OnCase | None = None
) -> Result:
    """Measure a checkpoint; a case that it cannot be asked about is told and left out."""
    labels = predictor.checkpoint.segmenter().labels
    found = score_each(predictor, cases, tolerance_mm=tolerance_mm, on_case=on_case)
    metrics = {
        **provenance(predictor.checkpoint, data, [score.name for score in found.scores]),
        **(summary(found.scores, labels, tolerance_mm=tolerance_mm) if found.scores else {"cases": 0}),
        "refused": [error.as_dict() for error in found.refused],
    }
    if not found.scores:
        return Result(metrics, "", "", tuple(found.refused))
    page = render_masks(metrics, labels, found.scores, found.worst)
    return Result(metrics, mask_rows(found.scores, labels), page, tuple(found.refused))


def measure_segmenter(predictor: Predictor, sides: dict[str, list[Case]], *, data: str) -> Measured:
    """Scores on each side's cases, on each image's own grid.

    Returns
    -------
    Measured
        For each side what `imaging.mask_scores.summary` gives; ``volume_interval``, the conformal factors from the
        validation cases with their coverage on test; and a page a side.

    Raises
    ------
    LabelMismatch, InputRefused
        If a case cannot be scored.
    """
    config = predictor.checkpoint.segmenter()
    tolerance = default_tolerance(config)
    metrics: dict[str, Any] = {}
    pages: dict[str, str] = {}
    scored: dict[str, Sequence[CaseScore]] = {}
    for side, cases in sides.items():
        found = score_each(predictor, cases, tolerance_mm=tolerance)
        for error in found.refused:
            raise error
        scored[side] = found.scores
        metrics[side] = summary(found.scores, config.labels, tolerance_mm=tolerance)
        about = of_side(predictor.checkpoint, data, side, [case.name for case in found.scores])
        pages[side] = render_masks({**about, **metrics[side]}, config.labels, found.scores, found.worst)
    metrics["volume_interval"] = volume_intervals(config.labels, scored.get("validation", ()), scored.get("test", ()))
    return Measured(metrics, pages)


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
        Other such cases; those that have the structure in neither mask say nothing.

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
    # A case without the structure is right by any factors, and no interval is told of it.
    scores = [case.structures[name] for case in tested]
    scores = [score for score in scores if score.found_mm3 or score.truth_mm3]
    if scores:
        held = [low * score.found_mm3 <= score.truth_mm3 <= high * score.found_mm3 for score in scores]
        interval["held_on_test"] = round(sum(held) / len(held), 3)
        interval["test_cases"] = len(held)
    return interval
