"""One frame of a file -> its samples as stored: read or decoded, only the stored bits, in one order.

Invariant: what leaves here has the rows, columns and samples that the header declares, or is refused by name; native
pixels are read from where they lie in the file, without a data set being built.

Shapes: ``grey_YX`` (rows, columns); ``colour_YXC`` (rows, columns, 3) in red, green and blue.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_color_lut, convert_color_space
from pydicom.uid import UID

from imaging.dicom.codecs import CODECS
from imaging.dicom.decoder import LARGEST_FRAME, EncapsulatedFrame, decode_frame
from imaging.dicom.frames import Slice, quietly, read_dataset
from imaging.dicom.header import (
    DEFLATED,
    EXPLICIT_BE,
    EXPLICIT_LE,
    IMPLICIT_LE,
    INFLATING,
    UNDEFINED,
    read_inflated,
    version_of,
)
from imaging.dicom.stack import GREY
from imaging.errors import (
    ColourImage,
    ImagingError,
    TruncatedPixels,
    UndecodablePixels,
    UnreadableDicom,
    UnsupportedPixels,
    UnsupportedTransferSyntax,
)

Samples = NDArray[np.generic]

_NATIVE = frozenset((IMPLICIT_LE, EXPLICIT_LE, EXPLICIT_BE, DEFLATED))
PIXEL_DATA, _FLOAT, _DOUBLE = 0x7FE00010, 0x7FE00008, 0x7FE00009
# RLE, deflated frames, and JPEG, JPEG-LS, JPEG 2000, HTJ2K and JPEG XL where they lose nothing (PS3.6 annex A).
_LOSSLESS = frozenset(
    f"1.2.840.10008.1.2.{part}" for part in ("5", "8.1", "4.57", "4.70", "4.80", "4.90", "4.201", "4.202", "4.110")
)
_COLOUR = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR"))


def check_stored(item: Slice) -> None:
    """Refuse what the header alone shows to be unreadable, before anything is allocated for it.

    Raises
    ------
    UnsupportedPixels, UnsupportedTransferSyntax, ColourImage
        If the pixels are stored in a way that is not read.
    UnreadableDicom, TruncatedPixels
        If the header contradicts itself or the file.
    """
    instance, pixels = item.instance, item.instance.pixels
    bits = _bits(item)
    if bits not in (8, 16, 32, 64):
        raise UnsupportedPixels(instance.path, seen=f"{bits} bits allocated")
    if not 0 < pixels.bits_stored <= pixels.high_bit + 1 <= bits and pixels.tag == PIXEL_DATA:
        seen = f"{pixels.bits_stored} bits stored up to bit {pixels.high_bit} in {bits} allocated"
        raise UnreadableDicom(instance.path, seen=seen)
    if instance.photometric not in GREY and instance.photometric not in _COLOUR:
        known = "an unknown" if instance.photometric else "no"
        raise ColourImage(instance.path, seen=f"{known} Photometric Interpretation")
    if pixels.samples != (3 if instance.photometric in _COLOUR and instance.photometric != "PALETTE COLOR" else 1):
        raise UnreadableDicom(instance.path, seen=f"{pixels.samples} samples a pixel in {instance.photometric}")
    if instance.photometric == "YBR_FULL_422" and instance.columns % 2:
        raise UnreadableDicom(instance.path, seen=f"YBR_FULL_422 with {instance.columns} columns")
    if pixels.transfer_syntax not in _NATIVE:
        if pixels.transfer_syntax not in CODECS:
            raise UnsupportedTransferSyntax(instance.path, seen=f"there is no decoder for {pixels.transfer_syntax}")
        size = instance.rows * instance.columns * pixels.samples * bits // 8
        if size > LARGEST_FRAME:
            raise UndecodablePixels(
                instance.path, seen=f"a compressed frame of {size} bytes", expected=f"at most {LARGEST_FRAME} may be"
            )
        if pixels.length != UNDEFINED:
            raise UnreadableDicom(instance.path, seen="compressed pixels that are not encapsulated")
        return
    if pixels.length == UNDEFINED:
        name = UID(pixels.transfer_syntax).name
        raise UnsupportedTransferSyntax(instance.path, seen=f"encapsulated pixels under {name}")
    expected = instance.rows * instance.columns * instance.frames * _stored_samples(item) * bits // 8
    # PS3.5 section 8.1.1: an odd length is padded by one byte.
    if pixels.length not in (expected, expected + (expected & 1)) or pixels.offset + expected > pixels.file_size:
        seen = f"{min(pixels.length, pixels.file_size - pixels.offset)} bytes of pixel data"
        raise TruncatedPixels(instance.path, seen=seen, expected=f"{expected} were expected")


def _bits(item: Slice) -> int:
    pixels = item.instance.pixels
    return {_FLOAT: 32, _DOUBLE: 64}.get(pixels.tag, pixels.bits_allocated)


def _stored_samples(item: Slice) -> int:
    """Samples a pixel as they lie in the file: of YBR_FULL_422 two share their colour (PS3.3 C.7.6.3.1.2)."""
    return 2 if item.instance.photometric == "YBR_FULL_422" else item.instance.pixels.samples


class InflatedFile:
    """The deflated file that was asked for last, inflated; one for all threads, for it may be large."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._path: Path | None = None
        self._content = b""

    def content(self, path: Path) -> bytes:
        """The data set of a file; it is inflated for its first frame and kept for the next."""
        with self._lock:
            if self._path != path:
                self._path, self._content = None, b""
                with INFLATING:
                    self._content = read_inflated(path)
                self._path = path
            return self._content


class FrameReader:
    """Reads frames into memory that it uses again for the next one; each thread has its own.

    Parameters
    ----------
    inflated
        What threads that read the same files share.
    """

    def __init__(self, inflated: InflatedFile | None = None) -> None:
        self._scratch: dict[tuple[str, int], NDArray[np.uint8]] = {}
        self._inflated = inflated or InflatedFile()

    def __call__(self, item: Slice) -> Samples:
        """The samples of one frame, valid until the next call.

        Raises
        ------
        InputRefused
            By the name of what keeps the frame from being read.
        """
        pixels = item.instance.pixels
        if pixels.transfer_syntax not in _NATIVE:
            samples, space = self._compressed(item)
        else:
            samples, space = self._native(item), item.instance.photometric
        return samples if samples.ndim == 2 and space in GREY else _red_green_blue(samples, space, item)

    def _native(self, item: Slice) -> Samples:
        instance, pixels = item.instance, item.instance.pixels
        dtype = _stored_type(item)
        count = instance.rows * instance.columns * _stored_samples(item)
        raw = self._bytes("native", count * dtype.itemsize)
        offset = pixels.offset + (item.number - 1) * raw.nbytes
        if pixels.transfer_syntax == DEFLATED:
            read = self._from_inflated(item, raw, offset)
        elif dtype.itemsize == 1 and pixels.in_words and not pixels.little_endian:
            read = _from_words(item, raw, offset)
        else:
            read = _from_file(item, raw, offset)
        if read != raw.nbytes:
            raise TruncatedPixels(
                instance.path, seen=f"{read} bytes of a frame", expected=f"{raw.nbytes} were expected"
            )
        samples = raw.view(dtype)
        if pixels.tag == PIXEL_DATA:
            _keep_stored_bits(samples, item)
        return self._arranged(samples, item)

    def _from_inflated(self, item: Slice, raw: NDArray[np.uint8], offset: int) -> int:
        content = self._inflated.content(item.instance.path)[offset : offset + raw.nbytes]
        raw[: len(content)] = np.frombuffer(content, np.uint8)
        return len(content)

    def _arranged(self, samples: Samples, item: Slice) -> Samples:
        """Native samples as (rows, columns) or (rows, columns, 3), by Planar Configuration."""
        instance = item.instance
        if instance.photometric == "YBR_FULL_422":
            # PS3.3 C.7.6.3.1.2: two luminances, then the blue and the red difference that both share.
            pairs = samples.reshape(-1, 4)
            full = np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1)
            return full.reshape(instance.rows, instance.columns, 3)
        if instance.pixels.samples == 1:
            return samples.reshape(instance.rows, instance.columns)
        if instance.pixels.planar:
            return np.moveaxis(samples.reshape(3, instance.rows, instance.columns), 0, 2)
        return samples.reshape(instance.rows, instance.columns, 3)

    def _bytes(self, use: str, count: int) -> NDArray[np.uint8]:
        key = (use, count)
        if key not in self._scratch:
            self._scratch = {key: np.empty(count, np.uint8)}
        return self._scratch[key]

    def _compressed(self, item: Slice) -> tuple[Samples, str]:
        """A compressed frame, and what its samples mean now that it is decoded."""
        instance, pixels = item.instance, item.instance.pixels
        offsets, lengths = pixels.offset_table or (b"", b"")
        frame = EncapsulatedFrame(
            path=instance.path,
            offset=pixels.offset,
            transfer_syntax=pixels.transfer_syntax,
            rows=instance.rows,
            columns=instance.columns,
            bits_allocated=pixels.bits_allocated,
            bits_stored=pixels.bits_stored,
            signed=pixels.signed,
            photometric=instance.photometric,
            samples=pixels.samples,
            planar=pixels.planar,
            index=item.number - 1,
            frames=instance.frames,
            extended_offsets=offsets,
            extended_lengths=lengths,
        )
        try:
            _check_version(instance.path.stat(), item)
        except OSError as error:
            raise UnreadableDicom(instance.path, seen=f"gone since it was scanned ({error.strerror})") from error
        dtype = _stored_type(item)
        shape = (instance.rows, instance.columns, *([pixels.samples] if pixels.samples > 1 else []))
        scratch = self._bytes("decoded", math.prod(shape) * dtype.itemsize).view(dtype).reshape(shape)
        decoded = decode_frame(frame, scratch)
        # Where nothing is lost the bits are those of a native file; a lossy codec may overshoot the stored bits.
        if pixels.transfer_syntax in _LOSSLESS or pixels.signed:
            _keep_stored_bits(decoded.array, item)
        return decoded.array, decoded.photometric


def _copied(content: bytes, offset: int, raw: NDArray[np.uint8]) -> int:
    part = content[offset : offset + raw.nbytes]
    raw[: len(part)] = np.frombuffer(part, np.uint8)
    return len(part)


def _from_file(item: Slice, raw: NDArray[np.uint8], offset: int) -> int:
    path = item.instance.path
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _check_version(os.fstat(descriptor), item)
            return os.preadv(descriptor, [raw.data], offset)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnreadableDicom(path, seen=f"gone since it was scanned ({error.strerror})") from error


def _check_version(about: os.stat_result, item: Slice) -> None:
    """Offsets and scale are those of the scan; of another file they would make another picture."""
    if version_of(about) != item.instance.version:
        raise UnreadableDicom(item.instance.path, seen="was written again since it was scanned")


def _from_words(item: Slice, raw: NDArray[np.uint8], offset: int) -> int:
    """Samples of 8 bits in big-endian words of 16: the first of each two lies second (PS3.5 section 8.1.1, A.3)."""
    skipped = (offset - item.instance.pixels.offset) % 2  # a frame may begin in the middle of a word
    with item.instance.path.open("rb") as stream:
        stream.seek(offset - skipped)
        words = np.frombuffer(stream.read((skipped + raw.nbytes + 1) // 2 * 2), np.uint8)
    part = words[: words.size // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)[skipped : skipped + raw.nbytes]
    raw[: part.size] = part
    return part.size


def _stored_type(item: Slice) -> np.dtype[np.generic]:
    pixels = item.instance.pixels
    order = "<" if pixels.little_endian else ">"
    if pixels.tag in (_FLOAT, _DOUBLE):
        return np.dtype(f"{order}f{4 if pixels.tag == _FLOAT else 8}")
    return np.dtype(f"{order}{'i' if pixels.signed else 'u'}{pixels.bits_allocated // 8}")


def _keep_stored_bits(samples: Samples, item: Slice) -> None:
    """Take out what lies above High Bit and below the stored bits (old overlays), and carry the sign up, in place."""
    pixels = item.instance.pixels
    above = pixels.bits_allocated - 1 - pixels.high_bit
    below = pixels.high_bit + 1 - pixels.bits_stored
    if above or below:
        # An arithmetic shift right of a signed type repeats the sign bit, of an unsigned one brings in zeros.
        np.left_shift(samples, above, out=samples)
        np.right_shift(samples, above + below, out=samples)


def _red_green_blue(samples: Samples, space: str, item: Slice) -> Samples:
    """Colour samples in RGB (PS3.3 C.7.6.3.1.2), palettes looked up (C.7.6.3.1.5, C.7.9)."""
    if space == "RGB":
        return samples
    try:
        if space == "PALETTE COLOR":
            with quietly():
                return np.asarray(apply_color_lut(samples, read_dataset(item.instance)))[..., :3]
        return np.asarray(convert_color_space(samples, "YBR_FULL", "RGB"))
    except ImagingError:
        raise
    except Exception as error:  # pydicom raises whatever a malformed palette leads it to; here it means one thing
        seen = f"{space} cannot be turned into red, green and blue ({type(error).__name__})"
        raise UndecodablePixels(item.instance.path, seen=seen) from error
