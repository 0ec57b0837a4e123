"""What is here of a study that is waited for, for whoever asks elsewhere how much of it there should be.

Invariant: nothing is written.
"""

from __future__ import annotations

from pipelines.store.database import Database


class Waiting:
    """The studies of one store that are waited for."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last_arrival(self, study_uid: str) -> float | None:
        """The second of the store when the last instance of a study came; None where none has."""
        rows = self._database.read("SELECT last_arrival FROM studies WHERE study_uid = ?", [study_uid])
        return float(rows[0]["last_arrival"]) if rows else None

    def instances(self, study_uid: str) -> int:
        """How many instances a study is made of so far."""
        [row] = self._database.read("SELECT count(*) AS n FROM instances WHERE study_uid = ? AND stands", [study_uid])
        return int(row["n"])

    def is_known(self, sop_instance_uid: str) -> bool:
        """Whether an instance was ever taken, or made, here."""
        found = self._database.read(
            "SELECT 1 FROM instances WHERE sop_instance_uid = :uid UNION ALL"
            " SELECT 1 FROM outputs WHERE sop_instance_uid = :uid LIMIT 1",
            {"uid": sop_instance_uid},
        )
        return bool(found)
