"""The states of a run: what is kept of a training so that it continues exactly, and when it is written.

Invariant: a state is on the disk whole or not at all, and is read without running anything in it. A run that is
continued from one on a CPU ends with the same bits as one that was never stopped.

Lightning keeps weights, optimizer, schedule, scaler, loops and callbacks. What it does not keep is here: where in the
epoch the batches are (`LastState`), the epoch's means so far (`LastState`), and chance (`SeededSteps`, which makes it a
function of the step, so that there is nothing to keep).
"""

from __future__ import annotations

import logging
import pickle
import random
import signal
import threading
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint

from imaging.data import Position
from imaging.errors import OutputNotWritable, StateCorrupt
from imaging.files import PARTIAL, whole_file

log = logging.getLogger(__name__)

STATES = "state"
BEST, LAST = "best.ckpt", "last.ckpt"
RESUME_REMEDY = "The last state is whole: make room and continue with --resume"

# The key of a state under which lies what Lightning does not keep.
_OURS = "imgpipe"
# What a run is published from, and what it is continued from.
_PUBLISHED = frozenset({"state_dict", "loops", "epoch"})
_CONTINUED = _PUBLISHED | {"optimizer_states", "lr_schedulers", "callbacks", _OURS}


class Stopped(Exception):
    """A signal stopped the run between two batches.

    Attributes
    ----------
    signum
        The signal's number.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def read_state(path: Path, *, identity: str) -> dict[str, Any]:
    """A state, with all its tensors on the CPU.

    Parameters
    ----------
    path
        The file.
    identity
        That of the run that must have written it; see `pipelines.run_folder.identity`.

    Raises
    ------
    StateCorrupt
        If it is damaged (every byte is checked), holds anything but tensors and plain values, or is of another run.
    """
    # What was lost with the best state is not in another one.
    remedy = "Start a new run: the best weights are lost" if path.name == BEST else None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare the checksums of what it reads
        if damaged is not None:
            raise StateCorrupt(path, seen=f"its part {damaged} differs from its checksum", remedy=remedy)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StateCorrupt(path, seen=f"cannot be read ({type(error).__name__})", remedy=remedy) from error
    except zipfile.BadZipFile as error:
        raise StateCorrupt(path, seen="is cut short, or no state", remedy=remedy) from error
    except pickle.UnpicklingError as error:
        raise StateCorrupt(path, seen="holds something other than tensors and plain values", remedy=remedy) from error
    if not isinstance(state, dict) or not state.keys() >= _PUBLISHED:
        raise StateCorrupt(path, seen="is no state", remedy=remedy)
    # One of an earlier version does not say whose it is.
    if _OURS in state and state[_OURS]["identity"] != identity:
        raise StateCorrupt(path, seen="is a state of another run", remedy=remedy)
    return state


def has_ended(state: Mapping[str, Any], epochs: int) -> bool:
    """Whether the run that wrote the state had no epoch before it any more."""
    done = int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    return done >= epochs or bool(state.get(_OURS, {}).get("ended"))


class WholeStates(TorchCheckpointIO):
    """Lightning's reading and writing of states, whole or not at all.

    Its own way makes the file in the system's temporary folder, moves it (across file systems that is a copy) and does
    not wait for the disk.
    """

    def __init__(self, identity: str) -> None:
        self._identity = identity

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a state.

        Raises
        ------
        OutputNotWritable
            If the disk is full or refuses; the state before it stays.
        """
        try:
            with whole_file(Path(path)) as stream:
                torch.save(checkpoint, stream)
        except OutputNotWritable as error:
            raise OutputNotWritable(path, seen=error.seen, remedy=RESUME_REMEDY) from error
        except RuntimeError as error:
            # PyTorch's writer meets the stream's fault, and tells of its own confusion.
            if not isinstance(error.__context__, OSError):
                raise
            raise OutputNotWritable(path, seen=error.__context__.strerror, remedy=RESUME_REMEDY) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a state to continue from; see `read_state`."""
        state = read_state(Path(path), identity=self._identity)
        if not state.keys() >= _CONTINUED:
            raise StateCorrupt(path, seen="an earlier version of imgpipe wrote it", expected="all that a run is "
                               "continued from was expected", remedy="Start a new run")  # fmt: skip
        return state


class SeededSteps(Callback):
    """Makes chance (dropout above all) a function of (seed, epoch, batch, rank): nothing of it needs to be kept.

    Generators whose state goes from step to step would not do: loaders draw from them too, and not at the same moments
    in a run that is continued.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Seed before a step."""
        sequence = np.random.SeedSequence([self._seed, trainer.current_epoch, batch_idx, trainer.global_rank])
        for_torch, for_numpy, for_python = (int(word) for word in sequence.generate_state(3))
        torch.manual_seed(for_torch)
        np.random.seed(for_numpy)
        random.seed(for_python)


class BestState(ModelCheckpoint):
    """``best.ckpt``: the state at the end of the epoch with the highest validation score."""

    def __init__(self, folder: Path, monitor: str) -> None:
        super().__init__(
            folder / STATES,
            filename=Path(BEST).stem,
            monitor=monitor,
            mode="max",
            # As the last state, so that a run can be continued from it as well.
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Keep the epoch if it is the best, unless nothing was validated since the run was started or continued."""
        if self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best score so far; Lightning forgets it where the run folder was moved."""
        assert self.dirpath is not None
        here = str(Path(self.dirpath) / BEST)
        score = state_dict["best_model_score"]
        known = {} if score is None else {here: score}
        paths = dict.fromkeys(("best_model_path", "kth_best_model_path"), here if known else "")
        super().load_state_dict({**state_dict, **paths, "dirpath": self.dirpath, "best_k_models": known})


class LastState(Checkpoint):
    """``last.ckpt``: at the start, after each epoch, every few minutes within it, and when a signal stops the run.

    Also what each state, the best one too, holds beside Lightning's own: the run's identity, where in the epoch it
    was written, the epoch's means so far, on how many devices, and whether early stopping had ended the run.

    Parameters
    ----------
    folder
        The run folder.
    identity
        The run's; see `pipelines.run_folder.identity`.
    minutes
        Between two states within an epoch; 0 writes one after each step of the optimizer.
    """

    def __init__(self, folder: Path, identity: str, *, minutes: float) -> None:
        self._path = folder / STATES / LAST
        self._identity = identity
        self._seconds = 60 * minutes
        self._written = 0.0
        self._means: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._signal = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count the minutes, and listen to Ctrl-C and SIGTERM; Lightning gives their handlers back later.

        A new run gets a state before its first step: there is always one to continue from, and a disk that is full is
        met at once.
        """
        self._written = time.monotonic()
        if trainer.ckpt_path is None:
            self._save(trainer)
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, self._note)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        """Stop after this batch: within one there is no state to keep. Whoever asks twice is not kept waiting."""
        if self._signal:
            raise Stopped(signum)
        self._signal = signum

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write a state if it is time for one, and stop if a signal came."""
        self._add_earlier_means(trainer)
        due = time.monotonic() - self._written >= self._seconds
        # All ranks write, or none: the clock and the signals of the first one count.
        due, stop = trainer.strategy.broadcast((due, self._signal))
        # Gradients that are still being accumulated are in no state, and after the last batch comes the validation,
        # which a state of its own follows.
        loop = trainer.fit_loop.epoch_loop
        if (due or stop) and not loop._should_accumulate() and not loop.batch_progress.is_last_batch:
            self._save(trainer)
            if stop:
                raise Stopped(stop)

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *_: Any, **__: Any
    ) -> None:
        """Stop if a signal came; the last state is from before the validation.

        Several ranks finish it first: they have different numbers of cases, so here they cannot ask each other.
        """
        if trainer.world_size == 1:
            self._stop_if_told(trainer)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write a state."""
        self._save(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop if a signal came: not before the epoch's row is in the log, which is after its end."""
        self._stop_if_told(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop if a signal came in the last epoch."""
        self._stop_if_told(trainer)

    def _stop_if_told(self, trainer: lightning.Trainer) -> None:
        stop = trainer.strategy.broadcast(self._signal)
        if stop:
            raise Stopped(stop)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self._path)
        self._written = time.monotonic()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add what Lightning does not keep."""
        loop = trainer.fit_loop
        epochs = loop.epoch_progress.state_dict()["current"]
        within = epochs["started"] > epochs["processed"]
        checkpoint[_OURS] = {
            "identity": self._identity,
            "epoch": epochs["processed"],
            "batches": loop.batch_idx + 1 if within else 0,
            "means": _epoch_means(trainer) if within else {},
            "devices": trainer.world_size,
            "ended": trainer.should_stop,
        }

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up what was added."""
        ours = checkpoint[_OURS]
        trainer.datamodule.begin_at(Position(ours["epoch"], ours["batches"]))  # type: ignore[attr-defined]
        trainer.should_stop = ours["ended"]
        # They hold the sums of all ranks.
        self._means = ours["means"] if trainer.is_global_zero else {}
        log.info("continues with epoch %d after %d batches of it", ours["epoch"] + 1, ours["batches"])
        if ours["devices"] != trainer.world_size:
            log.warning(
                "the run was on %d device(s) and continues on %d: the weights will not be the same to the last bit",
                ours["devices"],
                trainer.world_size,
            )

    def _add_earlier_means(self, trainer: lightning.Trainer) -> None:
        """Add the epoch's sums from before the stop to those of its first batch after it."""
        for key, (value, count) in self._means.items():
            metric = trainer.fit_loop.epoch_loop._results[key]
            metric.value = value.to(metric.value) + metric.value
            metric.cumulated_batch_size = metric.cumulated_batch_size + count.to(metric.cumulated_batch_size)
        self._means = {}


def _epoch_means(trainer: lightning.Trainer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Sums and counts of what is logged as the epoch's mean, over all ranks; Lightning keeps no logged values."""
    return {
        key: (
            trainer.strategy.reduce(metric.value.clone(), reduce_op="sum"),
            trainer.strategy.reduce(metric.cumulated_batch_size.clone(), reduce_op="sum"),
        )
        for key, metric in trainer.fit_loop.epoch_loop._results.items()
        if metric.is_tensor and metric.meta.on_epoch and metric.meta.is_mean_reduction and not metric.has_reset
    }


def sweep(folder: Path) -> None:
    """Remove what a killed run left half-written among its states."""
    for file in (folder / STATES).glob(f".*{PARTIAL}"):
        with suppress(OSError):
            file.unlink()
