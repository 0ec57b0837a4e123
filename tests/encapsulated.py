"""Pictures encoded by every codec, and files that hold nothing but the items of their encapsulated pixels."""

from __future__ import annotations

import zlib
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.pixels.encoders import RLELosslessEncoder

from imaging.dicom.decoder import EncapsulatedFrame

RLE = "1.2.840.10008.1.2.5"
DEFLATED = "1.2.840.10008.1.2.8.1"
JPEG = "1.2.840.10008.1.2.4.50"
LOSSLESS_JPEG = "1.2.840.10008.1.2.4.70"
JPEG_LS = "1.2.840.10008.1.2.4.80"
JPEG_2000 = "1.2.840.10008.1.2.4.90"
HTJ2K = "1.2.840.10008.1.2.4.201"
JPEG_XL = "1.2.840.10008.1.2.4.110"


def picture(dtype: str, bits: int, samples: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:60, :47]
    picture = (np.sin(x / 9) * np.cos(y / 7) + rng.normal(0, 0.05, (60, 47))).clip(-1, 1)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if dtype[0] == "i" else (0, (1 << bits) - 1)
    values = ((picture + 1) / 2 * (high - low) + low).round().astype(dtype)
    values[0, :2] = low, high
    return values if samples == 1 else np.stack([values, values[::-1], values[:, ::-1]], axis=-1)


def as_coded(values: np.ndarray, bits: int) -> np.ndarray:
    """Two's complement in the stored bits: codecs without signs take it so."""
    unsigned = values.dtype.str.replace("i", "u")
    coded: np.ndarray = values.view(unsigned) & np.array((1 << bits) - 1, unsigned)
    return coded


def encode(syntax: str, values: np.ndarray, bits: int) -> bytes:
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
        signed = values if bits in (8, 16) else as_coded(values, bits)
        if syntax == HTJ2K:  # this encoder declares all bits of the type
            return bytes(imagecodecs.htj2k_encode(values, reversible=True))
        return bytes(imagecodecs.jpeg2k_encode(signed, codecformat="J2K", level=0, reversible=True, bitspersample=bits))
    coded = as_coded(values, bits)
    if syntax == LOSSLESS_JPEG:
        if samples == 3:
            return bytes(
                imagecodecs.jpeg8_encode(
                    coded, lossless=True, bitspersample=bits, colorspace="RGB", outcolorspace="RGB"
                )
            )
        return bytes(imagecodecs.jpeg8_encode(coded, lossless=True, bitspersample=bits))
    if syntax == JPEG_LS:  # and this one
        return bytes(imagecodecs.jpegls_encode(as_coded(values, 8 * values.itemsize)))
    return bytes(imagecodecs.jpegxl_encode(coded, lossless=True, bitspersample=bits))


def file_of(path: Path, value: bytes) -> tuple[Path, int]:
    """A file whose pixel data begins somewhere; nothing but its items matters here."""
    path.write_bytes(b"\0" * 77 + value + b"\xfe\xff\xdd\xe0\0\0\0\0")
    return path, 77


def item(value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    return b"\xfe\xff\x00\xe0" + len(value).to_bytes(4, "little") + value


def wrap(path: Path, stream: bytes, syntax: str, values: np.ndarray, bits: int) -> EncapsulatedFrame:
    samples = values.shape[2] if values.ndim == 3 else 1
    return EncapsulatedFrame(
        *file_of(path, item(b"") + item(stream)), syntax, values.shape[0], values.shape[1], 8 * values.itemsize, bits,
        signed=values.dtype.kind == "i", samples=samples, photometric="RGB" if samples == 3 else "MONOCHROME2",
    )  # fmt: skip
