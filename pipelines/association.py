"""What both sides of a DICOM association share: who is meant, TLS, and sockets that wait for nothing.

Invariant: whatever a peer sends, what is held for it in memory is bounded, and it holds up nobody else: a PDU that is
longer than any has to be ends its association, and a peer that falls silent is left after the network timeout.

pynetdicom looks for work every millisecond, reads 4 KiB at a time and lets the kernel hold small segments back until
the other side has answered (Nagle); with small files most of a transfer is waiting. An answer to C-STORE is to it a
data set like any other, which takes as long to build as an instance takes to be walked and hashed. On a busy machine
the thread of an association sometimes takes the answer that somebody else waits for. What is here wakes it when there
is work, leaves answers to those who wait for them, and is the only place that reaches into it.
"""

from __future__ import annotations

import queue
import re
import select
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from pynetdicom import evt
from pynetdicom._handlers import (
    standard_dimse_recv_handler,
    standard_dimse_sent_handler,
    standard_pdu_recv_handler,
    standard_pdu_sent_handler,
)
from pynetdicom._validators import validate_ae
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import P_DATA
from pynetdicom.transport import AssociationSocket

from imaging.errors import ConfigInvalid

# SOP classes of the services beside storage (PS3.6 table A-1), and the one instance of the second.
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT, COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1", "1.2.840.10008.1.20.1.1"

# PS3.8 table 9-11 sets no bound; most senders stay at 128 KiB whatever they are offered.
MAXIMUM_PDU = 128 * 1024
# An A-ASSOCIATE-RQ with 128 presentation contexts of 40 transfer syntaxes is a quarter of this.
_LONGEST_PDU = 1 << 20
_LONGEST_COMMAND = 64 * 1024
# How long to wait for work before looking whether to stop; and between two looks once the connection is closed.
_IDLE_S, _ENDING_S = 0.1, 0.001
# The same for the thread that serves requests; who wants it to rest, to ask something itself, waits so long at most.
_RESTING_S = 0.02
# What stands before a fragment of a message within a PDU (PS3.8 section 9.3.5.1).
_PDV_HEAD = 6
# pynetdicom's own handlers put every message into words, which takes longer than keeping it.
_WORDY: Any = (
    (evt.EVT_DIMSE_RECV, standard_dimse_recv_handler),
    (evt.EVT_DIMSE_SENT, standard_dimse_sent_handler),
    (evt.EVT_PDU_RECV, standard_pdu_recv_handler),
    (evt.EVT_PDU_SENT, standard_pdu_sent_handler),
)
_PEER = re.compile(r"(?P<aet>[^@]+)@(?P<host>\[[0-9a-fA-F:]+\]|[^:@\[\]]+):(?P<port>[0-9]{1,5})")


def application_entity(value: str) -> str:
    """An AE title as PS3.5 allows it, without padding.

    Raises
    ------
    ConfigInvalid
        If it is empty, longer than 16 characters or has characters that no title may have.
    """
    title = value.strip()
    valid, _why = validate_ae(title)
    if not title or not valid:
        raise ConfigInvalid("AE title", seen=repr(value[:32]), expected="1 to 16 ASCII characters were expected")
    return title


@dataclass(frozen=True, slots=True)
class Peer:
    """An application entity of the network.

    Attributes
    ----------
    aet
        Its AE title.
    host, port
        Where it listens.
    """

    aet: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Peer:
        """From ``AET@HOST:PORT``; an IPv6 address stands in brackets.

        Raises
        ------
        ConfigInvalid
            If it is not that.
        """
        match = _PEER.fullmatch(text.strip())
        if match is None or not 0 < int(match["port"]) < 65536:
            raise ConfigInvalid("address of a peer", seen=repr(text[:80]), expected="AET@HOST:PORT was expected")
        return cls(application_entity(match["aet"]), match["host"].strip("[]"), int(match["port"]))

    def __str__(self) -> str:
        return f"{self.aet}@{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tls:
    """The certificates of TLS connections (PS3.15 annex B), all in PEM.

    Attributes
    ----------
    certificate, key
        Our own, and its private key.
    trusted
        Certificates of those who are believed: peers that show none signed by them are refused, on either side.
    """

    certificate: Path
    key: Path
    trusted: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """For the side that listens or for the one that calls; TLS 1.2 or newer, the peer's certificate required.

        Raises
        ------
        ConfigInvalid
            If a file cannot be used.
        """
        purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
        try:
            context = ssl.create_default_context(purpose, cafile=str(self.trusted))
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigInvalid("TLS certificates", seen=error.strerror or type(error).__name__,
                                expected="certificates and a key in PEM were expected",
                                remedy="Correct --tls-certificate, --tls-key or --tls-trusted") from error  # fmt: skip
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        return context


class QuickSocket(AssociationSocket):
    """The socket of an association that bounds what comes and waits for work instead of looking for it.

    Set by `quicken`; `before_pdu` is called before each PDU is read.
    """

    wakened: socket.socket
    waker: socket.socket

    def before_pdu(self) -> None:
        """Keep what is held for the peer within bounds.

        Raises
        ------
        ConnectionAbortedError
            If a message other than C-STORE, or its command, grows beyond what any has.
        """
        message = self.assoc.dimse.message
        if message is None:
            return
        data = message.data_set
        if message.encoded_command_set.tell() > _LONGEST_COMMAND or (data is not None and data.tell() > _LONGEST_PDU):
            raise ConnectionAbortedError("a message that is larger than any should be")

    @property
    def ready(self) -> bool:
        """Whether there is something to read; waits a while for that, or for something to send."""
        if self.socket is None or not self._is_connected:
            time.sleep(_ENDING_S)
            return False
        dul = self.assoc.dul
        idle = dul.event_queue.empty() and not dul._kill_thread
        if idle and isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        try:
            # What has come is acknowledged now, for a sender whose kernel holds its next segment back until then.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            readable = select.select([self.socket, self.wakened], [], [], _IDLE_S if idle else 0)[0]
            if self.wakened in readable:
                self.wakened.recv(4096)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")  # the connection is closed (PS3.8 table 9-1)
            return False
        pending = isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0
        return self.socket in readable or pending

    def recv(self, nr_bytes: int) -> bytearray:
        """As many bytes as asked for, or as there are until the peer closes."""
        if nr_bytes > _LONGEST_PDU:
            raise ConnectionAbortedError(f"a PDU of {nr_bytes} bytes")
        self.before_pdu()
        content = bytearray(nr_bytes)
        view, have = memoryview(content), 0
        while have < nr_bytes and self.socket is not None:
            count = self.socket.recv_into(view[have:])
            if not count:
                break
            have += count
        view.release()
        del content[have:]
        return content

    def close(self) -> None:
        """Close the connection, and what wakes this one."""
        super().close()
        if self.socket is None:
            self.waker.close()
            self.wakened.close()


class _Outgoing(queue.Queue[Any]):
    """What waits to be sent; wakes the thread that sends."""

    def __init__(self, waker: socket.socket) -> None:
        super().__init__()
        self._waker = waker

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        try:
            self._waker.send(b"\0")
        except OSError:
            return  # closed meanwhile, or so full that it wakes anyway


def quicken(event: evt.Event, kind: type[QuickSocket] = QuickSocket) -> QuickSocket:
    """Handler of EVT_CONN_OPEN of an acceptor: make its socket a quick one, before its thread begins.

    Parameters
    ----------
    event
        The connection that was opened.
    kind
        What to make of its socket.
    """
    at_once(event)
    for kind_of, handler in _WORDY:
        event.assoc.unbind(kind_of, handler)
    dul: Any = event.assoc.dul
    quick: Any = dul.socket
    quick.socket.settimeout(event.assoc.network_timeout)
    quick.__class__ = kind
    quick.wakened, quick.waker = socket.socketpair()
    quick.wakened.setblocking(False)
    quick.waker.setblocking(False)
    dul.to_provider_queue = _Outgoing(quick.waker)
    dul._run_loop_delay = 0
    serving: Any = event.assoc.dimse
    serving.__class__ = _Serving
    serving.news = threading.Event()
    serving.msg_queue, dul.to_user_queue = _Incoming(serving.news), _Incoming(serving.news)
    assert isinstance(quick, kind)
    return quick


class _Dimse(DIMSEServiceProvider):
    """Leaves the answer to a request of ours to the thread that waits for it.

    Who sends a request clears the checkpoint of the association's thread and waits until that thread says that it
    rests. The thread says so before it looks at the checkpoint and takes it back afterwards; held up in between, it
    goes on, takes the answer for a request of the peer and drops it. Looking again once it has taken it back closes
    the gap: then either the sender waits or the thread leaves the queue alone.
    """

    def get_msg(self, block: bool = False) -> Any:
        if not block and not self.assoc._reactor_checkpoint.is_set():
            return None, None
        return super().get_msg(block)


class _Incoming(queue.Queue[Any]):
    """What has come for the thread that serves requests; tells it."""

    def __init__(self, news: threading.Event) -> None:
        super().__init__()
        self._news = news

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._news.set()


class _Serving(_Dimse):
    """The side that answers: waits for requests instead of looking for them, and answers a C-STORE by hand."""

    news: threading.Event

    def get_msg(self, block: bool = False) -> Any:
        if not block:
            # Cleared before it is looked, so that what comes in between is not waited for.
            self.news.clear()
            if self.msg_queue.empty() and self.dul.to_user_queue.empty():
                self.news.wait(_RESTING_S)
        return super().get_msg(block)

    def send_msg(self, primitive: Any, context_id: int) -> None:
        if isinstance(primitive, C_STORE) and primitive.MessageIDBeingRespondedTo is not None and primitive.Status == 0:
            answer = stored(primitive)
            if not 0 < self.maximum_pdu_size < len(answer) + _PDV_HEAD:
                data = P_DATA()
                data.presentation_data_value_list.append((context_id, b"\3" + answer))  # a command, and all of it
                self.dul.send_pdu(data)
                return
        super().send_msg(primitive, context_id)


def stored(answer: C_STORE) -> bytes:
    """The command set that says that an instance was stored (PS3.7 table 9.3-2), little endian and implicit.

    Parameters
    ----------
    answer
        Its status is 0, and it has neither a comment nor anything else that this table allows beside a failure.
    """
    elements = b"".join(
        (
            _command(0x0002, str(answer.AffectedSOPClassUID).encode("ascii")),
            _command(0x0100, b"\x01\x80"),
            _command(0x0120, int(answer.MessageIDBeingRespondedTo or 0).to_bytes(2, "little")),
            _command(0x0800, b"\x01\x01"),
            _command(0x0900, b"\0\0"),
            _command(0x1000, str(answer.AffectedSOPInstanceUID).encode("ascii")),
        )
    )
    return _command(0x0000, len(elements).to_bytes(4, "little")) + elements


def _command(number: int, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return b"\0\0" + number.to_bytes(2, "little") + len(value).to_bytes(4, "little") + value


def at_once(event: evt.Event) -> None:
    """Handler of EVT_CONN_OPEN, on either side: no segment is held back, and no answer lost.

    Small segments are sent at once, not when the peer has answered, and the answer to a request goes to who sent it.
    """
    association: Any = event.assoc
    association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    association.dimse.__class__ = _Dimse


def status_of(answer: Any) -> int | None:
    """The status of a DIMSE response; none where the peer was gone before it answered."""
    return int(answer.Status) if "Status" in answer else None


def data_of(stream: BytesIO | None) -> bytes:
    """The bytes of a data set; none where there is none."""
    return stream.getvalue() if stream is not None else b""
