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

import importlib.metadata
import json
import logging
import platform
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from imaging.cases import read_cases, split_cases
from imaging.checkpoint import METRICS, Checkpoint, save_checkpoint
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig, Config, SegmentConfig, find_config, load_config
from imaging.data import ClassificationData, SegmentationData, without_copies
from imaging.errors import (
    ConfigInvalid,
    DevicesUnsupported,
    NothingToResume,
    OutputNotWritable,
    ResumeMismatch,
    RunExists,
)
from imaging.files import write_whole
from imaging.manifest import Split, cases_of, read_manifest, split_by_patient
from imaging.networks import weights_of
from imaging.predict import Predictor
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from pipelines.evaluate import evaluate
from pipelines.evaluate_classifier import evaluate_classifier

log = logging.getLogger(__name__)

_PACKAGES = ("imgpipe", "torch", "monai", "lightning", "numpy", "nibabel", "simpleitk", "pydicom", "highdicom")


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
    _open_run(folder, resolved, prepared.split, resume=resume)
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
    evaluate
        Measures a checkpoint on the validation and test cases.
    facts
        What else there is to tell of the training cases.
    """

    task: SegmentTask | ClassifyTask
    data: SegmentationData | ClassificationData
    split: Split
    evaluate: Callable[[Checkpoint], dict[str, Any]]
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
        SegmentTask(config, data.train_names), data, split, lambda checkpoint: evaluate(Predictor(checkpoint), held), {}
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
        lambda checkpoint: evaluate_classifier(Classifier(checkpoint), held),
        facts,
    )


class _EpochLog(Callback):
    """A line in the log after each validation, for runs without a progress bar."""

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tell the epoch and what decides which state is the best."""
        score = float(trainer.callback_metrics[self._monitor])
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        log.info("epoch %d of %d: %s %.4f", epoch, epochs, self._monitor, score)


def fit(
    task: SegmentTask | ClassifyTask,
    data: SegmentationData | ClassificationData,
    folder: Path,
    *,
    resume: bool,
    progress: bool,
) -> None:
    """Fit the network, leaving ``state/best.ckpt`` and ``state/last.ckpt`` in the run folder."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (".*does not have many workers.*", ".*is_leaf.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=noise)
    config = task.config
    callbacks: list[Callback] = [
        ModelCheckpoint(
            folder / "state",
            filename="best",
            monitor=task.monitor,
            mode="max",
            enable_version_counter=False,
        ),
        # A second one: with `save_last` the first would write its last state only when the best improves.
        ModelCheckpoint(folder / "state", filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    if progress:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    else:
        callbacks.append(_EpochLog(task.monitor))
    if config.train.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=config.train.ema_decay))
    trainer = lightning.Trainer(
        accelerator="auto",
        devices=1,
        precision=config.train.precision,
        max_epochs=config.train.epochs,
        check_val_every_n_epoch=min(config.train.validate_every, config.train.epochs),
        num_sanity_val_steps=0,
        gradient_clip_val=config.train.gradient_clip,
        # Some CUDA kernels (NLLLoss among them) have no deterministic form; there Lightning warns instead.
        deterministic="warn" if torch.cuda.is_available() else True,
        use_distributed_sampler=False,
        callbacks=callbacks,
        logger=CSVLogger(folder, name="log"),  # a resumed run logs beside its first part
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    last = folder / "state" / "last.ckpt"
    trainer.fit(task, datamodule=data, ckpt_path=last if resume else None, weights_only=True)


def publish(config: Config, prepared: _Prepared, folder: Path) -> Checkpoint:
    """Make the run's best weights a checkpoint, measured on validation and test by the code that serves it."""
    state = torch.load(folder / "state" / "best.ckpt", map_location="cpu", weights_only=True)
    prepared.task.load_state_dict(state["state_dict"])
    weights = weights_of(prepared.task.network)
    # A first checkpoint without numbers, so that the numbers come from loading a checkpoint as any user does.
    unmeasured = save_checkpoint(folder / "state" / "unmeasured", config, weights, {})
    metrics = prepared.evaluate(unmeasured)
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


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that decide the numbers."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _open_run(folder: Path, config: Config, split: Split, *, resume: bool) -> None:
    """Write what explains the run, or check that a run to be resumed is the same one."""
    if resume:
        if not (folder / "state" / "last.ckpt").is_file():
            raise NothingToResume(folder, seen="no state/last.ckpt")
        started = load_config(folder / "config.yaml")
        if started.digest() != config.digest():
            differing = sorted(_differing_keys(started.model_dump(), config.model_dump()))
            raise ResumeMismatch(folder, seen=f"other values for {', '.join(differing)}")
        if (folder / "split.json").read_text(encoding="utf-8") != split.to_json():
            raise ResumeMismatch(folder, seen="the data set's cases have changed, so the split is another")
        return
    if folder.exists() and not folder.is_dir():
        raise OutputNotWritable(folder, seen="it is a file, not a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise RunExists(folder, seen="the folder is not empty")
    try:
        (folder / "state").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(folder, seen=error.strerror or "cannot be made") from error
    write_whole(folder / "config.yaml", config.to_yaml())
    write_whole(folder / "split.json", split.to_json())
    write_whole(folder / "versions.json", json.dumps(versions(), indent=1) + "\n")


def _differing_keys(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> set[str]:
    differing: set[str] = set()
    for key in a.keys() | b.keys():
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            differing |= _differing_keys(left, right, f"{prefix}{key}.")
        elif left != right and prefix + key != "data.root":
            differing.add(prefix + key)
    return differing
