"""What is looked at of a store without holding anybody up: pages of jobs, the worklist, counts.

Invariant: nothing is written. Each question is one short read of what was committed, of a bounded number of rows, so
neither the receiver nor a worker ever waits for somebody who looks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.store.clock import seconds_of
from pipelines.store.content import RESULTS
from pipelines.store.database import Database
from pipelines.store.moves import State
from pipelines.store.store import DATABASE
from pipelines.store.view import JOBS, Delivery, Event, Job, Triage, delivery_of, event_of, job_of

# Of each study the newest result that was verified.
_NEWEST = (
    " FROM results JOIN jobs ON jobs.id = results.job JOIN versions ON versions.id = jobs.version"
    " LEFT JOIN triage ON triage.job = results.job WHERE jobs.opened >= ?"
    " AND results.job = (SELECT max(job) FROM results AS other WHERE other.study_uid = results.study_uid)"
)
# What was sent as urgent comes first; what was sent as less so may be the most abnormal of all, and is not put back.
_WORKLIST = (
    "SELECT jobs.*, versions.number AS number, versions.through_seq AS through_seq, triage.*, (SELECT received_at FROM"
    " instances WHERE instances.study_uid = jobs.study_uid AND seq <= through_seq AND stands ORDER BY seq DESC LIMIT 1)"
    " AS received_at" + _NEWEST + " ORDER BY max(jobs.priority, 0) DESC, coalesce(rank, 3), score IS NULL, score DESC,"
    " results.job"
)
_UNJUDGED = 3


@dataclass(frozen=True, slots=True)
class Entry:
    """A study in the worklist: its newest result, how urgent it was sent as, and how soon somebody should look."""

    job: Job
    received_at: str
    triage: Triage

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "study_uid": self.job.study_uid,
            "version": self.job.version,
            "job": self.job.id,
            "state": str(self.job.state),
            "priority": self.job.priority,
            "received_at": self.received_at,
            **asdict(self.triage),
        }


class ReadOnly(Database):
    """A database that is only read; what writes it was opened before and has brought it to this version.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    StoreFull
        If it is not there or cannot be read.
    """

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=ro",
            uri=True,
            timeout=self._patience_s,
            isolation_level=None,
            check_same_thread=False,
        )
        connection.row_factory = sqlite3.Row
        return connection

    def _prepare(self) -> None:
        """It is as it is."""

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """There is no writing here."""
        raise NotImplementedError
        yield  # pragma: no cover


class Seen:
    """What is seen of the store in a folder.

    Parameters
    ----------
    root
        The folder.
    database
        Its database; by default it is opened to be read only.
    """

    def __init__(self, root: Path, database: Database | None = None) -> None:
        self.root = root
        self._database = database or ReadOnly(root / DATABASE)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()

    def read(self, query: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query, as they were committed."""
        return self._database.read(query, values)

    def now(self) -> float:
        """The second of the store that it is now, which `opened` and `due` are counted in."""
        [row] = self.read("SELECT boot, ahead, last FROM clock")
        return seconds_of(row)

    def counts(self) -> dict[State, int]:
        """How many jobs there are by state, with those of which there is none."""
        found = dict.fromkeys(State, 0)
        for row in self.read("SELECT state, count(*) AS jobs FROM jobs GROUP BY state"):
            found[State(row["state"])] = row["jobs"]
        return found

    def jobs(self, states: Sequence[State] = (), *, offset: int = 0, most: int = 50) -> list[Job]:
        """A page of jobs, the newest first."""
        wanted = [str(state) for state in states or State]
        marks = ", ".join("?" * len(wanted))
        rows = self.read(
            f"{JOBS} WHERE state IN ({marks}) ORDER BY jobs.id DESC LIMIT ? OFFSET ?", [*wanted, most, offset]
        )
        return [job_of(row) for row in rows]

    def job(self, number: int) -> Job | None:
        """A job by its number."""
        rows = self.read(f"{JOBS} WHERE jobs.id = ?", [number])
        return job_of(rows[0]) if rows else None

    def jobs_of(self, study_uid: str, *, most: int = 50) -> list[Job]:
        """The jobs of a study, the newest first."""
        rows = self.read(f"{JOBS} WHERE jobs.study_uid = ? ORDER BY jobs.id DESC LIMIT ?", [study_uid, most])
        return [job_of(row) for row in rows]

    def events(self, job: int, *, most: int = 500) -> list[Event]:
        """The last events of a job, the oldest first."""
        rows = self.read("SELECT * FROM events WHERE job = ? ORDER BY seq DESC LIMIT ?", [job, most])
        return [event_of(row) for row in reversed(rows)]

    def deliveries(self, job: int) -> list[Delivery]:
        """Where a job's result goes, and whether it is there."""
        rows = self.read(
            "SELECT deliveries.*, jobs.study_uid FROM deliveries JOIN jobs ON jobs.id = deliveries.job WHERE job = ?"
            " ORDER BY destination",
            [job],
        )
        return [delivery_of(row) for row in rows]

    def instances(self, job: Job) -> tuple[int, int]:
        """How many instances a job is made of, and their bytes; while instances are awaited, what is there."""
        through = job.through_seq if job.through_seq is not None else 2**62
        [row] = self.read(
            "SELECT count(*) AS count, coalesce(sum(size), 0) AS bytes FROM instances WHERE study_uid = ? AND stands"
            " AND seq <= ?",
            [job.study_uid, through],
        )
        return row["count"], row["bytes"]

    def has_result(self, job: Job) -> bool:
        """Whether it has a result that was verified."""
        return bool(self.read("SELECT 1 FROM results WHERE job = ?", [job.id]))

    def result_of(self, job: Job) -> Path:
        """The folder of a job's result; what is in it may have been purged."""
        return self.root / RESULTS / f"{job.id}.{job.starts}" / job.result_uid

    def worklist(self, *, within_s: float, offset: int = 0, most: int = 50) -> list[Entry]:
        """A page of the worklist: each study with a result once, the most urgent first.

        What was sent as urgent comes first, then by `Triage`, then in the order of arrival.

        Parameters
        ----------
        within_s
            Only studies of which the first instance of this version came within so many seconds.
        offset, most
            Which page.
        """
        rows = self.read(_WORKLIST + " LIMIT ? OFFSET ?", [self.now() - within_s, most, offset])
        return [_entry_of(row) for row in rows]

    def worklist_length(self, *, within_s: float) -> int:
        """How many studies the worklist has in all."""
        [row] = self.read(f"SELECT count(*) AS studies {_NEWEST}", [self.now() - within_s])
        return int(row["studies"])

    def triage(self, job: Job) -> Triage:
        """How soon somebody should look at a job's result."""
        rows = self.read("SELECT * FROM triage WHERE job = ?", [job.id])
        return _triage_of(rows[0]) if rows else Triage(_UNJUDGED, None, None, "", "", 0)


def _entry_of(row: sqlite3.Row) -> Entry:
    return Entry(job_of(row), row["received_at"] or "", _triage_of(row))


def _triage_of(row: sqlite3.Row) -> Triage:
    if row["rank"] is None:
        return Triage(_UNJUDGED, None, None, "", "", 0)
    return Triage(row["rank"], row["assessment"], row["score"], row["source"], row["title"], row["disagreements"])
