"""What the rules have decided of jobs: kept with each, from before it is begun until it is delivered.

Invariant: a job that was begun keeps its route, whatever becomes of the rules; one that waits is decided anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict

from pipelines.store.arrivals import tell
from pipelines.store.database import Database
from pipelines.store.view import JOBS, Job, Route, job_of


class Routes:
    """The routes of one store's jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def undecided(self) -> list[Job]:
        """Jobs that wait for a worker, and of which no rule was asked."""
        return [job_of(row) for row in self._database.read(f"{JOBS} WHERE state = 'ready' AND route IS NULL")]

    def decide(self, job: Job, route: Route, priority: int) -> None:
        """Write a route down, if the job still waits for one."""
        with self._database.writing() as db:
            changed = db.execute(
                "UPDATE jobs SET route = ?, priority = ? WHERE id = ? AND state = 'ready' AND route IS NULL",
                (json.dumps(asdict(route)), priority, job.id),
            ).rowcount
            if changed:
                tell(db, "routed", study_uid=job.study_uid, job=job.id, detail={"rule": route.rule})

    def decide_anew(self) -> None:
        """Forget what was decided of the jobs that still wait: the rules may be others."""
        with self._database.writing() as db:
            db.execute("UPDATE jobs SET route = NULL WHERE state = 'ready'")

    def told(self, code: str, detail: Mapping[str, object]) -> None:
        """Write down what is of no job: what became of the rules, or who was refused."""
        with self._database.writing() as db:
            tell(db, code, detail=detail)

    def series(self, study_uid: str) -> list[tuple[str, str, int]]:
        """Of each series of a study its UID, the digest of one of its instances, and how many there are."""
        rows = self._database.read(
            "SELECT series_uid, min(digest) AS digest, count(*) AS instances FROM instances WHERE study_uid = ?"
            " AND stands AND kept GROUP BY series_uid ORDER BY min(seq)",
            [study_uid],
        )
        return [(row["series_uid"], row["digest"], row["instances"]) for row in rows]

    def sources(self, study_uid: str) -> list[str]:
        """Where the instances of a study came from."""
        rows = self._database.read("SELECT DISTINCT source FROM instances WHERE study_uid = ? AND stands", [study_uid])
        return [row["source"] for row in rows]
