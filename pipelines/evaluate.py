"""`imgpipe evaluate`: measure a checkpoint on any data set with manual masks.

Invariant: each mask is compared on its image's own grid, as a user gets it; a case that cannot be measured is told and
left out, never counted as anything; the result appears whole or not at all.

The result folder::

    metrics.json      means with 95 % intervals over patients, the checkpoint's hashes, what was refused
    predictions.csv   a row a case
    evaluation.html   the same for the eye, with the worst cases' pictures
"""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.checkpoint import METRICS, Checkpoint, find_checkpoint, open_checkpoint
from imaging.config import Label
from imaging.dataset_check import OnCase
from imaging.errors import ImagingError
from imaging.files import staged_folder, write_whole
from imaging.manifest import Case, read_manifest
from imaging.mask_scores import SCORES, CaseScore, rounded, summary
from imaging.predict import Predictor
from imaging.report.evaluation import WorstCase, render_evaluation
from imaging.report.pictures import comparison
from pipelines.measure_segmenter import default_tolerance, score_case

PREDICTIONS, PAGE = "predictions.csv", "evaluation.html"
TITLES = {
    "dice": "Dice",
    "hd95_mm": "HD95, mm",
    "surface_dice": "Surface Dice",
    "volume_error_percent": "Volume error, %",
}
_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of it.

    Attributes
    ----------
    folder
        Where it lies; None where no case could be measured.
    metrics
        As metrics.json has them.
    refused
        Why a case was left out.
    """

    folder: Path | None
    metrics: dict[str, Any]
    refused: tuple[ImagingError, ...]


def evaluate(
    *,
    checkpoint: str,
    data: Path,
    out: Path | None = None,
    tolerance_mm: float | None = None,
    on_case: OnCase | None = None,
) -> Evaluation:
    """Measure a checkpoint on the cases of a manifest.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    data
        As ``data.root`` takes it: a CSV, a ``dataset.json``, or its folder.
    out
        The result's folder; by default ``evaluation/<checkpoint>``.
    tolerance_mm
        Of the surface Dice; by default the longest edge of the network's voxels.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt
        If there is no such checkpoint, or it is not what its checksums say.
    WrongTask
        If it is a classifier: there is nothing to compare with a mask.
    ManifestInvalid
        If the cases cannot be listed, or a file is missing.
    OutputNotWritable
        If the folder cannot be written.
    """
    opened = open_checkpoint(find_checkpoint(checkpoint))
    config = opened.segmenter()
    cases = read_manifest(data)
    predictor = Predictor(opened)
    tolerance = default_tolerance(config) if tolerance_mm is None else tolerance_mm
    scores, worst, refused = score_cases(predictor, cases, tolerance, on_case)
    metrics = {
        **_about(opened, data, scores),
        **(summary(scores, config.labels, tolerance_mm=tolerance) if scores else {"cases": 0}),
        "refused": [error.as_dict() for error in refused],
    }
    folder = (out or Path("evaluation") / opened.name) if scores else None
    if folder is not None:
        _write(folder, metrics, scores, worst, config.labels)
    return Evaluation(folder, metrics, tuple(refused))


def score_cases(
    predictor: Predictor, cases: Sequence[Case], tolerance: float, on_case: OnCase | None
) -> tuple[list[CaseScore], list[WorstCase], list[ImagingError]]:
    """Every case's scores, the worst ones with their pictures, and what was refused."""
    scores: list[CaseScore] = []
    worst: list[WorstCase] = []
    refused: list[ImagingError] = []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        try:
            scored = score_case(predictor, case, tolerance_mm=tolerance)
        except ImagingError as error:
            refused.append(error)
            continue
        scores.append(scored.score)
        # Only the pictures of the worst so far are kept: a data set's volumes would not fit in memory.
        if not math.isnan(scored.score.mean_dice) and _is_worse(scored.score, worst):
            worst.append(WorstCase(scored.score, *comparison(scored.prediction, scored.truth_XYZ)))
            worst = list(worst_of(worst))
    return scores, worst, refused


def _write(
    folder: Path,
    metrics: dict[str, Any],
    scores: Sequence[CaseScore],
    worst: Sequence[WorstCase],
    labels: Sequence[Label],
) -> None:
    page = render_evaluation(metrics, labels, scores, worst, TITLES)
    with staged_folder(folder, replaces=(METRICS, PREDICTIONS, PAGE), last=METRICS) as stage:
        write_whole(stage / METRICS, json.dumps(metrics, indent=1) + "\n")
        write_whole(stage / PREDICTIONS, as_csv(scores, labels))
        write_whole(stage / PAGE, page)


def worst_of(cases: Sequence[WorstCase]) -> tuple[WorstCase, ...]:
    """Those that a page shows, the worst first."""
    return tuple(sorted(cases, key=lambda item: item.case.mean_dice)[:_SHOWN])


def _is_worse(score: CaseScore, worst: Sequence[WorstCase]) -> bool:
    return len(worst) < _SHOWN or score.mean_dice < worst[-1].case.mean_dice


def _about(checkpoint: Checkpoint, data: Path, scores: Sequence[CaseScore]) -> dict[str, Any]:
    """Which checkpoint on what; a case with the name of one that trained it is told, for its figure proves nothing."""
    trained = set(checkpoint.metrics.get("training", {}).get("names", ()))
    return {
        "checkpoint": {
            "name": checkpoint.name,
            "title": checkpoint.config.title,
            "version": checkpoint.config.version,
            "weights_sha256": checkpoint.weights_sha256,
            "config_sha256": checkpoint.config.digest(),
        },
        "data": data.resolve().name,
        "software": "imgpipe",
        "software_version": importlib.metadata.version("imgpipe"),
        "seen_in_training": [score.name for score in scores if score.name in trained],
    }


def as_csv(scores: Sequence[CaseScore], labels: Sequence[Label], fold_of: Mapping[str, int] | None = None) -> str:
    """A row a case, a column a score and structure; empty where there is no number. `fold_of` adds a last column."""
    columns = [(score, label.name) for score in SCORES for label in labels]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *(f"{score}_{name}" for score, name in columns), *(["fold"] if fold_of else [])])
    for case in scores:
        values = (rounded(getattr(case.structures[name], score)) for score, name in columns)
        folds = [fold_of[case.name]] if fold_of else []
        writer.writerow([case.name, *("" if value is None else value for value in values), *folds])
    return text.getvalue()
