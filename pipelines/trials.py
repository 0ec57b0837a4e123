"""The trials of a search, in a folder: what Optuna proposes is trained, and what came of it is remembered.

Invariant: what a trial is measured on are the validation cases; no file of a test case is handed to it. Each trial that
began is counted once, whoever measures it and however often a search is stopped: one that was interrupted is told as
such and begun again with the same values. The values that a single process tries depend on the config's seed and on
what came of the trials before, so a search that was stopped and resumed is the one that was not.

Optuna is asked for when it is needed: it comes with ``imgpipe[tune]``.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import multiprocessing
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback

from imaging.config import NetworkConfig, Searched, with_values
from imaging.errors import ImagingError, MissingPackage, TrainingDiverged
from imaging.tasks.text import TextTask
from imaging.transfer import begin
from pipelines.devices import open_world
from pipelines.fitting import fit
from pipelines.sides import Cases
from pipelines.states import STATES

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

DATABASE = "study.db"
_NAME = "imgpipe"
# So many trials are drawn at random before the sampler builds on what came of them, and none is stopped early before
# so many are complete. Both are Optuna's defaults.
STARTUP_RANDOM, STARTUP_WHOLE = 10, 5
_INTERRUPTED, _WHY = "interrupted", "why"

State = Literal["complete", "pruned", "failed", "interrupted", "running"]


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one trial.

    Attributes
    ----------
    number
        In the order in which trials began, from 0.
    state
        ``pruned``: stopped early, for it was worse than half of the trials at the same epoch. ``failed``: its loss or
        its memory gave out, see `why`. ``interrupted``: the search was stopped meanwhile.
    score
        What decides, on validation: the best of its epochs, or the last one with ``train.keep: last``; of a pruned
        trial that of its last epoch.
    epochs, seconds
        How far it went.
    values
        Of the keys that are searched.
    """

    number: int
    state: State
    score: float | None
    epochs: int
    seconds: float | None
    values: Mapping[str, Any]
    why: str = ""


class Trials:
    """The trials of a search, in a folder.

    Parameters
    ----------
    folder
        Of the search.
    config
        What is searched, and around what.

    Raises
    ------
    MissingPackage
        If Optuna is not installed.
    """

    def __init__(self, folder: Path, config: NetworkConfig) -> None:
        optuna = the_optuna()
        from sqlalchemy.engine import URL

        self._folder, self._config = folder, config
        url = URL.create("sqlite", database=str(folder / DATABASE)).render_as_string()
        # No trial is judged by the first quarter of its epochs: the moving average has not settled.
        pruner = optuna.pruners.MedianPruner(STARTUP_WHOLE, n_warmup_steps=config.train.epochs // 4 + 1)
        self._study = optuna.create_study(
            storage=optuna.storages.RDBStorage(url, {"connect_args": {"timeout": 120}}),
            study_name=_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )

    def all(self) -> list[Trial]:
        """All that began, in this order."""
        lost = self._lost()
        return [_told(trial, self._config.tune, lost=trial.number in lost)
                for trial in self._study.get_trials(deepcopy=False) if trial.state.name != "WAITING"]  # fmt: skip

    def _lost(self) -> list[int]:
        """The numbers of the trials that were interrupted."""
        return list(self._study.user_attrs.get(_INTERRUPTED, ()))

    def begin_again(self) -> None:
        """Tell the trials that a search left unfinished as interrupted, and put their values first in the queue.

        Only for whoever knows that nobody else is at work.
        """
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                self._interrupt(trial)

    def _interrupt(self, trial: optuna.trial.FrozenTrial) -> None:
        number, params = trial.number, dict(trial.params)
        # Once, though a resume may have been killed here: the seed of each later trial counts them.
        self._study.set_user_attr(_INTERRUPTED, sorted({*self._lost(), number}))
        self._study.tell(number, state=the_optuna().trial.TrialState.FAIL)
        shutil.rmtree(self._place(number), ignore_errors=True)
        if params.keys() == self._config.tune.keys():
            self._study.enqueue_trial(params)

    def _place(self, number: int) -> Path:
        return self._folder / "trials" / f"{number:04d}"

    def measure_until(self, count: int, cases: Cases) -> None:
        """Measure trials until `count` have been begun, by this process or by others.

        Raises
        ------
        WrongUsage
            If a combination of values cannot be trained at all.
        """
        while (trial := self._claimed(count)) is not None:
            self._measure(trial, self._values(trial), cases)
            stop_if_left_alone()

    def _claimed(self, count: int) -> optuna.Trial | None:
        """A new trial, or None where there are enough."""
        with _alone(self._folder / "claim.lock"):
            begun = [trial for trial in self.all() if trial.state != "interrupted"]
            return self._study.ask() if len(begun) < count else None

    def _values(self, trial: optuna.Trial) -> dict[str, Any]:
        """What the trial tries: drawn by a generator of its own, so that it does not matter who draws, and when."""
        lost = [number for number in self._lost() if number < trial.number]
        seed = np.random.SeedSequence([self._config.train.seed, trial.number - len(lost)]).generate_state(1)[0]
        self._study.sampler = the_optuna().samplers.TPESampler(seed=int(seed), n_startup_trials=STARTUP_RANDOM)
        content = self._config.model_dump(mode="json")
        return {
            key: _suggested(trial, key, searched, whole=is_whole(content, key, searched))
            for key, searched in self._config.tune.items()
        }

    def _measure(self, trial: optuna.Trial, values: Mapping[str, Any], cases: Cases) -> None:
        """Train with these values and tell what came of it; whatever is not told counts as interrupted."""
        optuna = the_optuna()
        failed = optuna.trial.TrialState.FAIL
        place = self._place(trial.number)
        reporter = _Reporter(trial, last=self._config.train.keep == "last")
        log.info("trial %d begins: %s", trial.number, ", ".join(f"{key}={value}" for key, value in values.items()))
        try:
            task, data = cases.with_config(with_values(cases.config, values)).loaded()
            world = open_world(devices=1, nodes=1, batch_size=task.config.train.batch_size)
            if task.config.train.start is not None:
                assert not isinstance(task, TextTask), "its config takes no start"
                begin(task.network, task.config.train.start, name=task.config.network.name)
            (place / STATES).mkdir(parents=True, exist_ok=True)
            fit(task, data, place, world, resume=False, progress=False, state_minutes=math.inf, also=[reporter])
            if not math.isfinite(reporter.score):
                trial.set_user_attr(_WHY, "the score is not a number")
                self._study.tell(trial, state=failed)
            else:
                self._study.tell(trial, reporter.score)
        except optuna.TrialPruned:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except (TrainingDiverged, torch.OutOfMemoryError) as error:
            trial.set_user_attr(_WHY, str(error).splitlines()[0])
            self._study.tell(trial, state=failed)
        except ImagingError as error:
            trial.set_user_attr(_WHY, str(error))
            self._study.tell(trial, state=failed)
            raise
        finally:
            shutil.rmtree(place / STATES, ignore_errors=True)
        told = next(told for told in self.all() if told.number == trial.number)
        log.info("trial %d %s after %d epochs: %s", told.number, told.state, told.epochs, told.score)


class _Reporter(Callback):
    """Tells the study each validation, and ends a trial that the study gives up."""

    def __init__(self, trial: optuna.Trial, *, last: bool) -> None:
        self._trial, self._last = trial, last
        self._scores: list[float] = []

    @property
    def score(self) -> float:
        """What the trial is worth: the score of the weights that `train.keep` would publish."""
        if self._last or not any(map(math.isfinite, self._scores)):
            return self._scores[-1] if self._scores else math.nan
        return max(filter(math.isfinite, self._scores))

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Report the score of this epoch.

        Raises
        ------
        optuna.TrialPruned
            If the trial is not worth going on.
        SystemExit
            If the process that started this one is gone.
        """
        stop_if_left_alone()
        monitor = pl_module.monitor
        assert isinstance(monitor, str)
        epoch = trainer.current_epoch + 1
        self._scores.append(float(trainer.callback_metrics[monitor]))
        self._trial.report(self._scores[-1], step=epoch)
        if epoch < (trainer.max_epochs or 0) and self._trial.should_prune():
            raise the_optuna().TrialPruned


def the_optuna() -> Any:
    """The package, quiet.

    Raises
    ------
    MissingPackage
        If it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackage("imgpipe tune", seen="optuna is not installed",
                             remedy="pip install 'imgpipe[tune]'") from error  # fmt: skip
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def stop_if_left_alone() -> None:
    """End this process if it was started by one that is gone: nobody would gather what it measures."""
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():
        raise SystemExit(1)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of a search at a time."""
    with lock.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def is_whole(content: Mapping[str, Any], key: str, searched: Searched) -> bool:
    """Whether the numbers of a range are whole ones: where the config has one now, or, where it has none, all are."""
    now = value_at(content, key)
    if now is None:
        return all(isinstance(number, int) for number in (*searched.tried, searched.step or 1))
    return isinstance(now, int)


def value_at(content: Any, key: str) -> Any:
    """The value at a dotted key, or None."""
    for part in key.split("."):
        if isinstance(content, Mapping):
            content = content.get(part)
        else:
            content = content[int(part)] if isinstance(content, list) and part.isdecimal() else None
    return content


def _suggested(trial: optuna.Trial, key: str, searched: Searched, *, whole: bool) -> Any:
    if searched.choices:  # as JSON, since a study remembers no lists
        return json.loads(trial.suggest_categorical(key, [json.dumps(choice) for choice in searched.choices]))
    low, high = searched.limits
    if whole:
        return trial.suggest_int(key, int(low), int(high), step=int(searched.step or 1), log=searched.log)
    return trial.suggest_float(key, float(low), float(high), step=searched.step, log=searched.log)


def _told(trial: optuna.trial.FrozenTrial, searched: Mapping[str, Searched], *, lost: bool) -> Trial:
    state: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed"}
    values = {}
    for key, value in trial.params.items():
        values[key] = json.loads(value) if searched[key].choices else value
    score = None
    with suppress(ValueError):
        score = trial.value
    return Trial(
        trial.number,
        "interrupted" if lost else state[trial.state.name],
        score,
        trial.last_step or 0,
        trial.duration.total_seconds() if trial.duration else None,
        values,
        str(trial.user_attrs.get(_WHY, "")),
    )
