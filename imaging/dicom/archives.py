"""A ZIP or TAR of a study, perhaps a hostile one -> plain files in a folder.

Invariant: nothing is written but regular files named by the member's number in the archive, so that no name in it is
ever a path; the bytes written, the members, the memory and the time are bounded whatever the archive declares; and no
member disappears: it is a file in the folder, or a refusal tells its number and why. No member's name, which may be a
patient's, stands in a refusal. Imports no torch.
"""

from __future__ import annotations

import bz2
import io
import lzma
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from imaging.errors import ArchiveRefused, ImagingError

# The largest studies in routine (4D perfusion, 4D flow, tomosynthesis of both breasts) are 5 to 10 GiB uncompressed and
# have less than 100,000 instances. Twice that is no study any more.
MOST_BYTES = 16 * 1024**3
MOST_MEMBERS = 200_000
# What stays free on the disk for those who share it: the watcher's store and the results.
RESERVE = 1024**3

_CHUNK = 1024 * 1024
_PACKED_CHUNK = 64 * 1024
_HEAD = 4096
_DIRECTORY = 64 * 1024 * 1024  # bytes of a ZIP's central directory: over 300 a member
_XZ_MEMORY = 256 * 1024 * 1024  # `xz -9` needs 65 MiB
_EXTENSION = 1024 * 1024  # bytes of a TAR's header extension: a long name, PAX records
_MOST_EXTENSIONS = 16  # before one member
_NUMBERS_TOLD = 10

_USTAR, _GZIP, _BZIP2, _XZ = b"ustar", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
_LOCAL, _CENTRAL, _END, _DESCRIPTOR = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x07\x08"
_BLOCK = tarfile.BLOCKSIZE

_ENCRYPTED_BITS, _OPEN_ENDED_BIT = 0x41, 0x08  # APPNOTE.TXT 4.4.4
_ZIP64 = 0xFFFFFFFF  # the size stands in an extra field
_ENCRYPTED = "encrypted"
_METHOD = "compressed in another way than ISO/IEC 21320-1 allows (stored or deflate)"
_LOST_DIRECTORY = "the directory at its end is missing or cannot be read"
_SPECIAL = "no regular file but a link, a device or the like, or sparse"
_NO_SIZE = "without a size, which only the lost directory tells, and what follows it cannot be found"
_CHECKSUM = "damaged: the data do not decode to the size and checksum that their header declares"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes
    ----------
    path
        Where it was written.
    number
        Its place in the archive, folders and links counted, from 1; `path` is named by it.
    name
        The last part of its name in the archive, printable characters only: to tell a DICOMDIR from an image, never
        to be shown or used as a path, for it may be a patient's name.
    """

    path: Path
    number: int
    name: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive, and what did not: one refusal for each reason."""

    files: tuple[Member, ...]
    refused: tuple[ImagingError, ...]


class _Damaged(Exception):
    """The archive cannot be read further; what was unpacked before is whole. The text says where."""


class _Unusable(Exception):
    """Nothing of the archive may be kept; the text says why."""


class _BadMember(Exception):
    """One member is not kept, the next can be read. The text is the reason."""


def is_archive(path: Path) -> bool:
    """Whether a file is a ZIP or a TAR (plain, gzip, bzip2 or xz) by its first bytes, whatever its name.

    A file with 'DICM' at byte 128 is DICOM, for its preamble may hold anything (PS3.10 section 7.1). A compressed file
    is an archive only if a TAR is inside: a ``.nii.gz`` is not. A file that cannot be read is none; its reader says so.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb", buffering=0) as stream:
            return _magic(stream) != b""
    except OSError:
        return False


def unpack(
    path: Path,
    into: Path,
    *,
    most_bytes: int = MOST_BYTES,
    most_members: int = MOST_MEMBERS,
    reserve: int = RESERVE,
) -> Unpacked:
    """Unpack the regular files of an archive into a folder, flat, each named by its number: 000001, 000002, ...

    An archive over a bound gives nothing, for a part of a study that its sender can choose is none. One that ends early
    gives the members before. One whose compressed data are damaged (not a ZIP, which has a checksum a member) gives
    nothing, for a checksum at the end does not say which member is wrong. An archive inside stays a file.

    Parameters
    ----------
    path
        The archive.
    into
        The folder, which is made; best an empty one that the caller removes.
    most_bytes
        That all members together, and of a TAR the headers and padding too, may unpack to.
    most_members
        That it may have, folders and links counted.
    reserve
        Bytes that stay free on the disk of `into`.

    Returns
    -------
    Unpacked
        Its `refused` are `ArchiveRefused` whose subject is `path`.
    """
    sink = _Sink(into, most_bytes, most_members, reserve)
    damage: list[str] = []
    try:
        into.mkdir(parents=True, exist_ok=True)
        with path.open("rb", buffering=_CHUNK) as stream:
            _unpack(stream, sink)
    except _Damaged as error:
        damage.append(f"damaged: {error}; files kept from before the damage: {len(sink.files)}")
    except _Unusable as error:
        sink.discard()
        damage.append(f"{error}; nothing of it is kept")
    except OSError as error:
        sink.discard()
        damage.append(f"cannot be unpacked ({error.strerror}); nothing of it is kept")
    told = [_tell(reason, numbers) for reason, numbers in sink.refused.items()]
    return Unpacked(tuple(sink.files), tuple(ArchiveRefused(path, seen=seen) for seen in told + damage))


def _tell(reason: str, numbers: list[int]) -> str:
    named = ", ".join(map(str, numbers[:_NUMBERS_TOLD])) + (", ..." if len(numbers) > _NUMBERS_TOLD else "")
    return f"member {named} is {reason}" if len(numbers) == 1 else f"{len(numbers)} members ({named}) are {reason}"


class _Sink:
    """Where the members go, and the bounds on what may."""

    def __init__(self, into: Path, most_bytes: int, most_members: int, reserve: int) -> None:
        self._into, self._most_bytes, self._reserve = into, most_bytes, reserve
        self._left = most_bytes
        self._number = 0
        self.most_members = most_members
        self.files: list[Member] = []
        self.refused: dict[str, list[int]] = {}

    def next_number(self) -> int:
        """The number of the member that is met now."""
        self._number += 1
        self.check_members(self._number)
        return self._number

    def check_members(self, count: int) -> None:
        """Whether so many members are allowed."""
        if count > self.most_members:
            raise _Unusable(f"it has more than {self.most_members} members")

    def expect(self, count: int) -> None:
        """Whether `count` bytes that are declared still fit, before any of them is written."""
        if count > self._left:
            raise _Unusable(f"it unpacks to more than {self._most_bytes} bytes")
        if count > shutil.disk_usage(self._into).free - self._reserve:
            raise _Unusable(f"what it unpacks to would leave less than {self._reserve} bytes free on the disk")

    def spend(self, count: int) -> None:
        """Count bytes that really came out; what is declared is never believed."""
        self._left -= count
        if self._left < 0:
            raise _Unusable(f"it unpacks to more than {self._most_bytes} bytes")

    def refuse(self, number: int, reason: str) -> None:
        """Leave a member out and tell it."""
        self.refused.setdefault(reason, []).append(number)

    def keep(self, number: int, name: str, chunks: Iterator[bytes]) -> None:
        """Write one member; a part of one never stays."""
        path = self._into / f"{number:06d}"
        with path.open("xb") as stream:  # never over a file that is there, nor through a link
            try:
                for chunk in chunks:
                    # Each time, for others write to this disk meanwhile.
                    self.expect(0)
                    stream.write(chunk)
                stream.flush()
            except BaseException as error:
                path.unlink()
                if not isinstance(error, _BadMember):
                    raise
                self.refuse(number, str(error))
                return
        self.files.append(Member(path, number, _base_name(name)))

    def discard(self) -> None:
        """Take back what was written."""
        for member in self.files:
            with suppress(OSError):
                member.path.unlink()
        self.files.clear()


def _base_name(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(character for character in last[:1024] if character.isprintable())[:255]


# ------------------------------------------------------------------------------------------------------- what it is


def _magic(stream: IO[bytes]) -> bytes:
    """The magic bytes of what it is: `_LOCAL` for a ZIP, `_USTAR` for a TAR, those of a compressed TAR, or none."""
    head = stream.read(_HEAD)
    if head[128:132] == b"DICM":
        return b""
    if head.startswith((_LOCAL, _END)):
        return _LOCAL
    if _is_tar(head):
        return _USTAR
    magic = next((magic for magic in _DECODERS if head.startswith(magic)), b"")
    if magic == _BZIP2:  # gives nothing before its first block is whole, up to 900 kB
        head += stream.read(_CHUNK)
    with suppress(zlib.error, OSError, lzma.LZMAError, EOFError):
        if magic and _is_tar(_DECODERS[magic]().decompress(head, _BLOCK)):
            return magic
    return b""


def _is_tar(head: bytes) -> bool:
    return head[257:262] == _USTAR


def _unpack(stream: IO[bytes], sink: _Sink) -> None:
    magic = _magic(stream)
    stream.seek(0)
    if magic == _LOCAL:
        _unzip(stream, sink)
    elif magic == _USTAR:
        _untar(stream, sink)
    elif magic:
        _untar(io.BufferedReader(_Decoded(stream, magic), _CHUNK), sink)
    else:
        raise _Unusable("it begins neither as a ZIP nor as a TAR")


# -------------------------------------------------------------------------------------------------------------- ZIP


class _Directory:
    """A ZIP's stream while `zipfile` reads its central directory, which it does whole and without a bound."""

    def __init__(self, stream: IO[bytes], sink: _Sink) -> None:
        self._stream, self._sink = stream, sink
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        """As much as a directory of the most members may have."""
        if count > _DIRECTORY:
            raise _Unusable(f"its directory has {count} bytes")
        data = self._stream.read(count)
        self._sink.check_members(data.count(_CENTRAL))
        return data


def _unzip(stream: IO[bytes], sink: _Sink) -> None:
    size = stream.seek(0, io.SEEK_END)
    try:
        archive = zipfile.ZipFile(_Directory(stream, sink))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        stream.seek(0)
        _salvage(stream, size, sink)
        return
    infos = archive.infolist()
    archive.fp = stream
    sink.expect(sum(info.file_size for info in infos))
    for info in infos:
        number = sink.next_number()
        if not info.file_size and info.filename.endswith(("/", "\\")):
            continue
        reason = _unwanted(info)
        # Members that share their packed bytes could have them read over and over without ever giving one.
        size -= info.compress_size
        if size < 0:
            reason = "overlapping others"
        if reason:
            sink.refuse(number, reason)
        else:
            sink.keep(number, info.filename, _zip_chunks(archive, info, sink))


def _unwanted(info: zipfile.ZipInfo) -> str:
    """Why a member is not even opened, or nothing."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return _SPECIAL
    return _unreadable(info.flag_bits, info.compress_type)


def _unreadable(flags: int, method: int) -> str:
    if flags & _ENCRYPTED_BITS:
        return _ENCRYPTED
    return _METHOD if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else ""


def _zip_chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, sink: _Sink) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                sink.spend(len(chunk))
                left -= len(chunk)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, OSError) as error:
        raise _BadMember(_CHECKSUM) from error
    if left:
        raise _BadMember(_CHECKSUM)


@dataclass(frozen=True, slots=True)
class _Local:
    """A member's local header (APPNOTE.TXT 4.3.7); where it is open-ended, checksum and sizes follow the data."""

    method: int
    flags: int
    checksum: int
    packed: int
    name: str

    @property
    def is_open_ended(self) -> bool:
        """Whether nothing but its own compression says where the data end."""
        return bool(self.flags & _OPEN_ENDED_BIT)

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder, which has no data (of an open-ended one that can be told only if it is stored)."""
        stored = self.method == zipfile.ZIP_STORED
        return self.name.endswith(("/", "\\")) and not self.packed and (stored or not self.is_open_ended)


def _salvage(stream: IO[bytes], size: int, sink: _Sink) -> None:
    """Read a ZIP whose directory, which stands at its end, is lost: one local header after the other."""
    while (header := _local_header(stream)) is not None:
        number, begin = sink.next_number(), stream.tell()
        reason = _unreadable(header.flags, header.method)
        if header.is_open_ended and header.method == zipfile.ZIP_STORED and not header.is_folder:
            reason = reason or _NO_SIZE
        if reason:
            sink.refuse(number, reason)
            if header.is_open_ended:
                break
        elif not header.is_folder:
            sink.keep(number, header.name, _local_chunks(stream, header, sink))
        if header.is_open_ended:
            _skip_descriptor(stream)
        else:
            stream.seek(min(begin + header.packed, size))
    raise _Damaged(_LOST_DIRECTORY)


def _local_header(stream: IO[bytes]) -> _Local | None:
    head = stream.read(30)
    if len(head) < 30 or not head.startswith(_LOCAL):
        return None
    flags, method, checksum, packed, size, name, extra = struct.unpack("<6xHH4xIIIHH", head)
    text = stream.read(name).decode("utf-8", "replace")
    extras = stream.read(extra)
    if packed == _ZIP64:
        packed = _large_size(extras, skip=8 if size == _ZIP64 else 0)
    return _Local(method, flags, checksum, packed, text)


def _large_size(extras: bytes, *, skip: int) -> int:
    """The packed size from the ZIP64 field (4.5.3), where it follows the size if that is too large as well."""
    at = 0
    while at + 4 <= len(extras):
        kind, length = struct.unpack_from("<HH", extras, at)
        if kind == 1:
            return int.from_bytes(extras[at + 4 + skip : at + 12 + skip], "little")
        at += 4 + length
    return 0


def _local_chunks(stream: IO[bytes], header: _Local, sink: _Sink) -> Iterator[bytes]:
    found = 0
    pieces = _inflated(stream, header) if header.method == zipfile.ZIP_DEFLATED else _stored(stream, header.packed)
    for piece in pieces:
        sink.spend(len(piece))
        found = zlib.crc32(piece, found)
        yield piece
    expected = {header.checksum}
    if header.is_open_ended:  # the signature before the checksum is optional (4.3.9.3)
        tail = stream.read(8)
        stream.seek(-len(tail), io.SEEK_CUR)
        words = struct.unpack("<II", tail) if len(tail) == 8 else ()
        expected = set(words[tail.startswith(_DESCRIPTOR) :][:1])
    if found not in expected:
        raise _BadMember(_CHECKSUM)


def _stored(stream: IO[bytes], left: int) -> Iterator[bytes]:
    while left:
        piece = stream.read(min(left, _CHUNK))
        if not piece:
            raise _Damaged("it ends in the middle of a member")
        left -= len(piece)
        yield piece


def _inflated(stream: IO[bytes], header: _Local) -> Iterator[bytes]:
    """The bytes of one deflated member; `stream` stands behind its packed ones then."""
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    left = None if header.is_open_ended else header.packed
    while not decoder.eof:
        data = decoder.unconsumed_tail
        if not data:
            data = stream.read(_PACKED_CHUNK if left is None else min(left, _PACKED_CHUNK))
            left = None if left is None else left - len(data)
        try:
            piece = decoder.decompress(data, _CHUNK)
        except zlib.error as error:
            if left is None:
                raise _Damaged("the data of a member cannot be inflated") from error
            raise _BadMember(_CHECKSUM) from error
        if piece:
            yield piece
        elif not data and not decoder.eof:
            if left == 0:
                raise _BadMember(_CHECKSUM)
            raise _Damaged("it ends in the middle of a member")
    stream.seek(-len(decoder.unused_data), io.SEEK_CUR)


def _skip_descriptor(stream: IO[bytes]) -> None:
    """Go to what follows a data descriptor: with or without signature, with sizes of 4 or of 8 bytes."""
    begin = stream.tell()
    tail = stream.read(28)
    for length in (16, 24, 12, 20):
        if tail[length : length + 4] in (_LOCAL, _CENTRAL):
            stream.seek(begin + length)
            return
    raise _Damaged(_LOST_DIRECTORY)


# -------------------------------------------------------------------------------------------------------------- TAR


class _Decoder(Protocol):
    """One compressed stream, as `bz2` and `lzma` have it."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """The same of `zlib`, whose checksum it verifies."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def needs_input(self) -> bool:
        return not self._decoder.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._decoder.decompress(self._decoder.unconsumed_tail + data, max(max_length, 0))


def _xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


_DECODERS: dict[bytes, Callable[[], _Decoder]] = {_GZIP: _Gzip, _BZIP2: bz2.BZ2Decompressor, _XZ: _xz}


class _Decoded(io.RawIOBase):
    """What a compressed file holds, with bounded memory; several streams after each other are one (pigz, pbzip2).

    The readers of `gzip`, `bz2` and `lzma` are not used: those of xz have no bound on memory, and a damaged checksum
    cannot be told from bytes that follow the end.
    """

    def __init__(self, stream: IO[bytes], magic: bytes) -> None:
        self._stream, self._magic, self._decoder = stream, magic, _DECODERS[magic]()
        self._fed = b""
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._piece(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def _piece(self, most: int) -> bytes:
        while not self._ended:
            if self._decoder.eof:
                self._next_stream()
                continue
            data = b""
            if hungry := self._decoder.needs_input:
                data, self._fed = self._fed or self._stream.read(_PACKED_CHUNK), b""
            try:
                piece = self._decoder.decompress(data, most)
            except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
                raise _Unusable("its compressed data are damaged, or need too much memory") from error
            if piece:
                return piece
            if hungry and not data and not self._decoder.eof:
                raise _Damaged("its compressed data end early")
        return b""

    def _next_stream(self) -> None:
        rest = self._decoder.unused_data
        while not (rest := rest.lstrip(b"\0")):  # padding
            rest = self._stream.read(_PACKED_CHUNK)
            if not rest:
                self._ended = True
                return
        rest += self._stream.read(len(_XZ))
        if not rest.startswith(self._magic):
            raise _Damaged("something else follows its compressed data")
        self._fed, self._decoder = rest, _DECODERS[self._magic]()


class _Tape:
    """A TAR's bytes in order, all counted."""

    def __init__(self, stream: IO[bytes], sink: _Sink) -> None:
        self._stream, self._sink = stream, sink

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = self._stream.read(count)
        self._sink.spend(len(data))
        if len(data) < count:
            raise _Damaged("it ends in the middle of a member" if data else "it ends without its end mark")
        return data

    def data(self, size: int) -> Iterator[bytes]:
        """What a member holds, and step over the padding to the next block."""
        left = size
        while left:
            piece = self.take(min(left, _CHUNK))
            left -= len(piece)
            yield piece
        self.take(-size % _BLOCK)

    def end(self) -> None:
        """Read to the end, where checksums are verified; members behind the end mark must not be passed over."""
        while piece := self._stream.read(_CHUNK):
            self._sink.spend(len(piece))
            if piece.count(0) < len(piece):
                raise _Damaged("something follows its end mark")


@dataclass(frozen=True, slots=True)
class _Entry:
    """One member's header with what its extensions say."""

    type: bytes
    name: str
    size: int
    is_sparse: bool


def _untar(stream: IO[bytes], sink: _Sink) -> None:
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
        sink.refuse(number, _SPECIAL)
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
        block = tape.take(_BLOCK)
        if block.count(0) == _BLOCK:
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
    raise _Damaged(f"a member has more than {_MOST_EXTENSIONS} header extensions")


def _entry(
    tape: _Tape, info: tarfile.TarInfo, block: bytes, long_name: bytes | None, records: dict[bytes, bytes]
) -> _Entry:
    extended = info.type == tarfile.GNUTYPE_SPARSE and block[482]
    while extended:  # more of the map of a sparse file, before its data
        extended = tape.take(_BLOCK)[504]
    named = records.get(b"path", long_name)
    declared = records.get(b"size")
    if declared is not None and not (declared.isdigit() and len(declared) <= 20):
        raise _Damaged("a member's header declares no size that could be")
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
        raise _Damaged("a member's header fails its checksum") from error
    if info.size < 0:
        raise _Damaged("a member's header declares no size that could be")
    return info


def _extension(tape: _Tape, size: int) -> bytes:
    if size > _EXTENSION:
        raise _Damaged(f"a header extension declares {size} bytes")
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
            raise _Damaged("a member's header extension is not well-formed")
        key, _, value = record[len(digits) + 1 : -1].partition(b"=")
        records[key] = value
        position += length
    return records
