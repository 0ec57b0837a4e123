"""`imgpipe tune`: search the values of some of a config's keys that do best on validation.

Invariant: the test cases decide nothing and are not opened; what is searched is what the config's `tune` says, checked
before anything is trained; and what comes out is a config that `imgpipe train` takes.

The folder::

    config.yaml  split.json  data.json  versions.json  environment.json
                                             written before the first trial
    study.db                                 Optuna's study, as SQLite: what `--resume` goes on from
    trials/<number>/log/                     each trial's log, a row an epoch
    trials.csv  best.yaml                    every trial, and the config of the best one
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from imaging.config import ClassifyConfig, NetworkConfig, SegmentConfig, TextConfig, with_values
from imaging.errors import (
    ConfigInvalid,
    ImagingError,
    JobLost,
    NothingToResume,
    NoTrialComplete,
    RunExists,
)
from imaging.files import write_whole
from imaging.gridding import classify_augmentation
from imaging.networks import check_patches
from imaging.patches import Patches
from imaging.tasks.classify import ClassifyTask
from imaging.tasks.segment import SegmentTask
from imaging.tasks.text import TextTask
from pipelines.devices import LogSettings, check_precision
from pipelines.run_folder import NO_TRAINING, check_same, open_run
from pipelines.sides import Cases, deal_unseen
from pipelines.states import STATES
from pipelines.train import resolve
from pipelines.trials import DATABASE, Trial, Trials, is_whole, the_optuna, value_at

log = logging.getLogger(__name__)

BEST, TRIALS = "best.yaml", "trials.csv"
# Of another key the score on validation would not be comparable: it would be another split, other labels, another seed.
_SEARCHABLE = ("network.", "train.")
_FIXED = ("train.seed", "train.keep")


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search left behind.

    Attributes
    ----------
    folder
        Of the search.
    monitor
        What was to be as large as possible: ``val_dice`` or ``val_auc``.
    trials
        All that began.
    best
        The complete one with the best score.
    """

    folder: Path
    monitor: str
    trials: tuple[Trial, ...]
    best: Trial


def tune(
    *,
    config: Path,
    trials: int,
    overrides: Sequence[str] = (),
    out: Path | None = None,
    resume: bool = False,
    jobs: int = 1,
) -> Tuned:
    """Try values of the keys that the config's `tune` names, by what they do on the validation cases.

    Parameters
    ----------
    config
        A config file, or the name of a shipped one.
    trials
        How many trials there are in the end, those of the search that is resumed included.
    overrides
        ``KEY=VALUE`` on top of the config; ``data.root`` names the data set.
    out
        The folder of the search; by default ``runs/<name>_tune``.
    resume
        Go on with the search in `out`.
    jobs
        How many processes measure trials at a time, on this machine.

    Raises
    ------
    WrongUsage
        If the config, what it wants searched, the data set or the folder cannot be used.
    NoTrialComplete
        If none came to its end.
    JobLost
        If a process was killed; the search can be resumed.
    """
    the_optuna()
    resolved = resolve(config, overrides, precision=None)
    check_search(resolved)
    cases = deal_unseen(resolved)
    folder = out or Path("runs") / f"{resolved.name}_tune"
    _open(folder, cases, resume=resume)
    with _nobody_else(folder):
        search = Trials(folder, resolved)
        search.begin_again()
        try:
            _measure(search, folder, cases, trials, jobs)
        finally:
            _write_trials(folder, search.all(), resolved)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return _result(folder, search.all(), resolved)


def check_search(config: NetworkConfig) -> None:
    """Refuse what cannot be searched, by really making config, network and transforms with each end and each choice.

    Raises
    ------
    ConfigInvalid, UnknownKey, UnknownName
        With the key.
    """
    allowed = (*_SEARCHABLE, "preprocess.") if isinstance(config, ClassifyConfig) else _SEARCHABLE
    if not config.tune:
        raise ConfigInvalid("tune", seen="no key to search", expected="keys with ranges or choices were expected",
                            remedy="Add a section tune to the config")  # fmt: skip
    content = config.model_dump(mode="json")
    for key, searched in config.tune.items():
        values = [with_values(config, {key: value}) for value in searched.tried]
        if not key.startswith(allowed) or key in _FIXED:
            raise ConfigInvalid(f"tune.{key}", seen="it decides how the score is measured, so it cannot be searched",
                                expected=f"keys that begin with {' or '.join(allowed)} were expected")  # fmt: skip
        now = value_at(content, key)
        if not searched.choices and (isinstance(now, bool) or not isinstance(now, int | float | None)):
            raise ConfigInvalid(f"tune.{key}", seen=f"a range for a key that is {json.dumps(now)}",
                                expected="choices were expected")  # fmt: skip
        numbers = () if searched.choices else (*searched.limits, searched.step or 1)
        if numbers and is_whole(content, key, searched) and any(number != int(number) for number in numbers):
            raise ConfigInvalid(f"tune.{key}", seen="a fraction", expected="whole numbers were expected")
        for value in values:
            _make(value, key)


def _make(config: NetworkConfig, key: str) -> None:
    """What a key has a part in, made as a training makes it."""
    check_precision(config.train.precision)
    if isinstance(config, SegmentConfig):
        check_patches(config)
        Patches(config.train)
    elif isinstance(config, TextConfig):
        TextTask(config, [])
    elif key.startswith("train."):
        classify_augmentation(config.train.augment, axes=len(config.preprocess.size))
    else:
        ClassifyTask(config, [])


def _open(folder: Path, cases: Cases, *, resume: bool) -> None:
    """Write what explains the search, or check that one to be resumed is the same one."""
    if not resume:
        open_run(folder, cases.config, cases.split, cases.contents(), resume=False)
        (folder / STATES).rmdir()
        return
    if not (folder / DATABASE).is_file():
        raise NothingToResume(folder, seen=f"no {DATABASE}")
    # Other than a run, a search depends on whose weights are published and on what it may vary.
    check_same(folder, cases.config, cases.split, cases.contents(), but=NO_TRAINING)


@contextmanager
def _nobody_else(folder: Path) -> Iterator[None]:
    """Hold the folder; its own processes share it."""
    with (folder / "search.lock").open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunExists(folder, seen="another imgpipe tune is at work in it",
                            remedy="Wait for it, or stop it") from error  # fmt: skip
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def _measure(search: Trials, folder: Path, cases: Cases, trials: int, jobs: int) -> None:
    """Measure trials in this process, or in some others."""
    if jobs == 1:
        search.measure_until(trials, _with_cache(cases, folder))
        return
    context = multiprocessing.get_context("spawn")
    told: SimpleQueue[ImagingError] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // jobs)
    arguments = (folder, cases.config, trials, threads, LogSettings.of_this_process(), told)
    processes = [context.Process(target=_job, args=arguments) for _ in range(jobs)]
    try:
        for process in processes:
            process.start()
        left = list(processes)
        while left:
            wait([process.sentinel for process in left])
            ended = [process for process in left if process.exitcode is not None]
            left = [process for process in left if process.exitcode is None]
            if not told.empty():
                raise told.get()
            lost = [process.exitcode for process in ended if process.exitcode]
            if lost:
                raise JobLost(folder, seen=f"a process ended with {lost[0]}")
    finally:
        for process in processes:
            if process.pid is not None:
                process.terminate()
                process.join()


def _job(
    folder: Path,
    config: NetworkConfig,
    trials: int,
    threads: int,
    log_settings: LogSettings,
    told: SimpleQueue[ImagingError],
) -> None:
    """One of several processes."""
    log_settings.apply()
    torch.set_num_threads(threads)
    with (folder / "search.lock").open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        try:
            Trials(folder, config).measure_until(trials, _with_cache(deal_unseen(config), folder))
        except ImagingError as error:
            told.put(error)


def _with_cache(cases: Cases, folder: Path) -> Cases:
    """The cases with a cache on disk, unless the config has one: all trials begin with the same samples."""
    data = cases.config.data
    if data.cache is None:
        data = data.model_copy(update={"cache": str(folder / "cache")})
    return cases.with_config(cases.config.model_copy(update={"data": data}))


def _result(folder: Path, trials: Sequence[Trial], config: NetworkConfig) -> Tuned:
    complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    if not complete:
        why = next((trial.why for trial in trials if trial.why), f"{len(trials)} trials")
        raise NoTrialComplete(folder, seen=why)
    best = max(complete, key=lambda trial: (trial.score or 0.0, -trial.number))
    write_whole(folder / BEST, with_values(config, best.values).model_copy(update={"tune": {}}).to_yaml())
    return Tuned(folder, _monitor(config), tuple(trials), best)


def _monitor(config: NetworkConfig) -> str:
    if isinstance(config, SegmentConfig):
        return SegmentTask.monitor
    return ClassifyTask.monitor if isinstance(config, ClassifyConfig) else TextTask.monitor


def _write_trials(folder: Path, trials: Sequence[Trial], config: NetworkConfig) -> None:
    """`trials.csv`: a row a trial, a column a key."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "score", "epochs", "seconds", *config.tune, "why"])
    for trial in trials:
        values = [trial.values.get(key, "") for key in config.tune]
        shown = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        seconds = "" if trial.seconds is None else f"{trial.seconds:.1f}"
        writer.writerow([trial.number, trial.state, trial.score, trial.epochs, seconds, *shown, trial.why])
    write_whole(folder / TRIALS, text.getvalue())
