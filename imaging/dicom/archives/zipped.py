"""The members of a ZIP (APPNOTE.TXT, ISO/IEC 21320-1), as its central directory lists them.

The directory stands at the end. Where it is lost or cannot be read, as in a ZIP that was cut short, nothing else says
reliably which members there were: nothing is kept.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from imaging.dicom.archives.sink import CHUNK, SPECIAL, BadMember, Sink, Unusable

LOCAL, END = b"PK\x03\x04", b"PK\x05\x06"  # what a ZIP begins with, and one without members
_CENTRAL = b"PK\x01\x02"
_DIRECTORY = 64 * 1024 * 1024  # bytes of the central directory: over 300 a member
_ENCRYPTED_BITS = 0x41  # APPNOTE.TXT 4.4.4
_ENCRYPTED = "encrypted"
_METHOD = "compressed in another way than ISO/IEC 21320-1 allows (stored or deflate)"
_OVERLAPPING = "overlapping others"
_CHECKSUM = "damaged: the data do not decode to the size and checksum that their header declares"
_NO_DIRECTORY = "damaged: the directory at its end is missing or cannot be read"
_OTHER_DIRECTORY = "damaged: the directory at its end does not list the member that it begins with"


def unzip(stream: IO[bytes], sink: Sink) -> None:
    """Give every member of a ZIP to the sink, which keeps or refuses it."""
    left = stream.seek(0, io.SEEK_END)
    archive = _opened(stream, sink)
    infos = archive.infolist()
    sink.expect(sum(info.file_size for info in infos))
    for info in infos:
        number = sink.next_number()
        if not info.file_size and info.filename.endswith(("/", "\\")):
            continue
        # Members that share their packed bytes could have them read over and over without ever giving one.
        left -= info.compress_size
        reason = _unwanted(info) if left >= 0 else _OVERLAPPING
        if reason:
            sink.refuse(number, reason)
        else:
            sink.keep(number, info.filename, _chunks(archive, info, sink))


def _opened(stream: IO[bytes], sink: Sink) -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(_Directory(stream, sink))
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise Unusable(_NO_DIRECTORY) from error
    # zipfile takes the last directory there is, and whatever stands before its members for a program that unpacks them.
    # In a ZIP that was cut short this may be the directory of a ZIP inside it, and all else would be lost untold.
    if min((info.header_offset for info in archive.infolist()), default=archive.start_dir):
        raise Unusable(_OTHER_DIRECTORY)
    archive.fp = stream
    return archive


class _Directory:
    """A ZIP's stream while `zipfile` reads its central directory, which it does whole and without a bound."""

    def __init__(self, stream: IO[bytes], sink: Sink) -> None:
        self._stream, self._sink = stream, sink
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, count: int = -1) -> bytes:
        """As much as a directory of the most members may have."""
        if count > _DIRECTORY:
            raise Unusable(f"its directory has {count} bytes")
        data = self._stream.read(count)
        self._sink.check_members(data.count(_CENTRAL))
        return data


def _unwanted(info: zipfile.ZipInfo) -> str:
    """Why a member is not even opened, or nothing."""
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return SPECIAL
    if info.flag_bits & _ENCRYPTED_BITS:
        return _ENCRYPTED
    return _METHOD if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) else ""


def _chunks(archive: zipfile.ZipFile, info: zipfile.ZipInfo, sink: Sink) -> Iterator[bytes]:
    left = info.file_size
    try:
        with archive.open(info) as member:
            while chunk := member.read(CHUNK):
                sink.spend(len(chunk))
                left -= len(chunk)
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, OSError) as error:
        raise BadMember(_CHECKSUM) from error
    if left:
        raise BadMember(_CHECKSUM)
