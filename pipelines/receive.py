"""The receiver: a Storage SCP behind which nothing that was acknowledged is ever lost.

Invariant: a C-STORE is answered with success only after the intake has said that the instance is durable; whatever else
happens is answered with a status that makes the sender keep it, or not at all. Datasets are kept as they came: a
header walk reads their four UIDs, nothing is decoded. No answer and no log line carries more of a patient than UIDs.

Statuses are those of PS3.4 table B.2-1: A700 where there is no room now, A900 where the data set is not what the
request says, C000 where it cannot be understood; the error comment is the code of docs/errors.md.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID_dictionary
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.service_class import StorageServiceClass
from pynetdicom.sop_class import register_uid
from pynetdicom.transport import AssociationServer

from imaging.dicom.codecs import CODECS
from imaging.dicom.header import DEFLATED, EXPLICIT_BE, EXPLICIT_LE, IMPLICIT_LE
from imaging.dicom.values import is_uid
from imaging.errors import (
    DiskMarkReached,
    ImagingError,
    InstanceMismatch,
    InstanceTooLarge,
    ListenImpossible,
    ReceiverFault,
    StoreBusy,
    StoreFull,
)
from pipelines.association import (
    MAXIMUM_PDU,
    STORAGE_COMMITMENT,
    VERIFICATION,
    Peer,
    QuickSocket,
    Tls,
    application_entity,
    data_of,
    quicken,
)
from pipelines.commitment import Commitments, Reporter
from pipelines.disk import Gate, Marks
from pipelines.landing import Spool, file_head, instance_in
from pipelines.refusals import REJECTED
from pipelines.store.intake import Intake, Received

_LOG = logging.getLogger(__name__)

# The native ones first: where a sender offers several without preference, there is nothing to decode.
TRANSFER_SYNTAXES = (EXPLICIT_LE, IMPLICIT_LE, DEFLATED, EXPLICIT_BE, *CODECS)

SUCCESS, OUT_OF_RESOURCES, MISMATCH, NOT_UNDERSTOOD = 0x0000, 0xA700, 0xA900, 0xC000
_LATER = (StoreFull, StoreBusy, DiskMarkReached, InstanceTooLarge, ReceiverFault)
# How often to look whether to stop; how long an aborted association may take to end, and one to be asked for.
_POLL_S, _ENDING_S, _NEGOTIATION_S = 0.1, 5.0, 10.0
# A data set up to this size is held in memory.
_IN_MEMORY = 32 << 20
_RETIRED = ("1.2.840.10008.5.1.4.1.1.3", "1.2.840.10008.5.1.4.1.1.5", "1.2.840.10008.5.1.4.1.1.6",
            "1.2.840.10008.5.1.4.1.1.12.3", "1.2.840.10008.5.1.4.1.1.77.1", "1.2.840.10008.5.1.4.1.1.77.2",
            "1.2.840.10008.5.1.4.1.1.88.1", "1.2.840.10008.5.1.4.1.1.88.3", "1.2.840.10008.5.1.4.1.1.88.4")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the receiver listens, and to whom.

    Attributes
    ----------
    aet
        Our AE title.
    port
        TCP port; 0 takes a free one.
    host
        Address of the interface; empty is all of them.
    callers
        AE titles that may associate; empty is everybody.
    called
        Whether an association must name our AE title.
    associations
        How many there may be at once.
    pdu_bytes
        The longest PDU that we ask for.
    largest_bytes
        The largest data set that is taken.
    disk_mark
        Share of the store's disk beyond which instances are refused.
    timeout_s
        How long a peer may be silent within an association.
    tls
        Certificates; none is plain TCP.
    peers
        By AE title, where those listen to whom storage commitment is reported in an association of its own; others are
        told in theirs.
    private
        SOP class UIDs that no standard has, of instances that are taken none the less.
    """

    aet: str
    port: int
    host: str = ""
    callers: frozenset[str] = frozenset()
    called: bool = True
    associations: int = 32
    pdu_bytes: int = MAXIMUM_PDU
    largest_bytes: int = 8 << 30
    disk_mark: float = 0.9
    timeout_s: float = 60.0
    tls: Tls | None = None
    peers: Mapping[str, Peer] = field(default_factory=dict)
    private: frozenset[str] = frozenset()


class Receiver:
    """A Storage SCP with C-ECHO and storage commitment; begins to listen when it is entered.

    Parameters
    ----------
    listening
        Where and to whom.
    intake
        Takes the instances in.
    folder
        Of the store: its disk is watched, and large instances on their way lie on it.
    holds
        The SOP class of an instance that is durable, by its UID; none where it is not. Without this storage commitment
        is not offered.
    commitments
        Where reports of storage commitment that we have asked for are told.
    gate
        Says whether there is room; by default the disk below `disk_mark`.
    on_refused
        Is told the code and the sender of each association and instance that is refused, from any thread.

    Attributes
    ----------
    counts
        What was received, by outcome (``new``, ``same``, ``conflict``, or the code of a refusal).
    port
        Where it listens.
    """

    def __init__(
        self,
        listening: Listening,
        intake: Intake,
        *,
        folder: Path,
        holds: Callable[[str], str | None] | None = None,
        commitments: Commitments | None = None,
        gate: Gate | None = None,
        on_refused: Callable[[str, str], None] = lambda _code, _source: None,
    ) -> None:
        self._on_refused = on_refused
        self._gate = gate or Gate(folder, Marks(high=listening.disk_mark, low=listening.disk_mark))
        self._listening, self._intake, self._folder = listening, intake, folder
        self._commitments = commitments
        self.counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._entity = AE(application_entity(listening.aet))
        self._entity.require_calling_aet = sorted(listening.callers)
        self._entity.require_called_aet = listening.called
        self._entity.maximum_associations = listening.associations
        self._entity.maximum_pdu_size = listening.pdu_bytes
        self._entity.network_timeout = self._entity.dimse_timeout = listening.timeout_s
        self._entity.acse_timeout = min(listening.timeout_s, _NEGOTIATION_S)
        # What is offered in full is negotiated when an association asks; this only lets the server start.
        self._entity.add_supported_context(VERIFICATION)
        client = listening.tls.context(server=False) if listening.tls else None
        self._reporter = Reporter(listening.aet, listening.peers, holds, client) if holds is not None else None
        self._storage = _storage_classes(listening.private)
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The TCP port that it listens on."""
        assert self._server is not None
        return int(self._server.server_address[1])

    def __enter__(self) -> Receiver:
        tls = self._listening.tls.context(server=True) if self._listening.tls else None
        handlers: Any = [
            (evt.EVT_CONN_OPEN, self._opened),
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_C_ECHO, lambda _event: SUCCESS),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._asked),
            (evt.EVT_N_EVENT_REPORT, self._told),
        ]
        address = (self._listening.host or "0.0.0.0", self._listening.port)  # noqa: S104  all interfaces, as asked
        try:
            server: Any = self._entity.make_server(
                address, ssl_context=tls, evt_handlers=handlers, server_class=_Server
            )
        except OSError as error:
            what = f"{self._listening.aet}:{self._listening.port}"
            raise ListenImpossible(what, seen=error.strerror or "the address cannot be used") from error
        server.most = 2 * self._listening.associations
        threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="receiver", daemon=True).start()
        self._server = server
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(grace_s=0.0)

    def stop(self, grace_s: float = 30.0) -> None:
        """Take no more associations, let those that are there end, and abort what is left.

        Parameters
        ----------
        grace_s
            How long they may take. What is aborted was not acknowledged.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.shutdown()
        end = time.monotonic() + grace_s
        while server.active_associations and time.monotonic() < end:
            time.sleep(0.05)
        left: list[Any] = server.active_associations
        for association in left:
            if association.is_established:
                association.abort(block=False)
            else:
                association.dul.to_user_queue.put(None)  # it waits for a request no longer
        for association in left:
            association.join(_ENDING_S)
        if self._reporter is not None:
            self._reporter.close()

    # What pynetdicom calls, mostly in the thread of an association

    def _opened(self, event: evt.Event) -> None:
        quick = quicken(event, _Landing)
        assert isinstance(quick, _Landing)
        quick.folder, quick.largest = self._folder, self._listening.largest_bytes

    def _requested(self, event: evt.Event) -> None:
        """Offer, of all classes and syntaxes that we take, those that were asked for, in the order of the sender."""
        primitive: Any = event.assoc.requestor.primitive
        offered: dict[str, PresentationContext] = {}
        for proposed in primitive.presentation_context_definition_list:
            name = str(proposed.abstract_syntax)
            taken = [syntax for syntax in proposed.transfer_syntax if syntax in TRANSFER_SYNTAXES]
            if name in offered:
                known = offered[name].transfer_syntax
                offered[name].transfer_syntax = [*known, *(syntax for syntax in taken if syntax not in known)]
            elif taken and (name in self._storage or name in self._services()):
                offered[name] = build_context(name, taken)
        if STORAGE_COMMITMENT in offered:
            # We ask and we are asked; who is which is told by the roles of an association (PS3.4 annex J.3.3).
            offered[STORAGE_COMMITMENT].scu_role = offered[STORAGE_COMMITMENT].scp_role = True
        if offered:
            event.assoc.acceptor.supported_contexts = list(offered.values())

    def _services(self) -> tuple[str, ...]:
        ours = (VERIFICATION,)
        return ours if self._reporter is None and self._commitments is None else (*ours, STORAGE_COMMITMENT)

    def _rejected(self, event: evt.Event) -> None:
        _LOG.warning("association of %s rejected", _sender(event))
        self._count(REJECTED)
        self._on_refused(REJECTED, f"scp {_sender(event)}")

    def _store(self, event: evt.Event) -> int | Dataset:
        """EVT_C_STORE: into the intake, then the answer."""
        request: Any = event.request
        uid = str(request.AffectedSOPInstanceUID)
        try:
            self._gate.check()
            instance = instance_in(
                request.DataSet,
                sop_class_uid=str(request.AffectedSOPClassUID),
                sop_instance_uid=uid,
                transfer_syntax=str(event.context.transfer_syntax),
                source_aet=event.assoc.requestor.ae_title,
            )
            received = self._intake.put(
                instance.content,
                sop_instance_uid=uid,
                sop_class_uid=instance.sop_class_uid,
                series_uid=instance.series_uid,
                study_uid=instance.study_uid,
                transfer_syntax=instance.transfer_syntax,
                source=f"scp {_sender(event)}",
            )
        except ImagingError as error:
            return self._refusal(event, error)
        except Exception as error:  # noqa: BLE001  whatever it is, the sender must keep its instance
            _LOG.exception("instance %s could not be taken", uid if is_uid(uid) else "without a UID")
            return self._refusal(event, ReceiverFault(_sender(event), seen=type(error).__name__))
        if received is Received.CONFLICT:
            _LOG.warning("instance %s came again with other content, from %s", uid, _sender(event))
        self._count(received.value)
        return SUCCESS

    def _refusal(self, event: evt.Event, error: ImagingError) -> Dataset:
        """The answer that makes the sender keep its instance."""
        answer = Dataset()
        answer.Status = NOT_UNDERSTOOD
        if isinstance(error, _LATER):
            answer.Status = OUT_OF_RESOURCES
        elif isinstance(error, InstanceMismatch):
            answer.Status = MISMATCH
        answer.ErrorComment = error.code
        _LOG.warning("refused from %s with status %04X: %s", _sender(event), answer.Status, error)
        self._count(error.code)
        self._on_refused(error.code, f"scp {_sender(event)}")
        return answer

    def _asked(self, event: evt.Event) -> tuple[int, None]:
        """EVT_N_ACTION: somebody asks whether we have what it sent."""
        if self._reporter is None:
            return 0x0124, None  # refused: not authorised (PS3.7 annex C)
        return self._reporter.asked(event), None

    def _told(self, event: evt.Event) -> tuple[int, None]:
        """EVT_N_EVENT_REPORT: somebody tells what it has of what we sent."""
        return (self._commitments.told(event) if self._commitments is not None else 0x0211), None

    def _count(self, what: str) -> None:
        with self._counting:
            self.counts[what] += 1


class _Server(AssociationServer):
    """Accepts connections; a slow TLS handshake or a flood of connections holds up nobody."""

    request_queue_size = 64
    most = 64

    def get_request(self) -> tuple[socket.socket, Any]:
        """The next connection; with TLS its handshake is made when the association first reads."""
        assert self.socket is not None
        connection, address = self.socket.accept()
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to go on with a connection: those that never ask for an association are counted, too."""
        return len(self.active_associations) < self.most

    def shutdown(self) -> None:
        """End `serve_forever` and let the port go."""
        super(AssociationServer, self).shutdown()
        self.server_close()


class _Landing(QuickSocket):
    """A socket whose C-STORE data sets go on into a file when they become large."""

    folder: Path
    largest: int

    def before_pdu(self) -> None:
        """Move what has become large from memory to the disk."""
        message = self.assoc.dimse.message
        if not isinstance(message, C_STORE_RQ):
            super().before_pdu()
            return
        stream = message.data_set
        if stream is None or isinstance(stream, Spool) or stream.tell() <= min(_IN_MEMORY, self.largest):
            return
        command, context = message.command_set, self.assoc._accepted_cx.get(message.context_id or 0)
        if context is None:
            raise ConnectionAbortedError("a C-STORE in a presentation context that was not accepted")
        head = file_head(
            str(command.AffectedSOPClassUID),
            str(command.AffectedSOPInstanceUID),
            str(context.transfer_syntax[0]),
            self.assoc.requestor.ae_title,
        )
        message.data_set = Spool(self.folder, head, data_of(stream), self.largest)


def _storage_classes(private: Set[str]) -> frozenset[str]:
    """Every public storage class, the retired ones of images and reports among them, and private ones."""
    current = {str(context.abstract_syntax) for context in AllStoragePresentationContexts}
    for uid in _RETIRED:
        register_uid(uid, UID_dictionary[uid][4], StorageServiceClass)
    for uid in private:
        register_uid(uid, f"Private{uid.replace('.', '_')}", StorageServiceClass)
    return frozenset(current) | set(_RETIRED) | private


def _sender(event: evt.Event) -> str:
    """Who, for a log line: ``AET@ADDRESS``, with nothing in it that could be taken for another line."""
    requestor = event.assoc.requestor
    title = "".join(letter if letter.isprintable() else "?" for letter in requestor.ae_title)
    return f"{title}@{requestor.address}"
