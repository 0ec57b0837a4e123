"""The audit log: who did what to which study, one JSON object a line.

Invariant: every event of the store that the standard names has its line, in the order in which it happened; a line is
on disk (fsync) before the next ones are begun, and after a crash it goes on behind the last one. A line names studies,
jobs, systems and codes; nothing in it is of a patient.

Events and their codes are those of DICOM PS3.15 section A.5, which IHE ATNA uses; the names of the parts are those of
its schema. It is no conformant A.5 message: those name the patient.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

from imaging.errors import StoreFull
from pipelines.store.clock import wall
from pipelines.store.view import Event

# Lines of one fsync; the last ones of a file, among which the last of the store's is looked for.
_BATCH = 500
_TAIL = 1 << 16


class Outcome(IntEnum):
    """EventOutcomeIndicator (PS3.15 table A.5-1)."""

    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


@dataclass(frozen=True, slots=True)
class Kind:
    """An event of PS3.15 A.5.3: code and meaning (CID 400), action (C, R, U, D, E), type (CID 401)."""

    code: str
    meaning: str
    action: str
    type_code: str = ""
    type_meaning: str = ""

    def as_dict(self) -> dict[str, Any]:
        """EventIdentification, but for when and how it ended."""
        named: dict[str, Any] = {"EventID": _coded(self.code, self.meaning)}
        if self.type_code:
            named["EventTypeCode"] = _coded(self.type_code, self.type_meaning)
        return {**named, "EventActionCode": self.action}


STARTED = Kind("110100", "Application Activity", "E", "110120", "Application Start")
STOPPED = Kind("110100", "Application Activity", "E", "110121", "Application Stop")
RECEIVED = Kind("110104", "DICOM Instances Transferred", "C")
SENT = Kind("110104", "DICOM Instances Transferred", "R")
IMPORTED = Kind("110107", "Import", "C")
EXPORTED = Kind("110106", "Export", "R")
READ = Kind("110103", "DICOM Instances Accessed", "R")
MADE = Kind("110103", "DICOM Instances Accessed", "C")
DELETED = Kind("110105", "DICOM Study Deleted", "D")
CHANGED = Kind("110111", "Procedure Record", "U")
RULED = Kind("110113", "Security Alert", "E", "110131", "Software Configuration")
TURNED_AWAY = Kind("110113", "Security Alert", "E", "110126", "Node Authentication")
SIGNED_IN = Kind("110114", "User Authentication", "E", "110122", "Login")
SIGNED_OUT = Kind("110114", "User Authentication", "E", "110123", "Logout")

# What each event of the store is in the standard's words; those that it does not name are moves within the watcher.
_OF_STORE: dict[str, tuple[Kind, Outcome]] = {
    "study_complete": (RECEIVED, Outcome.SUCCESS),
    "instance_conflict": (RECEIVED, Outcome.MINOR_FAILURE),
    "instance_withdrawn": (RECEIVED, Outcome.MINOR_FAILURE),
    "own_output_returned": (RECEIVED, Outcome.SUCCESS),
    "file_refused": (IMPORTED, Outcome.MINOR_FAILURE),
    "running": (READ, Outcome.SUCCESS),
    "delivering": (MADE, Outcome.SUCCESS),
    "failed": (READ, Outcome.SERIOUS_FAILURE),
    "quarantined": (READ, Outcome.SERIOUS_FAILURE),
    "delivered": (SENT, Outcome.SUCCESS),
    "delivery_failed": (SENT, Outcome.MINOR_FAILURE),
    "retried": (CHANGED, Outcome.SUCCESS),
    "released": (CHANGED, Outcome.SUCCESS),
    "routed": (CHANGED, Outcome.SUCCESS),
    "rules_taken": (RULED, Outcome.SUCCESS),
    "rules_refused": (RULED, Outcome.MINOR_FAILURE),
    "workitem_claimed": (CHANGED, Outcome.SUCCESS),
    "workitem_completed": (CHANGED, Outcome.SUCCESS),
    "workitem_canceled": (CHANGED, Outcome.SUCCESS),
    "workitem_lost": (CHANGED, Outcome.MINOR_FAILURE),
    "association_refused": (TURNED_AWAY, Outcome.MINOR_FAILURE),
    "instance_refused": (RECEIVED, Outcome.MINOR_FAILURE),
    "purged": (DELETED, Outcome.SUCCESS),
}
# Of what is told beside an event, what is of no patient.
_PLAIN = ("why", "instances", "expected", "destination", "source", "sources", "code", "sop_instance_uid", "digest",
          "file", "rule", "rules", "times", "workitem")  # fmt: skip


class Told(Protocol):
    """What happened in a store; `pipelines.store.jobs.Jobs` tells it."""

    def events(self, job: int | None = None, *, after: int = 0, most: int = 1000) -> list[Event]:
        """Events after the one of this number."""
        ...


@dataclass(slots=True)
class AuditLog:
    """A file of audit lines, which several processes may append to, and which may be moved away at any time.

    Parameters
    ----------
    path
        The file; made, readable by its owner only, when the first line is written. Each time it is opened by its name,
        so a file that was moved away (`logrotate`, without any signal) is followed by a new one.
    source
        AuditSourceID of each line.
    """

    path: Path
    source: str = field(default_factory=socket.gethostname)
    _last: int | None = None

    def tell(
        self,
        kind: Kind,
        *,
        outcome: Outcome = Outcome.SUCCESS,
        user: str = "imgpipe",
        address: str = "",
        study_uid: str = "",
        detail: Mapping[str, object] | None = None,
    ) -> None:
        """Write one line that is not in the store's events, and make it durable.

        Parameters
        ----------
        kind, outcome
            What happened, and how it ended.
        user, address
            Who asked for it: UserID and NetworkAccessPointID.
        study_uid
            Of which study.
        detail
            What else is told; nothing of a patient.

        Raises
        ------
        StoreFull
            If it cannot be written.
        """
        self._append([_line(kind, outcome, wall(), self.source, user=user, address=address, study_uid=study_uid,
                            detail=detail)])  # fmt: skip

    def follow(self, told: Told) -> int:
        """Write what has happened in a store since the last time; gives how many lines that was.

        Raises
        ------
        StoreFull
            If it cannot be written; it is written the next time.
        """
        if self._last is None:
            self._last = self._resume()
        written = 0
        while events := told.events(after=self._last, most=_BATCH):
            lines = [self._line_of(event) for event in events if event.code in _OF_STORE]
            if lines:
                self._append(lines)
                with suppress(OSError):  # on a full disk the last lines of the log tell it, too
                    self._remember(events[-1].seq)
            self._last = events[-1].seq
            written += len(lines)
        return written

    def _line_of(self, event: Event) -> dict[str, Any]:
        kind, outcome = _OF_STORE[event.code]
        detail = event.detail or {}
        sources = detail.get("sources", [])
        if kind is SENT and str(detail.get("destination", "")).startswith("outbox "):
            kind = EXPORTED
        elif event.code == "study_complete" and set(sources) <= {"inbox"}:
            kind = IMPORTED
        told = {name: detail[name] for name in _PLAIN if detail.get(name) is not None}
        line = _line(kind, outcome, event.at, self.source, user="imgpipe", address="",
                     study_uid=event.study_uid or "", detail={"event": event.code, **told})  # fmt: skip
        return {"seq": event.seq, "job": event.job, **line}

    def _append(self, lines: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=True) + "\n" for line in lines)
        try:
            with self._opened() as descriptor:
                size = os.fstat(descriptor).st_size
                # A line that a crash or a full disk has cut off stays by itself.
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    text = "\n" + text
                try:
                    _write_all(descriptor, text.encode())
                    os.fsync(descriptor)
                except OSError:
                    with suppress(OSError):
                        os.ftruncate(descriptor, size)
                    raise
        except OSError as error:
            raise StoreFull(self.path, seen=error.strerror or "cannot be written") from error

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """The file that has the name now, held against other writers."""
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                with suppress(FileNotFoundError):
                    if os.fstat(descriptor).st_ino == self.path.stat().st_ino:
                        yield descriptor
                        return
            finally:
                os.close(descriptor)

    @property
    def _place(self) -> Path:
        """Beside the log, how far it has got, for the case that the log was moved away while nobody wrote."""
        return self.path.with_name(f"{self.path.name}.place")

    def _remember(self, seq: int) -> None:
        # In place and of one length: a kill leaves nothing temporary beside it.
        descriptor = os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, f"{seq:020d}\n".encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _resume(self) -> int:
        """The number of the last event that was written."""
        remembered = 0
        with suppress(FileNotFoundError, ValueError):
            remembered = int(self._place.read_text(encoding="ascii"))
        return max([remembered, *self._numbers()])

    def _numbers(self) -> Iterator[int]:
        """Numbers of events in the last lines of the file."""
        with suppress(FileNotFoundError), self.path.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL))
            for line in stream.read().splitlines():
                with suppress(ValueError, TypeError, KeyError):
                    yield int(json.loads(line)["seq"])


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _coded(code: str, meaning: str) -> dict[str, str]:
    return {"csd-code": code, "codeSystemName": "DCM", "originalText": meaning}


def _line(
    kind: Kind,
    outcome: Outcome,
    at: str,
    source: str,
    *,
    user: str,
    address: str,
    study_uid: str,
    detail: Mapping[str, object] | None,
) -> dict[str, Any]:
    who: dict[str, object] = {"UserID": user, "UserIsRequestor": bool(address)}
    if address:
        who |= {"NetworkAccessPointTypeCode": 2, "NetworkAccessPointID": address}
    objects = []
    if study_uid:
        # A system object (2), role report (3), named by its Study Instance UID (110180).
        objects.append({"ParticipantObjectTypeCode": 2, "ParticipantObjectTypeCodeRole": 3,
                        "ParticipantObjectIDTypeCode": _coded("110180", "Study Instance UID"),
                        "ParticipantObjectID": study_uid})  # fmt: skip
    event = {**kind.as_dict(), "EventDateTime": at, "EventOutcomeIndicator": int(outcome)}
    return {
        "EventIdentification": event,
        "ActiveParticipant": [who],
        "AuditSourceIdentification": {"AuditSourceID": source},
        "ParticipantObjectIdentification": objects,
        "detail": dict(detail or {}),
    }
