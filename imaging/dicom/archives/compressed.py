"""What a gzip, bzip2 or xz file holds, with bounded memory and its checksums verified."""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any, Protocol

from imaging.dicom.archives.sink import Damaged, Unusable

_CHUNK = 64 * 1024
_XZ_MEMORY = 256 * 1024 * 1024  # `xz -9` needs 65 MiB
_GZIP, BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0"
# What a decoder raises where its data are damaged.
FAULTS = (zlib.error, OSError, lzma.LZMAError, EOFError)


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


DECODERS: dict[bytes, Callable[[], _Decoder]] = {_GZIP: _Gzip, BZIP2: bz2.BZ2Decompressor, _XZ: _xz}


class Decoded(io.RawIOBase):
    """What a compressed file holds, with bounded memory; several streams after each other are one (pigz, pbzip2).

    The readers of `gzip`, `bz2` and `lzma` are not used: those of xz have no bound on memory, and a damaged checksum
    cannot be told from bytes that follow the end.
    """

    def __init__(self, stream: IO[bytes], magic: bytes) -> None:
        self._stream, self._magic, self._decoder = stream, magic, DECODERS[magic]()
        self._fed = b""
        self._ended = False

    def readable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as the next piece goes; nothing at the end."""
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
                data, self._fed = self._fed or self._stream.read(_CHUNK), b""
            try:
                piece = self._decoder.decompress(data, most)
            except FAULTS as error:
                raise Unusable("its compressed data are damaged, or need too much memory") from error
            if piece:
                return piece
            if hungry and not data and not self._decoder.eof:
                raise Damaged("its compressed data end early")
        return b""

    def _next_stream(self) -> None:
        rest = self._decoder.unused_data
        while not (rest := rest.lstrip(b"\0")):  # padding
            rest = self._stream.read(_CHUNK)
            if not rest:
                self._ended = True
                return
        rest += self._stream.read(len(_XZ))
        if not rest.startswith(self._magic):
            raise Damaged("something else follows its compressed data")
        self._fed, self._decoder = rest, DECODERS[self._magic]()
