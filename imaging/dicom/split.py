"""Which slices of a series belong to one volume.

Invariant: slices that differ in what a volume has only once are never stacked together, and of several slices at one
place none is chosen at random and none averaged: they are told apart by what the headers say of them, dropped where
they are the same picture twice, or refused. Imports no torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product

import numpy as np

from imaging.dicom.attributes import MOMENTS
from imaging.dicom.frames import Slice
from imaging.dicom.header import DEFLATED, UNDEFINED
from imaging.errors import DuplicateSlices
from imaging.volume import Defect

# Positions this close in mm are one place.
SAME_PLACE_MM = 1e-2
# Cosines are written with about six digits; more than this is not rounding (PS3.3 C.7.6.2.1.1 asks for orthonormal).
COSINE_TOLERANCE = 1e-3
# Pixel spacings this close are one spacing; over 1,000 pixels they differ by 0.1 mm.
SPACING_TOLERANCE_MM = 1e-4
# Values of Image Type (0008,0008) of pictures that were reckoned from a volume and are no slices of it.
_REFORMATTED = frozenset(
    ("MPR", "REFORMATTED", "MIP", "MINIP", "MAX_IP", "MIN_IP", "PROJECTION IMAGE", "VRT", "CURVED")
)
# Moments that may differ a little from place to place within one phase, and so tell phases apart by their rank.
_RANKED = ("TriggerTime", "FrameReferenceTime", "AcquisitionTime", "ContentTime")
# A cell of a grid of places, and those beside it.
_NEIGHBOURS = tuple(product((-1, 0, 1), repeat=3))
# More attributes than this are not tried together.
_MOST_TOGETHER = 3


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
    kinds = sorted(_REFORMATTED.intersection(part.upper() for part in image_type))
    return "/".join(kinds) if kinds and image_type[0] == "DERIVED" else ""


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
    """Part slices that differ in what a volume has once."""
    parts: list[list[Slice]] = []
    for item in slices:
        home = next((part for part in parts if not _differing(part[0], item)), None)
        if home is None:
            parts.append([item])
        else:
            home.append(item)
    if len(parts) == 1:
        return [Group(tuple(parts[0]))]
    names = sorted({name for part in parts for other in parts for name in _differing(part[0], other[0])})
    return [_named(part, names) for part in parts]


def _differing(one: Slice, other: Slice) -> list[str]:
    return [name for name, (value, near) in _ONCE.items() if not _equal(value(one), value(other), near)]


def _equal(one: object, other: object, near: float | None) -> bool:
    if near is None or one is None or other is None or one == other:
        return one == other
    a, b = np.array(one), np.array(other)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return one == other
    return a.shape == b.shape and bool((np.abs(a - b) <= near).all())


def _named(part: Sequence[Slice], names: Sequence[str]) -> Group:
    values = [f"{name}={_short(_ONCE[name][0](part[0]))}" for name in names]
    detail = f"the series holds images that differ in {', '.join(names)}; each kind is a volume of its own"
    return Group(tuple(part), " ".join(values), (Defect("mixed_slices", "noted", detail),))


def _short(value: object) -> str:
    if isinstance(value, tuple):
        return "/".join(f"{part:.4g}" for part in value)
    return str(value) or "none"


def split_by_moment(group: Group, subject: str) -> list[Group]:
    """Part slices that lie at one place.

    Raises
    ------
    DuplicateSlices
        If different pictures lie at one place and no attribute tells them apart.
    """
    places = _places(group.slices)
    most = max(Counter(places).values())
    if most == 1:
        return [group]
    group, places = _without_copies(group, places)
    most = max(Counter(places).values())
    if most == 1:
        return [group]
    for told, parts in _ways(group.slices, places):
        if len(parts) == most:
            detail = f"up to {most} slices lie at one place; they are told apart by {told}"
            note = Defect("duplicate_slices", "noted", detail)
            return [
                Group(tuple(part), " ".join(filter(None, (group.name, name))), (*group.defects, note))
                for name, part in sorted(parts.items(), key=lambda entry: _in_order(entry[0]))
            ]
    raise DuplicateSlices(subject, seen=f"up to {most} different slices at one place and nothing that tells them apart")


def _ways(slices: Sequence[Slice], places: Sequence[int]) -> Iterator[tuple[str, dict[str, list[Slice]]]]:
    """How headers may tell slices at one place apart: by values, one or more together; then by rank in time."""
    varied = [keyword for keyword in MOMENTS if len({dict(item.moment).get(keyword) for item in slices}) > 1]
    for together in range(1, _MOST_TOGETHER + 1):
        for keywords in combinations(varied, together):
            # A gradient's direction without its b-value would tell volumes apart and not say what they are.
            if "DiffusionGradientOrientation" in keywords and "DiffusionBValue" in set(varied) - set(keywords):
                continue
            yield " and ".join(keywords), _parts(slices, places, keywords)
    for keyword in _RANKED:
        if keyword in varied:
            yield f"the order of {keyword}", _ranks(slices, places, keyword)


def _ranks(slices: Sequence[Slice], places: Sequence[int], keyword: str) -> dict[str, list[Slice]]:
    """Slices by the rank of their time among those at their place; empty where two have the same time."""
    at_place: dict[int, list[tuple[float, int]]] = {}
    for index, (item, place) in enumerate(zip(slices, places, strict=True)):
        try:
            at_place.setdefault(place, []).append((float(dict(item.moment)[keyword]), index))
        except (KeyError, ValueError):
            return {}
    counts = {len(found) for found in at_place.values()}
    if len(counts) > 1 or any(len(dict(found)) < len(found) for found in at_place.values()):
        return {}
    parts: dict[str, list[Slice]] = {}
    for found in at_place.values():
        for rank, (_, index) in enumerate(sorted(found), start=1):
            parts.setdefault(f"{keyword}#{rank}", []).append(slices[index])
    return parts


def _in_order(name: str) -> tuple[float, str]:
    """Numbers as numbers: ``EchoTime=9.8`` before ``EchoTime=10.2``."""
    try:
        return float(name.split("=")[1].split(" ", maxsplit=1)[0] if "=" in name else name.split("#")[1]), name
    except ValueError:
        return float("inf"), name


def _places(slices: Sequence[Slice]) -> list[int]:
    """For each slice the number of the place it lies at."""
    known: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = []
    grid: dict[tuple[int, ...], list[int]] = {}
    places = []
    for number, item in enumerate(slices):
        if item.position is None or not all(map(math.isfinite, item.position)):
            places.append(-1 - number)  # the stack refuses it by name; here it is a place of its own
            continue
        position = np.array(item.position)
        cell = tuple(math.floor(part / SAME_PLACE_MM) for part in item.position)
        near = [
            place
            for step in _NEIGHBOURS
            for place in grid.get((cell[0] + step[0], cell[1] + step[1], cell[2] + step[2]), ())
            if float(np.linalg.norm(known[place] - position)) < SAME_PLACE_MM
        ]
        if near:
            places.append(near[0])
            continue
        places.append(len(known))
        grid.setdefault(cell, []).append(len(known))
        known.append(position)
    return places


def _parts(slices: Sequence[Slice], places: Sequence[int], keywords: Sequence[str]) -> dict[str, list[Slice]]:
    """Slices by some attributes' values; empty unless every part has one slice a place at most."""
    parts: dict[str, list[Slice]] = {}
    taken: set[tuple[str, int]] = set()
    for item, place in zip(slices, places, strict=True):
        moment = dict(item.moment)
        name = " ".join(f"{keyword}={moment.get(keyword, 'none')}" for keyword in keywords)
        if (name, place) in taken:
            return {}
        taken.add((name, place))
        parts.setdefault(name, []).append(item)
    return parts


def _without_copies(group: Group, places: Sequence[int]) -> tuple[Group, list[int]]:
    """Leave out a slice that is the same picture as another one at its place and moment."""
    crowded = {place for place, count in Counter(places).items() if count > 1}
    sent = Counter((item.instance.sop_instance_uid, item.number) for item in group.slices)
    seen: set[tuple[int, tuple[tuple[str, str], ...], str]] = set()
    kept: list[Slice] = []
    kept_places: list[int] = []
    for item, place in zip(group.slices, places, strict=True):
        if place in crowded:
            is_resent = sent[item.instance.sop_instance_uid, item.number] > 1
            key = (place, () if is_resent else item.moment, _digest(item))
            if key in seen:
                continue
            seen.add(key)
        kept.append(item)
        kept_places.append(place)
    dropped = len(group.slices) - len(kept)
    if not dropped:
        return group, list(places)
    note = Defect("duplicate_slices", "noted", f"{dropped} slices that are copies of another one were left out")
    return Group(tuple(kept), group.name, (*group.defects, note)), kept_places


def _digest(item: Slice) -> str:
    """What is equal for two slices with the same stored pixels and scale: SHA-256 of their bytes.

    Where the frames of one object are compressed, each is taken as different; decoding them to compare is not worth it.
    """
    pixels, instance = item.instance.pixels, item.instance
    if instance.frames > 1 and pixels.length == UNDEFINED:
        return f"{instance.sop_instance_uid} {item.number}"
    offset, length = pixels.offset, min(pixels.length, pixels.file_size - pixels.offset)
    if instance.frames > 1:
        length = instance.rows * instance.columns * pixels.samples * pixels.bits_allocated // 8
        offset += (item.number - 1) * length
    digest = hashlib.sha256(f"{item.slope} {item.intercept}".encode())
    with instance.path.open("rb") as stream:
        if pixels.transfer_syntax != DEFLATED:
            stream.seek(offset)
            digest.update(stream.read(length))
        else:
            digest.update(stream.read())
    return digest.hexdigest()
