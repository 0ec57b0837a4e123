"""One checkpoint of a cross-validation's networks: their mean, or one of them.

Invariant: what a checkpoint says of itself says of what it was measured. Cross-validated figures are those of single
networks on cases that they had not seen; only test cases, where there are any, are asked of the published checkpoint
itself. What it is calibrated with comes from the same held-out cases.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from imaging.checkpoint import Checkpoint, NetworkCheckpoint, joined, read_verified, save_checkpoint
from imaging.config import NetworkConfig, SegmentConfig
from imaging.mask_scores import summary
from imaging.novelty import FILE
from imaging.predict import Predictor
from pipelines.calibration import apply_calibration
from pipelines.facts_alone import by_facts
from pipelines.measure_classifier import figures
from pipelines.measure_segmenter import default_tolerance, score_case, volume_intervals
from pipelines.measure_texts import ask_checkpoint
from pipelines.out_of_fold import ClassesMeasured, Fold, MasksMeasured
from pipelines.run_folder import versions
from pipelines.sides import Masked

Form = Literal["ensemble", "single"]
F = TypeVar("F", bound=Fold[Any])

_PROTOCOL = (
    "Each case was measured once, by the one network that was trained without its patient. The weights are those at the"
    " end of the training: no held-out case chose an epoch."
)
_CROSS_FITTED = (
    " The temperature and the thresholds for the cases of one fold come from the other folds' cases; AUC and the other"
    " figures are over all cases with the probabilities that these give."
)


def protocol(config: NetworkConfig) -> str:
    """How cross-validated figures came about, in words."""
    return _PROTOCOL if isinstance(config, SegmentConfig) else _PROTOCOL + _CROSS_FITTED


def publish_masks(folder: Path, folds: Sequence[Fold[Masked]], found: MasksMeasured, form: Form) -> NetworkCheckpoint:
    """Publish a segmenter in ``folder/checkpoint``.

    Where there are test cases, it is measured on these, and how often the conformal factors of the held-out cases hold
    there.
    """
    labels = folds[0].cases.config.labels

    def tested(unmeasured: NetworkCheckpoint) -> dict[str, Any]:
        assert isinstance(unmeasured, Checkpoint)
        predictor, tolerance = Predictor(unmeasured), default_tolerance(unmeasured.segmenter())
        scores = [score_case(predictor, case, tolerance_mm=tolerance).score for case in folds[0].cases.sides["test"]]
        return {
            "test": summary(scores, labels, tolerance_mm=tolerance),
            "volume_interval": volume_intervals(labels, found.scores, scores),
        }

    return _published(folder, folds, found.metrics, form, tested)


def publish_classes(folder: Path, folds: Sequence[Fold[Any]], found: ClassesMeasured, form: Form) -> NetworkCheckpoint:
    """Publish a classifier or a text model in ``folder/checkpoint``.

    It is calibrated by what each network said of its held-out cases.

    That was made for single networks, from many more cases than one of them has. An ensemble's logits are
    the mean of theirs; what that changes is seen on the test cases, where there are any.
    """
    config = folds[0].cases.config

    def tested(unmeasured: NetworkCheckpoint) -> dict[str, Any]:
        answers = ask_checkpoint(unmeasured, config, folds[0].cases.sides["test"])
        applied = apply_calibration(config, answers, found.metrics["calibration"])
        # What the facts teach is learnt from whoever trained one of the published networks.
        trained = {case.name: case for fold in _chosen(folds, form) for case in fold.cases.sides["train"]}
        said = by_facts(config, [trained[name] for name in sorted(trained)], answers.cases)
        return {"test": figures(config, answers, applied, said)}

    return _published(folder, folds, found.metrics, form, tested)


def _chosen(folds: Sequence[F], form: Form) -> Sequence[F]:
    """Whose networks are published; no fold by its figures, for the best would be the one with the easiest cases."""
    return folds if form == "ensemble" else folds[:1]


def _published(
    folder: Path,
    folds: Sequence[Fold[Any]],
    measured: dict[str, Any],
    form: Form,
    tested: Callable[[NetworkCheckpoint], dict[str, Any]],
) -> NetworkCheckpoint:
    """Join the networks, or take the first, ask it about the test cases, and publish it with all that was measured."""
    chosen = _chosen(folds, form)
    config: NetworkConfig = folds[0].cases.config.model_copy(update={"members": len(chosen)})
    weights = joined([fold.checkpoint.load_weights() for fold in chosen])
    metrics = {**measured, "cross_validation": {"protocol": protocol(config), **measured["cross_validation"]}}
    if folds[0].cases.sides["test"]:
        unmeasured = save_checkpoint(folder / "unmeasured", config, weights, {}, _novelty(chosen)[0])
        metrics |= tested(unmeasured)
        shutil.rmtree(unmeasured.folder)
    trained = dict.fromkeys(name for fold in chosen for name in fold.cases.split.train)
    metrics["training"] = {
        "cases": len(trained),
        "names": sorted(trained),
        "folds": len(folds),
        "members": len(chosen),
        "last_epoch": config.train.epochs,
        "epochs": config.train.epochs,
        **_start_of(folds),
        "config_sha256": config.digest(),
        "versions": versions(),
    }
    kept, told = _novelty(chosen)
    return save_checkpoint(folder / "checkpoint", config, weights, metrics | told, kept)


def _novelty(chosen: Sequence[Fold[Any]]) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What the one network that is published keeps to know strange cases by, as files, and what is told of that."""
    sums = chosen[0].checkpoint.sums
    if len(chosen) > 1 or FILE not in sums:
        return {}, {}
    kept = read_verified(chosen[0].checkpoint.folder / FILE, sums[FILE])
    return {FILE: kept}, {"novelty": {**chosen[0].checkpoint.metrics["novelty"], "counted": False}}


def _start_of(folds: Sequence[Fold[Any]]) -> dict[str, Any]:
    """What the networks began with, and which held-out cases of any fold may have trained that."""
    starts = [fold.checkpoint.metrics["training"].get("start") or {} for fold in folds]
    if not starts[0]:
        return {}
    seen = sorted({name for start in starts for name in start.get("held_out_seen", ())})
    return {"start": {**starts[0], "held_out_seen": seen}}
