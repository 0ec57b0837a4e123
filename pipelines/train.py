"""Train a checkpoint from a config: split, fit, evaluate on held-out cases, publish.

Invariant: the run folder explains itself (resolved config, split, versions, log, metrics) and a run can be continued
from it. What is published was measured by the code that serves it, on cases that the weights were not fitted on.

The run folder::

    config.yaml  split.json  data.json  versions.json  environment.json
                                             written before the first step
    start.json                               what it began with, where it did not begin with random weights
    log/version_<n>/metrics.csv              one row an epoch; a resumed run begins the next n
    state/last.ckpt  state/best.ckpt         Lightning's state and ours; best by the validation Dice or AUC
    checkpoint/                              the published Checkpoint
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imaging.checkpoint import METRICS, NetworkCheckpoint, open_network
from imaging.codes import check_config
from imaging.config import ClassifyConfig, NetworkConfig, SegmentConfig, find_config, load_network
from imaging.errors import ConfigInvalid, TooFewCases
from imaging.explain import layer_of
from imaging.files import write_whole
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from imaging.tasks.text import TextTask
from imaging.transfer import Begun, begin
from pipelines.devices import check_precision, launch, open_world
from pipelines.fitting import Task, fit
from pipelines.loggers import check_loggers
from pipelines.publishing import publish_measured
from pipelines.run_folder import check_state, data_digest, identity, open_run, versions
from pipelines.sides import Cases, deal, list_for
from pipelines.states import STATES, read_state

START = "start.json"

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
    checkpoint: NetworkCheckpoint


def train(
    *,
    config: Path,
    overrides: Sequence[str] = (),
    fold: int | None = None,
    resume: bool = False,
    devices: int = 1,
    nodes: int = 1,
    precision: str | None = None,
    out: Path | None = None,
    progress: bool = True,
    state_minutes: float = 10,
) -> Run | None:
    """Train the config's network and publish its weights as a checkpoint: by default the best on validation.

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
        Of each machine: GPUs, or without one processes on the CPU. They share each batch of ``train.batch_size``.
    nodes
        Machines; torchrun or srun starts the processes on them.
    precision
        Overrides ``train.precision``.
    out
        The run folder; by default ``runs/<name>_fold<fold>``.
    progress
        Whether a progress bar is drawn.
    state_minutes
        Minutes between two states within an epoch; 0 writes one after each step.

    Returns
    -------
    Run
        None on a rank other than the first where torchrun or srun started the ranks: only the first one publishes.

    Raises
    ------
    WrongUsage
        If the config, the manifest, the devices or the run folder cannot be used.
    TrainingDiverged
        If the loss stops being a number.
    ProcessLost
        If one of several processes ends without a word.
    """
    extra = [f"data.fold={fold}"] if fold is not None else []
    resolved = resolve(config, [*overrides, *extra], precision=precision)
    folder = out or Path("runs") / f"{resolved.name}_fold{resolved.data.fold}"
    cases = deal(resolved, list_for(resolved))
    return run(
        cases, folder, devices=devices, nodes=nodes, resume=resume, progress=progress, state_minutes=state_minutes
    )


def resolve(config: Path, overrides: Sequence[str], *, precision: str | None) -> NetworkConfig:
    """The config of a run, with what the command line says beside it; see `train`."""
    extra = [f"train.precision={precision!r}"] if precision else []
    resolved = load_network(find_config(config), [*overrides, *extra])
    check_precision(resolved.train.precision)
    check_loggers(resolved.train.loggers)
    check_config(resolved)
    if resolved.members != 1:
        raise ConfigInvalid("members", seen=str(resolved.members), expected="1 was expected: a run trains one network",
                            remedy="Add members=1, and --folds N to make an ensemble")  # fmt: skip
    return resolved


def run(
    cases: Cases,
    folder: Path,
    *,
    devices: int = 1,
    nodes: int = 1,
    resume: bool,
    progress: bool,
    state_minutes: float,
) -> Run | None:
    """One training from its cases to its checkpoint; see `train`."""
    world = open_world(devices=devices, nodes=nodes, batch_size=cases.config.train.batch_size)
    if not world.complete:
        given = {"devices": devices, "nodes": nodes, "resume": resume, "progress": progress}
        launch(run, world, {"cases": cases, "folder": folder, **given, "state_minutes": state_minutes})
        return Run(folder, open_network(folder / "checkpoint"))
    if world.rank:
        # What there is to tell, the first rank tells.
        logging.getLogger("pipelines").setLevel(logging.WARNING)
        logging.getLogger("imaging.transfer").setLevel(logging.ERROR)
    # Everything that a config or a data set can be wrong about is met before the run folder is written.
    if len(cases.split.train) < world.size:
        raise TooFewCases("training", seen=f"{len(cases.split.train)} cases for {world.size} devices",
                          expected="at least one a device was expected")  # fmt: skip
    task, data = cases.loaded()
    log.info("samples: %d made, %d found in the cache, in %.1f s", data.made.anew, data.made.reused, data.made.seconds)
    begun = _begun(task, resume=resume)
    if world.rank == 0:
        open_run(folder, cases.config, cases.split, cases.contents(), resume=resume)
    elif resume:
        check_state(folder)  # every rank reads it, and its machine may see another folder
    if world.rank == 0 and begun is not None:
        write_whole(folder / START, json.dumps(begun.as_dict(), indent=1) + "\n")
    fit(task, data, folder, world, resume=resume, progress=progress, state_minutes=state_minutes)
    return Run(folder, publish(cases, folder)) if world.rank == 0 else None


def _begun(task: Task, *, resume: bool) -> Begun | None:
    """Give a fresh network the weights that it is to begin with; a run that is continued has them from its state."""
    if isinstance(task, ClassifyTask):
        layer_of(task.config, task.network)  # what can never be explained is told now
    start = task.config.train.start
    begun = None
    if start is not None and not resume:
        assert not isinstance(task, TextTask), "its config takes no start"
        begun = begin(task.network, start, name=task.config.network.name)
    weights = list(task.network.parameters())
    trained = sum(tensor.numel() for tensor in weights if tensor.requires_grad)
    log.info("weights: %d, %d of them trained", sum(tensor.numel() for tensor in weights), trained)
    return begun


def publish(cases: Cases, folder: Path) -> NetworkCheckpoint:
    """Make a checkpoint of the run's weights, measured on validation and test by the code that serves it.

    Which weights is said by `train.keep`: those of ``state/best.ckpt``, or of ``state/last.ckpt``. Both hold the moving
    average where there is one.
    """
    config = cases.config
    weights, epoch = _kept(config, folder)
    begun = {"start": _start_of(cases, folder)} if (folder / START).is_file() else {}
    patience = config.train.early_stopping
    ended = {} if patience is None else {"early_stopping": patience}
    training = {
        "cases": len(cases.split.train),
        "names": list(cases.split.train),
        **cases.facts,
        **begun,
        **ended,
        f"{config.train.keep}_epoch": epoch,
        "epochs": config.train.epochs,
        "config_sha256": config.digest(),
        **data_digest(folder),
        "versions": versions(),
    }
    checkpoint, pages = publish_measured(
        cases, weights, {"training": training}, folder=folder / "checkpoint", scratch=folder / STATES / "unmeasured"
    )
    for side, page in pages.items():
        write_whole(folder / f"evaluation_{side}.html", page)
    write_whole(folder / METRICS, json.dumps(checkpoint.metrics, indent=1) + "\n")
    return checkpoint


def _start_of(cases: Cases, folder: Path) -> dict[str, Any]:
    """What the run began with; a held-out case with the name of one that trained that is told: it proves nothing."""
    start: dict[str, Any] = json.loads((folder / START).read_text())
    known = set(start.get("trained_on", ()))
    return {**start, "held_out_seen": [name for name in (*cases.split.validation, *cases.split.test) if name in known]}


def _kept(config: NetworkConfig, folder: Path) -> tuple[dict[str, torch.Tensor], int]:
    """The weights that `train.keep` asks for, and the number of epochs that made them."""
    state = read_state(folder / STATES / f"{config.train.keep}.ckpt", identity=identity(config))
    task = _task_of(config)
    task.load_state_dict(state["state_dict"])
    return task.published(), int(state["epoch"]) + 1


def _task_of(config: NetworkConfig) -> Task:
    if isinstance(config, SegmentConfig):
        return SegmentTask(config, [])
    return ClassifyTask(config, []) if isinstance(config, ClassifyConfig) else TextTask(config, [])
