"""An instance on its way from the network into the store: where its bytes lie, and what it says it is.

Invariant: the bytes of a data set are the sender's own, never decoded or written anew; what stands before them is the
preamble and the meta header of PS3.10 section 7.1, made of what the association says. Until the store has taken it,
an instance lies in memory or, if it is large, in a file without a name: whatever ends the process leaves nothing of it.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from io import BytesIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from pydicom.uid import UID
from pynetdicom import PYNETDICOM_IMPLEMENTATION_UID, PYNETDICOM_IMPLEMENTATION_VERSION

from imaging.dicom.header import file_start, values_in_memory
from imaging.dicom.values import is_uid
from imaging.errors import InstanceMismatch, InstanceTooLarge, InvalidUid, MissingAttribute, StoreFull

_SOP_CLASS, _SOP_INSTANCE, _STUDY, _SERIES = 0x00080016, 0x00080018, 0x0020000D, 0x0020000E
_NAMES = {_SOP_CLASS: "SOPClassUID", _SOP_INSTANCE: "SOPInstanceUID", _STUDY: "StudyInstanceUID",
          _SERIES: "SeriesInstanceUID"}  # fmt: skip
_LONG = frozenset(("OB",))


@dataclass(frozen=True, slots=True)
class Instance:
    """A whole instance as a DICOM file, and its names.

    Attributes
    ----------
    content
        Preamble, meta header, data set.
    sop_instance_uid, sop_class_uid, series_uid, study_uid, transfer_syntax
        What it says it is; each a UID by PS3.5 section 9.1.
    """

    content: bytes | memoryview
    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax: str


class Spool(BytesIO):
    """A data set that became too large for memory: what comes of it goes on into a file without a name.

    Parameters
    ----------
    folder
        On whose disk it lies; the store's own is right.
    head
        What stands before the data set in the file.
    begun
        What has come of the data set so far.
    largest
        Bytes beyond which the rest is dropped, and `content` refuses.
    """

    def __init__(self, folder: Path, head: bytes, begun: bytes, largest: int) -> None:
        super().__init__()
        self._folder, self._largest = folder, largest
        self.begin = len(head)
        self._size = 0
        self._fault = ""
        try:
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed with the object
        except OSError as error:
            self._file, self._fault = None, error.strerror or "cannot be made"
        self._put(head)
        self.write(begun)

    def write(self, part: Any) -> int:
        """Take the next part."""
        self._size += len(part)
        if self._size <= self._largest:
            self._put(part)
        elif self._file is not None:
            self._file.close()
            self._file = None
        return len(part)

    def _put(self, part: Any) -> None:
        if self._file is None:
            return
        try:
            self._file.write(part)
        except OSError as error:
            self._fault = error.strerror or "cannot be written"
            self._file.close()
            self._file = None

    def tell(self) -> int:
        """How much came of the data set."""
        return self._size

    def content(self) -> mmap:
        """The whole file.

        Raises
        ------
        InstanceTooLarge
            If more came than is taken.
        StoreFull
            If the disk took no more.
        """
        if self._size > self._largest:
            raise InstanceTooLarge("an instance on its way", seen=f"{self._size} bytes of at most {self._largest}")
        if self._file is None:
            raise StoreFull(self._folder, seen=self._fault)
        try:
            self._file.flush()
            return mmap(self._file.fileno(), 0, access=ACCESS_READ)
        except OSError as error:
            raise StoreFull(self._folder, seen=error.strerror or "cannot be written") from error

    def close(self) -> None:
        """Let the file go."""
        if getattr(self, "_file", None) is not None:
            self._file.close()
        super().close()


def instance_in(
    stream: BytesIO, *, sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, source_aet: str
) -> Instance:
    """The instance that a C-STORE request has brought.

    Parameters
    ----------
    stream
        Its data set; a `Spool` if it is large.
    sop_class_uid, sop_instance_uid
        What the request says it is.
    transfer_syntax
        That of its presentation context.
    source_aet
        Who sent it.

    Raises
    ------
    UnreadableDicom
        If the data set cannot be walked as far as its UIDs.
    MissingAttribute, InvalidUid
        If one of them is missing, or no UID.
    InstanceMismatch
        If it is not what the request says.
    InstanceTooLarge, StoreFull
        If it did not fit.
    """
    if isinstance(stream, Spool):
        whole: bytes | mmap = stream.content()
        begin = stream.begin
    else:
        head = file_head(sop_class_uid, sop_instance_uid, transfer_syntax, source_aet)
        whole, begin = head + stream.getbuffer(), len(head)
    values = _names(whole, begin, transfer_syntax, sop_instance_uid)
    if values[_SOP_CLASS] != sop_class_uid:
        raise InstanceMismatch(_about(sop_instance_uid), seen=f"its SOPClassUID is {values[_SOP_CLASS]}")
    content = whole if isinstance(whole, bytes) else memoryview(whole)
    return Instance(content, sop_instance_uid, sop_class_uid, values[_SERIES], values[_STUDY], transfer_syntax)


def instance_of(content: bytes, *, sop_instance_uid: str) -> Instance:
    """The instance that a DICOM file in memory holds.

    Parameters
    ----------
    content
        The file.
    sop_instance_uid
        Which instance it should be.

    Raises
    ------
    NotDicom, UnreadableDicom
        If it is no DICOM file, or cannot be walked as far as its UIDs.
    MissingAttribute, InvalidUid, InstanceMismatch
        If one of them is missing or no UID, or it is another instance.
    """
    begin, syntax = file_start(content, _about(sop_instance_uid))
    values = _names(content, begin, syntax, sop_instance_uid)
    return Instance(content, sop_instance_uid, values[_SOP_CLASS], values[_SERIES], values[_STUDY], syntax)


def _names(whole: bytes | mmap, begin: int, syntax: str, sop_instance_uid: str) -> dict[int, str]:
    """The UIDs of a data set, once it is the instance that it should be."""
    about = _about(sop_instance_uid)
    values = values_in_memory(whole, begin, syntax, frozenset(_NAMES), about)
    found: dict[int, str] = {}
    for tag, name in _NAMES.items():
        value = values.get(tag, b"").rstrip(b"\0 ").decode("latin-1")
        if not value:
            raise MissingAttribute(about, seen=f"no {name}")
        if not is_uid(value):
            raise InvalidUid(about, seen=f"{name} is not a UID")
        found[tag] = value
    if found[_SOP_INSTANCE] != sop_instance_uid:
        raise InstanceMismatch(about, seen=f"its SOPInstanceUID is {found[_SOP_INSTANCE]}")
    return found


def _about(sop_instance_uid: str) -> str:
    return f"instance {sop_instance_uid}" if is_uid(sop_instance_uid) else "an instance"


def file_head(sop_class_uid: str, sop_instance_uid: str, transfer_syntax: str, source_aet: str) -> bytes:
    """Preamble and meta header (PS3.10 section 7.1) of a file, by hand: thousands a second are made.

    Parameters
    ----------
    sop_class_uid, sop_instance_uid, transfer_syntax
        UIDs.
    source_aet
        AE title of the sender.
    """
    elements = b"".join(
        (
            _element(0x0001, "OB", b"\0\1"),
            _element(0x0002, "UI", sop_class_uid.encode("ascii", "replace")),
            _element(0x0003, "UI", sop_instance_uid.encode("ascii", "replace")),
            _element(0x0010, "UI", transfer_syntax.encode("ascii")),
            _element(0x0012, "UI", str(UID(PYNETDICOM_IMPLEMENTATION_UID)).encode("ascii")),
            _element(0x0013, "SH", PYNETDICOM_IMPLEMENTATION_VERSION.encode("ascii")),
            _element(0x0016, "AE", source_aet.encode("ascii", "replace")[:16]),
        )
    )
    length = _element(0x0000, "UL", len(elements).to_bytes(4, "little"))
    return b"".join((b"\0" * 128, b"DICM", length, elements))


def _element(number: int, vr: str, value: bytes) -> bytes:
    if len(value) % 2:
        value += b"\0" if vr == "UI" else b" "
    size = b"\0\0" + len(value).to_bytes(4, "little") if vr in _LONG else len(value).to_bytes(2, "little")
    return b"\2\0" + number.to_bytes(2, "little") + vr.encode() + size + value
