"""The workers of a watcher: each is given the next job, watched, and replaced when it dies or hangs.

Invariant: a job that a worker holds is always on its way to an end: the worker gives its outcome, or it dies, shows no
sign of life or exceeds the time limit, and then it is killed and the job tried again. Nothing here waits.
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
from pipelines.worker import BEAT_S, Outcome, Reading, Reporting, Task, Worker

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
class _Seat:
    """A worker and the job that it holds."""

    worker: Worker
    job: Job | None = None
    deadline: float = 0.0
    limit_s: float = 0.0
    outcome: Outcome | None = None
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
        routed: bool = False,
    ) -> None:
        self._routed = routed
        self._store, self._patience, self._retries = store, patience or Patience(), retries or Retries()
        # Of this watcher alone: a lease of an earlier one is never taken for one of ours.
        session = secrets.token_hex(4)
        self._seats = [_Seat(Worker(f"{session}.{number}", reading, own)) for number, own in enumerate(devices)]
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
            if claiming and seat.job is None and not seat.worker.is_alive and time.monotonic() >= seat.not_before:
                seat.worker.start()
                seat.since = time.monotonic()
            if claiming and seat.job is None and seat.worker.is_alive and seat.worker.setup:
                self._give(seat)
        self._beat()
        return sum(seat.job is not None for seat in self._seats)

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
            job, seat.job = seat.job, None
            if job is not None:
                self._store.jobs.let_go(job)
                discard(self._store.result_of(job))

    def _listen(self, seat: _Seat) -> None:
        said = seat.worker.heard()
        if seat.worker.setup:
            seat.failed_starts = 0
        if said is not None and seat.job is None:  # it could not open its checkpoints
            seat.worker.kill()
            raise said.error or WorkerLost(f"worker {seat.worker.name}", seen="ended while it started")
        seat.outcome = seat.outcome or said

    def _watch(self, seat: _Seat) -> None:
        """Kill a worker that is lost, with its job's outcome; one that has just given its outcome is not lost."""
        worker, now = seat.worker, time.monotonic()
        if worker.exit_code() is not None:
            seen = f"its process ended with {worker.exit_code()}"
            seat.outcome = seat.outcome or worker.heard()
            self._lose(seat, lambda subject: WorkerLost(subject, seen=seen))
        elif not worker.is_alive or seat.outcome is not None:
            return
        elif now - worker.last_sign > self._patience.silence_s:
            silent = f"no sign of life for {now - worker.last_sign:.0f} s"
            self._lose(seat, lambda subject: StudyOverdue(subject, seen=silent))
        elif seat.job is not None and now > seat.deadline:
            self._lose(seat, lambda subject: StudyOverdue(subject, seen=f"no report after {seat.limit_s:.0f} s"))
        elif not worker.setup and now - seat.since > self._patience.start_s:
            late = f"not ready after {self._patience.start_s:.0f} s"
            self._lose(seat, lambda subject: WorkerLost(subject, seen=late))

    def _lose(self, seat: _Seat, error: Callable[[str], ImagingError]) -> None:
        was_ready = bool(seat.worker.setup)
        seat.worker.kill()
        if seat.job is not None:
            seat.outcome = seat.outcome or Outcome(error(f"study {seat.job.study_uid}"))
        elif not was_ready:
            seat.failed_starts += 1
            seat.not_before = time.monotonic() + self._retries.delay_s(seat.failed_starts)
            log.warning("%s", error(f"worker {seat.worker.name}"))
            if seat.failed_starts >= self._patience.starts:
                raise error(f"worker {seat.worker.name}")

    def _record(self, seat: _Seat) -> None:
        """Write an outcome down; if that fails it is kept and written at the next tick."""
        if seat.job is None or seat.outcome is None:
            return
        job, error, jobs = seat.job, seat.outcome.error, self._store.jobs
        if error is None:
            kept = jobs.ran(job, seat.outcome.took)
        elif seat.outcome.is_refusal:
            kept = jobs.refuse(job, error)
        else:
            kept = jobs.give_up(job, error, self._retries)
        if error is not None:
            log.warning("job %d: %s", job.id, error)
        if error is not None or not kept:
            discard(self._store.result_of(job))
        seat.job = seat.outcome = None

    def _give(self, seat: _Seat) -> None:
        """Lease the next job, if there is one, and hand it to the worker."""
        job = self._store.jobs.claim(seat.worker.name, seat.worker.setup, routed=self._routed)
        if job is None:
            return
        seat.job = job
        if job.route is not None and not job.route.order:
            seat.outcome = Outcome(NoRule(f"study {job.study_uid}", seen="none of the rules takes it"))
            return
        try:
            members = self._store.jobs.members(job)
            seat.limit_s = self._patience.study_s + self._patience.per_mib_s * sum(m.size for m in members) / _MIB
            seat.deadline = time.monotonic() + seat.limit_s
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
            seat.worker.send(Task(job.study_uid, tuple(files), out, job.version, replaces, earlier, reporting))
        except ImagingError as error:
            seat.outcome = Outcome(error)
        except OSError as error:
            seat.outcome = Outcome(StoreFull(f"study {job.study_uid}", seen=f"not begun ({error.strerror})"))

    def _beat(self) -> None:
        """Keep the leases of the workers that have shown a sign of life since the last time."""
        now = time.monotonic()
        if now - self._last_beat < BEAT_S:
            return
        alive = [s.worker.name for s in self._seats if s.job is not None and s.worker.last_sign >= self._last_beat]
        self._store.jobs.beat(alive)
        self._last_beat = now
