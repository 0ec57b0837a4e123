"""What the time of an epoch went by with: waiting for data, or computing.

Invariant: measured around Lightning's own fetch and step, in wall-clock time. Each step ends by looking whether its
gradient is finite, which waits for the GPU, so that a GPU has nothing to do while the next batch is fetched.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import Profiler

log = logging.getLogger(__name__)

WAIT, COMPUTE = "data_wait_share", "compute_share"
_FETCH, _STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"
# Of an epoch; above it the log says so.
_TOLD_FROM = 0.05


class StepTimes(Profiler):
    """Seconds that Lightning spent in fetching batches and in steps, since `clear`."""

    def __init__(self) -> None:
        super().__init__()
        self._since: dict[str, float] = {}
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def start(self, action_name: str) -> None:
        """Begin to count, where it is one of the two."""
        if action_name in (_FETCH, _STEP):
            self._since[action_name] = time.perf_counter()

    def stop(self, action_name: str) -> None:
        """Add what was counted."""
        if action_name in self._since:
            self._seconds[action_name] += time.perf_counter() - self._since.pop(action_name)

    def clear(self) -> tuple[float, float]:
        """Seconds in fetching and in steps so far; the next ones count from 0."""
        found = self._seconds[_FETCH], self._seconds[_STEP]
        self._seconds.clear()
        return found


class BusyLog(Callback):
    """Logs after each epoch which share of its time the network waited for data, and which it computed.

    What is left went by with validation's preparation, states and the log itself; the validation does not count.

    Parameters
    ----------
    times
        The Trainer's profiler.
    workers
        Processes that make batches, as the config has it; for the advice.
    """

    def __init__(self, times: StepTimes, workers: int) -> None:
        self._times, self._workers = times, workers
        self._begun = self._validating = self._validated = 0.0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count: an epoch that is continued is not started again."""
        self._begin()

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Begin to count."""
        self._begin()

    def _begin(self) -> None:
        self._begun, self._validated = time.perf_counter(), 0.0

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the validation out."""
        self._validating = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Go on counting."""
        self._validated += time.perf_counter() - self._validating

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Log both shares, the mean over ranks, and say where the network waited long."""
        fetched, stepped = self._times.clear()
        # The first batch of the run is asked for before the epoch begins.
        whole = max(time.perf_counter() - self._begun - self._validated, fetched + stepped)
        pl_module.log_dict({WAIT: fetched / whole, COMPUTE: stepped / whole}, sync_dist=True)
        if fetched / whole > _TOLD_FROM and trainer.is_global_zero:
            log.info(
                "epoch %d: %.0f %% of the time went by waiting for data, %.0f %% with computing; data.workers is %d",
                trainer.current_epoch + 1,
                100 * fetched / whole,
                100 * stepped / whole,
                self._workers,
            )
