"""Whose fault it is when a worker is lost that holds several jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arriving import instance, told

from pipelines import runner as runner_module
from pipelines.runner import Patience, Runner
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.worker import Outcome, Task, Waits

AT_ONCE = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0.001)
RETRIES = Retries(most=3, first_s=0, jitter=0)


class Actor:
    """A worker without a process: what it says and when it dies is told."""

    name = "actor"

    def __init__(self) -> None:
        self.is_alive, self.setup, self.died = True, "setup", False
        self.held: list[Task] = []
        self.says: list[Waits | Outcome] = []

    @property
    def last_sign(self) -> float:
        return runner_module.time.monotonic()

    def start(self) -> None:
        self.is_alive, self.setup, self.died = True, "setup", False

    def kill(self) -> None:
        self.is_alive, self.setup, self.died = False, "", False
        self.held.clear()

    def send(self, task: Task) -> None:
        self.held.append(task)

    def heard(self) -> list[Waits | Outcome]:
        told, self.says = self.says, []
        return told

    def exit_code(self) -> int | None:
        return -9 if self.died else None

    def waits_on(self) -> list[Any]:
        return []


class Clock:
    """Stands for the module `time`."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, watching=True) as opened:
        for study in range(1, 5):
            opened.put(instance(study, 1), source="tests", **told(study, 1))
        opened.jobs.settle(AT_ONCE)
        yield opened


def runner_of(
    store: Store, *, at_once: int = 3, study_s: float = 60, retries: Retries = RETRIES
) -> tuple[Runner, Actor]:
    reading: Any = None
    patience = Patience(study_s=study_s, per_mib_s=0)
    runner = Runner(store, reading, patience=patience, retries=retries, at_once=at_once)
    actor = Actor()
    runner._seats[0].worker = actor  # type: ignore[assignment]
    return runner, actor


def faults(store: Store) -> list[int]:
    return [job.faults for job in store.jobs.all()]


def running(store: Store) -> list[int]:
    return [job.id for job in store.jobs.all([State.RUNNING])]


def until(runner: Runner, store: Store, jobs: list[int]) -> None:
    """Go on until these run; what went wrong waits a moment before it is tried again."""
    deadline = time.monotonic() + 60
    while running(store) != jobs:
        assert time.monotonic() < deadline, running(store)
        runner.tick()


def test_it_holds_as_many_as_it_may_and_takes_the_next_when_one_ends(store: Store) -> None:
    runner, actor = runner_of(store)
    assert runner.tick() == 3
    assert [task.job for task in actor.held] == [1, 2, 3]
    actor.says = [Outcome(job=2)]
    assert runner.tick() == 3
    assert running(store) == [1, 3, 4]
    assert store.jobs.find("2").state is State.VERIFYING


def test_where_it_dies_with_several_nobody_is_blamed_and_each_runs_alone_until_it_has_ended(store: Store) -> None:
    runner, actor = runner_of(store)
    runner.tick()
    actor.died = True
    runner.tick()
    assert (faults(store), running(store)) == ([0] * 4, [1])
    runner.tick()
    assert running(store) == [1]  # there would be room, and it is a suspect
    actor.died = True
    runner.tick()
    assert faults(store) == [1, 0, 0, 0]  # alone: it was its own fault
    until(runner, store, [1])
    actor.says = [Outcome(job=1)]
    runner.tick()
    assert running(store) == [2]
    actor.says = [Outcome(job=2)]
    runner.tick()
    actor.says = [Outcome(job=3)]
    runner.tick()
    assert (faults(store), running(store)) == ([1, 0, 0, 0], [4])


def test_a_suspect_is_not_given_beside_another_job(store: Store) -> None:
    runner, actor = runner_of(store, at_once=2)
    runner.tick()
    actor.died = True
    runner.tick()
    actor.says = [Outcome(job=1)]
    runner.tick()
    actor.says = [Outcome(job=2)]
    runner.tick()
    assert running(store) == [3, 4]
    runner._suspects.add(4)
    actor.died = True
    runner.tick()
    assert running(store) == [3]


def test_only_what_works_for_too_long_is_overdue(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(runner_module, "time", clock)
    runner, actor = runner_of(store, study_s=10, retries=Retries(most=3, first_s=1000, jitter=0))
    runner.tick()
    actor.says = [Waits(2, True), Waits(3, True)]
    runner.tick()
    clock.seconds += 11
    runner.tick()
    # The neighbours waited; they are given back as they were, and run beside others again.
    assert (faults(store), running(store)) == ([1, 0, 0, 0], [2, 3, 4])
    actor.says = [Waits(3, True), Waits(4, True)]
    runner.tick()
    clock.seconds += 6
    actor.says = [Waits(2, True), Waits(3, False)]
    runner.tick()
    clock.seconds += 6
    actor.says = [Waits(3, True), Waits(2, False)]
    runner.tick()
    assert (faults(store), running(store)) == ([1, 0, 0, 0], [2, 3, 4])
    clock.seconds += 5
    runner.tick()
    assert faults(store) == [1, 1, 0, 0]


def test_an_outcome_that_was_given_before_it_died_counts(store: Store) -> None:
    runner, actor = runner_of(store, at_once=2)
    runner.tick()
    actor.died, actor.says = True, [Outcome(job=1)]
    runner.tick()
    assert store.jobs.find("1").state is State.VERIFYING
    assert faults(store) == [0, 1, 0, 0]  # it was alone then


def test_ended_all_are_given_back_as_they_were(store: Store) -> None:
    runner, _ = runner_of(store)
    runner.tick()
    runner.stop()
    assert [job.state for job in store.jobs.all()] == [State.READY] * 4
    assert faults(store) == [0] * 4
    assert list(store.contents.results.iterdir()) == []
