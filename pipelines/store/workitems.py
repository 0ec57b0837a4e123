"""The workitems that this watcher has claimed on other systems' worklists, and how far it is with each.

Invariant: a workitem's row is on disk before it is asked for, with the transaction UID under which it is asked for, so
that whatever ends the watcher the next one can tell whether it is ours. A row moves only along the arrows of `_MOVES`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from pydicom.uid import generate_uid

from pipelines.store.arrivals import tell
from pipelines.store.clock import wall
from pipelines.store.database import Database


class Step(StrEnum):
    """How far it is with a workitem.

    Attributes
    ----------
    CLAIMING
        It is being asked for; nobody knows yet whether it is ours.
    CLAIMED
        It is ours, and its study on its way.
    COMPLETING, CANCELING
        Its study is through, or was refused, and the other side is being told.
    COMPLETED, CANCELED
        The other side knows, or has ended it itself.
    LOST
        It is somebody else's.
    """

    CLAIMING = "claiming"
    CLAIMED = "claimed"
    COMPLETING = "completing"
    CANCELING = "canceling"
    COMPLETED = "completed"
    CANCELED = "canceled"
    LOST = "lost"


_MOVES: Mapping[Step, frozenset[Step]] = {
    Step.CLAIMING: frozenset({Step.CLAIMED, Step.LOST}),
    Step.CLAIMED: frozenset({Step.COMPLETING, Step.CANCELING, Step.CANCELED, Step.LOST}),
    Step.COMPLETING: frozenset({Step.COMPLETED, Step.CANCELED, Step.LOST}),
    Step.CANCELING: frozenset({Step.CANCELED, Step.LOST}),
}
# What others should know; the rest is how we come there.
_TOLD = frozenset({Step.CLAIMED, Step.COMPLETED, Step.CANCELED, Step.LOST})
_OPEN = "('claiming', 'claimed', 'completing', 'canceling')"
# How urgent the most urgent workitem is that a study is worked on for; NULL where there is none.
URGENCY = f"SELECT max(priority) FROM workitems WHERE study_uid = ? AND step IN {_OPEN}"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Workitem:
    """A workitem of another system.

    Attributes
    ----------
    uid
        Its SOPInstanceUID.
    server
        Whose it is.
    study_uid
        The study that is to be worked on.
    transaction_uid
        Under which it was asked for.
    step
        How far it is.
    begun
        When it was asked for, by the wall clock, UTC.
    told
        What the other side is told at the end, as DICOM JSON; None before.
    priority
        How urgent it was when it was asked for, as jobs have it: the greater, the sooner.
    """

    uid: str
    server: str
    study_uid: str
    transaction_uid: str
    step: Step
    begun: str
    told: dict[str, Any] | None = None
    priority: int = 0


class Workitems:
    """The workitems of one store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open(self, server: str) -> list[Workitem]:
        """Those of a server that are not through, in the order in which they were begun."""
        rows = self._database.read(
            f"SELECT * FROM workitems WHERE server = ? AND step IN {_OPEN} ORDER BY rowid",  # noqa: S608
            [server],
        )
        return [_workitem_of(row) for row in rows]

    def find(self, uid: str) -> Workitem | None:
        """One by its UID."""
        rows = self._database.read("SELECT * FROM workitems WHERE uid = ?", [uid])
        return _workitem_of(rows[0]) if rows else None

    def priority_of(self, study_uid: str) -> int | None:
        """The priority of the most urgent workitem that a study is worked on for; None where there is none."""
        [row] = self._database.read(f"SELECT ({URGENCY}) AS priority", [study_uid])
        return None if row["priority"] is None else int(row["priority"])

    def begin(self, uid: str, server: str, study_uid: str, priority: int = 0) -> Workitem:
        """Write down that a workitem is going to be asked for; one that was lost, under a new transaction UID."""
        item = Workitem(uid, server, study_uid, str(generate_uid()), Step.CLAIMING, wall(), priority=priority)
        with self._database.writing() as db:
            db.execute("DELETE FROM workitems WHERE uid = ? AND step = 'lost'", [uid])
            db.execute(
                "INSERT INTO workitems (uid, server, study_uid, transaction_uid, step, begun, priority)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (item.uid, item.server, item.study_uid, item.transaction_uid, item.step, item.begun, item.priority),
            )
        return item

    def move(self, item: Workitem, to: Step, *, told: Mapping[str, Any] | None = None, why: str = "") -> Workitem:
        """Go a step further.

        Parameters
        ----------
        item
            As it is in the store.
        to
            Where it goes.
        told
            What the other side is told at the end.
        why
            For the event.
        """
        assert to in _MOVES[item.step], (item.step, to)
        text = json.dumps(told) if told is not None else None
        with self._database.writing() as db:
            db.execute("UPDATE workitems SET step = ?, told = coalesce(?, told) WHERE uid = ?", (to, text, item.uid))
            if to is Step.CLAIMED:  # its study may have come another way, and wait already
                db.execute("UPDATE jobs SET priority = max(priority, ?) WHERE study_uid = ? AND state = 'ready'",
                           (item.priority, item.study_uid))  # fmt: skip
            if to in _TOLD:
                detail = {"workitem": item.uid, "source": f"dicomweb {item.server}", **({"why": why} if why else {})}
                tell(db, f"workitem_{to}", study_uid=item.study_uid, detail=detail)
        return replace(item, step=to, told=dict(told) if told is not None else item.told)


def _workitem_of(row: Any) -> Workitem:
    told = json.loads(row["told"]) if row["told"] else None
    return Workitem(**{**dict(row), "step": Step(row["step"]), "told": told})
