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
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger

from imaging.data import ClassificationData, SegmentationData
from imaging.errors import DataWorkerDied, OutputNotWritable
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from pipelines.run_folder import identity
from pipelines.states import LAST, RESUME_REMEDY, STATES, BestState, LastState, SeededSteps, Stopped, WholeStates, sweep

log = logging.getLogger(__name__)

# How PyTorch tells it, wherever the training is when the kernel tells PyTorch.
_WORKER_DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) ([^.]*)")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


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
    state_minutes: float,
) -> None:
    """Fit the network, leaving ``state/best.ckpt`` and ``state/last.ckpt`` in the run folder.

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
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in (
        ".*does not have many workers.*",
        ".*is_leaf.*",
        ".*exists and is not empty.*",
        ".*your dataloader is not resumable.*",  # it is, by `Position`
    ):
        warnings.filterwarnings("ignore", message=noise)
    config = task.config
    callbacks: list[Callback] = [
        SeededSteps(config.train.seed),
        BestState(folder, task.monitor),
        LastState(folder, identity(config), minutes=state_minutes),
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
        plugins=[WholeStates(identity(config))],
        logger=CSVLogger(folder, name="log"),  # a resumed run logs beside its first part
        log_every_n_steps=1,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    last = folder / STATES / LAST
    if resume:
        sweep(folder)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    except Stopped as stop:
        log.info("stopped by %s; --resume continues from %s", stop, last if last.is_file() else "nothing: no state yet")
        if stop.signum == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + stop.signum) from None
    except RuntimeError as error:
        died = _WORKER_DIED.match(str(error))
        if died is None:
            raise
        raise DataWorkerDied(f"process {died[1]}", seen=died[2].strip(" .")) from error
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OutputNotWritable(folder, seen=error.strerror, remedy=RESUME_REMEDY) from error
