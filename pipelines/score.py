"""One case through a checkpoint, compared with its manual mask on the image's own grid.

Invariant: what is scored is what the code that serves gives, not what a network says on its own grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from imaging.config import SegmentConfig
from imaging.data import load_case
from imaging.manifest import Case
from imaging.mask_scores import CaseScore, score_structures
from imaging.predict import Prediction, Predictor


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
    labels = predictor.checkpoint.segmenter().labels
    image, mask = load_case(case, labels=len(labels))
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
