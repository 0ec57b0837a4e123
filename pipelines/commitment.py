"""Storage commitment (PS3.4 annex J), from both sides: asking a PACS whether it keeps what was sent, and being asked.

Invariant: we commit to what the store says is durable at the moment of the answer, and to nothing else; and believe a
report only if it answers a transaction that we began and names the instances that it was about.
"""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom import AE, build_role, evt

from pipelines.association import COMMITMENT_INSTANCE, STORAGE_COMMITMENT, Peer, at_once

_LOG = logging.getLogger(__name__)

_REQUEST = 1  # action type (PS3.4 table J.3-1)
_ALL_KEPT, _SOME_FAILED = 1, 2  # event types (PS3.4 table J.3-2)
# Failure reasons (PS3.3 section C.14.1.1).
NO_SUCH_INSTANCE, CLASS_CONFLICT = 0x0112, 0x0119
_SUCCESS, _BAD_ARGUMENT, _NO_SUCH_ACTION = 0x0000, 0x0115, 0x0123
_MOST_INSTANCES = 100_000
# The answer to the request goes out before the report does.
_AFTER_ANSWER_S = 0.2
_AGAIN_S = (5.0, 30.0)


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer says of one transaction.

    Attributes
    ----------
    kept
        SOPInstanceUIDs that it keeps.
    failed
        By SOPInstanceUID, the reason why it doesn't (PS3.3 section C.14.1.1).
    """

    kept: frozenset[str]
    failed: Mapping[str, int]


class Commitments:
    """Transactions that we have begun, and what was reported of them; used from several threads."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._open: dict[str, Report | None] = {}

    def begin(self, transaction_uid: str) -> None:
        """Be ready for a report, before the request is sent."""
        with self._arrived:
            self._open[transaction_uid] = None

    def told(self, event: evt.Event) -> int:
        """Handler of EVT_N_EVENT_REPORT: keep what is reported, whoever waits for it; gives the status."""
        try:
            information = event.event_information
            transaction = str(information.TransactionUID)
            kept = {str(item.ReferencedSOPInstanceUID) for item in information.get("ReferencedSOPSequence", ())}
            failed = {str(item.ReferencedSOPInstanceUID): int(item.get("FailureReason", 0))
                      for item in information.get("FailedSOPSequence", ())}  # fmt: skip
        except Exception:  # noqa: BLE001  pydicom raises what it likes on what a peer sends
            return _BAD_ARGUMENT
        with self._arrived:
            if transaction not in self._open:
                _LOG.warning("a storage commitment report for a transaction that is not ours, or is over")
                return _BAD_ARGUMENT
            self._open[transaction] = Report(frozenset(kept - failed.keys()), failed)
            self._arrived.notify_all()
        return _SUCCESS

    def wait(self, transaction_uid: str, timeout_s: float) -> Report | None:
        """The report, or nothing if none comes in time; the transaction is over then."""
        with self._arrived:
            self._arrived.wait_for(lambda: self._open.get(transaction_uid) is not None, timeout_s)
            return self._open.pop(transaction_uid, None)


def request_of(transaction_uid: str, instances: Sequence[tuple[str, str]]) -> Dataset:
    """The action information of a request.

    Parameters
    ----------
    transaction_uid
        Names the request.
    instances
        SOP class and instance UID of each.
    """
    information = Dataset()
    information.TransactionUID = transaction_uid
    information.ReferencedSOPSequence = [_reference(*pair) for pair in instances]
    return information


def _reference(sop_class_uid: str, sop_instance_uid: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class_uid, sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


class Reporter:
    """Answers those who ask whether we keep what they sent.

    Parameters
    ----------
    aet
        Our AE title.
    peers
        Where those listen who want the report in an association of its own.
    holds
        The SOP class of a durable instance by its UID, or none.
    tls
        For associations that we open.
    """

    def __init__(
        self,
        aet: str,
        peers: Mapping[str, Peer],
        holds: Callable[[str], str | None],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._aet, self._peers, self._holds, self._tls = aet, peers, holds, tls
        self._ended = threading.Event()
        self._work = ThreadPoolExecutor(2, thread_name_prefix="commitment")

    def asked(self, event: evt.Event) -> int:
        """Take a request (N-ACTION); the report follows. Gives the status of the answer."""
        if event.action_type != _REQUEST:
            return _NO_SUCH_ACTION
        try:
            information = event.action_information
            transaction = str(information.TransactionUID)
            asked = [(str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                     for item in information.ReferencedSOPSequence]  # fmt: skip
        except Exception:  # noqa: BLE001  pydicom raises what it likes on what a peer sends
            return _BAD_ARGUMENT
        if not asked or len(asked) > _MOST_INSTANCES:
            return _BAD_ARGUMENT
        self._work.submit(self._report, transaction, asked, event.assoc)
        return _SUCCESS

    def close(self) -> None:
        """Give up what is not told yet; who asked asks again."""
        self._ended.set()
        self._work.shutdown(wait=True, cancel_futures=True)

    def _report(self, transaction: str, asked: Sequence[tuple[str, str]], association: Any) -> None:
        peer = self._peers.get(association.requestor.ae_title)
        try:
            for wait in (_AFTER_ANSWER_S, *_AGAIN_S):
                if self._ended.wait(wait):
                    return
                told = self._tell(association, *self._answer(transaction, asked)) if peer is None else self._call(
                    peer, *self._answer(transaction, asked))  # fmt: skip
                if told:
                    return
            _LOG.warning("storage commitment of %d instances could not be reported", len(asked))
        except Exception:  # noqa: BLE001  the store's fault or pynetdicom's: it must be told, and ends no thread
            _LOG.exception("storage commitment could not be reported")

    def _answer(self, transaction: str, asked: Sequence[tuple[str, str]]) -> tuple[int, Dataset]:
        information = Dataset()
        information.TransactionUID = transaction
        kept, failed = [], []
        for sop_class, sop_instance in asked:
            held = self._holds(sop_instance)
            if held == sop_class:
                kept.append(_reference(sop_class, sop_instance))
            else:
                reason = NO_SUCH_INSTANCE if held is None else CLASS_CONFLICT
                failed.append(_reference(sop_class, sop_instance, reason))
        if kept:
            information.ReferencedSOPSequence = kept
        if failed:
            information.FailedSOPSequence = failed
        return (_SOME_FAILED if failed else _ALL_KEPT), information

    def _call(self, peer: Peer, kind: int, information: Dataset) -> bool:
        """Report in an association of our own, as SCP (PS3.4 section J.3.3)."""
        entity = AE(self._aet)
        entity.add_requested_context(STORAGE_COMMITMENT, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        association = entity.associate(
            peer.host,
            peer.port,
            ae_title=peer.aet,
            ext_neg=[build_role(STORAGE_COMMITMENT, scp_role=True)],
            tls_args=(self._tls, peer.host) if self._tls is not None else None,
            evt_handlers=[(evt.EVT_CONN_OPEN, at_once)],
        )
        try:
            return self._tell(association, kind, information)
        finally:
            if association.is_established:
                association.release()

    @staticmethod
    def _tell(association: Any, kind: int, information: Dataset) -> bool:
        if not association.is_established:
            return False
        with suppress(RuntimeError, ValueError):
            answer, _reply = association.send_n_event_report(information, kind, STORAGE_COMMITMENT, COMMITMENT_INSTANCE)
            return bool("Status" in answer)
        return False
