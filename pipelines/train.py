"""Train a checkpoint from a config: split, fit, evaluate on held-out cases, publish.

Invariant: the run folder explains itself (resolved config, split, versions, log, metrics) and a run can be continued
from it. What is published was measured by the code that serves it, on cases that the weights were not fitted on.

The run folder::

    config.yaml  split.json  versions.json   written before the first step
    log/version_<n>/metrics.csv              one row an epoch; a resumed run begins the next n
    state/last.ckpt  state/best.ckpt         Lightning's state; best by the validation Dice or AUC
    checkpoint/                              the published Checkpoint
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from imaging.cases import read_cases, split_cases
from imaging.checkpoint import METRICS, Checkpoint, save_checkpoint
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig, Config, SegmentConfig, find_config, load_config
from imaging.data import ClassificationData, SegmentationData, without_copies
from imaging.errors import (
    ConfigInvalid,
    DevicesUnsupported,
)
from imaging.files import write_whole
from imaging.manifest import Split, cases_of, read_manifest, split_by_patient
from imaging.networks import weights_of
from imaging.predict import Predictor
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from pipelines.fitting import fit
from pipelines.measure_classifier import measure_classifier
from pipelines.measure_segmenter import measure_segmenter
from pipelines.run_folder import open_run, versions

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Run:
    """What a training left behind.

    Attributes
    ----------
    folder
        The run folder.
    checkpoint
        The published checkpoint in it.
    """

    folder: Path
    checkpoint: Checkpoint


def train(
    *,
    config: Path,
    overrides: Sequence[str] = (),
    fold: int | None = None,
    resume: bool = False,
    devices: int = 1,
    precision: str | None = None,
    out: Path | None = None,
    progress: bool = True,
) -> Run:
    """Train the config's network and publish the best weights on validation as a checkpoint.

    Parameters
    ----------
    config
        A config file, or the name of a shipped one.
    overrides
        ``KEY=VALUE`` on top of it; ``data.root`` names the data set.
    fold
        Which fold validates; overrides ``data.fold``.
    resume
        Continue the run in `out` from its last state.
    devices
        Number of devices; this version takes one.
    precision
        Overrides ``train.precision``.
    out
        The run folder; by default ``runs/<name>_fold<fold>``.
    progress
        Whether a progress bar is drawn.

    Raises
    ------
    WrongUsage
        If the config, the manifest or the run folder cannot be used.
    TrainingDiverged
        If the loss stops being a number.
    """
    if devices != 1:
        raise DevicesUnsupported("--devices", seen=str(devices))
    extra = [f"data.fold={fold}"] if fold is not None else []
    extra += [f"train.precision={precision!r}"] if precision else []
    resolved = load_config(find_config(config), [*overrides, *extra])
    if resolved.data.root is None:
        raise ConfigInvalid("data.root", seen="not given", expected="the data set's folder or CSV was expected",
                            remedy="Add data.root=PATH to the command")  # fmt: skip
    folder = out or Path("runs") / f"{resolved.name}_fold{resolved.data.fold}"
    root = Path(resolved.data.root)
    # Everything that a config or a data set can be wrong about is met before the run folder is written.
    prepared = _segmentation(resolved, root) if isinstance(resolved, SegmentConfig) else _classification(resolved, root)
    open_run(folder, resolved, prepared.split, resume=resume)
    fit(prepared.task, prepared.data, folder, resume=resume, progress=progress)
    return Run(folder, publish(resolved, prepared, folder))


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What a run needs, whatever its task.

    Attributes
    ----------
    task, data
        What Lightning fits, and on which batches.
    split
        Which case stands on which side.
    measure
        Measures a checkpoint on the validation and test cases.
    facts
        What else there is to tell of the training cases.
    """

    task: SegmentTask | ClassifyTask
    data: SegmentationData | ClassificationData
    split: Split
    measure: Callable[[Checkpoint], dict[str, Any]]
    facts: dict[str, Any]


def _segmentation(config: SegmentConfig, root: Path) -> _Prepared:
    cases = read_manifest(root)
    split = split_by_patient(
        cases,
        test_fraction=config.data.test_fraction,
        folds=config.data.folds,
        fold=config.data.fold,
        seed=config.data.seed,
    )
    sides = cases_of(split, cases)
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    data = SegmentationData(config, sides["train"], sides["validation"])
    held = {side: sides[side] for side in ("validation", "test") if sides[side]}
    return _Prepared(
        SegmentTask(config, data.train_names),
        data,
        split,
        lambda checkpoint: measure_segmenter(Predictor(checkpoint), held),
        {},
    )


def _classification(config: ClassifyConfig, root: Path) -> _Prepared:
    cases, copies = without_copies(read_cases(root, config), config.data.duplicates)
    if copies:
        log.info("%d cases are left out: others have the same pixels", copies)
    split = split_cases(cases, config)
    sides = cases_of(split, cases)
    counts = [sum(item.name in case.classes for case in sides["train"]) for item in config.classes]
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    data = ClassificationData(config, sides["train"], sides["validation"])
    held = {side: sides[side] for side in ("validation", "test") if sides[side]}
    facts = {
        "copies_left_out": copies,
        "cases_by_class": {item.name: count for item, count in zip(config.classes, counts, strict=True)},
    }
    return _Prepared(
        ClassifyTask(config, data.train_names, counts),
        data,
        split,
        lambda checkpoint: measure_classifier(Classifier(checkpoint), held),
        facts,
    )


def publish(config: Config, prepared: _Prepared, folder: Path) -> Checkpoint:
    """Make the run's best weights a checkpoint, measured on validation and test by the code that serves it."""
    state = torch.load(folder / "state" / "best.ckpt", map_location="cpu", weights_only=True)
    prepared.task.load_state_dict(state["state_dict"])
    weights = weights_of(prepared.task.network)
    # A first checkpoint without numbers, so that the numbers come from loading a checkpoint as any user does.
    unmeasured = save_checkpoint(folder / "state" / "unmeasured", config, weights, {})
    metrics = prepared.measure(unmeasured)
    metrics["training"] = {
        "cases": len(prepared.split.train),
        "names": list(prepared.split.train),
        **prepared.facts,
        "best_epoch": int(state["epoch"]) + 1,
        "epochs": config.train.epochs,
        "config_sha256": config.digest(),
        "versions": versions(),
    }
    checkpoint = save_checkpoint(folder / "checkpoint", config, weights, metrics)
    shutil.rmtree(unmeasured.folder)
    write_whole(folder / METRICS, json.dumps(metrics, indent=1) + "\n")
    return checkpoint
