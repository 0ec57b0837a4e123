"""Transfer syntaxes and the tables of fragments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from phantom import Floats
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels.encoders import RLELosslessEncoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from torture_rows.truth import Field, Truth, both, expect
from torture_rows.writing import FrameSpec, Row, Writer, put, write, write_enhanced

SYNTAX = Row("transfer syntax")

Image = NDArray[Any]
Encoder = Callable[[Image], bytes]


def rle(image: Image) -> bytes:
    """PS3.5 annex G."""
    return RLELosslessEncoder.encode(
        np.ascontiguousarray(image), encoding_plugin="pydicom", rows=image.shape[0], columns=image.shape[1],
        samples_per_pixel=image.shape[2] if image.ndim == 3 else 1, number_of_frames=1,
        bits_allocated=8 * image.itemsize, bits_stored=8 * image.itemsize,
        pixel_representation=int(image.dtype.kind == "i"), planar_configuration=0,
        photometric_interpretation="RGB" if image.ndim == 3 else "MONOCHROME2",
    )  # fmt: skip


def _call(name: str, **options: object) -> Encoder:
    """An encoder of imagecodecs."""
    return lambda image: bytes(getattr(imagecodecs, name)(image, **options))


def _unsigned(name: str, **options: object) -> Encoder:
    """For codecs that know no sign: the bits as they are."""
    return lambda image: _call(name, **options)(image.view(f"<u{image.itemsize}"))


def stored_image(dataset: Dataset) -> Image:
    """The pixels that `put` made, as an array."""
    dtype = np.dtype(f"<{'i' if dataset.PixelRepresentation else 'u'}{dataset.BitsAllocated // 8}")
    samples = dataset.SamplesPerPixel
    shape = (dataset.Rows, dataset.Columns) if samples == 1 else (dataset.Rows, dataset.Columns, samples)
    return np.frombuffer(dataset.PixelData, dtype, count=int(np.prod(shape))).reshape(shape)


def enclose(dataset: Dataset, syntax: str, frames: Sequence[bytes], *, table: str = "empty", parts: int = 1) -> None:
    """Put encoded frames into a data set.

    Parameters
    ----------
    table
        ``empty``, ``basic`` or ``extended``.
    parts
        Fragments a frame.
    """
    if table == "extended":
        dataset.PixelData, offsets, lengths = encapsulate_extended(list(frames))
        dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    else:
        dataset.PixelData = encapsulate(list(frames), fragments_per_frame=parts, has_bot=table == "basic")
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = UID(syntax)


def coded(
    syntax: str,
    encode: Encoder,
    *,
    lossy: float = 0.0,
    columns: int = 7,
    table: str = "empty",
    parts: int = 1,
    **layout: Any,
) -> Writer:
    """A series of compressed slices; `lossy` is by how many stored numbers a pixel may be off."""

    def make(folder: Path) -> Truth:
        def store(dataset: Dataset, values: Floats) -> float:
            error = put(dataset, values, **layout) + lossy * float(dataset.RescaleSlope)
            enclose(dataset, syntax, [encode(stored_image(dataset))], table=table, parts=parts)
            return error

        made = write(folder, store=store, columns=columns, rows=6)
        return both(expect(made.planes, made.tolerance))

    return make


_TWELVE: dict[str, Any] = {"stored": 12, "signed": False, "slope": 0.05}
_EIGHT: dict[str, Any] = {"allocated": 8, "signed": False, "slope": 0.5}
_FULL: dict[str, Any] = {"signed": False, "slope": 0.01}
_SIGNED: dict[str, Any] = {"signed": True, "slope": 0.05}
_J2K = partial(_call, "jpeg2k_encode", codecformat="j2k")
for _name, _make in {
    "rle_8_bit": coded(RLELossless, rle, **_EIGHT),
    "rle_16_bit": coded(RLELossless, rle, **_FULL),
    "rle_signed": coded(RLELossless, rle, **_SIGNED),
    "rle_12_bit_overlay_above": coded(RLELossless, rle, rest=0xA000, **_TWELVE),
    "jpeg_baseline": coded(
        JPEGBaseline8Bit, _call("jpeg8_encode", level=100), lossy=6, columns=16, **{**_EIGHT, "slope": 1.0}
    ),
    "jpeg_extended_12_bit": coded(
        JPEGExtended12Bit, _call("jpeg8_encode", level=100, bitspersample=12), lossy=40, columns=16, **_TWELVE
    ),
    "jpeg_lossless": coded(JPEGLossless, _call("ljpeg_encode", bitspersample=16), **_FULL),
    "jpeg_lossless_sv1_12_bit": coded(JPEGLosslessSV1, _call("ljpeg_encode", bitspersample=12), **_TWELVE),
    "jpeg_ls": coded(JPEGLSLossless, _call("jpegls_encode"), **_FULL),
    "jpeg_ls_8_bit": coded(JPEGLSLossless, _call("jpegls_encode"), **_EIGHT),
    "jpeg_ls_8_of_16_bit": coded(
        JPEGLSLossless,
        lambda image: _call("jpegls_encode")(image.astype(np.uint8)),
        stored=8,
        signed=False,
        slope=0.5,
    ),
    "jpeg_ls_12_bit_signed": coded(JPEGLSLossless, _unsigned("jpegls_encode"), stored=12, signed=True, slope=0.05),
    "jpeg_lossless_signed": coded(JPEGLossless, _unsigned("ljpeg_encode", bitspersample=16), **_SIGNED),
    "jpeg_2000_12_of_declared_16_bit": coded(
        JPEG2000Lossless, _J2K(reversible=True, bitspersample=12), signed=False, slope=0.05, centre=2048
    ),
    "jpeg_ls_near_lossless": coded(JPEGLSNearLossless, _call("jpegls_encode", level=2), lossy=2, **_FULL),
    "jpeg_2000_lossless": coded(JPEG2000Lossless, _J2K(reversible=True, bitspersample=12), **_TWELVE),
    "jpeg_2000_lossless_16_bit": coded(JPEG2000Lossless, _J2K(reversible=True), **_FULL),
    "jpeg_2000_lossless_signed": coded(JPEG2000Lossless, _J2K(reversible=True), **_SIGNED),
    "jpeg_2000_lossy": coded(
        JPEG2000, _J2K(level=70, reversible=False, bitspersample=12), lossy=20, columns=16, **_TWELVE
    ),
    "htj2k_lossless": coded(HTJ2KLossless, _call("htj2k_encode", reversible=True), **_FULL),
    "htj2k": coded(HTJ2K, _call("htj2k_encode", reversible=True), **_FULL),
}.items():
    SYNTAX.add(_name, _make)
for _name, _table, _parts in (
    ("basic_table", "basic", 1),
    ("extended_table", "extended", 1),
    ("three_fragments", "empty", 3),
    ("three_fragments_and_a_basic_table", "basic", 3),
):
    SYNTAX.add(
        f"jpeg_2000_{_name}",
        coded(JPEG2000Lossless, _J2K(reversible=True), table=_table, parts=_parts, **_FULL),
    )


# --------------------------------------------------------------------------------------------------------------- native


def _native(syntax: str, **layout: Any) -> Writer:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.file_meta.TransferSyntaxUID = UID(syntax)
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = stored_image(dataset).astype(f">i{dataset.BitsAllocated // 8}").tobytes()

    def make(folder: Path) -> Truth:
        made = write(folder, edit=edit, store=partial(put, **layout), rows=6)
        return both(expect(made.planes, made.tolerance))

    return make


for _name, _syntax in {
    "implicit_le": ImplicitVRLittleEndian,
    "explicit_le": ExplicitVRLittleEndian,
    "explicit_be": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
}.items():
    SYNTAX.add(_name, _native(_syntax))
    SYNTAX.add(f"{_name}_8_bit", _native(_syntax, **_EIGHT))
SYNTAX.add("explicit_be_32_bit", _native(ExplicitVRBigEndian, allocated=32, signed=True, slope=0.001))


# ---------------------------------------------------------------------------------------------------------- many frames


def _coded_frames(encode: Encoder, syntax: str, *, table: str, parts: int) -> Writer:
    """An enhanced object with compressed frames in no order."""
    frames = [FrameSpec(k) for k in (2, 0, 3, 1)]

    def edit(dataset: Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(len(frames), dataset.Rows, dataset.Columns)
        enclose(dataset, syntax, [encode(image) for image in pixels], table=table, parts=parts)

    def make(folder: Path) -> Truth:
        made = write_enhanced(folder, frames, edit=edit)
        return both(expect(made.planes, made.tolerance))

    return make


for _kind, _encode, _syntax in (("rle", rle, RLELossless), ("jpeg_2000", _J2K(reversible=True), JPEG2000Lossless)):
    for _table in ("empty", "basic", "extended"):
        _make = _coded_frames(_encode, _syntax, table=_table, parts=1)
        SYNTAX.add(f"{_kind}_frames_{_table}_table", _make)
for _table in ("empty", "basic"):
    _make = _coded_frames(_J2K(reversible=True), JPEG2000Lossless, table=_table, parts=2)
    SYNTAX.add(f"jpeg_2000_frames_in_two_fragments_{_table}_table", _make)


# --------------------------------------------------------------------------------------------------------------- colour

_RGB = (Field(220, (2, 1, -1.5)), Field(180, (2, -1, -0.5)), Field(150, (2, 0.5, 1)))


def coloured(syntax: str, encode: Encoder, photometric: str, *, lossy: float = 0.0) -> Writer:
    """Colour slices; the codec undoes YBR_RCT itself."""

    def store(dataset: Dataset, values: Floats) -> float:
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.PhotometricInterpretation = photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        enclose(dataset, syntax, [encode(np.rint(values).astype(np.uint8))])
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            delattr(dataset, keyword)
        return 0.51 + lossy

    def make(folder: Path) -> Truth:
        made = write(folder, store=store, fields=_RGB, rows=16, columns=16, pixel_spacing=(0.7, 0.6))
        return both(expect(made.planes, made.tolerance, fields=_RGB))

    return make


SYNTAX.add("rle_rgb", coloured(RLELossless, rle, "RGB"))
SYNTAX.add("jpeg_ls_rgb", coloured(JPEGLSLossless, _call("jpegls_encode"), "RGB"))
SYNTAX.add("jpeg_2000_rgb", coloured(JPEG2000Lossless, _J2K(reversible=True, mct=False), "RGB"))
SYNTAX.add("jpeg_2000_ybr_rct", coloured(JPEG2000Lossless, _J2K(reversible=True, mct=True), "YBR_RCT"))
SYNTAX.add(
    "jpeg_baseline_ybr_full",
    coloured(JPEGBaseline8Bit, _call("jpeg8_encode", level=98, subsampling="444"), "YBR_FULL", lossy=8),
)
SYNTAX.add(
    "jpeg_baseline_ybr_full_422",
    coloured(JPEGBaseline8Bit, _call("jpeg8_encode", level=98, subsampling="422"), "YBR_FULL_422", lossy=8),
)


# -------------------------------------------------------------------------------------------------------------- refused


def _broken(syntax: str, encode: Encoder, damage: Callable[[bytes], bytes]) -> Writer:
    """Every slice is compressed and damaged."""

    def store(dataset: Dataset, values: Floats) -> float:
        error = put(dataset, values, **_FULL)
        enclose(dataset, syntax, [damage(encode(stored_image(dataset)))])
        return error

    def make(folder: Path) -> Truth:
        write(folder, store=store)
        return Truth()

    return make


def _half(data: bytes) -> bytes:
    return data[: len(data) // 4 * 2]


def _noise(data: bytes) -> bytes:
    return np.random.default_rng(3).bytes(len(data) // 2 * 2)


def _too_large(folder: Path) -> Truth:
    """Some bytes of RLE that declare a picture of 800 MB."""

    def edit(dataset: Dataset, _k: int) -> None:
        enclose(dataset, RLELossless, [rle(stored_image(dataset))])
        dataset.Rows = dataset.Columns = 16000

    write(folder, edit=edit)
    return Truth()


def _frame_less(folder: Path) -> Truth:
    """Four frames are declared and three are there."""

    def edit(dataset: Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(4, dataset.Rows, dataset.Columns)
        enclose(dataset, RLELossless, [rle(image) for image in pixels[:3]])

    write_enhanced(folder, [FrameSpec(k) for k in range(4)], edit=edit)
    return Truth()


def _turned_table(folder: Path) -> Truth:
    """A basic offset table in the wrong order; with one fragment a frame, their own order says it (PS3.5 A.4)."""

    def edit(dataset: Dataset) -> None:
        pixels = np.frombuffer(dataset.PixelData, "<i2").reshape(4, dataset.Rows, dataset.Columns)
        enclose(dataset, RLELossless, [rle(image) for image in pixels], table="basic")
        data = dataset.PixelData
        offsets = np.frombuffer(data[8:24], "<u4")[::-1]
        dataset.PixelData = data[:8] + offsets.tobytes() + data[24:]

    made = write_enhanced(folder, [FrameSpec(k) for k in range(4)], edit=edit)
    return both(expect(made.planes, made.tolerance))


def _larger(image: Image) -> bytes:
    return rle(np.vstack([image, image]))


_ENCODE_J2K = _J2K(reversible=True)
SYNTAX.refused("jpeg_2000_noise", _broken(JPEG2000Lossless, _ENCODE_J2K, _noise), "undecodable_pixels")
SYNTAX.refused("jpeg_ls_noise", _broken(JPEGLSLossless, _call("jpegls_encode"), _noise), "undecodable_pixels")
SYNTAX.refused("rle_half", _broken(RLELossless, rle, _half), "undecodable_pixels")
SYNTAX.refused("jpeg_2000_of_another_size",
               _broken(JPEG2000Lossless, lambda image: _ENCODE_J2K(np.vstack([image, image])), bytes),
               "truncated_pixels")  # fmt: skip
SYNTAX.refused("rle_of_another_size", _broken(RLELossless, _larger, bytes), "undecodable_pixels")
SYNTAX.refused("rle_that_declares_too_much", _too_large, "undecodable_pixels")
SYNTAX.add("rle_with_a_turned_basic_table", _turned_table)
SYNTAX.refused("rle_with_a_frame_less", _frame_less, "truncated_pixels")
SYNTAX.refused("mpeg2", _broken(MPEG2MPML, rle, bytes), "unsupported_transfer_syntax")

ROWS = (SYNTAX,)
