"""The walk over a header finds what pydicom finds, and no bytes make it run long, allocate much or guess."""

from __future__ import annotations

import io
import struct
import tempfile
import warnings
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from imaging.dicom.header import UNDEFINED, Header, read_header, read_inflated
from imaging.errors import ImagingError

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
PIXELS = bytes(range(64))

texts = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="\\"), max_size=40)
binary = st.binary(max_size=60).map(lambda value: value + bytes(len(value) % 2))
# Values of VRs with a short and with a long length; each under a private tag of its own or a public one.
VALUES = {
    "LO": texts, "UT": texts, "ST": texts, "SH": texts.map(lambda text: text[:16]), "OB": binary, "UN": binary,
    "US": st.integers(0, 65535), "SS": st.integers(-32768, 32767), "UL": st.integers(0, 2**32 - 1),
    "FD": st.floats(allow_nan=False), "FL": st.floats(width=32, allow_nan=False), "IS": st.integers(-1000, 1000),
    "UI": st.sampled_from(["1.2.3", "1.2.840.10008.1.2", ""]), "AT": st.integers(0, 2**32 - 1),
}  # fmt: skip


@st.composite
def data_sets(draw: st.DrawFn, depth: int = 0) -> Dataset:
    """A data set of odd groups between 0009 and 6FFF, so that no dictionary says what a tag must be."""
    dataset = Dataset()
    groups = st.sampled_from([0x0009, 0x0019, 0x0029, 0x5FFF, 0x6FFF])
    for tag in draw(st.sets(groups.map(lambda group: group << 16 | 0x1001), max_size=5 - depth)):
        if depth < 3 and draw(st.integers(0, 2)) == 0:
            sequence = Sequence(draw(st.lists(data_sets(depth + 1), max_size=2)))
            for item in sequence:
                item.is_undefined_length_sequence_item = draw(st.booleans())
            element = DataElement(tag, "SQ", sequence)
            element.is_undefined_length = draw(st.booleans())
        else:
            vr = draw(st.sampled_from(sorted(VALUES)))
            element = DataElement(tag, vr, draw(VALUES[vr]))
        dataset.add(element)
    return dataset


def written(dataset: Dataset, syntax: str) -> bytes:
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3"), UID("1.2.4")
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def read(content: bytes, wanted: frozenset[int] = frozenset()) -> Header:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return read_header(path, wanted)


def refusal(content: bytes) -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        read(content)
    return caught.value


# Data sets this nested take minutes to shrink, and the smallest failing one is rarely clearer.
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)


@settings(max_examples=80, deadline=None, phases=UNSHRUNK)
@given(dataset=data_sets(), syntax=st.sampled_from(SYNTAXES), preamble=st.booleans())
def test_the_walk_finds_what_pydicom_finds(dataset: Dataset, syntax: str, preamble: bool) -> None:
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.add_new(0x7FE00010, "OW", PIXELS)
    content = written(dataset, syntax)
    theirs = pydicom.dcmread(io.BytesIO(content))
    tags = frozenset(map(int, theirs.keys()))
    header = read(content if preamble else content[132:], tags)
    assert (header.transfer_syntax, header.has_meta) == (syntax, True)
    assert header.little_endian == (syntax != ExplicitVRBigEndian)
    simple = {int(tag) for tag in tags - {0x7FE00010} if theirs[tag].VR != "SQ"}
    raw = pydicom.dcmread(io.BytesIO(content))
    # What pydicom reads at once, for the rest depends on it.
    assert header.values[0x00080005] == b"ISO_IR 192"
    for tag in simple - {0x00080005}:
        element = raw.get_item(tag)
        assert element is not None
        assert isinstance(element, RawDataElement) or element.is_empty
        assert header.values[tag] == (element.value or b""), f"{tag:08X}"
    assert {tag for tag in header.values if tag >> 16 != 2} == tags - {0x7FE00010}
    assert (header.pixel_tag, header.pixel_length) == (0x7FE00010, len(PIXELS))
    if syntax != DeflatedExplicitVRLittleEndian:
        where = content if preamble else content[132:]
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            path.write_bytes(content)
            where = read_inflated(path)
    assert header.size == len(where)
    assert where[header.pixel_offset : header.pixel_offset + len(PIXELS)] == PIXELS


@settings(max_examples=60, deadline=None, phases=UNSHRUNK)
@given(dataset=data_sets(), syntax=st.sampled_from(SYNTAXES), position=st.floats(0, 1), damage=st.binary(max_size=6))
def test_damaged_bytes_are_walked_or_refused_by_name(
    dataset: Dataset, syntax: str, position: float, damage: bytes
) -> None:
    dataset.add_new(0x7FE00010, "OW", PIXELS)
    content = bytearray(written(dataset, syntax))
    at = int(position * (len(content) - 1))
    content[at : at + len(damage)] = damage
    try:
        header = read(bytes(content))
    except ImagingError as error:
        assert error.code in {"unreadable_dicom", "not_dicom", "unsupported_transfer_syntax"}
    else:
        assert header.pixel_tag == 0 or header.pixel_offset <= header.size


def test_encapsulated_pixels_have_no_length_of_their_own() -> None:
    dataset = Dataset()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 4, 4, 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PixelData = np.arange(16, dtype="<u2").tobytes()
    dataset.compress(RLELossless, generate_instance_uid=False)
    content = written(dataset, RLELossless)
    header = read(content)
    assert header.pixel_length == UNDEFINED
    # The basic offset table's item comes first.
    assert content[header.pixel_offset :][:4] == b"\xfe\xff\x00\xe0"


def element(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """An element in Explicit VR Little Endian, perhaps with a length that lies."""
    size = len(value) if length is None else length
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr)
    is_long = vr in {b"OB", b"OW", b"SQ", b"UN", b"UT"}
    return head + (struct.pack("<HI", 0, size) if is_long else struct.pack("<H", size)) + value


def file_of(body: bytes, syntax: str = ExplicitVRLittleEndian) -> bytes:
    uid = syntax.encode() + bytes(len(syntax) % 2)
    return bytes(128) + b"DICM" + element(0x00020010, b"UI", uid) + body


FIRST = element(0x00080005, b"CS", b"ISO_IR 192")
ITEM = b"\xfe\xff\x00\xe0" + struct.pack("<I", UNDEFINED)


@pytest.mark.parametrize(
    "body",
    [
        FIRST + element(0x00091001, b"OB", b"ab", 2**31),
        FIRST + element(0x00091001, b"LO", b"ab", 600),
        FIRST + b"\x09\x00\x01\x10??\0\0",
        FIRST + element(0x00091001, b"SQ", b"", UNDEFINED) + ITEM,
        FIRST + element(0x00091001, b"SQ", b"\xfe\xff\x00\xe0" + struct.pack("<I", 2**31), UNDEFINED),
        FIRST + element(0x00091001, b"SQ", b"not an item", UNDEFINED),
        FIRST + (element(0x00091001, b"SQ", b"", UNDEFINED) + ITEM) * 20_000,
        FIRST + b"\x09\x00",
    ],
    ids=[
        "huge", "past_the_end", "no_vr", "item_without_end", "huge_item", "no_item", "nested_deep", "half_a_tag",
    ],
)  # fmt: skip
def test_a_header_that_lies_is_unreadable(body: bytes) -> None:
    assert refusal(file_of(body)).code == "unreadable_dicom"


def test_a_million_empty_elements_are_too_many() -> None:
    body = FIRST + element(0x00091001, b"LO", b"") * 1_000_000
    assert "more than" in refusal(file_of(body)).seen


def test_a_deflated_bomb_is_not_inflated_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imaging.dicom.header._LARGEST_INFLATED", 2**20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = packer.compress(FIRST + element(0x00091001, b"OB", bytes(2**26))) + packer.flush()
    error = refusal(file_of(bomb, DeflatedExplicitVRLittleEndian))
    assert error.code == "unreadable_dicom"
    assert "larger than" in error.seen


def test_a_private_syntax_that_cannot_be_walked_is_unsupported() -> None:
    assert (
        refusal(file_of(b"anything at all, but no element", "1.2.840.113619.5.2")).code == "unsupported_transfer_syntax"
    )


@pytest.mark.parametrize(
    ("syntax", "explicit"),
    [(ExplicitVRLittleEndian, True), (ImplicitVRLittleEndian, False), (ExplicitVRBigEndian, True)],
)
def test_a_bare_data_set_is_told_by_its_first_element(syntax: str, explicit: bool) -> None:
    dataset = Dataset()
    dataset.SpecificCharacterSet, dataset.Rows = "ISO_IR 192", 258
    stream = io.BytesIO()
    little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(stream, dataset, implicit_vr=not explicit, little_endian=little)
    header = read(stream.getvalue(), frozenset({0x00280010}))
    assert (header.transfer_syntax, header.little_endian, header.has_meta) == (syntax, little, False)
    assert header.values[0x00280010] == (b"\x02\x01" if little else b"\x01\x02")


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (b"", "empty"),
        (b"hello", "text"),
        (b"PK\x03\x04\0\0\0\0\0", "ZIP"),
        (b"\x1f\x8b\0\0", "gzip"),
        (bytes(500), "DICM"),
    ],
)
def test_what_is_no_dicom_is_named(content: bytes, seen: str) -> None:
    error = refusal(content)
    assert error.code == "not_dicom"
    assert seen in error.seen


def test_a_folder_and_an_absent_file_are_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ImagingError) as caught:
            read_header(path, frozenset())
        assert caught.value.code == "unreadable_dicom"
