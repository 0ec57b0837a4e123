"""Compressed frames decode as pydicom decodes them, and what a codec does to its process stays there."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import os
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pydicom.data
import pytest
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import pixel_array
from pydicom.pixels.encoders import RLELosslessEncoder

from imaging.dicom import codecs, decoder
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

RLE = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.8.1"
JPEG = "1.2.840.10008.1.2.4.50"
LOSSLESS_JPEG = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"
JPEG_XL = "1.2.840.10008.1.2.4.110"

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


def _picture(dtype: str, bits: int, samples: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :47]
    picture = (np.sin(x / 9) * np.cos(y / 7) + rng.normal(0, 0.05, (60, 47))).clip(-1, 1)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype[0] == "i" else (0, (1 << bits) - 1)
    values = ((picture + 1) / 2 * (high - low) + low).round().astype(dtype)
    values[0, :2] = low, high
    return values if samples == 1 else np.stack([values, values[::-1], values[:, ::-1]], axis=-1)


def _as_coded(values: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement in the stored bits: codecs without signs take it so."""
    return values.view(values.dtype.str.replace("i", "u")) & np.array(
        (1 << bits) - 1, values.dtype.str.replace("i", "u")
    )


def _encode(syntax: str, values: np.ndarray, bits: int) -> bytes:
    samples = values.shape[2] if values.ndim == 3 else 1
    if syntax == RLE:
        return bytes(
            RLELosslessEncoder.encode(
                values, rows=values.shape[0], columns=values.shape[1], samples_per_pixel=samples,
                bits_allocated=8 * values.itemsize, bits_stored=bits, planar_configuration=0, number_of_frames=1,
                pixel_representation=int(values.dtype.kind == "i"),
                photometric_interpretation="RGB" if samples == 3 else "MONOCHROME2",
            )
        )  # fmt: skip
    if syntax == DEFLATED:
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(values.tobytes()) + packer.flush()
    if syntax in (JPEG_2000, HTJ2K):
        signed = values if bits in (8, 16) else _as_coded(values, bits)
        if syntax == HTJ2K:  # this encoder declares all bits of the type
            return bytes(imagecodecs.htj2k_encode(values, reversible=True))
        return bytes(imagecodecs.jpeg2k_encode(signed, codecformat="J2K", level=0, reversible=True, bitspersample=bits))
    coded = _as_coded(values, bits)
    if syntax == LOSSLESS_JPEG:
        if samples == 3:
            return bytes(
                imagecodecs.jpeg8_encode(
                    coded, lossless=True, bitspersample=bits, colorspace="RGB", outcolorspace="RGB"
                )
            )
        return bytes(imagecodecs.jpeg8_encode(coded, lossless=True, bitspersample=bits))
    if syntax == JPEG_LS:  # and this one
        return bytes(imagecodecs.jpegls_encode(_as_coded(values, 8 * values.itemsize)))
    return bytes(imagecodecs.jpegxl_encode(coded, lossless=True, bitspersample=bits))


def _file(path: Path, value: bytes) -> tuple[Path, int]:
    """A file whose pixel data begins somewhere; nothing but its items matters here."""
    path.write_bytes(b"\0" * 77 + value + b"\xfe\xff\xdd\xe0\0\0\0\0")
    return path, 77


def _item(value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value


def _wrap(path: Path, stream: bytes, syntax: str, values: np.ndarray, bits: int) -> EncapsulatedFrame:
    samples = values.shape[2] if values.ndim == 3 else 1
    return EncapsulatedFrame(
        *_file(path, _item(b"") + _item(stream)), syntax, values.shape[0], values.shape[1], 8 * values.itemsize, bits,
        signed=values.dtype.kind == "i", samples=samples, photometric="RGB" if samples == 3 else "MONOCHROME2",
    )  # fmt: skip


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
    values = _picture(dtype, bits, samples)
    decoded = decode_frame(_wrap(tmp_path / "f", _encode(syntax, values, bits), syntax, values, bits))
    assert decoded.array.dtype == values.dtype
    np.testing.assert_array_equal(decoded.array, values)
    assert decoded.photometric == ("RGB" if samples == 3 else "MONOCHROME2")


@pytest.mark.parametrize("bits", range(2, 17))
def test_lossless_jpeg_of_all_precisions_with_their_sign(tmp_path: Path, bits: int) -> None:
    for dtype in ("u2", "i2"):
        values = _picture(dtype, bits)
        coded = _as_coded(values, bits)
        stream = imagecodecs.jpeg8_encode(coded if bits > 8 else coded.astype("u1"), lossless=True, bitspersample=bits)
        frame = _wrap(tmp_path / dtype, bytes(stream), LOSSLESS_JPEG, values, bits)
        np.testing.assert_array_equal(decode_frame(frame).array, values)


def test_signs_of_jpeg_2000_follow_the_header_and_not_the_codestream(tmp_path: Path) -> None:
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "f", _encode(JPEG_2000, values, 16), JPEG_2000, values, 16)
    np.testing.assert_array_equal(decode_frame(replace(frame, signed=False)).array, values.view("u2"))


def test_an_array_is_used_again_where_it_fits(tmp_path: Path) -> None:
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "f", _encode(RLE, values, 16), RLE, values, 16)
    fits, other = np.empty(values.shape, "i2"), np.empty(values.shape, "u2")
    assert decode_frame(frame, fits).array is fits
    assert decode_frame(frame, other).array is not other
    np.testing.assert_array_equal(fits, values)


# ------------------------------------------------------------------------------------------------- where the frames lie


@pytest.fixture(name="movie")
def _movie() -> tuple[list[bytes], np.ndarray]:
    frames = np.stack([np.roll(_picture("u2", 16), 3 * number, axis=0) for number in range(4)])
    return [_encode(JPEG_LS, frame, 16) for frame in frames], frames


def _all(path: Path, value: bytes, frames: np.ndarray, **more: bytes) -> list[np.ndarray]:
    whole = EncapsulatedFrame(
        *_file(path, value), JPEG_LS, *frames.shape[1:], 16, 16, frames=len(frames), **more
    )  # fmt: skip
    return [decode_frame(replace(whole, index=index)).array for index in range(len(frames))]


def _many_fragments(streams: list[bytes], table: bool) -> bytes:
    frames = [b"".join(_item(stream[at : at + 500]) for at in range(0, len(stream), 500)) for stream in streams]
    offsets = [sum(len(frame) for frame in frames[:number]) for number in range(len(frames))]
    return _item(b"".join(offset.to_bytes(4, "little") for offset in offsets) if table else b"") + b"".join(frames)


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
    values = _picture("u2", 16)
    stream = _encode(syntax, values, 16)
    for name, broken in (("half", stream[: len(stream) // 4 * 2]), ("noise", os.urandom(500)), ("none", b"")):
        with pytest.raises((UndecodablePixels, TruncatedPixels, UnreadableDicom)):
            decode_frame(_wrap(tmp_path / name, broken, syntax, values, 16))


@pytest.mark.parametrize("syntax", [RLE, DEFLATED, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL])
def test_another_size_than_the_header_s_is_refused(tmp_path: Path, syntax: str) -> None:
    values = _picture("u2", 16)
    frame = _wrap(tmp_path / "f", _encode(syntax, values, 16), syntax, values, 16)
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
    values = _picture("u2", 16)
    for syntax in (RLE, LOSSLESS_JPEG, JPEG_LS, JPEG_2000, HTJ2K, JPEG_XL):
        stream = np.frombuffer(_encode(syntax, values, 16), np.uint8)
        for number in range(25):
            damaged = stream.copy()
            damaged[rng.integers(0, len(damaged) if number % 2 else 120, 4)] = rng.integers(0, 256, 4)
            frame = _wrap(tmp_path / "f", damaged.tobytes(), syntax, values, 16)
            with contextlib.suppress(ImagingError):
                assert decode_frame(frame).array.shape == values.shape


def test_bombs_are_refused(tmp_path: Path) -> None:
    values = np.zeros((10, 10), "u2")
    bomb = zlib.compressobj(9, wbits=-15)
    stream = bomb.compress(bytes(50_000_000)) + bomb.flush()
    with pytest.raises(TruncatedPixels):
        decode_frame(_wrap(tmp_path / "f", stream, DEFLATED, values, 16))
    with pytest.raises(UndecodablePixels, match="bytes"):
        decode_frame(replace(_wrap(tmp_path / "g", stream, DEFLATED, values, 16), rows=60000, columns=60000))


def test_what_cannot_be_decoded_is_refused_before_a_process_is_asked(tmp_path: Path) -> None:
    frame = _wrap(tmp_path / "f", b"", RLE, _picture("u2", 16), 16)
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


# ----------------------------------------------------------------------------------------------- processes that go bad

PROGRAM = """
import importlib.util, os, sys, time
spec = importlib.util.spec_from_file_location("program", sys.argv[2])
program = sys.modules["program"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)
program._SECONDS = 1
worker_answer, rle = program._Worker.answer, program.CODECS["1.2.840.10008.1.2.5"]
def codec(codecs, request, data, target):
    if request.path.endswith("/bad"):
        {codec}
    return rle(codecs, request, data, target)
def answer(self, request):
    if request.path.endswith("/bad"):
        {answer}
    return worker_answer(self, request)
program.CODECS["1.2.840.10008.1.2.5"] = codec
program._Worker.answer = answer
program.main(int(sys.argv[1]), sys.argv[3:])
"""


@pytest.fixture(name="pool_of")
def _pool_of(monkeypatch: pytest.MonkeyPatch):
    pools = []

    def use(codec: str = "pass", answer: str = "pass") -> decoder._Pool:
        pool = decoder._Pool(2)
        real = decoder._command()
        program = PROGRAM.format(codec=codec, answer=answer)
        pool.command = [sys.executable, "-I", "-S", "-c", program, decoder._DESCRIPTOR, codecs.__file__, *real[5:]]
        monkeypatch.setattr(decoder, "_pool", pool)
        pools.append(pool)
        return pool

    yield use
    for pool in pools:
        pool.close()


BAD = {
    "hangs": {"codec": "time.sleep(600)"},
    "computes for ever": {"codec": "while True: pass"},
    "aborts": {"codec": "os.abort()"},
    "touches what is not there": {"codec": "import ctypes; ctypes.string_at(1)"},
    "exits": {"codec": "os._exit(3)"},
    "eats memory": {"codec": "hoard = [bytearray(1 << 26) for _ in range(1000)]"},
    "writes a file": {"codec": "os.write(os.open(request.path, os.O_WRONLY), b'x')"},
    "has another shape": {"answer": "return {'dtype': request.dtype, 'shape': [9, 9], 'colour': ''}"},
    "has another type": {"answer": "return {'dtype': '<f8', 'shape': request.shape, 'colour': ''}"},
    "answers nonsense": {"answer": "return ['?']"},
    "answers an unknown error": {"answer": "return {'error': 'x', 'seen': 'y'}"},
    "answers without end": {"answer": "return {'error': 'refused', 'seen': 'x' * 100000}"},
}


@pytest.mark.parametrize("deed", BAD)
def test_a_decoder_that_goes_bad_costs_one_frame(tmp_path: Path, pool_of, monkeypatch, deed: str) -> None:
    monkeypatch.setattr(decoder, "_SECONDS", 1.0 if deed == "hangs" else 20.0)
    pool = pool_of(**BAD[deed])
    values = _picture("i2", 16)
    stream = _encode(RLE, values, 16)
    good, bad = (_wrap(tmp_path / name, stream, RLE, values, 16) for name in ("good", "bad"))
    np.testing.assert_array_equal(decode_frame(good).array, values)
    start = time.monotonic()
    with pytest.raises((UndecodablePixels, TruncatedPixels, UnreadableDicom)):
        decode_frame(bad)
    assert time.monotonic() - start < 8
    np.testing.assert_array_equal(decode_frame(good).array, values)
    assert len(pool._all) == len(pool._idle) == 1


def test_what_a_library_prints_is_no_answer(tmp_path: Path, pool_of) -> None:
    pool_of(codec="os.write(1, b'warning: odd marker'); print('?'); os.write(2, b'!')")
    values = _picture("i2", 16)
    np.testing.assert_array_equal(
        decode_frame(_wrap(tmp_path / "bad", _encode(RLE, values, 16), RLE, values, 16)).array, values
    )


def test_nothing_of_the_working_directory_is_imported(tmp_path: Path, pool_of, monkeypatch) -> None:
    for name in ("json", "numpy", "imagecodecs", "struct"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pool_of()
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "good", _encode(RLE, values, 16), RLE, values, 16)
    np.testing.assert_array_equal(decode_frame(replace(frame, path=Path("good"))).array, values)


def test_a_process_that_was_killed_between_frames_is_replaced(tmp_path: Path, pool_of) -> None:
    pool = pool_of()
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "good", _encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    (process,) = pool._all
    process._child.kill()
    process._child.wait()
    np.testing.assert_array_equal(decode_frame(frame).array, values)


def test_threads_share_the_pool_and_get_their_own_frames(tmp_path: Path, pool_of) -> None:
    pool = pool_of()
    frames, expected = [], []
    for number in range(40):
        values = np.roll(_picture("i2", 16), number, axis=1)
        frames.append(_wrap(tmp_path / str(number), _encode(RLE, values, 16), RLE, values, 16))
        expected.append(values)
    with ThreadPoolExecutor(6) as threads:
        found = [decoded.array for decoded in threads.map(decode_frame, frames)]
    np.testing.assert_array_equal(found, expected)
    assert len(pool._all) <= 2


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_uses_processes_of_its_own(tmp_path: Path) -> None:
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "good", _encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    before = {process._child.pid for process in decoder._pool._all}
    child = os.fork()
    if child == 0:
        try:
            same = bool((decode_frame(frame).array == values).all())
            own = not before & {process._child.pid for process in decoder._pool._all}
            decoder._pool.close()
            gc.collect()
            os._exit(0 if same and own else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(decode_frame(frame).array, values)
    assert before <= {process._child.pid for process in decoder._pool._all}


def test_nothing_is_left_behind(tmp_path: Path, pool_of) -> None:
    pool = pool_of()
    values = _picture("i2", 16)
    frame = _wrap(tmp_path / "good", _encode(RLE, values, 16), RLE, values, 16)
    decode_frame(frame)
    threads, descriptors = threading.active_count(), _descriptors()
    for _ in range(3):
        pool.close()
        np.testing.assert_array_equal(decode_frame(frame).array, values)
    gc.collect()
    assert threading.active_count() == threads
    assert _descriptors() == descriptors


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0
