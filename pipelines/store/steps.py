"""One step of a job, within a transaction that somebody else has begun: `pipelines.store.jobs` is made of these.

Invariant: no job goes another way than `moves.MOVES` has it, and none that is no longer where it was thought to be.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable

from imaging.errors import IllegalMove, ImagingError, UnknownJob
from pipelines.store.arrivals import tell
from pipelines.store.moves import MOVES, RESTING, State
from pipelines.store.view import JOBS, Job, job_of
from pipelines.store.workitems import URGENCY


def forget(db: sqlite3.Connection, study_uid: str) -> list[str] | None:
    """Write down that a study's bytes are gone, within a transaction; gives the names of the results that may go, too.

    None where the study has had news since that was asked.
    """
    db.execute("UPDATE studies SET purge = 0 WHERE study_uid = ?", [study_uid])
    rows = db.execute("SELECT id, starts, state FROM jobs WHERE study_uid = ?", [study_uid]).fetchall()
    if not {State(row["state"]) for row in rows} <= RESTING:
        return None
    db.execute("UPDATE instances SET kept = 0 WHERE study_uid = ?", [study_uid])
    # What was never delivered whole cannot be released any more.
    db.execute("DELETE FROM deliveries WHERE job IN (SELECT job FROM results WHERE study_uid = ? AND job IN"
               " (SELECT id FROM jobs WHERE state = 'quarantined'))", [study_uid])  # fmt: skip
    db.execute("DELETE FROM results WHERE study_uid = ? AND job IN (SELECT id FROM jobs WHERE state = 'quarantined')",
               [study_uid])  # fmt: skip
    tell(db, "purged", study_uid=study_uid)
    return [f"{row['id']}.{row['starts']}" for row in rows]


def get(db: sqlite3.Connection, job: int) -> Job:
    """A job by its number; UnknownJob where there is none."""
    row = db.execute(f"{JOBS} WHERE jobs.id = ?", [job]).fetchone()
    if row is None:
        raise UnknownJob(f"job {job}", seen="no such job")
    return job_of(row)


def is_held(db: sqlite3.Connection, job: Job) -> bool:
    """Whether a job is still where it was, and in the same hands."""
    found = get(db, job.id)
    return (found.state, found.holder, found.starts) == (job.state, job.holder, job.starts)


def move(
    db: sqlite3.Connection,
    job: Job,
    to: State,
    *,
    reason: ImagingError | None = None,
    due: float = 0,
    holder: str | None = None,
) -> None:
    """Make one move, and write why."""
    if (job.state, to) not in MOVES:
        raise IllegalMove(f"job {job.id}", seen=f"from {job.state} to {to}")
    moved = db.execute(
        "UPDATE jobs SET state = ?, reason = ?, due = ?, holder = ?, beat = 0 WHERE id = ? AND state = ?",
        (to, as_json(reason) if reason else None, due, holder, job.id, job.state),
    ).rowcount
    if moved != 1:
        raise IllegalMove(f"job {job.id}", seen=f"it is no longer {job.state}")


def make_ready(db: sqlite3.Connection, job: Job) -> Job:
    """Fix what a job is made of and how urgent it is, and let it wait for a worker."""
    rows = members_of(lambda query, values: db.execute(query, values).fetchall(), job)
    db.execute("UPDATE versions SET through_seq = ? WHERE id = (SELECT version FROM jobs WHERE id = ?)",
               (max(row["seq"] for row in rows), job.id))  # fmt: skip
    db.execute(f"UPDATE jobs SET priority = coalesce(({URGENCY}), priority) WHERE id = ?",  # noqa: S608
               (job.study_uid, job.id))  # fmt: skip
    move(db, job, State.READY)
    return get(db, job.id)


def members_of(read: Callable[[str, list[object]], list[sqlite3.Row]], job: Job) -> list[sqlite3.Row]:
    """The rows of the instances that a job is made of."""
    return read(
        "SELECT seq, sop_instance_uid, digest, size, kept FROM instances WHERE study_uid = ? AND stands AND seq <= ?"
        " ORDER BY sop_instance_uid",
        [job.study_uid, job.through_seq if job.through_seq is not None else 2**62],
    )


def as_json(error: ImagingError) -> str:
    """An error as it is kept."""
    return json.dumps(error.as_dict())
