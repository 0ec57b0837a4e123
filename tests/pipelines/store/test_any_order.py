"""Whatever happens in whatever order: every move is an arrow, and each study ends with one result, of all that came."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from imaging.errors import DeliveryFailed, IllegalMove, MissingSlices, WorkerLost
from pipelines.store import Store
from pipelines.store.arrivals import Arrival, record
from pipelines.store.moves import MOVES, State
from pipelines.store.rules import Completeness, Retries
from pipelines.store.view import Job

RULE = Completeness(series_quiet_s=1, study_quiet_s=5, timeout_s=60)
RETRIES = Retries(most=3, first_s=2, jitter=0, most_interruptions=4)
FAULT = WorkerLost("study", seen="killed")
PLACES = ("out", "pacs")


class Chance:
    """Does one thing after another, by chance."""

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.random, self.numbers = store, random.Random(seed), dict.fromkeys(range(3), 0)
        self.seen: dict[int, tuple[State, int]] = {}

    def arrive(self) -> None:
        study = self.random.randrange(3)
        # Now and then one that was there before.
        number = self.numbers[study] = self.numbers[study] + (self.random.random() < 0.8)
        uid, series = f"1.{study}", f"1.{study}.1"
        arrival = Arrival(uid, series, f"{series}.{number}", "1.2", "1.2.1", f"{study}-{number}", 10, "tests")
        with self.store.database.writing() as db:
            record(db, arrival, self.store.clock.now())

    def wait(self) -> None:
        self.store.clock._ahead += self.random.choice([1, 6, 30])

    def settle(self) -> None:
        self.store.jobs.settle(RULE)

    def claim(self) -> None:
        self.store.jobs.claim(self.random.choice(["w1", "w2"]), "setup")

    def a(self, *states: State) -> Job:
        """One of the jobs in some states."""
        return self.random.choice(self.store.jobs.all(states))

    def end_run(self) -> None:
        job = self.a(State.RUNNING)
        how: Callable[[], object] = self.random.choice([
            lambda: self.store.jobs.ran(job), lambda: self.store.jobs.ran(job),
            lambda: self.store.jobs.give_up(job, FAULT, RETRIES),
            lambda: self.store.jobs.refuse(job, MissingSlices("series", seen="3")),
            lambda: self.store.jobs.let_go(job),
        ])  # fmt: skip
        how()

    def end_watcher(self) -> None:
        self.store.jobs.recover(RETRIES)

    def verify(self) -> None:
        job = self.a(State.VERIFYING)
        if self.random.random() < 0.2:
            self.store.jobs.give_up(job, FAULT, RETRIES)
        else:
            self.store.jobs.verified(job, f"sha of {job.name}", PLACES)

    def deliver(self) -> None:
        delivery = self.random.choice(self.store.jobs.deliveries(waiting_at=self.random.choice(PLACES)))
        if self.random.random() < 0.3:
            error = DeliveryFailed(delivery.destination, seen="away")
            self.store.jobs.undelivered(delivery.job, delivery.destination, error, RETRIES)
        else:
            self.store.jobs.delivered(delivery.job, delivery.destination)

    def person(self) -> None:
        with suppress(IllegalMove):
            step = self.random.choice([self.store.jobs.retry, self.store.jobs.release, self.store.jobs.ask_purge])
            step(self.a())

    def step(self) -> None:
        steps = [self.arrive, self.wait, self.settle, self.claim, self.end_run, self.end_run, self.verify, self.deliver,
                 self.deliver, self.person, self.end_watcher]  # fmt: skip
        with suppress(IndexError):  # there is none to do it to
            self.random.choice(steps)()

    def check(self) -> None:
        jobs = self.store.jobs.all()
        running = [job.study_uid for job in jobs if job.state in (State.RUNNING, State.VERIFYING, State.DELIVERING)]
        assert len(running) == len(set(running)), "two versions of a study at once"
        current = self.store.database.read("SELECT job FROM results WHERE current")
        for row in current:
            study = self.store.jobs.find(str(row["job"]))
            newer = [job for job in jobs if job.study_uid == study.study_uid and job.id > study.id]
            assert State.DONE not in {job.state for job in newer}, "an older result took a newer one's place"
        assert {job.study_uid for job in jobs if job.state is State.DONE} == {
            self.store.jobs.find(str(row["job"])).study_uid for row in current
        }

    def finish(self) -> None:
        """Nothing goes wrong any more, and a person looks after what is held."""
        for _ in range(200):
            self.store.clock._ahead += 100
            for job in self.store.jobs.all([State.FAILED, State.QUARANTINED]):
                with suppress(IllegalMove):
                    self.store.jobs.retry(job)
            self.settle()
            while (job := self.store.jobs.claim("w", "setup")) is not None:
                self.store.jobs.ran(job)
            for job in self.store.jobs.all([State.RUNNING]):
                self.store.jobs.ran(job)
            for job in self.store.jobs.all([State.VERIFYING]):
                self.store.jobs.verified(job, f"sha of {job.name}", PLACES)
            for place in PLACES:
                for delivery in self.store.jobs.deliveries(waiting_at=place):
                    self.store.jobs.delivered(delivery.job, place)
            newest = {job.study_uid: job for job in self.store.jobs.all()}
            if {job.state for job in newest.values()} <= {State.DONE}:
                return
        raise AssertionError(self.store.jobs.all())


@pytest.mark.parametrize("seed", range(12))
def test_any_order_ends_with_one_current_result_of_all_that_came(tmp_path: Path, seed: int) -> None:
    with Store(tmp_path, watching=True) as store:
        store.database._writer.execute("PRAGMA synchronous = OFF")  # what is on disk is tested elsewhere
        chance = Chance(store, seed)
        for _ in range(250):
            chance.step()
            chance.check()
        chance.finish()
        newest = {job.study_uid: job for job in store.jobs.all()}
        for study, job in newest.items():
            standing = store.jobs.standing(study)
            assert standing is not None
            assert (standing.version, standing.report_sha256) == (job.version, f"sha of {job.name}")
            [(came,)] = store.database.read("SELECT count(*) FROM instances WHERE study_uid = ?", [study])
            assert len(store.jobs.members(job)) == came
        moves = {}
        for event in store.jobs.events(most=100_000):
            if event.job is not None and event.code in list(State):
                before = moves.get(event.job)
                assert before is None or (before, State(event.code)) in MOVES
                moves[event.job] = State(event.code)
        assert len(moves) > 3
