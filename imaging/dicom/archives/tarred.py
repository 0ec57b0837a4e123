"""The members of a TAR (POSIX.1-2008 ustar and pax, GNU), one header after the other."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from imaging.dicom.archives.sink import CHUNK, SPECIAL, Damaged, Sink

BLOCK = tarfile.BLOCKSIZE
USTAR = b"ustar"
_EXTENSION = 1024 * 1024  # bytes of a header extension: a long name, PAX records
_MOST_EXTENSIONS = 16  # before one member


def is_tar(head: bytes) -> bool:
    """Whether a file that begins so is a TAR."""
    return head[257:262] == USTAR


class _Tape:
    """A TAR's bytes in order, all counted."""

    def __init__(self, stream: IO[bytes], sink: Sink) -> None:
        self._stream, self._sink = stream, sink

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = self._stream.read(count)
        self._sink.spend(len(data))
        if len(data) < count:
            raise Damaged("it ends in the middle of a member" if data else "it ends without its end mark")
        return data

    def data(self, size: int) -> Iterator[bytes]:
        """What a member holds, and step over the padding to the next block."""
        left = size
        while left:
            piece = self.take(min(left, CHUNK))
            left -= len(piece)
            yield piece
        self.take(-size % BLOCK)

    def end(self) -> None:
        """Read to the end, where checksums are verified; members behind the end mark must not be passed over."""
        while piece := self._stream.read(CHUNK):
            self._sink.spend(len(piece))
            if piece.count(0) < len(piece):
                raise Damaged("something follows its end mark")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One member's header with what its extensions say."""

    type: bytes
    name: str
    size: int
    is_sparse: bool


def untar(stream: IO[bytes], sink: Sink) -> None:
    """Member by member with `TarInfo.frombuf`.

    `tarfile.TarFile` takes a damaged header for the end, and reads extensions into memory at any length and depth.
    """
    tape = _Tape(stream, sink)
    while (entry := _next_entry(tape)) is not None:
        number = sink.next_number()
        if entry.type == tarfile.DIRTYPE:
            continue
        if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) and not entry.is_sparse:
            sink.expect(entry.size)
            sink.keep(number, entry.name, tape.data(entry.size))
            continue
        sink.refuse(number, SPECIAL)
        # As in tarfile: what has no data of its own (links, devices) may declare a size and is followed by none.
        if entry.type in tarfile.REGULAR_TYPES or entry.type not in tarfile.SUPPORTED_TYPES:
            for _ in tape.data(entry.size):
                pass
    tape.end()


def _next_entry(tape: _Tape) -> _Entry | None:
    """The next member's header, or None at the end mark (POSIX.1-2008 pax, ustar Interchange Format)."""
    long_name: bytes | None = None
    records: dict[bytes, bytes] = {}
    for _ in range(_MOST_EXTENSIONS + 1):
        block = tape.take(BLOCK)
        if block.count(0) == BLOCK:
            return None
        info = _header(block)
        if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
            records = _records(_extension(tape, info.size))
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            long_name = _extension(tape, info.size).split(b"\0", 1)[0]
        elif info.type in (tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE):
            _extension(tape, info.size)  # nothing there that is true of one file's bytes
        else:
            return _entry(tape, info, block, long_name, records)
    raise Damaged(f"a member has more than {_MOST_EXTENSIONS} header extensions")


def _entry(
    tape: _Tape, info: tarfile.TarInfo, block: bytes, long_name: bytes | None, records: dict[bytes, bytes]
) -> _Entry:
    extended = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while extended:  # more of the map of a sparse file, before its data
        extended = tape.take(BLOCK)[504]
    named = records.get(b"path", long_name)
    declared = records.get(b"size")
    if declared is not None and not (declared.isdigit() and len(declared) <= 20):
        raise Damaged("a member's header declares no size that could be")
    return _Entry(
        type=info.type,
        name=info.name if named is None else named.decode("utf-8", "replace"),
        size=info.size if declared is None else int(declared),
        is_sparse=any(key.startswith(b"GNU.sparse.") for key in records),
    )


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise Damaged("a member's header fails its checksum") from error
    if info.size < 0:
        raise Damaged("a member's header declares no size that could be")
    return info


def _extension(tape: _Tape, size: int) -> bytes:
    if size > _EXTENSION:
        raise Damaged(f"a header extension declares {size} bytes")
    return b"".join(tape.data(size))


def _records(data: bytes) -> dict[bytes, bytes]:
    """``LENGTH KEY=VALUE`` and a newline, the length counting itself (POSIX.1-2008 pax Extended Header)."""
    records: dict[bytes, bytes] = {}
    position = 0
    while data[position : position + 1] not in (b"", b"\0"):
        digits = data[position : position + 20].split(b" ", 1)[0]
        length = int(digits) if digits.isdigit() else 0
        record = data[position : position + length]
        if length < 5 or len(record) < length or not record.endswith(b"\n"):
            raise Damaged("a member's header extension is not well-formed")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        records[key] = value
        position += length
    return records
