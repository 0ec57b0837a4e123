"""The file of a DICOM Segmentation, frame by frame, there and back.

Invariant: the bytes are those that highdicom would write of the whole mask, but neither the frames nor their functional
groups are ever in memory together: of a large study they are more than the study itself.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.charset import default_encoding
from pydicom.dataelem import RawDataElement
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_sequence_item
from pydicom.filewriter import write_sequence_item

# PS3.5 7.1.2: the length of a value is a 32-bit number, and all bits are for a length that is not told.
LONGEST = 2**32 - 2
_GROUPS, _PIXELS = 0x52009230, 0x7FE00010
# A frame's segment is told in two places, which are empty where there is but one segment or a label map.
_SEGMENT = "SegmentIdentificationSequence"
# Elements above this are left in the file until they are wanted.
_LARGE = 1 << 16

# Segment (0 in a label map, whose frames hold all of them) and slice of a frame.
Place = tuple[int, int]


def pixel_bytes(header: pydicom.Dataset, frames: int) -> int:
    """How long so many frames are, packed as a header says, in bytes; even, as PS3.5 wants it."""
    whole = -(-frames * int(header.Rows) * int(header.Columns) * int(header.BitsAllocated) // 8)
    return whole + whole % 2


def write_frames(
    stream: BinaryIO,
    header: pydicom.Dataset,
    groups: Mapping[int, pydicom.Dataset],
    places: Sequence[Place],
    frame: Callable[[Place], NDArray[np.uint8]],
) -> None:
    """Write a Segmentation, explicit VR little endian, uncompressed.

    Parameters
    ----------
    stream
        At its beginning.
    header
        All but its frames; what it has of them is taken out.
    groups
        For each slice its item of the Per-Frame Functional Groups, of any segment.
    places
        Of the frames, in their order.
    frame
        Gives the pixels (rows, columns) of a frame: 0 and 1, or in a label map numbers of segments.
    """
    for tag in (_GROUPS, _PIXELS):
        header.pop(tag, None)
    header.NumberOfFrames = len(places)
    header.save_as(stream)
    # A group is as long whichever segment it names, for numbers have one length.
    lengths = {z: len(_encoded(group, 1)) for z, group in groups.items()}
    stream.write(_element(_GROUPS, b"SQ", sum(lengths[z] for _, z in places)))
    for segment, z in places:
        stream.write(_encoded(groups[z], segment))
    length = pixel_bytes(header, len(places))
    packed = header.BitsAllocated == 1
    stream.write(_element(_PIXELS, b"OB" if header.BitsAllocated <= 8 else b"OW", length))
    begun = stream.tell()
    frames = (frame(place) for place in places)
    for part in _packed(frames) if packed else (pixels.tobytes() for pixels in frames):
        stream.write(part)
    stream.write(bytes(begun + length - stream.tell()))


def _element(tag: int, vr: bytes, length: int) -> bytes:
    """The head of an element with a long value (PS3.5 7.1.2)."""
    return struct.pack("<HH2sHL", tag >> 16, tag & 0xFFFF, vr, 0, length)


def _encoded(group: pydicom.Dataset, segment: int) -> bytes:
    """An item of the Per-Frame Functional Groups, for another segment."""
    if _SEGMENT in group:
        group[_SEGMENT].value[0].ReferencedSegmentNumber = segment
        content = group.FrameContentSequence[0]
        content.DimensionIndexValues = [segment, *content.DimensionIndexValues[1:]]
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_sequence_item(buffer, group, [default_encoding])
    return buffer.getvalue()


def _packed(frames: Iterable[NDArray[np.uint8]]) -> Iterator[bytes]:
    """Eight pixels a byte, the first in its lowest bit; frames follow each other without a gap (PS3.5 8.1.1)."""
    left = np.empty(0, dtype=np.uint8)
    for pixels in frames:
        bits = np.concatenate([left, pixels.ravel()])
        whole = len(bits) // 8 * 8
        yield np.packbits(bits[:whole], bitorder="little").tobytes()
        left = bits[whole:]
    if len(left):
        yield np.packbits(left, bitorder="little").tobytes()


def read_frames(
    stream: BinaryIO,
) -> tuple[pydicom.Dataset, Iterator[tuple[NDArray[np.integer], pydicom.Dataset]]]:
    """Read a Segmentation.

    Returns
    -------
    header : Dataset
        Without its pixels; its Per-Frame Functional Groups stay in the file.
    frames : iterator
        The pixels (rows, columns) of each frame with its functional groups; read while it is asked for more.
    """
    stream.seek(0)
    header = pydicom.dcmread(stream, stop_before_pixels=True, defer_size=_LARGE)
    pixels = stream.tell() + len(_element(_PIXELS, b"OB", 0))
    groups: object = header.get_item(_GROUPS, keep_deferred=True)
    assert isinstance(groups, RawDataElement)
    count = int(header.NumberOfFrames)
    frames = (_frame(stream, header, pixels, number) for number in range(count))
    return header, zip(frames, _items(stream, groups.value_tell, count), strict=True)


def _frame(stream: BinaryIO, header: pydicom.Dataset, at: int, number: int) -> NDArray[np.uint8]:
    """The pixels (rows, columns) of a frame, which may begin and end within a byte."""
    shape, bits = (int(header.Rows), int(header.Columns)), int(header.BitsAllocated)
    first = number * shape[0] * shape[1] * bits
    end = first + shape[0] * shape[1] * bits
    stream.seek(at + first // 8)
    found = np.frombuffer(stream.read(-(-end // 8) - first // 8), dtype=np.uint8)
    if bits == 1:
        found = np.unpackbits(found, bitorder="little")[first % 8 : first % 8 + end - first]
    return found.reshape(shape)


def _items(stream: BinaryIO, at: int, count: int) -> Iterator[pydicom.Dataset]:
    """Items of a sequence that begins somewhere in a file, others of which are read between them."""
    for _ in range(count):
        stream.seek(at)
        item = read_sequence_item(stream, False, True, default_encoding)
        assert item is not None
        at = stream.tell()
        yield item
