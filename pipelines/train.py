"""Train a checkpoint from a config: split, fit, evaluate on held-out cases, publish.

Invariant: the run folder explains itself (resolved config, split, versions, log, metrics) and a run can be continued
from it. What is published was measured by the code that serves it, on cases that the weights were not fitted on.

The run folder::

    config.yaml  split.json  versions.json   written before the first step
    log/version_<n>/metrics.csv              one row an epoch; a resumed run begins the next n
    state/last.ckpt  state/best.ckpt         Lightning's state; best by the validation Dice
    checkpoint/                              the published Checkpoint
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from imaging.checkpoint import METRICS, Checkpoint, save_checkpoint
from imaging.config import Config, SegmentConfig, find_config, load_config
from imaging.data import SegmentationData
from imaging.errors import (
    ConfigInvalid,
    DevicesUnsupported,
    NothingToResume,
    OutputNotWritable,
    ResumeMismatch,
    RunExists,
)
from imaging.files import write_whole
from imaging.manifest import Case, Split, cases_of, read_manifest, split_by_patient
from imaging.networks import weights_of
from imaging.predict import Predictor
from imaging.tasks.segment import SegmentTask
from pipelines.evaluate import evaluate

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
    if not isinstance(resolved, SegmentConfig):
        raise ConfigInvalid("task", seen=resolved.task, expected="segment was expected: other tasks come next")
    if resolved.data.root is None:
        raise ConfigInvalid("data.root", seen="not given", expected="the data set's folder or CSV was expected",
                            remedy="Add data.root=PATH to the command")  # fmt: skip
    folder = out or Path("runs") / f"{resolved.name}_fold{resolved.data.fold}"
    cases = read_manifest(Path(resolved.data.root))
    split = split_by_patient(
        cases,
        test_fraction=resolved.data.test_fraction,
        folds=resolved.data.folds,
        fold=resolved.data.fold,
        seed=resolved.data.seed,
    )
    sides = cases_of(split, cases)
    lightning.seed_everything(resolved.train.seed, workers=True, verbose=False)
    # Everything that a config or a data set can be wrong about is met before the run folder is written.
    data = SegmentationData(resolved, sides["train"], sides["validation"])
    task = SegmentTask(resolved, data.train_names)
    _open_run(folder, resolved, split, resume=resume)
    fit(task, data, folder, resume=resume, progress=progress)
    return Run(folder, publish(resolved, sides, folder))


class _EpochLog(Callback):
    """A line in the log after each validation, for runs without a progress bar."""

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Tell the epoch and the mean Dice."""
        dice = float(trainer.callback_metrics["val_dice"])
        log.info("epoch %d of %d: validation Dice %.4f", trainer.current_epoch + 1, trainer.max_epochs or 0, dice)


def fit(task: SegmentTask, data: SegmentationData, folder: Path, *, resume: bool, progress: bool) -> None:
    """Fit the network, leaving ``state/best.ckpt`` and ``state/last.ckpt`` in the run folder."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (".*does not have many workers.*", ".*is_leaf.*", ".*exists and is not empty.*"):
        warnings.filterwarnings("ignore", message=noise)
    config = task.config
    callbacks: list[Callback] = [
        ModelCheckpoint(
            folder / "state",
            filename="best",
            monitor="val_dice",
            mode="max",
            enable_version_counter=False,
        ),
        # A second one: with `save_last` the first would write its last state only when the best improves.
        ModelCheckpoint(folder / "state", filename="last", save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    if progress:
        callbacks.append(RichProgressBar(console_kwargs={"stderr": True}))
    else:
        callbacks.append(_EpochLog())
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


def publish(config: SegmentConfig, sides: dict[str, list[Case]], folder: Path) -> Checkpoint:
    """Make the run's best weights a checkpoint, measured on validation and test by the code that serves it."""
    state = torch.load(folder / "state" / "best.ckpt", map_location="cpu", weights_only=True)
    task = SegmentTask(config, ())
    task.load_state_dict(state["state_dict"])
    weights = weights_of(task.network)
    # A first checkpoint without numbers, so that the numbers come from loading a checkpoint as any user does.
    unmeasured = save_checkpoint(folder / "state" / "unmeasured", config, weights, {})
    metrics = evaluate(Predictor(unmeasured), {side: sides[side] for side in ("validation", "test") if sides[side]})
    metrics["training"] = {
        "cases": len(sides["train"]),
        "names": [case.name for case in sides["train"]],
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
