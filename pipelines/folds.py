"""`imgpipe train --folds N`: train N networks, each without one part of the patients, and measure each on that part.

Invariant: nothing is trained before every fold is known to be possible; a fold's folder is what `imgpipe train --fold`
makes of it, so that a cross-validation can be put together from runs that were made one by one.

The result folder::

    fold_<k>/                a run folder each
    cross_validation.json    every case measured once, by the network that has not seen it; intervals over patients
    predictions.csv          a row a case
    cross_validation.html    the same for the eye, with plots and the worst cases' pictures
    checkpoint/              the published Checkpoint: the mean of the N networks, or one of them
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imaging.checkpoint import NetworkCheckpoint, open_network
from imaging.config import JudgedConfig, NetworkConfig, SegmentConfig, TextConfig, find_config, load_network
from imaging.dataset_check import OnCase
from imaging.errors import (
    CheckpointCorrupt,
    ConfigInvalid,
    DevicesInvalid,
    NothingToResume,
    OutputNotWritable,
    RunExists,
    TooFewCases,
)
from imaging.files import write_whole
from imaging.manifest import Case
from imaging.nifti import read_nifti
from imaging.report.mask_page import render_masks
from pipelines.devices import open_world
from pipelines.ensembles import Form, protocol, publish_classes, publish_masks
from pipelines.measure_classifier import class_page, results_of
from pipelines.out_of_fold import ClassesMeasured, Fold, MasksMeasured, measure_classes, measure_masks
from pipelines.predictions import class_rows, mask_rows
from pipelines.result import PREDICTIONS
from pipelines.run_folder import check_same, identity
from pipelines.sides import Cases, Listed, Masked, deal, list_for
from pipelines.states import LAST, STATES, has_ended, read_state
from pipelines.train import Run, publish, resolve, run

RESULT, PAGE = "cross_validation.json", "cross_validation.html"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrossValidation:
    """What a cross-validation left behind.

    Attributes
    ----------
    folder
        The result folder.
    metrics
        As cross_validation.json has them.
    checkpoint
        The published checkpoint in it.
    """

    folder: Path
    metrics: dict[str, Any]
    checkpoint: NetworkCheckpoint


def cross_validate(
    *,
    config: Path,
    folds: int,
    overrides: Sequence[str] = (),
    form: Form = "ensemble",
    resume: bool = False,
    devices: int = 1,
    precision: str | None = None,
    out: Path | None = None,
    progress: bool = True,
    state_minutes: float = 10,
    on_case: OnCase | None = None,
) -> CrossValidation:
    """Cross-validate a config over all patients that are not test patients.

    Parameters
    ----------
    config, overrides, devices, precision, progress, state_minutes
        As `pipelines.train.train` takes them. `train.keep` becomes ``last`` and `train.early_stopping` none: the
        held-out cases of a fold must not choose its epoch.
    folds
        How many; overrides ``data.folds``.
    form
        What is published: the mean of all networks (``ensemble``), or the first fold's (``single``).
    resume
        Take what there is in `out`: a fold that is done is measured, one that was stopped goes on, the others begin.
    out
        The result folder; by default ``runs/<name>_<folds>folds``.
    on_case
        Called before each case that is measured, with its name, its number from 0 and how many there are.

    Raises
    ------
    TooFewCases
        If a fold would be empty, or lack a class or a structure on a side.
    ConfigInvalid
        If the data set's own split is asked for.
    WrongUsage
        As `pipelines.train.train`.
    """
    first = _first(config, overrides, folds, precision, form)
    _check_devices(devices, first)
    folder = out or Path("runs") / f"{first.name}_{folds}folds"
    listed = list_for(first)
    cases = [_dealt(first, listed, number) for number in range(folds)]
    _check_structures(cases)
    places = [folder / f"fold_{number}" for number in range(folds)]
    _check_places(folder, places, cases, resume=resume)
    train_one = partial(run, devices=devices, progress=progress, state_minutes=state_minutes)
    done: list[Fold[Any]] = []
    for number, (one, place) in enumerate(zip(cases, places, strict=True)):
        log.info("fold %d of %d: %s", number, folds, place)
        done.append(Fold(_finished(one, place, train_one), one))
    return _collected(folder, done, form, on_case)


def _first(config: Path, overrides: Sequence[str], folds: int, precision: str | None, form: Form) -> NetworkConfig:
    """The config of the first fold; the others differ by their number alone."""
    settled = [*overrides, f"data.folds={folds}", "data.fold=0", "train.keep=last", "train.early_stopping=null"]
    first = resolve(config, settled, precision=precision)
    if getattr(first.data, "split", "patient") != "patient":
        raise ConfigInvalid("data.split", seen="given, with --folds", expected="folds are dealt by patient",
                            remedy="Add data.split=patient")  # fmt: skip
    if form == "ensemble" and isinstance(first, JudgedConfig) and first.calibrate.novelty is not None:
        raise ConfigInvalid("calibrate.novelty", seen="given, with --folds and an ensemble",
                            expected="no novelty was expected: every case trains one of the networks",
                            remedy="Add --publish single, or calibrate.novelty=null")  # fmt: skip
    if isinstance(first, TextConfig) and not first.classes:
        raise ConfigInvalid("--folds", seen="a text model without classes", expected="marked sentences have sides of"
                            " their own", remedy="Leave --folds out")  # fmt: skip
    given = load_network(find_config(config), overrides).train
    if given.keep != "last":
        log.info("train.keep is last: the cases that are held out of a fold must not choose its epoch")
    if given.early_stopping is not None:
        log.info("train.early_stopping is off: the cases that are held out of a fold must not say when it ends")
    return first


def _check_devices(devices: int, config: NetworkConfig) -> None:
    """Refuse devices that cannot be used, and processes that somebody else has started for all folds together."""
    world = open_world(devices=devices, nodes=1, batch_size=config.train.batch_size)
    if world.size > 1 and world.complete:
        raise DevicesInvalid(
            "--folds",
            seen="started by torchrun or srun",
            expected="one process, which starts the others for each fold",
            remedy="Train each fold with --fold K --out OUT/fold_K, then give --folds N --resume --out OUT",
        )


def _dealt(config: NetworkConfig, listed: Listed, number: int) -> Cases:
    """The cases of one fold; what makes it impossible names the fold."""
    data = config.data.model_copy(update={"fold": number})
    try:
        return deal(config.model_copy(update={"data": data}), listed)
    except TooFewCases as error:
        raise TooFewCases(f"fold {number}, {error.subject}", seen=error.seen) from error


def _check_structures(folds: Sequence[Cases]) -> None:
    """Refuse folds in which nobody has a structure, or nobody else has it.

    Raises
    ------
    TooFewCases
        With the structure and the fold.
    """
    present: dict[str, frozenset[float]] = {}
    for number, fold in enumerate(folds):
        if not isinstance(fold, Masked):  # `deal` has checked the classes
            return
        for side in ("train", "validation"):
            there = [_values_of(case, present) for case in fold.sides[side]]
            for label in fold.config.labels:
                if all(values.isdisjoint(label.values or (label.id,)) for values in there):
                    raise TooFewCases(
                        f"fold {number}, structure {label.name}", seen=f"in no mask of the {len(there)} for {side}"
                    )


def _values_of(case: Case, known: dict[str, frozenset[float]]) -> frozenset[float]:
    if case.name not in known:
        known[case.name] = frozenset(np.unique(read_nifti(case.label).array).tolist())
    return known[case.name]


def _check_places(folder: Path, places: Sequence[Path], cases: Sequence[Cases], *, resume: bool) -> None:
    """Refuse a folder that holds something else, before the first fold is trained."""
    if folder.exists() and not folder.is_dir():
        raise OutputNotWritable(folder, seen="it is a file, not a folder")
    if not resume:
        if folder.is_dir() and any(folder.iterdir()):
            raise RunExists(folder, seen="the folder is not empty")
        return
    begun = [place for place in places if (place / "config.yaml").is_file()]
    if not begun:
        raise NothingToResume(
            folder, seen="no fold_<k> with a config.yaml", expected="at least one fold that has begun was expected"
        )
    contents = cases[0].contents()  # of all folds: each case is trained or validated on in every one
    for place, one in zip(places, cases, strict=True):
        if place in begun:
            check_same(place, one.config, one.split, contents)


def _finished(cases: Cases, folder: Path, train_one: Callable[..., Run | None]) -> NetworkCheckpoint:
    """The checkpoint of one fold with its last weights: as it lies there, or published, trained on, or trained anew."""
    last = folder / STATES / LAST
    if not last.is_file():
        if folder.exists():
            log.info("%s was stopped before its first state; it begins anew", folder)
            shutil.rmtree(folder)
        return _checkpoint_of(train_one(cases, folder, resume=False))
    if not has_ended(read_state(last, identity=identity(cases.config)), cases.config.train.epochs):
        return _checkpoint_of(train_one(cases, folder, resume=True))
    try:
        checkpoint = open_network(folder / "checkpoint")
    except CheckpointCorrupt:  # stopped before, or while, it was published
        return publish(cases, folder)
    # An older run may have published its best epoch.
    return checkpoint if "last_epoch" in checkpoint.metrics["training"] else publish(cases, folder)


def _checkpoint_of(done: Run | None) -> NetworkCheckpoint:
    assert done is not None, "this process is the first, or has started them all"
    return done.checkpoint


def _collected(folder: Path, folds: Sequence[Fold[Any]], form: Form, on_case: OnCase | None) -> CrossValidation:
    """Measure every case, publish, and write what came of it."""
    config = folds[0].cases.config
    if isinstance(config, SegmentConfig):
        masks = measure_masks(folds, on_case)
        metrics = _about(config, folds) | masks.metrics
        write_whole(folder / PREDICTIONS, mask_rows(masks.scores, config.labels, masks.fold_of))
        write_whole(folder / PAGE, _page(config, metrics, masks))
        checkpoint = publish_masks(folder, folds, masks, form)
    else:
        classes = measure_classes(folds)
        metrics = _about(config, folds) | classes.metrics
        rows = class_rows(results_of(classes.config, classes.asked, classes.applied), classes.config, classes.fold_of)
        write_whole(folder / PREDICTIONS, rows)
        write_whole(folder / PAGE, _page(config, metrics, classes))
        checkpoint = publish_classes(folder, folds, classes, form)
    # Last, for it vouches for the others.
    write_whole(folder / RESULT, json.dumps(metrics, indent=1) + "\n")
    return CrossValidation(folder, metrics, checkpoint)


def _about(config: NetworkConfig, folds: Sequence[Fold[Any]]) -> dict[str, Any]:
    """What was cross-validated, and how."""
    return {
        "name": config.name,
        "title": config.title,
        "version": config.version,
        "config_sha256": config.digest(),
        "data": Path(str(config.data.root)).resolve().name,
        "software": "imgpipe",
        "software_version": importlib.metadata.version("imgpipe"),
        "folds": len(folds),
        "epochs": config.train.epochs,
        "protocol": protocol(config),
    }


def _page(config: NetworkConfig, metrics: dict[str, Any], found: MasksMeasured | ClassesMeasured) -> str:
    """The page of an evaluation, of no one checkpoint."""
    shown = {**metrics["cross_validation"], "refused": [], "seen_in_training": [], "seen_in_validation": []}
    shown |= {key: metrics[key] for key in ("data", "software", "software_version")}
    shown |= {"checkpoint": {key: metrics[key] for key in ("name", "title", "version")}, "cross_validation": metrics}
    if isinstance(found, ClassesMeasured):
        return class_page(shown, found.config, found.asked, found.applied)
    assert isinstance(config, SegmentConfig)
    return render_masks(shown, config.labels, found.scores, found.worst)
