"""What a segmenter's masks are worth: the scores of each case, and their means with intervals over patients.

Invariant: every score is taken on the image's own grid; a case without a structure is left out of that structure's
means, and a structure that was found where there is none, or missed, counts as the worst there is.

Shapes: masks are integer (X, Y, Z); N cases, K structures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.config import Label, Vector3
from imaging.metrics import bootstrap_means, dice
from imaging.structures import structure_of
from imaging.surface import boundary, volume_error_percent

# The scores by their names in metrics.json and predictions.csv, and what they are called.
TITLES = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "surface_dice": "Surface Dice",
    "volume_error_percent": "Volume error, %",
}

# Those that go from 0 to 1.
SHARES = ("dice", "surface_dice")


@dataclass(frozen=True, slots=True)
class StructureScore:
    """How one structure was labelled in one case.

    Attributes
    ----------
    dice
        Overlap, 0 to 1; NaN where neither mask has the structure, and so for all scores.
    hd95_mm
        95th percentile Hausdorff distance; the grid's diagonal where only one mask has the structure.
    surface_dice
        Share of the surfaces within the tolerance, 0 to 1.
    volume_error_percent
        Signed; NaN also where the truth has nothing.
    found_mm3, truth_mm3
        Volumes.
    """

    dice: float
    hd95_mm: float
    surface_dice: float
    volume_error_percent: float
    found_mm3: float
    truth_mm3: float


@dataclass(frozen=True, slots=True)
class CaseScore:
    """How one case was labelled; `structures` by the labels' names."""

    name: str
    patient: str
    structures: Mapping[str, StructureScore]

    @property
    def mean_dice(self) -> float:
        """Over the structures that either mask has; NaN where there is none."""
        found = [score.dice for score in self.structures.values() if not math.isnan(score.dice)]
        return sum(found) / len(found) if found else math.nan


def score_structures(
    found_mask: NDArray[Any],
    truth_mask: NDArray[Any],
    labels: Sequence[Label],
    *,
    spacing_mm: Vector3,
    voxel_mm3: float,
    tolerance_mm: float,
) -> dict[str, StructureScore]:
    """Score each structure of a mask.

    Parameters
    ----------
    found_mask, truth_mask
        On the image's own grid, as `imaging.structures` has masks.
    labels
        The structures.
    spacing_mm, voxel_mm3
        The grid's.
    tolerance_mm
        Of the surface Dice.
    """
    scores = {}
    for label in labels:
        found, truth = structure_of(found_mask, label), structure_of(truth_mask, label)
        border = boundary(found, truth, spacing_mm=spacing_mm, tolerance_mm=tolerance_mm)
        volumes = [float(mask.sum()) * voxel_mm3 for mask in (found, truth)]
        scores[label.name] = StructureScore(
            dice=dice(found, truth, 1),
            hd95_mm=border.hd95_mm,
            surface_dice=border.surface_dice,
            volume_error_percent=volume_error_percent(*volumes),
            found_mm3=volumes[0],
            truth_mm3=volumes[1],
        )
    return scores


def summary(cases: Sequence[CaseScore], labels: Sequence[Label], *, tolerance_mm: float) -> dict[str, Any]:
    """Means over cases with 95 % bootstrap intervals over patients, JSON-serialisable.

    Returns
    -------
    dict
        ``cases``, ``patients``, for each of `TITLES` the mean and interval by label, ``tolerance_mm`` and ``each``
        (Dice of every case, a value a label).
    """
    patients = [case.patient for case in cases]
    found: dict[str, Any] = {"cases": len(cases), "patients": len(set(patients))}
    for score in TITLES:
        values_NK = np.array(
            [[getattr(case.structures[label.name], score) for label in labels] for case in cases], dtype=np.float64
        ).reshape(len(cases), len(labels))
        means = bootstrap_means(values_NK, patients=patients, shares=score in SHARES)
        found[score] = {label.name: mean.as_dict() for label, mean in zip(labels, means, strict=True)}
    found["tolerance_mm"] = tolerance_mm
    found["each"] = {case.name: [rounded(case.structures[label.name].dice) for label in labels] for case in cases}
    return found


def rounded(value: float) -> float | None:
    """Five digits after the point, and None for what JSON has no number for."""
    return None if math.isnan(value) else round(value, 5)
