"""What the headers of a stack say of its values, before a pixel is read: refused, or noted.

Invariant: a stack that passes has one scale that is known for every slice, pixels of the size that it declares, and a
note for whatever a reader of its values must know. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from pydicom.uid import UID

from imaging.dicom.stack import Policy, Stack
from imaging.dicom.stored import PIXEL_DATA, check_stored
from imaging.errors import InvertedGrey, MissingAttribute, UnreadableDicom
from imaging.volume import Defect

# Modalities whose values are a physical quantity by their rescale (PS3.3 C.8.2.1, C.8.9.1: Type 1).
_QUANTITIES = frozenset(("CT", "PT"))


def reading_notes(stack: Stack) -> Iterator[Defect]:
    """What the pixels' own attributes say that a reader of the values must know."""
    guessed = sum(not item.instance.has_meta for item in stack.slices)
    if guessed:
        syntax = stack.slices[0].instance.pixels.transfer_syntax
        detail = f"{guessed} files have no meta header; they are read as {UID(syntax).name}, as their bytes look"
        yield Defect("no_meta_header", "noted", detail)
    if stack.slices[0].instance.photometric == "MONOCHROME1":
        if stack.is_inverted:
            yield Defect("monochrome1", "repaired", "a larger value was darker; the values were inverted")
        else:
            yield Defect("monochrome1", "noted", "to be shown inverted; the values are a quantity and stay as they are")


def check_reading(stack: Stack, subject: str, policy: Policy) -> None:
    """Refuse what the headers and the files' sizes show to be no pixels, or to have no meaning as values."""
    for item in stack.slices:
        check_stored(item)
        if (
            item.slope is None
            or item.intercept is None
            or not (math.isfinite(item.slope) and math.isfinite(item.intercept))
        ):
            seen = "RescaleSlope and RescaleIntercept are not both there and numbers"
            raise MissingAttribute(item.instance.path, seen=seen)
        if stack.channels == 1 and not item.instance.pixels.is_sign_told and item.instance.pixels.tag == PIXEL_DATA:
            raise MissingAttribute(item.instance.path, seen="PixelRepresentation is missing or malformed")
        if item.instance.pixels.lookup and item.is_rescaled:
            raise UnreadableDicom(item.instance.path, seen="a Modality LUT and a rescale, of which there can be one")
    if any(item.slope == 0 for item in stack.slices):
        raise MissingAttribute(subject, seen="a RescaleSlope of 0, which leaves nothing of the pixels")
    scaled = sum(item.is_rescaled or item.instance.pixels.lookup for item in stack.slices)
    if scaled < len(stack.slices) and (scaled or (stack.modality in _QUANTITIES and stack.channels == 1)):
        bare = len(stack.slices) - scaled
        seen = f"RescaleSlope and RescaleIntercept are missing or malformed in {bare} of {len(stack.slices)} slices"
        raise MissingAttribute(subject, seen=seen, expected="the scale of every slice was expected")
    if stack.is_inverted:
        _check_inverted(stack, subject, policy)


def _check_inverted(stack: Stack, subject: str, policy: Policy) -> None:
    """MONOCHROME1 is turned round within the range of its pixels, which must be one for all slices."""
    if policy == "strict":
        raise InvertedGrey(subject, seen="MONOCHROME1")
    pixels = [(item.instance.pixels, item) for item in stack.slices]
    ranges = {(stored.bits_stored, stored.signed, item.slope, item.intercept) for stored, item in pixels}
    if len(ranges) > 1:
        raise InvertedGrey(
            subject, seen=f"MONOCHROME1 with {len(ranges)} scales, so that no one range turns all slices round"
        )
