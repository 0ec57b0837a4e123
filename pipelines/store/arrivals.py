"""One instance more: its row, and what it means for the jobs of its study.

Invariant: the first data set under a SOPInstanceUID of a study stands; another one is kept beside it, told, and changes
no job, and so is what we made ourselves and get back. News of a study whose job has begun opens a new job, of a version
that names the one before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.store.clock import wall
from pipelines.store.intake import Received
from pipelines.store.moves import State


@dataclass(frozen=True, slots=True)
class Arrival:
    """An instance as it came; `digest` and `size` as `content.Staged` has them, the others as `Intake.put`."""

    study_uid: str
    series_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax: str
    digest: str
    size: int
    source: str


def record(db: sqlite3.Connection, arrival: Arrival, now: float) -> Received:
    """Write an arrival down, within a transaction.

    Parameters
    ----------
    db
        In a transaction.
    arrival
        The instance, whose bytes have their name.
    now
        Seconds of the store.
    """
    there = db.execute(
        "SELECT seq, digest FROM instances WHERE study_uid = ? AND sop_instance_uid = ?",
        (arrival.study_uid, arrival.sop_instance_uid),
    ).fetchall()
    same = next((row["seq"] for row in there if row["digest"] == arrival.digest), None)
    if same is not None:
        # If its bytes had been purged they are here again.
        db.execute("UPDATE instances SET kept = 1 WHERE seq = ? AND NOT kept", [same])
        return Received.SAME
    ours = db.execute("SELECT job FROM outputs WHERE sop_instance_uid = ?", [arrival.sop_instance_uid]).fetchone()
    stands = int(not there and ours is None)
    db.execute(
        "INSERT INTO studies (study_uid, first_arrival, last_arrival) VALUES (?, ?, ?)"
        " ON CONFLICT (study_uid) DO UPDATE SET last_arrival = excluded.last_arrival",
        (arrival.study_uid, now, now),
    )
    db.execute(
        "INSERT INTO instances (study_uid, series_uid, sop_instance_uid, sop_class_uid, transfer_syntax, digest, size,"
        " source, arrival, received_at, stands) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (arrival.study_uid, arrival.series_uid, arrival.sop_instance_uid, arrival.sop_class_uid,
         arrival.transfer_syntax, arrival.digest, arrival.size, arrival.source, now, wall(), stands),
    )  # fmt: skip
    if there:
        detail = {"sop_instance_uid": arrival.sop_instance_uid, "source": arrival.source, "digest": arrival.digest}
        tell(db, "instance_conflict", study_uid=arrival.study_uid, detail=detail)
        return Received.CONFLICT
    if ours is not None:
        detail = {"sop_instance_uid": arrival.sop_instance_uid, "source": arrival.source}
        tell(db, "own_output_returned", study_uid=arrival.study_uid, job=ours["job"], detail=detail)
        return Received.NEW
    _await_more(db, arrival.study_uid, now)
    return Received.NEW


def is_purged(db: sqlite3.Connection, arrival: Arrival) -> bool:
    """Whether this very data set was here, and its bytes were removed."""
    row = db.execute(
        "SELECT 1 FROM instances WHERE study_uid = ? AND sop_instance_uid = ? AND digest = ? AND NOT kept",
        (arrival.study_uid, arrival.sop_instance_uid, arrival.digest),
    ).fetchone()
    return row is not None


def withdraw(db: sqlite3.Connection, study_uid: str, sop_instance_uid: str, digest: str) -> None:
    """Take back the row of an instance that was not acknowledged, within a transaction, and the job that it opened.

    One that is part of a version that was fixed meanwhile, which only a person's `release` can have done, stays as one
    whose bytes are gone, so that the version is refused and not reported on without it.
    """
    row = db.execute(
        "SELECT seq, stands FROM instances WHERE study_uid = ? AND sop_instance_uid = ? AND digest = ? AND kept",
        (study_uid, sop_instance_uid, digest),
    ).fetchone()
    if row is None:
        return
    tell(db, "instance_withdrawn", study_uid=study_uid, detail={"sop_instance_uid": sop_instance_uid})
    [fixed] = db.execute("SELECT coalesce(max(through_seq), 0) FROM versions WHERE study_uid = ?",
                         [study_uid]).fetchone()  # fmt: skip
    if row["seq"] <= fixed:
        db.execute("UPDATE instances SET kept = 0 WHERE seq = ?", [row["seq"]])
        return
    db.execute("DELETE FROM instances WHERE seq = ?", [row["seq"]])
    if row["stands"]:
        # What came under the same UID meanwhile was kept beside it, and takes its place.
        db.execute(
            "UPDATE instances SET stands = 1 WHERE seq = (SELECT min(seq) FROM instances WHERE study_uid = ?"
            " AND sop_instance_uid = ?)",
            (study_uid, sop_instance_uid),
        )
    if db.execute("SELECT 1 FROM instances WHERE study_uid = ? AND stands AND seq > ?", (study_uid, fixed)).fetchone():
        return
    opened = db.execute(
        "SELECT jobs.id, version FROM jobs JOIN versions ON versions.id = version"
        " WHERE jobs.study_uid = ? AND state = 'receiving' AND name IS NULL AND through_seq IS NULL",
        [study_uid],
    ).fetchone()
    if opened is not None:
        db.execute("DELETE FROM jobs WHERE id = ?", [opened["id"]])
        db.execute("DELETE FROM versions WHERE id = ?", [opened["version"]])
    db.execute(
        "DELETE FROM studies WHERE study_uid = ? AND NOT EXISTS (SELECT 1 FROM instances WHERE study_uid = ?)"
        " AND NOT EXISTS (SELECT 1 FROM versions WHERE study_uid = ?)",
        (study_uid, study_uid, study_uid),
    )


def _await_more(db: sqlite3.Connection, study_uid: str, now: float) -> None:
    """Let the study's waiting job wait for more, or open one."""
    job = db.execute(
        "SELECT id, state FROM jobs WHERE study_uid = ? AND state IN ('receiving', 'ready') ORDER BY id DESC LIMIT 1",
        [study_uid],
    ).fetchone()
    if job is None:
        before = db.execute(
            "SELECT id, number FROM versions WHERE study_uid = ? ORDER BY number DESC LIMIT 1", [study_uid]
        ).fetchone()
        version = db.execute(
            "INSERT INTO versions (study_uid, number, predecessor) VALUES (?, ?, ?)",
            (study_uid, before["number"] + 1 if before else 1, before["id"] if before else None),
        ).lastrowid
        db.execute(
            "INSERT INTO jobs (version, study_uid, state, opened, last_arrival) VALUES (?, ?, ?, ?, ?)",
            (version, study_uid, State.RECEIVING, now, now),
        )
    elif job["state"] == State.READY:
        db.execute(
            "UPDATE jobs SET state = 'receiving', due = 0, faults = 0, reason = NULL, route = NULL, last_arrival = ?"
            " WHERE id = ?",
            (now, job["id"]),
        )
        db.execute("UPDATE versions SET through_seq = NULL WHERE id = (SELECT version FROM jobs WHERE id = ?)",
                   [job["id"]])  # fmt: skip
    else:
        db.execute("UPDATE jobs SET last_arrival = ? WHERE id = ?", (now, job["id"]))


def tell(
    db: sqlite3.Connection,
    code: str,
    *,
    study_uid: str | None = None,
    job: int | None = None,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Write an event, within a transaction."""
    db.execute(
        "INSERT INTO events (code, study_uid, job, detail) VALUES (?, ?, ?, ?)",
        (code, study_uid, job, json.dumps(dict(detail)) if detail else None),
    )
