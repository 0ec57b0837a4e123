"""The sender: results into a PACS by C-STORE, and what the PACS says of them afterwards.

Invariant: files go as they are, in the transfer syntax that they have; a file counts as delivered only if the peer said
so, and what that rests on is told with it. Nothing is tried again here: each file that was not delivered has an error
that says whether trying again may help.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid
from pynetdicom import AE, _config, evt

from imaging.dicom.header import read_header
from imaging.errors import (
    AssociationDeferred,
    AssociationLost,
    AssociationRejected,
    ContextRefused,
    ImagingError,
    MissingAttribute,
    NotConfirmed,
    PeerFault,
    PeerUnreachable,
    QueryFailed,
    StorageDeferred,
    StorageRefused,
)
from pipelines.association import COMMITMENT_INSTANCE, STORAGE_COMMITMENT, Peer, Tls, at_once, status_of
from pipelines.commitment import Commitments, request_of

_FIND = "1.2.840.10008.5.1.4.1.2.2.1"  # Study Root Query/Retrieve Information Model - FIND
_NATIVE: list[str] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
# PS3.8 section 9.3.2.2: their ids are the odd numbers of a byte.
_MOST_CONTEXTS = 128
_REQUEST = 1
_UIDS = {0x00080016: "SOPClassUID", 0x00080018: "SOPInstanceUID", 0x0020000D: "StudyInstanceUID",
         0x0020000E: "SeriesInstanceUID"}  # fmt: skip
# Statuses of PS3.4 table B.2-1 and PS3.7 annex C after which trying again may help.
_PROCESSING_FAILURE, _RESOURCE_LIMITATION = 0x0110, 0x0213


class Confirm(StrEnum):
    """How a peer is asked what it has stored.

    Attributes
    ----------
    AUTO
        By storage commitment where it is offered and answered, else by C-FIND, else by the statuses of C-STORE.
    COMMITMENT
        By storage commitment and nothing less.
    FIND
        By C-FIND and nothing less.
    STATUS
        Not at all: the status of each C-STORE is believed.
    """

    AUTO = "auto"
    COMMITMENT = "commitment"
    FIND = "find"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of one file.

    Attributes
    ----------
    path
        The file.
    sop_class_uid, sop_instance_uid, series_uid, study_uid, transfer_syntax
        What it is; empty where it could not be read.
    status
        Of the C-STORE response; none where there was none, and over DICOMweb.
    confirmed_by
        What its delivery rests on: ``commitment``, ``find``, ``qido`` or ``status``; empty where it was not delivered.
    error
        Why it was not.
    """

    path: Path
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    series_uid: str = ""
    study_uid: str = ""
    transfer_syntax: str = ""
    status: int | None = None
    confirmed_by: str = ""
    error: ImagingError | None = None

    @property
    def transient(self) -> bool:
        """Whether it may be delivered if it is tried again."""
        return isinstance(self.error, PeerFault) and self.error.transient


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the files of one delivery, in the order in which they were given."""

    files: tuple[Delivered, ...]

    @property
    def done(self) -> bool:
        """Whether all were delivered."""
        return all(file.error is None for file in self.files)

    @property
    def left(self) -> tuple[Delivered, ...]:
        """Those that may be delivered if they are tried again."""
        return tuple(file for file in self.files if file.transient)

    @property
    def refused(self) -> tuple[Delivered, ...]:
        """Those for which trying again does not help."""
        return tuple(file for file in self.files if file.error is not None and not file.transient)


def send(
    paths: Sequence[Path],
    to: Peer,
    *,
    aet: str = "IMGPIPE",
    tls: Tls | None = None,
    confirm: Confirm = Confirm.AUTO,
    commitments: Commitments | None = None,
    timeout_s: float = 60.0,
    commitment_s: float = 30.0,
) -> Delivery:
    """Send DICOM files to a peer, and ask it what it has.

    Parameters
    ----------
    paths
        DICOM files with a meta header.
    to
        Who gets them.
    aet
        Our AE title.
    tls
        Certificates; none is plain TCP.
    confirm
        How the peer is asked afterwards.
    commitments
        Those of the receiver that listens under the same AE title: peers that report storage commitment in an
        association of their own (Orthanc does) are heard there. Without it only reports in ours are heard.
    timeout_s
        How long the peer may take to connect and for each answer.
    commitment_s
        How long a report of storage commitment is waited for.

    Returns
    -------
    Delivery
        Every file with its outcome; nothing is raised for what a peer or a file does.
    """
    # Read by pynetdicom when it sends a file: as it is, in pieces, and never decoded.
    _config.STORE_SEND_CHUNKED_DATASET = True
    call = _Call(to, aet, tls.context(server=False) if tls else None, confirm, commitments or Commitments(), timeout_s,
                 commitment_s)  # fmt: skip
    files = [described(path) for path in paths]
    outcome = {file.path: file for file in files}
    for batch in _batches([file for file in files if file.error is None]):
        outcome |= {file.path: file for file in call.deliver(batch)}
    return Delivery(tuple(outcome[file.path] for file in files))


def described(path: Path) -> Delivered:
    """What a file says it is, from its header alone."""
    try:
        header = read_header(path, frozenset(_UIDS))
        values = {tag: header.values.get(tag, b"").rstrip(b"\0 ").decode("latin-1") for tag in _UIDS}
        missing = [name for tag, name in _UIDS.items() if not values[tag]]
        if missing or not header.has_meta:
            raise MissingAttribute(path, seen=f"no {missing[0] if missing else 'meta header'}")
    except ImagingError as error:
        return Delivered(path, error=error)
    sop_class, sop_instance, study, series = (values[tag] for tag in _UIDS)
    return Delivered(path, sop_class, sop_instance, series, study, header.transfer_syntax)


def _batches(files: Sequence[Delivered]) -> Iterator[list[Delivered]]:
    """Files that fit into one association each."""
    batch: list[Delivered] = []
    kinds: set[tuple[str, str]] = set()
    for file in files:
        kind = (file.sop_class_uid, file.transfer_syntax)
        if kind not in kinds and len(kinds) == _MOST_CONTEXTS:
            yield batch
            batch, kinds = [], set()
        batch.append(file)
        kinds.add(kind)
    if batch:
        yield batch


@dataclass(frozen=True, slots=True)
class _Call:
    """What stays the same over the associations of one delivery."""

    to: Peer
    aet: str
    tls: ssl.SSLContext | None
    confirm: Confirm
    commitments: Commitments
    timeout_s: float
    commitment_s: float

    def deliver(self, batch: Sequence[Delivered]) -> list[Delivered]:
        """One association for the files; then others, to ask what became of them."""
        kinds = dict.fromkeys((file.sop_class_uid, file.transfer_syntax) for file in batch)
        association, fault = self._associate([(sop_class, [syntax]) for sop_class, syntax in kinds])
        if fault is not None:
            return [replace(file, error=fault) for file in batch]
        sent: list[Delivered] = []
        try:
            for file in batch:
                # pynetdicom learns late that the peer has gone: what is sent then waits for its answer in vain.
                lost = sent and isinstance(sent[-1].error, AssociationLost)
                sent.append(replace(file, error=sent[-1].error) if lost else self._store(association, file))
        finally:
            if sent and isinstance(sent[-1].error, AssociationLost):
                association.abort()
            _release(association)
        return self._confirmed(sent)

    def _associate(self, contexts: Sequence[tuple[str, list[str]]]) -> tuple[Any, PeerFault | None]:
        entity = AE(self.aet)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = self.timeout_s
        for sop_class, syntaxes in contexts:
            entity.add_requested_context(sop_class, syntaxes)
        opened: list[bool] = []
        handlers: Any = [
            (evt.EVT_CONN_OPEN, at_once),
            (evt.EVT_CONN_OPEN, lambda _event: opened.append(True)),
            (evt.EVT_N_EVENT_REPORT, lambda event: (self.commitments.told(event), None)),
        ]
        association = entity.associate(
            self.to.host, self.to.port, ae_title=self.to.aet, evt_handlers=handlers,
            tls_args=(self.tls, self.to.host) if self.tls is not None else None,
        )  # fmt: skip
        if association.is_established:
            return association, None
        return association, self._no_association(association, bool(opened))

    def _no_association(self, association: Any, opened: bool) -> PeerFault:
        if not opened:
            return PeerUnreachable(self.to, seen="no connection")
        if association.is_rejected:
            answer = association.acceptor.primitive
            seen = f"rejected (result {answer.result}, source {answer.result_source}, reason {answer.diagnostic})"
            # PS3.8 table 9-21: 1 is permanent, 2 is transient.
            return AssociationRejected(self.to, seen=seen) if answer.result == 1 else AssociationDeferred(
                self.to, seen=seen)  # fmt: skip
        # Every context refused ends in an abort of ours.
        if association.rejected_contexts and not association.accepted_contexts:
            return ContextRefused(self.to, seen="none of the presentation contexts was accepted")
        return AssociationLost(
            self.to, seen="the connection was closed, or nothing came, before an association was made"
        )

    def _store(self, association: Any, file: Delivered) -> Delivered:
        accepted = any(
            context.abstract_syntax == file.sop_class_uid and file.transfer_syntax in context.transfer_syntax
            for context in association.accepted_contexts
        )
        if not accepted:
            seen = f"{file.sop_class_uid} in {file.transfer_syntax} is not accepted"
            return replace(file, error=ContextRefused(self.to, seen=seen))
        try:
            status = status_of(association.send_c_store(file.path))
        except OSError as error:
            return replace(file, error=MissingAttribute(file.path, seen=f"cannot be read ({error.strerror})"))
        except (RuntimeError, ValueError) as error:
            return replace(file, error=AssociationLost(self.to, seen=type(error).__name__))
        return replace(file, status=status, error=self._fault_of(status))

    def _fault_of(self, status: int | None) -> PeerFault | None:
        """What a status means, by PS3.4 table B.2-1 and PS3.7 annex C."""
        if status is None:
            return AssociationLost(self.to, seen="no answer to C-STORE")
        if status == 0 or status >> 12 == 0xB:
            return None
        seen = f"status {status:04X}"
        if status >> 8 == 0xA7 or status in (_PROCESSING_FAILURE, _RESOURCE_LIMITATION):
            return StorageDeferred(self.to, seen=seen)
        return StorageRefused(self.to, seen=seen)

    def _confirmed(self, sent: Sequence[Delivered]) -> list[Delivered]:
        """The same files, with what their delivery rests on."""
        taken = [file for file in sent if file.error is None]
        ways = {
            Confirm.AUTO: (Confirm.COMMITMENT, Confirm.FIND),
            Confirm.COMMITMENT: (Confirm.COMMITMENT,),
            Confirm.FIND: (Confirm.FIND,),
            Confirm.STATUS: (),
        }[self.confirm]
        found: set[str] | None = None
        way = Confirm.STATUS
        for way in ways if taken else ():
            found = self._committed(taken) if way is Confirm.COMMITMENT else self._find(taken)
            if found is not None:
                break
        if found is None and self.confirm in (Confirm.AUTO, Confirm.STATUS):
            found, way = {file.sop_instance_uid for file in taken}, Confirm.STATUS
        return [self._judged(file, found, way) if file.error is None else file for file in sent]

    def _judged(self, file: Delivered, found: set[str] | None, way: Confirm) -> Delivered:
        if found is None:
            return replace(file, error=NotConfirmed(self.to, seen=f"it does not answer to {way}"))
        if file.sop_instance_uid not in found:
            return replace(file, error=NotConfirmed(self.to, seen=f"{way} does not name {file.sop_instance_uid}"))
        return replace(file, confirmed_by=way.value)

    def _committed(self, files: Sequence[Delivered]) -> set[str] | None:
        """Those that the peer commits to; none where it does not say."""
        association, fault = self._associate([(STORAGE_COMMITMENT, _NATIVE)])
        if fault is not None:
            return None
        transaction = str(generate_uid())
        pairs = [(file.sop_class_uid, file.sop_instance_uid) for file in files]
        self.commitments.begin(transaction)
        try:
            answer, _reply = association.send_n_action(
                request_of(transaction, pairs), _REQUEST, STORAGE_COMMITMENT, COMMITMENT_INSTANCE
            )
            # The report comes in this association or in one of the peer's own.
            report = self.commitments.wait(transaction, self.commitment_s if status_of(answer) == 0 else 0.0)
        except (RuntimeError, ValueError):
            report = self.commitments.wait(transaction, 0.0)
        finally:
            _release(association)
        return set(report.kept) if report is not None else None

    def _find(self, files: Sequence[Delivered]) -> set[str] | None:
        """Those that the peer finds; none where it cannot be asked."""
        association, fault = self._associate([(_FIND, _NATIVE)])
        if fault is not None:
            return None
        found: set[str] = set()
        try:
            for study, series in dict.fromkeys((file.study_uid, file.series_uid) for file in files):
                keys = {"StudyInstanceUID": study, "SeriesInstanceUID": series}
                found.update(_answers(association, self.to, "IMAGE", "SOPInstanceUID", keys))
        except PeerFault:
            return None
        finally:
            _release(association)
        return found


def find(
    to: Peer,
    level: str,
    wanted: str,
    keys: Mapping[str, str],
    *,
    aet: str = "IMGPIPE",
    tls: Tls | None = None,
    timeout_s: float = 60.0,
) -> list[str]:
    """Ask a peer by C-FIND (Study Root) what it has.

    Parameters
    ----------
    to
        Who is asked.
    level
        ``STUDY``, ``SERIES`` or ``IMAGE``.
    wanted
        Keyword of the attribute that is asked for.
    keys
        What must match, by keyword.
    aet, tls, timeout_s
        As `send` takes them.

    Returns
    -------
    list of str
        The attribute's value in each match.

    Raises
    ------
    PeerFault
        If there is no association, or no whole answer.
    """
    call = _Call(to, aet, tls.context(server=False) if tls else None, Confirm.FIND, Commitments(), timeout_s, 0.0)
    association, fault = call._associate([(_FIND, _NATIVE)])
    if fault is not None:
        raise fault
    try:
        return _answers(association, to, level, wanted, keys)
    finally:
        _release(association)


def _answers(association: Any, to: Peer, level: str, wanted: str, keys: Mapping[str, str]) -> list[str]:
    query = Dataset()
    query.QueryRetrieveLevel = level
    for keyword, value in {**keys, wanted: ""}.items():
        setattr(query, keyword, value)
    found, last = [], None
    try:
        for answer, identifier in association.send_c_find(query, _FIND):
            last = status_of(answer)
            if last in (0xFF00, 0xFF01) and identifier is not None:
                found.append(str(identifier.get(wanted, "")))
    except (RuntimeError, ValueError) as error:
        raise AssociationLost(to, seen=type(error).__name__) from error
    if last != 0:
        raise QueryFailed(to, seen=f"status {last:04X}" if last is not None else "no answer to C-FIND")
    return found


def _release(association: Any) -> None:
    if association.is_established:
        association.release()
