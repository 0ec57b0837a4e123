"""The header of one DICOM file: chosen attributes of its top level and where its pixels lie, in one pass over it.

Invariant: what is returned stands in the file as PS3.5 section 7 says. A length that leads past the end of the file is
an error, never a guess, and neither nesting nor length can make the walk run long or allocate much. Sequences are
stepped over; whoever needs what is inside them (functional groups) parses that one file with pydicom. Imports no torch.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
import zlib
from collections.abc import Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass
from mmap import mmap
from pathlib import Path

from imaging.errors import ImagingError, NotDicom, UnreadableDicom, UnsupportedTransferSyntax

IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
# What begins otherwise is a maker's own and may be written in any way.
_STANDARD = "1.2.840.10008.1.2"

UNDEFINED = 0xFFFFFFFF
_SOMETHING = b"\0"
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_SYNTAX = 0x00020010

# PS3.5 table 7.1-1: these have two reserved bytes and a length of four.
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset((b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH",
                    b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"))  # fmt: skip

_HEAD = {**dict.fromkeys(_LONG, 12), **dict.fromkeys(_SHORT, 8)}

_CHUNK = 16 * 1024
_LARGEST_VALUE = 1024 * 1024  # of a chosen attribute; a palette's table is 128 KiB
_LARGEST_INFLATED = 256 * 1024 * 1024
# Inflated data sets are held one at a time: a few KB in each of several threads may inflate to as many times the bound.
INFLATING = threading.Lock()
# A process forked while another thread holds it, as data loaders fork theirs, would wait for it for ever.
os.register_at_fork(before=INFLATING.acquire, after_in_parent=INFLATING.release, after_in_child=INFLATING.release)
_MOST_ELEMENTS = 500_000
_DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Header:
    """One file's header.

    Attributes
    ----------
    transfer_syntax
        UID; by what the bytes look like where there is no meta header.
    little_endian
        Byte order of the data set and of native pixels.
    values
        For each chosen tag that is there, the raw bytes of its value; `_SOMETHING` for a sequence of undefined length
        with an item.
    pixel_tag
        (7FE0,0010), (7FE0,0008) or (7FE0,0009); 0 where there are no pixels.
    pixel_offset, pixel_length
        Where the value of the pixel data begins in the file (in the inflated data set, where that is deflated) and its
        declared length; `UNDEFINED` where it is encapsulated.
    pixel_vr
        Their value representation, which tells the byte order of what is smaller than a word; empty in implicit VR.
    size
        Bytes of the file, or of the inflated data set.
    has_meta
        Whether a meta header names the transfer syntax; else it was told from what the bytes look like.
    version
        Of the file when it was read; see `version_of`.
    """

    transfer_syntax: str
    little_endian: bool
    values: Mapping[int, bytes]
    pixel_tag: int
    pixel_offset: int
    pixel_length: int
    pixel_vr: bytes
    size: int
    has_meta: bool
    version: tuple[int, int, int]


def version_of(about: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is written again: its inode, size and time in ns."""
    return about.st_ino, about.st_size, about.st_mtime_ns


class _Malformed(Exception):
    """The bytes are not what PS3.5 allows; the text says where."""


class _Window:
    """The part of a file that the walk looks at, read in chunks as it moves on."""

    __slots__ = ("_descriptor", "buffer", "size", "start")

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self.size = size
        self.start = 0
        self.buffer: bytes | mmap = os.pread(descriptor, _CHUNK, 0)

    def at(self, position: int, count: int) -> int:
        """Have `count` bytes at `position`; gives their index in `buffer`."""
        index = position - self.start
        if index >= 0 and index + count <= len(self.buffer):
            return index
        if position < 0 or position + count > self.size:
            raise _Malformed(f"{count} bytes at {position} are declared and the file has {self.size}")
        self.buffer = os.pread(self._descriptor, max(count, _CHUNK), position)
        self.start = position
        if len(self.buffer) < count:
            raise _Malformed(f"the file ends while it is read, at {position + len(self.buffer)}")
        return 0


class _Inflated(_Window):
    """The same over bytes in memory."""

    __slots__ = ()

    def __init__(self, data: bytes | mmap) -> None:
        self.size, self.start, self.buffer = len(data), 0, data


def read_header(path: Path, wanted: Set[int]) -> Header:
    """Walk one file up to its pixels.

    Parameters
    ----------
    path
        The file.
    wanted
        Tags (group * 65536 + element) of the top level to keep.

    Raises
    ------
    NotDicom
        If it has no preamble with a meta header and does not look like a data set either.
    UnreadableDicom
        If it does and cannot be walked to its pixels or its end.
    UnsupportedTransferSyntax
        If it cannot be walked and its transfer syntax is none of PS3.5.
    """
    try:
        # A pipe would keep the opening waiting.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableDicom(path, seen=f"cannot be opened ({error.strerror})") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise UnreadableDicom(path, seen="is no file, but a pipe, a device or a folder")
        window = _Window(descriptor, about.st_size)
        start = _begin(window, wanted, path)
        with INFLATING if start.syntax == DEFLATED else nullcontext():
            return _read(window, wanted, start, path, version_of(about))
    except _Malformed as error:
        raise UnreadableDicom(path, seen=str(error)) from error
    except OSError as error:
        raise UnreadableDicom(path, seen=f"cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def read_inflated(path: Path) -> bytes:
    """The data set of a file in Deflated Explicit VR Little Endian, inflated, from its first element.

    Raises
    ------
    UnreadableDicom
        If it cannot be inflated, or not within the bound.
    """
    try:
        if path.stat().st_size > _LARGEST_INFLATED:
            raise UnreadableDicom(path, seen=f"a deflated file of more than {_LARGEST_INFLATED} bytes")
        content = path.read_bytes()
        window = _Inflated(content)
        return _inflate(content[_begin(window, frozenset(), path).position :])
    except (_Malformed, OSError) as error:
        raise UnreadableDicom(path, seen="the deflated data set cannot be read") from error


def data_set_start(head: bytes) -> int:
    """Where the data set of a DICOM file begins, behind preamble and meta header; 0 where it has neither.

    Parameters
    ----------
    head
        The first bytes of the file, the whole meta header among them.
    """
    preamble = 132 if head[128:132] == b"DICM" else 0
    if not (preamble or head[:2] == b"\2\0"):
        return 0
    try:
        return _meta(_Inflated(head), preamble, frozenset())[1]
    except _Malformed:
        return 0


def file_start(content: bytes, about: Path | str) -> tuple[int, str]:
    """Where the data set of a DICOM file in memory begins, and the UID of its transfer syntax.

    Raises
    ------
    NotDicom
        If it is none.
    UnreadableDicom
        If its meta header is broken.
    """
    try:
        start = _begin(_Inflated(content), frozenset(), about)
    except _Malformed as error:
        raise UnreadableDicom(about, seen=str(error)) from error
    return start.position, start.syntax


def values_in_memory(
    data: bytes | mmap, begin: int, syntax: str, wanted: Set[int], about: Path | str
) -> Mapping[int, bytes]:
    """Chosen attributes of a data set that is in memory: all of them, wherever it breaks off behind them.

    Parameters
    ----------
    data, begin
        The bytes, and where the data set begins in them.
    syntax
        UID of its transfer syntax.
    wanted
        Tags (group * 65536 + element) of the top level.
    about
        What an error is about.

    Returns
    -------
    Mapping[int, bytes]
        The raw value of each that was found before the pixels.

    Raises
    ------
    UnreadableDicom
        If the data set cannot be walked as far as the last of them.
    """
    walk = None
    try:
        with INFLATING if syntax == DEFLATED else nullcontext():
            if syntax == DEFLATED:
                data, begin = _inflate(data[begin:]), 0
            walk = _Walk(_Inflated(data), explicit=syntax != IMPLICIT_LE, little=syntax != EXPLICIT_BE)
            walk.run(begin, wanted)
    except _Malformed as error:
        if walk is None or not wanted <= walk.values.keys():
            raise UnreadableDicom(about, seen=str(error)) from error
    return walk.values


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a file's data set begins, and how it is written."""

    position: int
    syntax: str
    meta: Mapping[int, bytes]
    has_meta: bool


def _begin(window: _Window, wanted: Set[int], path: Path | str) -> _Start:
    """PS3.10 section 7.1: preamble, meta header, data set; some writers leave out the first or both."""
    preamble = 132 if window.buffer[128:132] == b"DICM" else 0
    if preamble or window.buffer[:2] == b"\2\0":
        syntax, position, meta = _meta(window, preamble, wanted)
        if syntax:
            return _Start(position, syntax, meta, True)
        index = window.at(position, min(16, window.size - position))
        return _Start(position, _guess(window.buffer[index : index + 16], path), meta, False)
    return _Start(0, _guess(window.buffer[:_CHUNK], path), {}, False)


def _read(window: _Window, wanted: Set[int], start: _Start, path: Path, version: tuple[int, int, int]) -> Header:
    begin = start.position
    if start.syntax == DEFLATED:
        if window.size > _LARGEST_INFLATED:
            raise _Malformed(f"a deflated file of more than {_LARGEST_INFLATED} bytes")
        index = window.at(begin, window.size - begin)
        window, begin = _Inflated(_inflate(window.buffer[index:])), 0
    explicit, little = start.syntax != IMPLICIT_LE, start.syntax != EXPLICIT_BE
    walk = _Walk(window, explicit=explicit, little=little)
    try:
        walk.run(begin, wanted)
    except _Malformed as error:
        if start.syntax.startswith(_STANDARD):
            raise
        unknown: ImagingError = UnsupportedTransferSyntax(path, seen="a private transfer syntax")
        raise unknown from error
    return Header(
        start.syntax,
        little,
        dict(start.meta) | walk.values,
        walk.pixel_tag,
        walk.pixel_offset,
        walk.pixel_length,
        walk.pixel_vr,
        window.size,
        start.has_meta,
        version,
    )


def _meta(window: _Window, position: int, wanted: Set[int]) -> tuple[str, int, dict[int, bytes]]:
    """Transfer syntax or nothing, where the data set begins, and what is wanted of group 0002."""
    values: dict[int, bytes] = {}
    for _ in range(64):
        if position == window.size:
            break
        index = window.at(position, 8)
        buffer = window.buffer
        if buffer[index] != 2 or buffer[index + 1] != 0:
            break
        element = buffer[index + 2] | buffer[index + 3] << 8
        if buffer[index + 4 : index + 6] in _LONG:
            index = window.at(position, 12)
            length, skip = int.from_bytes(window.buffer[index + 8 : index + 12], "little"), 12
        else:
            length, skip = buffer[index + 6] | buffer[index + 7] << 8, 8
        tag = 0x00020000 | element
        if (tag == _SYNTAX or tag in wanted) and length <= 64:
            index = window.at(position + skip, length)
            values[tag] = window.buffer[index : index + length]
        position += skip + length
    return values.get(_SYNTAX, b"").rstrip(b"\0 ").decode("ascii", "replace"), position, values


def _guess(head: bytes, path: Path | str) -> str:
    """The transfer syntax of a data set without meta header, by its first element."""
    if len(head) >= 8 and head[:2] == b"\x08\0":
        if head[4:6] in _LONG or head[4:6] in _SHORT:
            return EXPLICIT_LE
        if int.from_bytes(head[4:8], "little") < _CHUNK:
            return IMPLICIT_LE
    if len(head) >= 8 and head[:2] == b"\0\x08" and head[4:6] in _SHORT:
        return EXPLICIT_BE
    raise NotDicom(path, seen=_kind(head))


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[:4] == b"PK\x03\x04":
        return "a ZIP archive"
    if head[:2] == b"\x1f\x8b":
        return "a gzip archive"
    if b"\0" not in head:
        return "a text file"
    return "no 'DICM' at byte 128"


def _inflate(data: bytes) -> bytes:
    """PS3.5 A.5: raw deflate (RFC 1951) of the whole data set, with a bound on what comes out."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, _LARGEST_INFLATED)
    except zlib.error as error:
        raise _Malformed("the deflated data set cannot be inflated") from error
    if inflater.unconsumed_tail:
        raise _Malformed(f"the deflated data set is larger than {_LARGEST_INFLATED} bytes")
    return inflated


class _Walk:
    """One pass over the elements of a data set."""

    def __init__(self, window: _Window, *, explicit: bool, little: bool) -> None:
        self._window, self._explicit, self._little = window, explicit, little
        order = "<" if little else ">"
        self._tag = struct.Struct(f"{order}HH")
        self._tag_length = struct.Struct(f"{order}HHI")
        self._tag_vr_length = struct.Struct(f"{order}HH2sH")
        self._short = struct.Struct(f"{order}H")
        self._word = struct.Struct(f"{order}I")
        self._left = _MOST_ELEMENTS
        self.values: dict[int, bytes] = {}
        self.pixel_tag = self.pixel_offset = self.pixel_length = 0
        self.pixel_vr = b""

    def run(self, position: int, wanted: Set[int]) -> None:
        """Step over the elements from `position` to the pixels or the end, keeping what is wanted."""
        window, values, size = self._window, self.values, self._window.size
        unpack, head = self._tag_vr_length.unpack_from, _HEAD
        buffer, start = window.buffer, window.start
        ahead = len(buffer) - 12 if self._explicit else -1
        for _ in range(_MOST_ELEMENTS):
            if position >= size:
                return
            index = position - start
            if 0 <= index <= ahead:  # the common case, in line: an explicit element whose head is in the window
                group, element, vr, length = unpack(buffer, index)
                skip = head.get(vr, 0)
                tag = group << 16 | element
                value = position + skip
                if skip == 12:
                    length = self._word.unpack_from(buffer, index + 8)[0]
                elif not skip:
                    raise _Malformed(f"({group:04X},{element:04X}) at {position} has no VR")
            else:
                tag, vr, length, value = self._element(position)
                buffer, start = window.buffer, window.start
                ahead = len(buffer) - 12 if self._explicit else -1
            if tag in _PIXELS:
                self.pixel_tag, self.pixel_offset, self.pixel_length = tag, value, length
                self.pixel_vr = vr
                return
            if length == UNDEFINED:
                position = self._skip_sequence(value, explicit=self._explicit and vr != b"UN", depth=0)
                if tag in wanted:
                    values[tag] = _SOMETHING if position > value + 8 else b""  # no more than the delimiter
                continue
            if value + length > size:
                raise _Malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) declares {length} bytes at {value} of {size}")
            if tag in wanted and length <= _LARGEST_VALUE:
                at = window.at(value, length)
                values[tag] = window.buffer[at : at + length]
            position = value + length
        raise _Malformed(f"more than {_MOST_ELEMENTS} elements")

    def _element(self, position: int) -> tuple[int, bytes, int, int]:
        """Tag, VR (empty in implicit), length, and where the value begins."""
        self._left -= 1
        if self._left < 0:
            raise _Malformed(f"more than {_MOST_ELEMENTS} elements")
        window = self._window
        index = window.at(position, 8)
        buffer = window.buffer
        if not self._explicit:
            group, element, length = self._tag_length.unpack_from(buffer, index)
            return group << 16 | element, b"", length, position + 8
        group, element = self._tag.unpack_from(buffer, index)
        vr = buffer[index + 4 : index + 6]
        if vr in _SHORT:
            return group << 16 | element, vr, self._short.unpack_from(buffer, index + 6)[0], position + 8
        if vr in _LONG:
            index = window.at(position, 12)
            return group << 16 | element, vr, self._word.unpack_from(window.buffer, index + 8)[0], position + 12
        raise _Malformed(f"({group:04X},{element:04X}) at {position} has no VR")

    def _skip_sequence(self, position: int, *, explicit: bool, depth: int) -> int:
        """Step over the items of a sequence of undefined length; gives where it ends (PS3.5 section 7.5)."""
        if depth > _DEEPEST:
            raise _Malformed(f"sequences are nested deeper than {_DEEPEST}")
        while True:
            tag, length = self._delimiter(position)
            position += 8
            if tag == _SEQUENCE_END:
                return position
            if tag != _ITEM:
                raise _Malformed(f"({tag >> 16:04X},{tag & 0xFFFF:04X}) at {position - 8} where an item should be")
            if length == UNDEFINED:
                position = self._skip_item(position, explicit=explicit, depth=depth)
            else:
                position += length

    def _skip_item(self, position: int, *, explicit: bool, depth: int) -> int:
        outer, self._explicit = self._explicit, explicit
        try:
            while True:
                tag, length = self._delimiter(position)
                if tag == _ITEM_END:
                    return position + 8
                tag, vr, length, value = self._element(position)
                if length == UNDEFINED:
                    position = self._skip_sequence(value, explicit=explicit and vr != b"UN", depth=depth + 1)
                else:
                    position = value + length
        finally:
            self._explicit = outer

    def _delimiter(self, position: int) -> tuple[int, int]:
        self._left -= 1
        if self._left < 0:
            raise _Malformed(f"more than {_MOST_ELEMENTS} elements")
        index = self._window.at(position, 8)
        group, element, length = self._tag_length.unpack_from(self._window.buffer, index)
        return group << 16 | element, length
