"""The program of a decoding process: compressed frames named on stdin -> stored values in shared memory.

Invariant: whatever a codec does with hostile bytes stays in this process. It may take `_MEMORY` of address space, it
can write no file, and the kernel ends it when one frame takes more CPU time than its declared size justifies. Rows,
columns, samples and precision that a codestream declares are compared with the header before a codec allocates for
them, and what comes out is compared again. `imaging.dicom.decoder` is the other side.

It is run by its path in Python's isolated mode, so that neither the working directory nor the environment nor the
package's own imports come into it: the first argument is the descriptor of the shared memory, the others are folders to
find numpy and imagecodecs in. One line of JSON on stdin is one `Request`; one line on stdout answers it, after the
stored values were put at the start of the shared memory, little endian, as (rows, columns) or (rows, columns, samples).
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import resource
import signal
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The largest frames met (whole breasts, 4096 x 3328 in 16 bits) take openjpeg 250 MB; python and numpy map 110 MB.
_MEMORY = 1536 * 1024 * 1024
# CPU seconds of one frame. The slowest codec (JPEG 2000) needs 0.15 s for a million samples on a slow core.
_SECONDS, _SECONDS_EACH_MILLION = 4.0, 2.0
_MOST_FRAGMENTS = 1 << 20
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_END_OF_IMAGE = b"\xff\xd9"  # the same two bytes end JPEG, JPEG-LS and JPEG 2000
_RLE, _DEFLATED = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"
_WITHOUT_END = frozenset((_RLE, _DEFLATED))  # their frames have one fragment each (PS3.5 A.4.2)
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SOF_LOSSLESS, _SOF_JPEG_LS = 0xC3, 0xF7
_BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a segment


@dataclass(frozen=True, slots=True)
class Request:
    """One frame to decode.

    Attributes
    ----------
    path, offset
        The file, and where the value of the encapsulated pixel data begins in it.
    syntax
        Transfer Syntax UID.
    index, frames
        Which frame, from 0, of how many.
    rows, columns, samples, allocated, stored, signed, planar, photometric
        The image pixel module.
    at, length
        Of this frame in the extended offset table and its lengths; -1 where there is none.
    room
        Bytes of the shared memory.
    """

    path: str
    offset: int
    syntax: str
    index: int
    frames: int
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    signed: bool
    planar: bool
    photometric: str
    at: int
    length: int
    room: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the decoded frame."""
        return (self.rows, self.columns) if self.samples == 1 else (self.rows, self.columns, self.samples)

    @property
    def dtype(self) -> str:
        """Of the decoded frame, as numpy names it."""
        return f"{'<' if self.allocated > 8 else '|'}{'i' if self.signed else 'u'}{self.allocated // 8}"

    @property
    def size(self) -> int:
        """Bytes of the decoded frame."""
        return self.rows * self.columns * self.samples * self.allocated // 8


class Refused(Exception):
    """The frame cannot be decoded.

    Parameters
    ----------
    kind
        ``unsupported``, ``unreadable`` (the file or its encapsulation), ``truncated`` (a frame is missing or of another
        size), ``refused`` (by the codec) or ``memory``.
    seen
        What was met, in words of this file: never a codec's, which may quote what the file holds.
    """

    def __init__(self, kind: str, seen: str) -> None:
        super().__init__(kind, seen)
        self.kind, self.seen = kind, seen


class Fragments:
    """The items of one file's encapsulated pixel data (PS3.5 A.4), walked once; headers are read, not the data."""

    def __init__(self, path: str, offset: int) -> None:
        # A pipe or a device would keep the opening or the reading waiting.
        self._descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._read(offset)
        except BaseException:
            self.close()
            raise

    def _read(self, offset: int) -> None:
        about = os.fstat(self._descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise Refused("unreadable", "it is not a file")
        self._size = about.st_size
        self.version = _version(about)
        items = self._walk(offset)
        if not items:
            raise Refused("unreadable", "the pixel data has no offset table")
        self._base = items[0][0] + items[0][1]
        table = os.pread(self._descriptor, items[0][1], items[0][0])
        self._table = [int.from_bytes(table[at : at + 4], "little") for at in range(0, len(table) // 4 * 4, 4)]
        self.items = items[1:]
        self._starts: list[int] | None = None
        self._number = {at - 8 - self._base: number for number, (at, _) in enumerate(self.items)}

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _walk(self, position: int) -> list[tuple[int, int]]:
        """Where the value of each item begins, and its length, up to the sequence delimiter or the end of the file."""
        items: list[tuple[int, int]] = []
        while position + 8 <= self._size:
            head = os.pread(self._descriptor, 8, position)
            if head[:4] == _SEQUENCE_END:
                return items
            length = int.from_bytes(head[4:], "little")
            if head[:4] != _ITEM:
                raise Refused("unreadable", f"no item begins at byte {position} of the encapsulated pixel data")
            if position + 8 + length > self._size:
                raise Refused("truncated", f"an item of {length} bytes at byte {position} of {self._size}")
            if len(items) == _MOST_FRAGMENTS:
                raise Refused("unreadable", f"more than {_MOST_FRAGMENTS} fragments")
            items.append((position + 8, length))
            position += 8 + length
        return items

    def frame(self, request: Request) -> bytes:
        """The bytes of one frame."""
        first, last = self._span(request)
        parts = [os.pread(self._descriptor, length, at) for at, length in self.items[first:last]]
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if request.at >= 0 and 0 < request.length <= len(data):
            return data[: request.length]
        return data

    def _span(self, request: Request) -> tuple[int, int]:
        """Which items hold the frame.

        The count decides where it can; a table is only asked where a frame may have several fragments, since old
        writers get the table wrong more often than the items.
        """
        count, frames, index = len(self.items), request.frames, request.index
        if not 0 <= index < frames or count < frames:
            raise Refused("truncated", f"frame {index + 1} of {frames} in {count} fragments")
        if frames == 1:
            return 0, count
        if count == frames:
            return index, index + 1
        if request.at in self._number:
            return self._number[request.at], self._number[request.at] + 1
        if self._starts is None:
            self._starts = self._by_table(frames) or self._by_ends(request)
        return self._starts[index], [*self._starts, count][index + 1]

    def _by_table(self, frames: int) -> list[int]:
        """The first item of each frame by the basic offset table; none where it does not fit the items."""
        starts = [self._number.get(at, 0) for at in self._table]
        whole = len(starts) == frames and starts[0] == 0 and all(a < b for a, b in pairwise(starts))
        return starts if whole else []

    def _by_ends(self, request: Request) -> list[int]:
        """The first item of each frame by which items end with an end of image."""
        ends = [number for number in range(len(self.items)) if _END_OF_IMAGE in self._tail(number)]
        if request.syntax in _WITHOUT_END or len(ends) != request.frames or ends[-1] != len(self.items) - 1:
            seen = f"{request.frames} frames in {len(self.items)} fragments without a usable offset table"
            raise Refused("truncated", seen)
        return [0, *(end + 1 for end in ends[:-1])]

    def _tail(self, number: int) -> bytes:
        at, length = self.items[number]
        return os.pread(self._descriptor, min(length, 3), at + max(length - 3, 0))


@dataclass(frozen=True, slots=True)
class _Coded:
    """What the head of a codestream declares."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool = False
    marker: int = 0
    ids: bytes = b""
    jfif: bool = False


def _jpeg_head(data: bytes) -> _Coded:
    """Of JPEG and JPEG-LS: the frame header (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    position, jfif = 2, False
    if data[:2] != b"\xff\xd8":
        raise Refused("refused", "the frame does not begin as JPEG")
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _BARE:
            position += 2
            continue
        length = int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : position + 2 + length]
        if marker in _SOF or marker == _SOF_JPEG_LS:
            if len(body) < 6 + 3 * body[5]:
                break
            rows, columns = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            ids = body[6 : 6 + 3 * body[5] : 3]
            return _Coded(rows, columns, body[5], body[0], marker=marker, ids=ids, jfif=jfif)
        jfif = jfif or (marker == 0xE0 and body.startswith(b"JFIF"))
        position += 2 + max(length, 2)
    raise Refused("refused", "the frame has no JPEG frame header")


def _j2k_stream(data: bytes) -> bytes:
    """The codestream alone: in a JP2 file, which some writers put in, boxes with palettes and profiles go before it."""
    if data[4:8] != b"jP  ":
        return data
    position = 0
    while position + 8 <= len(data):
        length, kind, head = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        if kind == b"jp2c":
            return data[position + head : position + length if length else None]
        if length < head:
            break
        position += length
    raise Refused("refused", "the JP2 file has no codestream")


def _j2k_head(data: bytes) -> _Coded:
    """Of JPEG 2000: the SIZ segment (ITU-T T.800 A.5.1)."""
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        raise Refused("refused", "the frame does not begin as JPEG 2000")
    right, lower, left, upper = (int.from_bytes(data[at : at + 4], "big") for at in (8, 12, 16, 20))
    samples = int.from_bytes(data[40:42], "big")
    components = {data[at : at + 3] for at in range(42, 42 + 3 * samples, 3)}
    if len(components) != 1 or len(component := components.pop()) < 3 or component[1:] != b"\x01\x01":
        raise Refused("unsupported", "JPEG 2000 components that differ in precision or are subsampled")
    return _Coded(lower - upper, right - left, samples, (component[0] & 127) + 1, signed=component[0] > 127)


def _check(request: Request, coded: _Coded) -> None:
    declared = (coded.rows, coded.columns, coded.samples)
    if declared != (request.rows, request.columns, request.samples) or coded.precision > request.allocated:
        seen = f"a codestream of {coded.rows} x {coded.columns} x {coded.samples} samples of {coded.precision} bits"
        raise Refused("truncated", seen)


def _check_end(data: bytes) -> None:
    """Refuse a codestream that breaks off: libjpeg fills up what is missing with grey and says nothing."""
    if _END_OF_IMAGE not in data[-64:] and _END_OF_IMAGE not in data.rstrip(b"\0")[-64:]:
        raise Refused("truncated", "the codestream has no end")


# ------------------------------------------------------------------------------------------------------------- codecs

# Each puts the stored values of a frame into the target and gives their colour space.
_Codec = Callable[[Any, Request, bytes, "NDArray[np.generic]"], str]


def _put(request: Request, decoded: NDArray[np.generic], target: NDArray[np.generic], precision: int, *,
         signed: bool) -> None:  # fmt: skip
    """Put what a codec gave into the target; the header's pixel representation says what its bits mean."""
    if decoded.shape != target.shape or decoded.dtype.kind not in "iu" or decoded.itemsize > target.itemsize:
        raise Refused("truncated", f"decoded pixels of shape {decoded.shape} and type {decoded.dtype.str}")
    target[...] = decoded
    above = 8 * target.itemsize - precision
    if above > 0 and signed != request.signed:
        # An arithmetic shift right of a signed type repeats the sign bit, of an unsigned one brings in zeros.
        target <<= above  # type: ignore[misc]
        target >>= above  # type: ignore[misc]


def _jpeg(codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    """JPEG of all processes: libjpeg-turbo, which does lossless ones too, and faster than the others here."""
    coded = _jpeg_head(data)
    _check(request, coded)
    _check_end(data)
    if coded.marker == _SOF_JPEG_LS:
        raise Refused("refused", "JPEG-LS under a transfer syntax of JPEG")
    space, options = request.photometric, {}
    if coded.samples == 3:
        # What the codestream says goes before the header, as pydicom has it: JFIF is always YCbCr (T.871).
        named = coded.ids in (b"RGB", b"rgb")
        mixed = not named and (coded.jfif or space.startswith("YBR"))
        if coded.marker == _SOF_LOSSLESS:
            options = {"colorspace": "RGB", "outcolorspace": "RGB"}  # lossless: libjpeg must not convert
        else:
            options = {"colorspace": "YCBCR" if mixed else "RGB", "outcolorspace": "RGB"}
            space = "RGB" if mixed or named else space
    _put(request, codecs.jpeg8_decode(data, **options), target, coded.precision, signed=False)
    return space


def _jpeg_ls(codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    coded = _jpeg_head(data)
    _check(request, coded)
    if coded.marker != _SOF_JPEG_LS:
        raise Refused("refused", "JPEG under a transfer syntax of JPEG-LS")
    _put(request, codecs.jpegls_decode(data), target, coded.precision, signed=False)
    return request.photometric


def _jpeg_2000(codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    """JPEG 2000, high throughput too: OpenJPH takes half the time for that, and fills up what is missing unasked."""
    stream = _j2k_stream(data)
    coded = _j2k_head(stream)
    _check(request, coded)
    _put(request, codecs.jpeg2k_decode(stream, numthreads=1), target, coded.precision, signed=coded.signed)
    return "RGB" if request.photometric in ("YBR_RCT", "YBR_ICT") else request.photometric


def _jpeg_xl(codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    """JPEG XL packs its head in bits; its size is checked after decoding, within the limit of memory."""
    decoded = codecs.jpegxl_decode(data, numthreads=1)
    _put(request, decoded, target, request.stored, signed=False)
    # libjxl gives RGB, whether the pixels were kept as XYB, as a JPEG's YCbCr or as RGB.
    return request.photometric if request.samples == 1 else "RGB"


def _rle(codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    """RLE (PS3.5 annex G): a segment for each byte of each sample, most significant first."""
    width = request.allocated // 8
    count = int.from_bytes(data[:4], "little")
    starts = [int.from_bytes(data[at : at + 4], "little") for at in range(4, 64, 4)][:count]
    if len(data) < 64 or count != width * request.samples or len(starts) != count:
        raise Refused("truncated", f"{count} RLE segments for {request.samples} samples of {width} bytes")
    ends = [*starts[1:], len(data)]
    if starts[0] != 64 or any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise Refused("refused", "the RLE segments do not follow each other")
    if request.samples == 1:
        _rle_plane(codecs, request, data, target.data.cast("B"))
        return request.photometric
    for sample in range(request.samples):
        # One sample at a time: a byte of padding at the end of a segment must not move the next sample's.
        own = starts[sample * width : (sample + 1) * width]
        table = [width, *(start - own[0] + 64 for start in own)]
        head = b"".join(number.to_bytes(4, "little") for number in table).ljust(64, b"\0")
        plane = target[..., sample].copy()
        _rle_plane(codecs, request, head + data[own[0] : ends[(sample + 1) * width - 1]], plane.data.cast("B"))
        target[..., sample] = plane
    return request.photometric


def _rle_plane(codecs: Any, request: Request, data: bytes, out: memoryview) -> None:
    decoded = codecs.dicomrle_decode(data, f"<u{request.allocated // 8}", out=out)
    if len(decoded) != len(out):
        raise Refused("truncated", f"{len(decoded)} bytes in RLE segments for {len(out)}")


def _deflated(_codecs: Any, request: Request, data: bytes, target: NDArray[np.generic]) -> str:
    """Deflated Image Frame Compression (PS3.5 A.4.13): raw deflate of the native frame."""
    inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, request.size + 2)
    if not request.size <= len(inflated) <= request.size + 1:  # one byte may pad it to an even length
        raise Refused("truncated", f"{len(inflated)} inflated bytes for {request.size}")
    if request.samples > 1 and request.planar:
        planes = target.transpose(2, 0, 1).copy()
        planes.data.cast("B")[:] = inflated[: request.size]
        target[...] = planes.transpose(1, 2, 0)
    else:
        target.data.cast("B")[:] = inflated[: request.size]
    return request.photometric


_J = "1.2.840.10008.1.2.4."
CODECS: dict[str, _Codec] = {
    _RLE: _rle,
    _DEFLATED: _deflated,
    **dict.fromkeys((f"{_J}50", f"{_J}51", f"{_J}57", f"{_J}70"), _jpeg),
    **dict.fromkeys((f"{_J}80", f"{_J}81"), _jpeg_ls),
    **dict.fromkeys((f"{_J}90", f"{_J}91", f"{_J}92", f"{_J}93"), _jpeg_2000),
    **dict.fromkeys((f"{_J}201", f"{_J}202", f"{_J}203"), _jpeg_2000),
    **dict.fromkeys((f"{_J}110", f"{_J}111", f"{_J}112"), _jpeg_xl),
}


class _Worker:
    """Decodes one frame after another into the shared memory."""

    def __init__(self, descriptor: int) -> None:
        import imagecodecs
        import numpy

        self._codecs, self._array = imagecodecs, numpy.ndarray
        self._descriptor = descriptor
        self._shared = mmap.mmap(-1, 1)
        self._fragments: Fragments | None = None
        self._source = ("", 0)

    def answer(self, request: Request) -> dict[str, object]:
        """Decode a frame; what goes back to the parent about it."""
        seconds = _SECONDS + _SECONDS_EACH_MILLION * request.rows * request.columns * request.samples / 1e6
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            if len(self._shared) != request.room:
                self._shared = mmap.mmap(self._descriptor, request.room)
            target = self._array(request.shape, request.dtype, buffer=self._shared)
            colour = CODECS[request.syntax](self._codecs, request, self._open(request).frame(request), target)
        except Refused as refused:
            return {"error": refused.kind, "seen": refused.seen}
        except MemoryError:
            return {"error": "memory", "seen": f"more than {_MEMORY >> 20} MiB are needed"}
        except ImportError:
            return {"error": "unsupported", "seen": f"imagecodecs has no codec for {request.syntax} here"}
        except OSError as error:
            return {"error": "unreadable", "seen": f"it cannot be read ({error.strerror})"}
        except Exception as error:  # noqa: BLE001 - each codec raises its own; all of it means one thing here
            return {"error": "refused", "seen": f"the codec refuses the frame ({type(error).__name__})"}
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return {"dtype": request.dtype, "shape": request.shape, "colour": colour}

    def _open(self, request: Request) -> Fragments:
        """The fragments of the file, kept for its next frame."""
        source = (request.path, request.offset)
        if self._fragments is not None:
            if self._source == source and self._fragments.version == _version(Path(request.path).stat()):
                return self._fragments
            self._fragments.close()
            self._fragments = None
        self._fragments, self._source = Fragments(*source), source
        return self._fragments


def _version(about: os.stat_result) -> tuple[int, ...]:
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)


def _confine() -> int:
    """Take the limits on, and stdout away from whatever prints in a library; gives where the answers go."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end closes stdin
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # an ignored or blocked signal would be inherited
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core would hold a patient's image
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    answers = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return answers


def main(descriptor: int, folders: list[str]) -> None:
    """Answer requests until stdin ends; see the module for the descriptor and the folders."""
    answers = _confine()
    sys.path += folders
    worker = _Worker(descriptor)
    with contextlib.suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            answer = worker.answer(Request(**json.loads(line)))
            os.write(answers, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
