"""The workers of a watcher: each is given the next job, watched, and replaced when it dies or hangs.

Invariant: a job that a worker holds is always on its way to an end: the worker gives its outcome, or it dies, shows no
sign of life or exceeds the time limit, and then it is killed and the job tried again. Nothing here waits.

A worker may hold several jobs. A fault is counted only where it is known whose it was: a job's time limit counts what
it works and not what it waits for its neighbours, so whoever exceeds it is the one; its neighbours are given back as
they were. Where a process dies with several jobs, nobody knows: all are given back, and then each of them runs alone.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from imaging.errors import ImagingError, NoRule, StoreFull, StudyOverdue, WorkerLost
from pipelines.store import Store
from pipelines.store.content import discard
from pipelines.store.rules import Retries
from pipelines.store.view import Job
from pipelines.worker import BEAT_S, Outcome, Reading, Reporting, Task, Waits, Worker

log = logging.getLogger(__name__)

_MIB = 1 << 20
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Patience(BaseModel):
    """How long a worker may take, in seconds.

    `study_s` and `per_mib_s`: for a study, plus for each MiB of its files. `start_s`: to read the checkpoints.
    `silence_s`: without a sign of life. `starts`: how often in a row a worker may fail to start before the watcher
    ends.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study_s: _Seconds = 300
    per_mib_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2
    start_s: _Seconds = 300
    silence_s: _Seconds = 60
    starts: Annotated[int, Field(ge=1)] = 5


@dataclass(slots=True)
class _Hand:
    """A job that a worker holds.

    Attributes
    ----------
    job
        In `running`.
    since, worked_s
        Since when it works, None while it waits for a neighbour; and how long it has worked before.
    limit_s
        How long it may work.
    outcome
        How it ended.
    spared
        Its worker was lost by somebody else's fault, or nobody knows whose.
    """

    job: Job
    since: float | None
    limit_s: float = 0.0
    worked_s: float = 0.0
    outcome: Outcome | None = None
    spared: bool = False

    def waits(self, waits: bool) -> None:
        """Stop the watch, or let it go on."""
        now = time.monotonic()
        if self.since is not None:
            self.worked_s += now - self.since
        self.since = None if waits else now

    def is_overdue(self, now: float) -> bool:
        """Whether it has worked for longer than it may."""
        return self.worked_s + (now - self.since if self.since is not None else 0.0) > self.limit_s

    @property
    def is_open(self) -> bool:
        """Whether it is still being run."""
        return self.outcome is None and not self.spared


@dataclass(slots=True)
class _Seat:
    """A worker and the jobs that it holds."""

    worker: Worker
    hands: list[_Hand] = field(default_factory=list)
    failed_starts: int = 0
    not_before: float = 0.0
    since: float = field(default_factory=time.monotonic)


class Runner:
    """Runs the jobs of a store.

    Parameters
    ----------
    store
        Of the watcher.
    reading
        What the workers do.
    devices
        Environment variables of each worker; there are as many workers.
    patience, retries
        See there.
    at_once
        How many jobs a worker holds at a time.
    routed
        Whether rules decide of each job before it is begun.
    """

    def __init__(
        self,
        store: Store,
        reading: Reading,
        *,
        devices: Sequence[dict[str, str]] = ({},),
        patience: Patience | None = None,
        retries: Retries | None = None,
        at_once: int = 1,
        routed: bool = False,
    ) -> None:
        self._routed, self._at_once = routed, at_once
        # Jobs that were held when a worker died with several; each runs alone until it has ended well.
        self._suspects: set[int] = set()
        self._store, self._patience, self._retries = store, patience or Patience(), retries or Retries()
        # Of this watcher alone: a lease of an earlier one is never taken for one of ours.
        session = secrets.token_hex(4)
        self._seats = [
            _Seat(Worker(f"{session}.{number}", reading, own, at_once)) for number, own in enumerate(devices)
        ]
        self._last_beat = time.monotonic()

    def tick(self, *, claiming: bool = True) -> int:
        """Take what the workers have said, replace those that are lost, and give out jobs.

        Parameters
        ----------
        claiming
            Whether to begin new jobs.

        Returns
        -------
        int
            How many jobs are being run.

        Raises
        ------
        ImagingError
            If a worker cannot start, or the store cannot be written; no outcome is lost by the latter.
        """
        for seat in self._seats:
            self._listen(seat)
            self._watch(seat)
            self._record(seat)
            if claiming and not seat.hands and not seat.worker.is_alive and time.monotonic() >= seat.not_before:
                seat.worker.start()
                seat.since = time.monotonic()
            while claiming and self._has_room(seat) and self._give(seat):
                pass
        self._beat()
        return sum(len(seat.hands) for seat in self._seats)

    def wait(self, seconds: float) -> None:
        """Wait until a worker has news, or for a while."""
        sources = [source for seat in self._seats for source in seat.worker.waits_on()]
        if sources:
            wait(sources, seconds)
        else:
            time.sleep(seconds)

    def stop(self) -> None:
        """End all workers, and give back what they were running."""
        for seat in self._seats:
            seat.worker.kill()
            hands, seat.hands = seat.hands, []
            for hand in hands:
                self._let_go(hand)

    def _let_go(self, hand: _Hand) -> None:
        """Give a job back as it was."""
        self._store.jobs.let_go(hand.job)
        discard(self._store.result_of(hand.job))

    def _listen(self, seat: _Seat) -> None:
        told = seat.worker.heard()
        if seat.worker.setup:
            seat.failed_starts = 0
        failed = next((said for said in told if isinstance(said, Outcome) and not said.job), None)
        if failed is not None:  # it could not open its checkpoints
            seat.worker.kill()
            raise failed.error or WorkerLost(f"worker {seat.worker.name}", seen="ended while it started")
        self._take_in(seat, told)

    def _take_in(self, seat: _Seat, told: Sequence[Waits | Outcome]) -> None:
        hands = {hand.job.id: hand for hand in seat.hands if hand.is_open}
        for said in told:
            if said.job not in hands:
                continue
            if isinstance(said, Waits):
                hands[said.job].waits(said.waits)
            else:
                hands[said.job].outcome = said

    def _watch(self, seat: _Seat) -> None:
        """Kill a worker that is lost; a job that has just given its outcome is not lost with it."""
        worker, now = seat.worker, time.monotonic()
        if worker.exit_code() is not None:
            seen = f"its process ended with {worker.exit_code()}"
            self._take_in(seat, worker.heard())
            self._lose(seat, lambda subject: WorkerLost(subject, seen=seen))
            return
        if not worker.is_alive or (seat.hands and not any(hand.is_open for hand in seat.hands)):
            return
        overdue = next((hand for hand in seat.hands if hand.is_open and hand.is_overdue(now)), None)
        if now - worker.last_sign > self._patience.silence_s:
            silent = f"no sign of life for {now - worker.last_sign:.0f} s"
            self._lose(seat, lambda subject: StudyOverdue(subject, seen=silent))
        elif overdue is not None:
            late = f"no report after {overdue.limit_s:.0f} s"
            self._lose(seat, lambda subject: StudyOverdue(subject, seen=late), whose=overdue)
        elif not worker.setup and now - seat.since > self._patience.start_s:
            late = f"not ready after {self._patience.start_s:.0f} s"
            self._lose(seat, lambda subject: WorkerLost(subject, seen=late))

    def _lose(self, seat: _Seat, error: Callable[[str], ImagingError], *, whose: _Hand | None = None) -> None:
        was_ready = bool(seat.worker.setup)
        seat.worker.kill()
        held = [hand for hand in seat.hands if hand.is_open]
        if len(held) == 1:
            [whose] = held
        elif whose is None:
            self._suspects |= {hand.job.id for hand in held}
        for hand in held:
            if hand is whose:
                hand.outcome = Outcome(error(f"study {hand.job.study_uid}"))
            else:
                hand.spared = True
                log.warning("job %d: given back, its worker was lost with a study beside it", hand.job.id)
        if not seat.hands and not was_ready:
            seat.failed_starts += 1
            seat.not_before = time.monotonic() + self._retries.delay_s(seat.failed_starts)
            log.warning("%s", error(f"worker {seat.worker.name}"))
            if seat.failed_starts >= self._patience.starts:
                raise error(f"worker {seat.worker.name}")

    def _record(self, seat: _Seat) -> None:
        """Write outcomes down; if that fails they are kept and written at the next tick."""
        for hand in [hand for hand in seat.hands if not hand.is_open]:
            if hand.outcome is not None:
                self._write_down(hand.job, hand.outcome)
            else:
                self._let_go(hand)
            seat.hands.remove(hand)

    def _write_down(self, job: Job, outcome: Outcome) -> None:
        error, jobs = outcome.error, self._store.jobs
        if error is None:
            kept = jobs.ran(job, outcome.took, outcome.stages)
        elif outcome.is_refusal:
            kept = jobs.refuse(job, error)
        else:
            kept = jobs.give_up(job, error, self._retries)
        if error is None or outcome.is_refusal:
            self._suspects.discard(job.id)
        if error is not None:
            log.warning("job %d: %s", job.id, error)
        if error is not None or not kept:
            discard(self._store.result_of(job))

    def _has_room(self, seat: _Seat) -> bool:
        """Whether a worker may be given one more job: none beside one that must run alone."""
        if not (seat.worker.is_alive and seat.worker.setup):
            return False
        return len(seat.hands) < self._at_once and not any(hand.job.id in self._suspects for hand in seat.hands)

    def _give(self, seat: _Seat) -> bool:
        """Lease the next job, if there is one, and hand it to the worker; gives whether there was one."""
        later = self._suspects if seat.hands else ()
        job = self._store.jobs.claim(seat.worker.name, seat.worker.setup, routed=self._routed, later=later)
        if job is None:
            return False
        hand = _Hand(job, time.monotonic())
        seat.hands.append(hand)
        if job.route is not None and not job.route.order:
            hand.outcome = Outcome(NoRule(f"study {job.study_uid}", seen="none of the rules takes it"))
            return True
        try:
            members = self._store.jobs.members(job)
            hand.limit_s = self._patience.study_s + self._patience.per_mib_s * sum(m.size for m in members) / _MIB
            files = self._store.files(job)
            out = self._store.result_of(job)
            discard(out)
            out.mkdir(parents=True)
            standing = self._store.jobs.standing(job.study_uid)
            replaces, earlier = None, None
            if standing is not None:
                replaces = (standing.version, standing.report_sha256)
                before = self._store.jobs.find(str(standing.job))
                earlier = self._store.result_of(before) / before.result_uid
            reporting = Reporting.of(job.route.order["reporting"]) if job.route is not None else None
            task = Task(job.study_uid, tuple(files), out, job.version, replaces, earlier, reporting, job.id)
            seat.worker.send(task)
        except ImagingError as error:
            hand.outcome = Outcome(error)
        except OSError as error:
            hand.outcome = Outcome(StoreFull(f"study {job.study_uid}", seen=f"not begun ({error.strerror})"))
        return True

    def _beat(self) -> None:
        """Keep the leases of the workers that have shown a sign of life since the last time."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_S:
            return
        alive = [s.worker.name for s in self._seats if s.hands and s.worker.last_sign >= self._last_beat]
        self._store.jobs.beat(alive)
        self._last_beat = now
