"""Compressed frames decode as pydicom decodes them, and what a codec does to its process stays there."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import zlib
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from encapsulated import (
    DEFLATED,
    HTJ2K,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    JPEG_XL,
    LOSSLESS_JPEG,
    RLE,
    as_coded,
    encode,
    file_of,
    item,
    picture,
    wrap,
)
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import pixel_array

from imaging.dicom.decoder import EncapsulatedFrame, decode_frame
from imaging.dicom.header import read_header
from imaging.errors import (
    ImagingError,
    TruncatedPixels,
    UndecodablePixels,
    UnreadableDicom,
    UnsupportedPixels,
    UnsupportedTransferSyntax,
)

# The delimiter that was put into this one lies in the codestream's own header: no decoder reads it.
BROKEN = "JPEG2000-embedded-sequence-delimiter.dcm"
# Its data set is not written as its meta header says; the reader of headers refuses it.
UNREADABLE = "SC_rgb_jpeg.dcm"


def _compressed_files() -> list[Path]:
    roots = [Path(pydicom.data.__file__).parent / "test_files"]
    spec = importlib.util.find_spec("data_store")  # the module of the package pydicom-data
    if spec is not None and spec.origin:
        roots.append(Path(spec.origin).parent)
    found = []
    for path in sorted(path for root in roots for path in root.rglob("*.dcm")):
        with path.open("rb") as file:
            head = file.read(2048)
        if b"1.2.840.10008.1.2.4." in head or RLE.encode() + b"\0" in head:
            found.append(path)
    return [path for path in found if path.name not in (BROKEN, UNREADABLE)]


def _frame_of(path: Path, dataset: pydicom.Dataset, index: int = 0) -> EncapsulatedFrame:
    return EncapsulatedFrame(
        path,
        read_header(path, set()).pixel_offset,
        str(dataset.file_meta.TransferSyntaxUID),
        rows=dataset.Rows,
        columns=dataset.Columns,
        bits_allocated=dataset.BitsAllocated,
        bits_stored=dataset.BitsStored,
        signed=dataset.PixelRepresentation == 1,
        photometric=dataset.PhotometricInterpretation,
        samples=dataset.SamplesPerPixel,
        planar=dataset.get("PlanarConfiguration", 0) == 1,
        index=index,
        frames=int(dataset.get("NumberOfFrames", 1)),
        extended_offsets=dataset.get("ExtendedOffsetTable", b""),
        extended_lengths=dataset.get("ExtendedOffsetTableLengths", b""),
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", _compressed_files(), ids=lambda path: path.name)
def test_pydicom_s_own_files_decode_as_pydicom_decodes_them(path: Path) -> None:
    logging.disable(logging.CRITICAL)
    try:
        dataset = pydicom.dcmread(path, defer_size=1024)
        if "Rows" not in dataset or not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            pytest.skip("no compressed image")
        frames = int(dataset.get("NumberOfFrames", 1))
        for index in {0, frames - 1}:
            decoded = decode_frame(_frame_of(path, dataset, index))
            try:
                expected = pixel_array(path, index=index, raw=dataset.SamplesPerPixel == 1)
            except RuntimeError:
                pytest.skip("pydicom has no decoder for it here")
            lossy = str(dataset.file_meta.TransferSyntaxUID) in (JPEG, JPEG[:-2] + "51", JPEG_2000[:-1] + "1")
            assert decoded.array.shape == expected.shape
            assert np.abs(decoded.array.astype(np.int64) - expected).max() <= (2 if lossy else 0)
            if dataset.SamplesPerPixel == 3:
                assert decoded.photometric == "RGB"
    finally:
        logging.disable(logging.NOTSET)


def test_twelve_bits_of_lossy_jpeg() -> None:
    """The second file is the first with its scan header put right; the decoders of pydicom refuse the first."""
    pictures = []
    for name in ("JPGExtended.dcm", "JPEG-lossy.dcm"):
        path = Path(pydicom.data.get_testdata_file(name, download=False))
        dataset = pydicom.dcmread(path)
        pictures.append(decode_frame(_frame_of(path, dataset)).array)
    np.testing.assert_array_equal(*pictures)
    libjpeg = pytest.importorskip("libjpeg")
    dataset = pydicom.dcmread(pydicom.data.get_testdata_file("JPGExtended.dcm", download=False))
    (stream,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    assert np.abs(pictures[0].astype(int) - libjpeg.decode(stream).astype(int)).max() <= 2


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize(
    ("dtype", "bits", "samples"),
    [
        ("u1", 8, 1),
        ("i1", 8, 1),
        ("u2", 12, 1),
        ("i2", 12, 1),
        ("u2", 16, 1),
        ("i2", 16, 1),
        ("u1", 8, 3),
        ("u2", 16, 3),
    ],
)
@pytest.mark.parametrize("syntax", [RLE, DEFLATED, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL])
def test_lossless_syntaxes_give_back_what_was_encoded(
    tmp_path: Path, syntax: str, dtype: str, bits: int, samples: int
) -> None:
    values = picture(dtype, bits, samples)
    decoded = decode_frame(wrap(tmp_path / "f", encode(syntax, values, bits), syntax, values, bits))
    assert decoded.array.dtype == values.dtype
    np.testing.assert_array_equal(decoded.array, values)
    assert decoded.photometric == ("RGB" if samples == 3 else "MONOCHROME2")


@pytest.mark.parametrize("bits", range(2, 17))
def test_lossless_jpeg_of_all_precisions_with_their_sign(tmp_path: Path, bits: int) -> None:
    for dtype in ("u2", "i2"):
        values = picture(dtype, bits)
        coded = as_coded(values, bits)
        stream = imagecodecs.jpeg8_encode(coded if bits > 8 else coded.astype("u1"), lossless=True, bitspersample=bits)
        frame = wrap(tmp_path / dtype, bytes(stream), LOSSLESS_JPEG, values, bits)
        np.testing.assert_array_equal(decode_frame(frame).array, values)


def test_signs_of_jpeg_2000_follow_the_header_and_not_the_codestream(tmp_path: Path) -> None:
    values = picture("i2", 16)
    frame = wrap(tmp_path / "f", encode(JPEG_2000, values, 16), JPEG_2000, values, 16)
    np.testing.assert_array_equal(decode_frame(replace(frame, signed=False)).array, values.view("u2"))


def test_an_array_is_used_again_where_it_fits(tmp_path: Path) -> None:
    values = picture("i2", 16)
    frame = wrap(tmp_path / "f", encode(RLE, values, 16), RLE, values, 16)
    fits, other = np.empty(values.shape, "i2"), np.empty(values.shape, "u2")
    assert decode_frame(frame, fits).array is fits
    assert decode_frame(frame, other).array is not other
    np.testing.assert_array_equal(fits, values)


# ------------------------------------------------------------------------------------------------- where the frames lie


@pytest.fixture(name="movie")
def _movie() -> tuple[list[bytes], np.ndarray]:
    frames = np.stack([np.roll(picture("u2", 16), 3 * number, axis=0) for number in range(4)])
    return [encode(JPEG_LS, frame, 16) for frame in frames], frames


def _all(path: Path, value: bytes, frames: np.ndarray, **more: bytes) -> list[np.ndarray]:
    whole = EncapsulatedFrame(
        *file_of(path, value), JPEG_LS, *frames.shape[1:], 16, 16, frames=len(frames), **more
    )  # fmt: skip
    return [decode_frame(replace(whole, index=index)).array for index in range(len(frames))]


def _many_fragments(streams: list[bytes], table: bool) -> bytes:
    frames = [b"".join(item(stream[at : at + 500]) for at in range(0, len(stream), 500)) for stream in streams]
    offsets = [sum(len(frame) for frame in frames[:number]) for number in range(len(frames))]
    return item(b"".join(offset.to_bytes(4, "little") for offset in offsets) if table else b"") + b"".join(frames)


def test_frames_are_found_by_every_kind_of_table(tmp_path: Path, movie: tuple[list[bytes], np.ndarray]) -> None:
    streams, frames = movie
    extended, offsets, lengths = encapsulate_extended(streams)
    np.testing.assert_array_equal(_all(tmp_path / "basic", encapsulate(streams), frames), frames)
    np.testing.assert_array_equal(_all(tmp_path / "none", encapsulate(streams, has_bot=False), frames), frames)
    found = _all(tmp_path / "extended", extended, frames, extended_offsets=offsets, extended_lengths=lengths)
    np.testing.assert_array_equal(found, frames)
    wrong = _all(tmp_path / "wrong", extended, frames, extended_offsets=b"\7" * 32, extended_lengths=b"\xff" * 32)
    np.testing.assert_array_equal(wrong, frames)


def test_frames_of_many_fragments_are_found_by_table_or_by_their_ends(
    tmp_path: Path, movie: tuple[list[bytes], np.ndarray]
) -> None:
    streams, frames = movie
    for table in (True, False):
        value = _many_fragments(streams, table=table)
        np.testing.assert_array_equal(_all(tmp_path / str(table), value, frames), frames)
    np.testing.assert_array_equal(
        _all(tmp_path / "one", _many_fragments(streams[:1], table=False), frames[:1]), frames[:1]
    )


def test_a_file_that_changes_is_read_again(tmp_path: Path, movie: tuple[list[bytes], np.ndarray]) -> None:
    streams, frames = movie
    _all(tmp_path / "f", encapsulate(streams), frames)
    np.testing.assert_array_equal(_all(tmp_path / "f", encapsulate(streams[::-1], has_bot=False), frames), frames[::-1])


def test_items_that_do_not_fit_are_refused_by_name(tmp_path: Path, movie: tuple[list[bytes], np.ndarray]) -> None:
    streams, frames = movie
    value = encapsulate(streams)
    cases = [
        (TruncatedPixels, encapsulate(streams[:3])),  # a frame is missing
        (TruncatedPixels, encapsulate([b"".join(streams)])),
        (TruncatedPixels, value[:-40]),  # the file ends in the last item
        (UnreadableDicom, value[:24] + b"\0" * 8 + value[32:]),
        (UnreadableDicom, b""),
        (UnreadableDicom, b"\0" * 100),
    ]
    for number, (kind, broken) in enumerate(cases):
        path = tmp_path / str(number)
        path.write_bytes(b"\0" * 77 + broken)
        frame = EncapsulatedFrame(path, 77, JPEG_LS, *frames.shape[1:], 16, 16, index=3, frames=4)
        with pytest.raises(kind):
            decode_frame(frame)


# ------------------------------------------------------------------------------------------------------ hostile streams


@pytest.mark.parametrize("syntax", [RLE, DEFLATED, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL])
def test_half_a_stream_and_noise_are_refused(tmp_path: Path, syntax: str) -> None:
    values = picture("u2", 16)
    stream = encode(syntax, values, 16)
    for name, broken in (("half", stream[: len(stream) // 4 * 2]), ("noise", os.urandom(500)), ("none", b"")):
        with pytest.raises((UndecodablePixels, TruncatedPixels, UnreadableDicom)):
            decode_frame(wrap(tmp_path / name, broken, syntax, values, 16))


@pytest.mark.parametrize("syntax", [RLE, DEFLATED, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL])
def test_another_size_than_the_header_s_is_refused(tmp_path: Path, syntax: str) -> None:
    values = picture("u2", 16)
    frame = wrap(tmp_path / "f", encode(syntax, values, 16), syntax, values, 16)
    for other in (
        replace(frame, rows=frame.rows + 1),
        replace(frame, columns=frame.columns - 1),
        replace(frame, samples=3, photometric="RGB"),
        replace(frame, bits_allocated=8, bits_stored=8),
    ):
        with pytest.raises((TruncatedPixels, UndecodablePixels)):
            decode_frame(other)
    np.testing.assert_array_equal(decode_frame(frame).array, values)


def test_damaged_streams_never_end_the_caller(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    values = picture("u2", 16)
    for syntax in (RLE, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL):
        stream = np.frombuffer(encode(syntax, values, 16), np.uint8)
        for number in range(25):
            damaged = stream.copy()
            damaged[rng.integers(0, len(damaged) if number % 2 else 120, 4)] = rng.integers(0, 256, 4)
            frame = wrap(tmp_path / "f", damaged.tobytes(), syntax, values, 16)
            with contextlib.suppress(ImagingError):
                assert decode_frame(frame).array.shape == values.shape


def test_bombs_are_refused(tmp_path: Path) -> None:
    values = np.zeros((10, 10), "u2")
    bomb = zlib.compressobj(9, wbits=-15)
    stream = bomb.compress(bytes(50_000_000)) + bomb.flush()
    with pytest.raises(TruncatedPixels):
        decode_frame(wrap(tmp_path / "f", stream, DEFLATED, values, 16))
    with pytest.raises(UndecodablePixels, match="bytes"):
        decode_frame(replace(wrap(tmp_path / "g", stream, DEFLATED, values, 16), rows=60000, columns=60000))


def test_what_cannot_be_decoded_is_refused_before_a_process_is_asked(tmp_path: Path) -> None:
    frame = wrap(tmp_path / "f", b"", RLE, picture("u2", 16), 16)
    with pytest.raises(UnsupportedTransferSyntax):
        decode_frame(replace(frame, transfer_syntax="1.2.840.10008.1.2.4.100"))
    with pytest.raises(UnsupportedPixels):
        decode_frame(replace(frame, bits_allocated=1, bits_stored=1))
    with pytest.raises(UnreadableDicom):
        decode_frame(replace(frame, rows=0))
    with pytest.raises(UnreadableDicom):
        decode_frame(replace(frame, path=tmp_path / "missing"))
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UnreadableDicom):
        decode_frame(replace(frame, path=tmp_path / "fifo"))
