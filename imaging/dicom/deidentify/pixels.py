"""What pictures may carry beside the picture: text burnt in, overlays in unused bits, bytes after the last pixel.

Invariant: a picture that says text is burnt in is refused, and so is one of a kind that often has it and does not say
that it has none, unless that was asked for. The pixels themselves are never changed: Clean Pixel Data is not offered.

Sources: PS3.3 C.7.6.1.1 (Burned In Annotation), C.9.2 (overlays in pixel data, retired), PS3.15 E.3.1.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from imaging.dicom.deidentify.clean import MALFORMED
from imaging.errors import BurnedIn, NotDeidentifiable

# Secondary captures, ultrasound, visible light: made by programs or cameras that write on the picture.
_OFTEN = tuple(
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("3", "3.1", "6", "6.1", "6.2", "7", "7.1", "7.2", "7.3", "7.4")
)
_VISIBLE_LIGHT = "1.2.840.10008.5.1.4.1.1.77.1."
_MODALITIES = ("US", "IVUS", "ES", "XC", "GM", "SM", "OP", "OT", "SC", "DOC", "DMS")
_KINDS = ("SCREEN SAVE", "DOSE", "REPORT", "CAPTURE")


def check_pixels(dataset: Dataset, subject: str, *, unsure: bool) -> bool:
    """Refuse a picture that may carry text.

    Parameters
    ----------
    dataset
        The original.
    subject
        How an error names it.
    unsure
        Take a kind that often has text burnt in.

    Returns
    -------
    bool
        Whether it is of such a kind, and was taken.

    Raises
    ------
    NotDeidentifiable
        If it is no picture, or an overlay is hidden in its compressed pixels.
    BurnedIn
        If text is, or may be, burnt in.
    """
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise NotDeidentifiable(subject, seen=f"{UID(_text(dataset, 'SOPClassUID')).name}, which has no pixels")
    told = _text(dataset, "BurnedInAnnotation").upper()
    if told == "YES":
        raise BurnedIn(subject, seen="BurnedInAnnotation is YES", remedy="Blacken the text with a tool for it")
    often = told != "NO" and _is_often_written_on(dataset)
    if often and not unsure:
        raise BurnedIn(subject, seen="often has text burnt in, and BurnedInAnnotation is not NO")
    return often


def _is_often_written_on(dataset: Dataset) -> bool:
    sop_class = _text(dataset, "SOPClassUID")
    kind = _text(dataset, "ImageType").upper()
    return (
        sop_class in _OFTEN
        or sop_class.startswith(_VISIBLE_LIGHT)
        or _text(dataset, "Modality").upper() in _MODALITIES
        or any(word in kind for word in _KINDS)
        or "ConversionType" in dataset
    )


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        return str(dataset.get(keyword, "") or "").strip(" \0")
    except MALFORMED:
        return ""


def trim_pixels(result: Dataset, original: Dataset, subject: str, syntax: UID) -> None:
    """Take away what is in PixelData beside the pixels: overlays in unused bits, and bytes after the last one.

    Parameters
    ----------
    result, original
        What will be written, with its pixels, and what it was made from, with its overlays.
    subject
        How an error names it.
    syntax
        The transfer syntax.

    Raises
    ------
    NotDeidentifiable
        If an overlay is in the unused bits of compressed pixels, or they are no pixels.
    """
    hidden = [bit for bit in _overlay_bits(original) if bit]
    if "PixelData" not in result:
        return
    if syntax.is_encapsulated:
        if hidden:
            raise NotDeidentifiable(subject, seen="an overlay in the unused bits of compressed pixels")
        return
    try:
        allocated = int(result.BitsAllocated)
        pixels = int(result.Rows) * int(result.Columns) * int(result.get("NumberOfFrames") or 1)
        pixels *= int(result.SamplesPerPixel)
        if str(result.PhotometricInterpretation).endswith("422"):
            pixels = pixels * 2 // 3
    except MALFORMED as error:
        raise NotDeidentifiable(subject, seen="pixels whose size is not told") from error
    length = (pixels * allocated + 7) // 8
    content = bytes(result.PixelData[: length + length % 2])
    if hidden:
        content = _without(content, hidden, result, subject, "<" if syntax.is_little_endian else ">")
    result["PixelData"].value = content[:length] + b"\0" * (len(content) - length)


def _overlay_bits(dataset: Dataset) -> list[int]:
    """Bit positions of overlays that have no data of their own."""
    bits = []
    for group in range(0x6000, 0x6020, 2):
        if (group, 0x0102) in dataset and (group, 0x3000) not in dataset:
            try:
                bits.append(int(dataset[group, 0x0102].value or 0))
            except MALFORMED:
                bits.append(0)
    return bits


def _without(content: bytes, bits: list[int], result: Dataset, subject: str, order: str) -> bytes:
    """Native pixels with some of their unused bits 0."""
    allocated, stored, high = int(result.BitsAllocated), int(result.BitsStored), int(result.HighBit)
    used = range(high - stored + 1, high + 1)
    if allocated not in (8, 16) or any(bit in used or bit >= allocated for bit in bits):
        raise NotDeidentifiable(subject, seen="an overlay among the bits of the pixels")
    mask = (1 << allocated) - 1 - sum(1 << bit for bit in set(bits))
    kind = np.dtype(f"{order}u{allocated // 8}")
    kept: bytes = (np.frombuffer(content, kind) & kind.type(mask)).astype(kind).tobytes()
    return kept
