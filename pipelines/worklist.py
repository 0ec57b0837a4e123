"""The worklist of a DICOMweb server (UPS-RS, PS3.18 section 11): what is to be done, and whose it is.

Invariant: a workitem is changed only under the transaction UID that claimed it; what says that it is not ours, or not
any more, is a `WorkitemLost` and nothing else is. Nothing is tried again here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset

from imaging.dicom.values import is_uid
from imaging.errors import ConfigInvalid, WorkitemLost
from pipelines.dicomweb import Client, Web
from pipelines.store.view import PRIORITIES

SCHEDULED, IN_PROGRESS, COMPLETED, CANCELED = "SCHEDULED", "IN PROGRESS", "COMPLETED", "CANCELED"
_PAGE = 100
# Statuses of PS3.18 sections 11.5 to 11.7 that say that a workitem is not there, or not in our hands.
_NOT_OURS = (404, 409, 410)
_FIELDS = ("SOPInstanceUID", "ProcedureStepState", "InputReadinessState", "InputInformationSequence",
           "ScheduledWorkitemCodeSequence", "ScheduledProcedureStepPriority")  # fmt: skip
# Scheduled Procedure Step Priority (PS3.3 section C.30.2): HIGH is what others call STAT, and MEDIUM is meant by none.
_URGENT = {"HIGH": PRIORITIES["stat"], "MEDIUM": PRIORITIES["routine"], "LOW": PRIORITIES["low"]}


@dataclass(frozen=True, slots=True)
class Kind:
    """Which workitems are ours: those whose Scheduled Workitem Code has this value, and this scheme if one is given."""

    value: str
    scheme: str = ""

    @classmethod
    def parse(cls, text: str) -> Kind:
        """From ``VALUE`` or ``VALUE^SCHEME``.

        Raises
        ------
        ConfigInvalid
            If there is no value.
        """
        value, _, scheme = text.strip().partition("^")
        if not value or "^" in scheme:
            raise ConfigInvalid("--worklist", seen=repr(text[:80]), expected="VALUE or VALUE^SCHEME was expected")
        return cls(value, scheme)

    def takes(self, item: Dataset) -> bool:
        """Whether a workitem is such a one."""
        codes = item.get("ScheduledWorkitemCodeSequence") or ()
        return any(
            code.get("CodeValue") == self.value and self.scheme in ("", code.get("CodingSchemeDesignator"))
            for code in codes
        )


@dataclass(frozen=True, slots=True)
class Offered:
    """A workitem that nobody has claimed, its studies, and how urgent it is: the greater, the sooner."""

    uid: str
    studies: tuple[str, ...]
    priority: int = 0


class Worklist:
    """One connection to a worklist.

    Parameters
    ----------
    web
        The server.
    """

    def __init__(self, web: Web) -> None:
        self._web, self._client = web, Client(web)

    def __enter__(self) -> Worklist:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.__exit__()

    def offered(self, kind: Kind) -> Iterator[Offered]:
        """Workitems of a kind that are scheduled and whose input is there, page by page.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
        """
        asked = {"ProcedureStepState": SCHEDULED, "ScheduledWorkitemCodeSequence.CodeValue": kind.value,
                 "includefield": ",".join(_FIELDS), "limit": str(_PAGE)}  # fmt: skip
        offset = 0
        while found := self._call("GET", "/workitems", params={**asked, "offset": str(offset)}):
            offset += len(found)
            for item in found:
                # Servers that do not know a key of the question must ignore it (PS3.18 section 8.3.4.4).
                ready = item.get("InputReadinessState", "READY") == "READY"
                if item.get("ProcedureStepState") == SCHEDULED and ready and kind.takes(item):
                    yield Offered(str(item.get("SOPInstanceUID", "")), _studies_of(item), _priority_of(item))

    def state(self, uid: str) -> str:
        """The Procedure Step State of a workitem.

        Raises
        ------
        WorkitemLost
            If there is none.
        PeerUnreachable, WebRefused, WebUnavailable
        """
        [item] = self._call("GET", f"/workitems/{uid}") or [Dataset()]
        return str(item.get("ProcedureStepState", ""))

    def change(self, uid: str, transaction_uid: str, state: str) -> None:
        """Claim a workitem (IN PROGRESS), or end it (COMPLETED, CANCELED).

        Raises
        ------
        WorkitemLost
            If it is in no state from which it could be changed, or somebody else's.
        PeerUnreachable, WebRefused, WebUnavailable
        """
        told = Dataset()
        told.TransactionUID, told.ProcedureStepState = transaction_uid, state
        self._call("PUT", f"/workitems/{uid}/state", content=told.to_json_dict())

    def update(self, uid: str, transaction_uid: str, told: Mapping[str, Any]) -> None:
        """Tell something of a workitem that we have claimed, as DICOM JSON.

        The transaction UID is told in the address, as PS3.18 section 11.6 has it, and in the payload, where some
        servers look for it.

        Raises
        ------
        WorkitemLost
            If it is not ours.
        PeerUnreachable, WebRefused, WebUnavailable
        """
        ours = Dataset()
        ours.TransactionUID = transaction_uid
        content = {**told, **ours.to_json_dict()}
        self._call("POST", f"/workitems/{uid}", params={"transaction": transaction_uid}, content=content)

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        data = json.dumps([content]).encode() if content is not None else None
        status, found = self._client.call(method, path, params=params, data=data, but=_NOT_OURS)
        if status in _NOT_OURS:
            raise WorkitemLost(self._web, seen=f"HTTP status {status}")
        return found


def _priority_of(item: Dataset) -> int:
    """How urgent a workitem is; one that says nothing, or what the standard does not know, is like most."""
    return _URGENT.get(str(item.get("ScheduledProcedureStepPriority") or "").strip().upper(), PRIORITIES["routine"])


def _studies_of(item: Dataset) -> tuple[str, ...]:
    """The studies of the input; empty where one of them is no UID."""
    found = dict.fromkeys(str(one.get("StudyInstanceUID", "")) for one in item.get("InputInformationSequence") or ())
    return tuple(found) if all(map(is_uid, found)) else ()
