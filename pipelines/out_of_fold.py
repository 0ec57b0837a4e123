"""Measure the networks of a cross-validation, each on the cases that it has not seen.

Invariant: every case is measured exactly once, by the one network that was trained without its patient; and nothing
that a case is measured with was chosen on it: the weights are those at the end of the training, and a classifier's
temperature and thresholds for the cases of one fold come from the other folds' cases (cross-fitting).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import Checkpoint, NetworkCheckpoint
from imaging.config import JudgedConfig
from imaging.dataset_check import OnCase
from imaging.errors import PatientLeak
from imaging.judgement import targets_of
from imaging.mask_scores import TITLES, CaseScore, rounded, summary
from imaging.predict import Predictor
from imaging.report.mask_page import WorstCase
from imaging.scores import scores_of
from pipelines.calibration import Applied, Asked, apply_calibration, calibrated
from pipelines.facts_alone import ByFacts, by_facts
from pipelines.measure_classifier import figures
from pipelines.measure_segmenter import default_tolerance, score_each, volume_intervals, worst_of
from pipelines.measure_texts import ask_checkpoint
from pipelines.sides import Cases, Masked

S = TypeVar("S", bound=Cases)


@dataclass(frozen=True, slots=True)
class Fold(Generic[S]):
    """One fold: its network, and who stood on which side of its training."""

    checkpoint: NetworkCheckpoint
    cases: S


@dataclass(frozen=True, slots=True)
class MasksMeasured:
    """What came of a segmenter's cross-validation.

    Attributes
    ----------
    metrics
        ``cross_validation`` (what `imaging.mask_scores.summary` gives of all cases, with ``folds`` and ``over_folds``)
        and ``volume_interval``.
    scores, fold_of
        Every case, and which fold measured it, by the case's name.
    worst
        The worst cases with their pictures.
    """

    metrics: dict[str, Any]
    scores: tuple[CaseScore, ...]
    fold_of: dict[str, int]
    worst: tuple[WorstCase, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ClassesMeasured:
    """What came of a classifier's cross-validation.

    Attributes
    ----------
    config
        That of the first fold.
    metrics
        ``calibration`` (from all cases, for the checkpoint) and ``cross_validation`` (what
        `pipelines.measure_classifier.figures` gives of all cases, with ``folds`` and ``over_folds``).
    asked, applied, fold_of
        Every case with what its network said, what was made of it, and which fold it was of.
    """

    config: JudgedConfig
    metrics: dict[str, Any]
    asked: Asked
    applied: Applied
    fold_of: dict[str, int]


def measure_masks(folds: Sequence[Fold[Masked]], on_case: OnCase | None = None) -> MasksMeasured:
    """Measure each segmenter on its held-out cases, and say where true volumes lie by all of these.

    Raises
    ------
    PatientLeak
        If a network has seen a case that it is to be measured on.
    ImagingError
        If a case cannot be measured: a cross-validation with gaps would be another one.
    """
    config = folds[0].cases.config
    tolerance = default_tolerance(config)
    fold_of = _fold_of(folds)
    scores: list[CaseScore] = []
    worst: list[WorstCase] = []
    told = []
    for number, fold in enumerate(folds):
        assert isinstance(fold.checkpoint, Checkpoint)
        found = score_each(
            Predictor(fold.checkpoint),
            fold.cases.sides["validation"],
            tolerance_mm=tolerance,
            on_case=_counted(on_case, folds, number),
        )
        for error in found.refused:
            raise error
        part = summary(found.scores, config.labels, tolerance_mm=tolerance)
        told.append(
            _of_fold(number, fold)
            | {score: {name: value["mean"] for name, value in part[score].items()} for score in TITLES}
        )
        scores += found.scores
        worst += found.worst
    over = {
        score: {label.name: _spread([fold[score][label.name] for fold in told]) for label in config.labels}
        for score in TITLES
    }
    whole = {**summary(scores, config.labels, tolerance_mm=tolerance), "folds": told, "over_folds": over}
    metrics = {"cross_validation": whole, "volume_interval": volume_intervals(config.labels, scores, ())}
    return MasksMeasured(metrics, tuple(scores), fold_of, worst_of(worst))


def measure_classes(folds: Sequence[Fold[Any]]) -> ClassesMeasured:
    """Measure each classifier or text model on its held-out cases, calibrated by the cases of the other folds.

    Raises
    ------
    PatientLeak
        If a network has seen a case that it is to be measured on.
    ImagingError
        If a case cannot be read.
    """
    config = folds[0].cases.config
    fold_of = _fold_of(folds)
    # The cases of a fold chose from where on a case is strange to its network: they cannot say how often that is wrong.
    asked = [
        replace(ask_checkpoint(fold.checkpoint, config, fold.cases.sides["validation"]), strange=frozenset())
        for fold in folds
    ]
    applied, told = [], []
    parts = list(zip(folds, asked, strict=True))
    for number, (fold, answers) in enumerate(parts):
        others = Asked.joined([part for other, part in enumerate(asked) if other != number])
        calibration = calibrated(config, others)
        applied.append(apply_calibration(config, answers, calibration))
        kept = {key: calibration[key] for key in ("temperature", "thresholds")}
        scores = {"scores": _scores(config, answers, applied[-1])}
        told.append({**_of_fold(number, fold), "calibrated_on": calibration["cases"], **kept, **scores})
    everyone, everything = Asked.joined(asked), Applied.joined(applied)
    over = {
        name: {key: _spread([fold["scores"][name][key] for fold in told]) for key in found}
        for name, found in told[0]["scores"].items()
    }
    said = ByFacts.joined([by_facts(config, fold.cases.sides["train"], part.cases) for fold, part in parts])
    whole = {**figures(config, everyone, everything, said), "folds": told, "over_folds": over}
    metrics = {"calibration": calibrated(config, everyone), "cross_validation": whole}
    return ClassesMeasured(config, metrics, everyone, everything, fold_of)


def _fold_of(folds: Sequence[Fold[Any]]) -> dict[str, int]:
    """Which fold measures each case; no case twice, and none by a network that has seen its patient."""
    fold_of: dict[str, int] = {}
    for number, fold in enumerate(folds):
        trained = set(fold.checkpoint.metrics["training"]["names"])
        patients = {case.patient for case in fold.cases.sides["train"]}
        for case in fold.cases.sides["validation"]:
            if case.name in trained or case.patient in patients:
                raise PatientLeak(f"case {case.name}", seen=f"the network of fold {number} was trained on its patient")
            if fold_of.setdefault(case.name, number) != number:
                raise PatientLeak(
                    f"case {case.name}", seen=f"it is held out in folds {fold_of[case.name]} and {number}"
                )
    return fold_of


def _scores(config: JudgedConfig, answers: Asked, applied: Applied) -> dict[str, dict[str, float | None]]:
    """The figures of one fold's cases for each target; a fold is too small for intervals of its own."""
    return {
        target.name: {
            name: rounded(value)
            for name, value in scores_of(
                target.truth(answers.truth_NK),
                target.probability(applied.probability_NK),
                applied.thresholds[target.name],
            ).items()
        }
        for target in targets_of(config)
    }


def _of_fold(number: int, fold: Fold[Any]) -> dict[str, Any]:
    held_out = fold.cases.sides["validation"]
    return {
        "fold": number,
        "cases": len(held_out),
        "patients": len({case.patient for case in held_out}),
        "names": [case.name for case in held_out],
        "weights_sha256": fold.checkpoint.weights_sha256,
        "config_sha256": fold.checkpoint.config.digest(),
    }


def _spread(values: Sequence[float | None]) -> dict[str, float | None]:
    """Mean and standard deviation (of a sample) over the folds that have a number."""
    known: NDArray[np.float64] = np.array([value for value in values if value is not None], dtype=np.float64)
    sd = float(known.std(ddof=1)) if len(known) > 1 else math.nan
    return {
        "mean": round(float(known.mean()), 5) if len(known) else None,
        "sd": None if math.isnan(sd) else round(sd, 5),
    }


def _counted(on_case: OnCase | None, folds: Sequence[Fold[Any]], number: int) -> OnCase | None:
    """An `on_case` for one fold that counts the cases of all."""
    if on_case is None:
        return None
    sizes = [len(fold.cases.sides["validation"]) for fold in folds]
    return lambda name, at, _: on_case(name, sum(sizes[:number]) + at, sum(sizes))
