"""Which slices of a series may belong to one volume at all.

Invariant: slices that differ in what a volume has only once are never stacked together, whatever order they come in,
and slices that a protocol made different (echo, b-value, kernel, phase) are never mixed without a word. Imports no
torch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from imaging.dicom.frames import Slice
from imaging.volume import Defect

# Cosines are written with about six digits; more than this is not rounding (PS3.3 C.7.6.2.1.1 asks for orthonormal).
COSINE_TOLERANCE = 1e-3
# Pixel spacings this close are one spacing; over 1,000 pixels they differ by 0.1 mm.
SPACING_TOLERANCE_MM = 1e-4
# Values of Image Type (0008,0008) of pictures that were reckoned from a volume and are no slices of it.
_REFORMATTED = frozenset(
    ("MPR", "REFORMATTED", "MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "VRT", "CURVED")
)
# And of the parts an MR acquisition is shown in (PS3.3 C.8.3.1.1.1, C.8.13.3.1), Dixon's as makers name them.
_PARTS = frozenset(("M", "P", "R", "I", "MAGNITUDE", "PHASE", "PHASE MAP", "REAL", "IMAGINARY", "W", "F", "WATER",
                    "FAT", "IN_PHASE", "OUT_PHASE", "OPP_PHASE"))  # fmt: skip
# What a protocol varies on purpose from volume to volume, and never within one.
_PROTOCOL = ("EchoTime", "EchoNumbers", "InversionTime", "DiffusionBValue", "KVP", "ConvolutionKernel")
_LONGEST_VALUE = 64


@dataclass(frozen=True, slots=True)
class Group:
    """Slices of one volume, in no order.

    Attributes
    ----------
    slices
        The members.
    name
        What tells the volume from the others of its series; empty where it is the only one.
    defects
        What was noted on the way.
    """

    slices: tuple[Slice, ...]
    name: str = ""
    defects: tuple[Defect, ...] = ()


def _reformatted(item: Slice) -> str:
    """What kind of reformatted picture a slice is; empty for what a scanner acquired or reconstructed."""
    image_type = item.instance.image_type
    return "/".join(sorted(_REFORMATTED.intersection(part.upper() for part in image_type)))


# What a volume has once, and how near two values must be to be one; None asks for equality.
_ONCE: dict[str, tuple[Callable[[Slice], object], float | None]] = {
    "SOPClassUID": (lambda item: item.instance.sop_class_uid, None),
    "Modality": (lambda item: item.instance.modality, None),
    "FrameOfReferenceUID": (lambda item: item.instance.frame_of_reference_uid, None),
    "Rows": (lambda item: item.instance.rows, None),
    "Columns": (lambda item: item.instance.columns, None),
    "PhotometricInterpretation": (lambda item: item.instance.photometric, None),
    "Unit": (lambda item: item.unit, None),
    "ImageType": (_reformatted, None),
    "ImageOrientationPatient": (lambda item: item.orientation, COSINE_TOLERANCE),
    "PixelSpacing": (lambda item: item.spacing, SPACING_TOLERANCE_MM),
}


def split_by_attributes(slices: Sequence[Slice]) -> list[Group]:
    """Part slices that differ in what a volume has once, whatever order they come in."""
    labels: dict[str, list[object]] = {
        name: [value(item) for item in slices] if near is None else _near([value(item) for item in slices], near)
        for name, (value, near) in _ONCE.items()
    }
    parts: dict[tuple[object, ...], list[Slice]] = {}
    for item, key in zip(slices, zip(*labels.values(), strict=True), strict=True):
        parts.setdefault(key, []).append(item)
    if len(parts) == 1:
        return [Group(tuple(slices))]
    names = [name for number, name in enumerate(labels) if len({key[number] for key in parts}) > 1]
    return [_named(part, names) for part in parts.values()]


def _near(values: Sequence[object], near: float) -> list[object]:
    """A label for each tuple of numbers, the same for those within reach of each other, number by number."""
    numbers = [value for value in values if _is_finite(value)]
    columns = []
    for column in np.array(numbers, dtype=np.float64).T:
        known, index = np.unique(column, return_inverse=True)
        columns.append(np.concatenate([[0], np.cumsum(np.diff(known) > near)])[index].tolist())
    labels = iter(list(zip(*columns, strict=True)))
    # What is missing or no number is equal to itself alone.
    return [next(labels) if _is_finite(value) else str(value) for value in values]


def _is_finite(value: object) -> bool:
    return isinstance(value, tuple) and all(map(math.isfinite, value))


def _named(part: Sequence[Slice], names: Sequence[str]) -> Group:
    values = [f"{name}={shown(_ONCE[name][0](part[0]))}" for name in names]
    detail = f"the series holds images that differ in {', '.join(names)}; each kind is a volume of its own"
    return Group(tuple(part), " ".join(values), (Defect("mixed_slices", "noted", detail),))


def shown(value: object) -> str:
    """A header's value as a part of a volume's name: numbers with all they have, text without what is no plain sign."""
    if isinstance(value, tuple):
        return "/".join(f"{part:.8g}" for part in value)
    return re.sub(r"[^A-Za-z0-9 ._/\\+:-]", "_", str(value))[:_LONGEST_VALUE] or "none"


def split_by_protocol(group: Group) -> list[Group]:
    """Part slices of different places that a protocol made different; told where they cannot be parted.

    Two echoes whose slices lie beside each other make one regular stack of two contrasts, and nothing in its geometry
    would show it.
    """
    keys = [_protocol(item) for item in group.slices]
    names = [name for number, name in enumerate((*_PROTOCOL, "ImageType")) if len({key[number] for key in keys}) > 1]
    if not names:
        return [group]
    parts: dict[tuple[str, ...], list[Slice]] = {}
    for item, key in zip(group.slices, keys, strict=True):
        parts.setdefault(key, []).append(item)
    if min(map(len, parts.values())) == 1:
        detail = f"{', '.join(names)} differ from slice to slice; they are one volume all the same"
        return [Group(group.slices, group.name, (*group.defects, Defect("mixed_slices", "noted", detail)))]
    detail = f"the series holds slices that differ in {', '.join(names)}; each kind is a volume of its own"
    note = Defect("mixed_slices", "noted", detail)
    order = {name: number for number, name in enumerate((*_PROTOCOL, "ImageType"))}
    return [
        Group(
            tuple(part),
            " ".join(filter(None, (group.name, *(f"{name}={shown(key[order[name]])}" for name in names)))),
            (*group.defects, note),
        )
        for key, part in sorted(parts.items())
    ]


def _protocol(item: Slice) -> tuple[str, ...]:
    moment = dict(item.moment)
    parts = _PARTS.intersection(part.upper() for part in moment.get("ImageType", "").split("\\"))
    return (*(moment.get(keyword, "") for keyword in _PROTOCOL), "/".join(sorted(parts)))
