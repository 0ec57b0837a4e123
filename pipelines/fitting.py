"""Lightning's part of a training: the Trainer, its callbacks and its loggers.

Invariant: whatever stops a run, the last whole state of it stays in ``state/``, and what is fitted from there on is
what would have been fitted without the stop.
"""

from __future__ import annotations

import errno
import logging
import re
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from imaging.data import RunData
from imaging.errors import DataWorkerDied, OutputNotWritable
from imaging.tasks.batch_norm import SharedBatchNorms
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from imaging.tasks.text import TextTask
from pipelines.busy import BusyLog, StepTimes
from pipelines.devices import World
from pipelines.loggers import close, loggers_for
from pipelines.run_folder import identity
from pipelines.states import LAST, RESUME_REMEDY, STATES, BestState, LastState, SeededSteps, Stopped, WholeStates, sweep

log = logging.getLogger(__name__)

Task = SegmentTask | ClassifyTask | TextTask

# How PyTorch tells it, wherever the training is when the kernel tells PyTorch.
_WORKER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^.]*)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

_NOISE = (
    ".*does not have many workers.*",
    ".*is_leaf.*",
    ".*exists and is not empty.*",
    ".*your dataloader is not resumable.*",  # it is, by `Position`
    ".*in eval mode at the start of training.*",  # normalisations of what is frozen
    ".*recommended to use `self.log.*sync_dist=True.*",  # the scores are the same on each rank already
    ".*`broadcast_buffers` is deprecated.*",  # what takes its place is not there in the oldest PyTorch we take
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
    task: Task,
    data: RunData,
    folder: Path,
    world: World,
    *,
    resume: bool,
    progress: bool,
    state_minutes: float,
    also: Sequence[Callback] = (),
) -> None:
    """Fit the network, leaving ``state/best.ckpt`` and ``state/last.ckpt`` in the run folder; `also` are called too.

    Raises
    ------
    KeyboardInterrupt, SystemExit
        If Ctrl-C or SIGTERM stopped it, after a state was written.
    OutputNotWritable
        If a state or the log cannot be written; the state before stays.
    DataWorkerDied
        If a process that makes batches was killed.
    StateCorrupt
        If the state to resume from is damaged.
    """
    for noisy in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for noise in _NOISE:
        warnings.filterwarnings("ignore", message=noise)
    settings = task.config.train
    if settings.accumulate > 1:
        log.info("each step takes %d cases", settings.batch_size * settings.accumulate)
    callbacks = [*callbacks_for(task, folder, progress=progress, state_minutes=state_minutes), *also]
    trainer = trainer_for(task, folder, world, callbacks, progress=progress)
    last = folder / STATES / LAST
    if resume and world.rank == 0:
        sweep(folder)
    try:
        with _faults_named(folder):
            trainer.fit(task, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    except Stopped as stop:
        log.info("stopped by %s; --resume continues from %s", stop, last)
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.signum) from None
    finally:
        close(trainer.loggers)
        if distributed.is_initialized():
            # What comes after is the first rank's alone, and may take longer than the others wait.
            distributed.destroy_process_group()


@contextmanager
def _faults_named(folder: Path) -> Iterator[None]:
    """What the system does to a training, in this project's words."""
    try:
        yield
    except RuntimeError as error:
        died = _WORKER_DIED.match(str(error))
        if died is None:
            raise
        raise DataWorkerDied(f"process {died[1]}", seen=died[2].strip(" .")) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutputNotWritable(folder, seen=error.strerror, remedy=RESUME_REMEDY) from error


def callbacks_for(task: Task, folder: Path, *, progress: bool, state_minutes: float) -> list[Callback]:
    """What accompanies a training: its states, its log, its moving average."""
    settings = task.config.train
    callbacks: list[Callback] = [
        SeededSteps(settings.seed),
        BestState(folder, task.monitor),
        LastState(folder, identity(task.config), minutes=state_minutes),
        RichProgressBar(console_kwargs={"stderr": True}) if progress else _EpochLog(task.monitor),
    ]
    if settings.early_stopping is not None:
        callbacks.append(
            EarlyStopping(
                task.monitor,
                mode="max",
                patience=settings.early_stopping,
                check_on_train_epoch_end=False,  # a validation counts, not an epoch
                check_finite=False,  # a score that is no number is no better one
            )
        )
    if settings.ema_decay:
        callbacks.append(EMAWeightAveraging(decay=settings.ema_decay))
    return callbacks


def trainer_for(
    task: Task, folder: Path, world: World, callbacks: list[Callback], *, progress: bool
) -> lightning.Trainer:
    """Lightning's Trainer for a task on the devices of a world."""
    settings = task.config.train
    on_gpu = torch.cuda.is_available()
    shared = [SharedBatchNorms(on_gpu=on_gpu)] if world.size > 1 else []
    times = StepTimes()
    return lightning.Trainer(
        accelerator="auto",
        devices=world.devices,
        num_nodes=world.nodes,
        # Each rank's buffers are the same (batch norms are shared), and ranks validate different numbers of cases.
        strategy=DDPStrategy(broadcast_buffers=False) if world.size > 1 else "auto",
        plugins=[world.cluster, WholeStates(identity(task.config)), *shared],
        precision=settings.precision,
        max_epochs=settings.epochs,
        check_val_every_n_epoch=min(settings.validate_every, settings.epochs),
        num_sanity_val_steps=0,
        gradient_clip_val=settings.gradient_clip,
        accumulate_grad_batches=settings.accumulate,
        # Some CUDA kernels (NLLLoss among them) have no deterministic form; there Lightning warns instead.
        deterministic="warn" if on_gpu else True,
        use_distributed_sampler=False,
        callbacks=[*callbacks, BusyLog(times, task.config.data.workers)],
        profiler=times,
        logger=loggers_for(folder, task.config) if world.rank == 0 else False,
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
