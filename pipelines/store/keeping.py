"""What of the store was delivered, and so may go.

Invariant: a study may go when its newest job is done and none of its jobs is under way or in quarantine.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.store.clock import Clock
from pipelines.store.database import Database

# What is delivered, as a condition on `studies`. A version that was refused before the one that was delivered is past.
_DELIVERED = (
    "(SELECT state FROM jobs WHERE jobs.study_uid = studies.study_uid ORDER BY id DESC LIMIT 1) = 'done' AND NOT EXISTS"
    " (SELECT 1 FROM jobs WHERE jobs.study_uid = studies.study_uid AND state NOT IN ('done', 'failed'))"
)

_SINCE = "(SELECT max(coalesce(ended, last_arrival)) FROM jobs WHERE jobs.study_uid = studies.study_uid)"
_SIZE = "(SELECT sum(size) FROM instances WHERE instances.study_uid = studies.study_uid AND kept)"
_ALL_DELIVERED = f"SELECT study_uid, {_SINCE} AS since, {_SIZE} AS size FROM studies WHERE {_DELIVERED} ORDER BY since"  # noqa: S608
_ASK = f"UPDATE studies SET purge = 1 WHERE study_uid = ? AND {_DELIVERED}"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Kept:
    """A study that was delivered: how long ago, in seconds of the store, and the bytes of its images."""

    study_uid: str
    age_s: float
    size: int


class Keeping:
    """What is kept in one store."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock

    def delivered(self) -> list[Kept]:
        """The studies that were delivered and are still here, the one that was delivered first before all others."""
        rows = self._database.read(_ALL_DELIVERED)
        now = self._clock.now()
        return [Kept(row["study_uid"], now - row["since"], row["size"]) for row in rows if row["size"] is not None]

    def size(self) -> int:
        """Bytes of all images."""
        [row] = self._database.read("SELECT coalesce(sum(size), 0) AS size FROM instances WHERE kept")
        return int(row["size"])

    def ask(self, study_uid: str) -> bool:
        """Ask for a study to be purged, if it still may go; `Store.purge` does it."""
        with self._database.writing() as db:
            asked = db.execute(_ASK, [study_uid]).rowcount
        return bool(asked)
