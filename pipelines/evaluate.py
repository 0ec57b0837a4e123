"""`imgpipe evaluate`: measure a checkpoint on any data set whose truth is known.

Invariant: what is measured is what a user gets, by the checkpoint's own calibration: nothing is fitted on the cases; a
case that cannot be measured is told and left out, never counted as anything; the result appears whole or not at all.

The result folder::

    metrics.json      figures with 95 % intervals over patients, the checkpoint's hashes, what was refused
    predictions.csv   a row a case
    evaluation.html   the same for the eye, with plots and the worst cases' pictures
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imaging.cases import read_cases
from imaging.checkpoint import METRICS, NetworkCheckpoint, TextCheckpoint, find_checkpoint, open_network
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig
from imaging.dataset_check import OnCase
from imaging.engines import Wanted
from imaging.errors import ImagingError, WrongTask
from imaging.files import staged_folder, write_whole
from imaging.manifest import read_manifest
from imaging.predict import Predictor
from imaging.text.cases import read_spans, read_texts
from imaging.text.reading import TextModel
from pipelines.measure_classifier import evaluate_classifier
from pipelines.measure_segmenter import default_tolerance, evaluate_segmenter
from pipelines.measure_texts import evaluate_texts
from pipelines.result import PAGE, PREDICTIONS, Result


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
    engine: Wanted = "auto",
    on_case: OnCase | None = None,
) -> Evaluation:
    """Measure a checkpoint on the cases of a manifest.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    data
        As ``data.root`` takes it: for a segmenter a CSV, a ``dataset.json``, or its folder; for a classifier a CSV or a
        MedMNIST file; for a text model a CSV, or marked sentences.
    out
        The result's folder; by default ``evaluation/<checkpoint>``.
    tolerance_mm
        Of a segmenter's surface Dice; by default the longest edge of the network's voxels.
    engine
        What computes the networks, as in `pipelines.infer.infer`; of a text model it is always torch.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt
        If there is no such checkpoint, or it is not what its checksums say.
    WrongTask
        If a tolerance is given for what draws no masks.
    MissingPackage, EngineRefused
        If an engine was asked for by name that cannot be had.
    ManifestInvalid
        If the cases cannot be listed, or a file is missing.
    OutputNotWritable
        If the folder cannot be written.
    """
    opened = open_network(find_checkpoint(checkpoint))
    result = _result(opened, data, tolerance_mm, engine, on_case)
    folder = (out or Path("evaluation") / opened.name) if result.metrics["cases"] else None
    if folder is not None:
        with staged_folder(folder, replaces=(METRICS, PREDICTIONS, PAGE), last=METRICS) as stage:
            write_whole(stage / METRICS, json.dumps(result.metrics, indent=1) + "\n")
            write_whole(stage / PREDICTIONS, result.rows)
            write_whole(stage / PAGE, result.page)
    return Evaluation(folder, result.metrics, result.refused)


def _result(
    opened: NetworkCheckpoint, data: Path, tolerance_mm: float | None, engine: Wanted, on_case: OnCase | None
) -> Result:
    name = data.resolve().name
    if isinstance(opened, TextCheckpoint):
        _no_tolerance(opened, tolerance_mm)
        spans = opened.config.kinds and not (opened.config.classes and data.suffix.lower() == ".csv")
        texts = read_spans(data, opened.config) if spans else read_texts(data, opened.config)[0]
        return evaluate_texts(TextModel(opened), texts, data=name, on_case=on_case)
    if isinstance(opened.config, ClassifyConfig):
        _no_tolerance(opened, tolerance_mm)
        classifier = Classifier(opened, engine=engine)
        return evaluate_classifier(classifier, read_cases(data, opened.config), data=name, on_case=on_case)
    tolerance = default_tolerance(opened.segmenter()) if tolerance_mm is None else tolerance_mm
    return evaluate_segmenter(
        Predictor(opened, engine=engine), read_manifest(data), data=name, tolerance_mm=tolerance, on_case=on_case
    )


def _no_tolerance(opened: NetworkCheckpoint, tolerance_mm: float | None) -> None:
    if tolerance_mm is not None:
        seen = f"a tolerance was given, and its task is {opened.config.task}"
        raise WrongTask(f"checkpoint {opened.name}", seen=seen,
                        expected="a checkpoint that draws masks was expected",
                        remedy="Leave the tolerance out")  # fmt: skip
