"""Slices that lie at one place -> volumes, told apart by what the headers say of them.

Invariant: of several slices at one place none is chosen at random and none averaged: they are parted by an attribute,
left out where they are the same picture twice, or refused. What the clock says parts them only where one volume ends
before the next begins. Imports no torch.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise, product

import numpy as np

from imaging.dicom.attributes import MOMENTS
from imaging.dicom.frames import Slice
from imaging.dicom.header import DEFLATED, UNDEFINED
from imaging.dicom.split import Group, shown
from imaging.errors import DuplicateSlices, UnreadableDicom
from imaging.volume import Defect

# Positions this close in mm are one place.
SAME_PLACE_MM = 1e-2
# Moments that may differ a little from place to place within one phase, and so tell phases apart by their rank.
_RANKED = ("TriggerTime", "FrameReferenceTime", "AcquisitionTime", "ContentTime")
# Times of day (TM) as the numbers they are written as; those of one series that lie further apart passed midnight.
_HALF_A_DAY = 120000.0
_CLOCK = ("AcquisitionTime", "ContentTime")
# No place in a scanner is farther than this from its centre; NaN is not nearer either.
_FARTHEST_MM = 1e9
# A cell of a grid of places, and those beside it.
_NEIGHBOURS = tuple(product((-1, 0, 1), repeat=3))
_CHUNK = 1024 * 1024
# More attributes than this are not tried together.
_MOST_TOGETHER = 3


def split_by_moment(group: Group, subject: str) -> list[Group]:
    """Part slices that lie at one place.

    Raises
    ------
    DuplicateSlices
        If different pictures lie at one place and no attribute tells them apart.
    """
    places = _places(group.slices)
    if len(set(places)) < len(places):
        group, places = _without_copies(group, places)
    most = max(Counter(places).values())
    if most == 1:
        return [group]
    count = len(set(places))
    for told, parts in _ways(group.slices, places):
        if len(parts) == most:
            detail = f"up to {most} slices lie at one place; they are told apart by {told}"
            return [
                Group(
                    tuple(part),
                    " ".join(filter(None, (group.name, name))),
                    (*group.defects, Defect("duplicate_slices", "noted", detail + _lacking(len(part), count))),
                )
                for name, part in sorted(parts.items(), key=lambda entry: _in_order(entry[0]))
            ]
    raise DuplicateSlices(subject, seen=f"up to {most} different slices at one place and nothing that tells them apart")


def _lacking(slices: int, places: int) -> str:
    return f"; this volume has slices at {slices} of {places} places" if slices < places else ""


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
    """Slices by the rank of their time among those at their place; empty where the ranks are no phases of it."""
    at_place: dict[int, list[tuple[float, int]]] = {}
    for index, (item, place) in enumerate(zip(slices, places, strict=True)):
        try:
            at_place.setdefault(place, []).append((float(dict(item.moment)[keyword]), index))
        except (KeyError, ValueError):
            return {}
    counts = {len(found) for found in at_place.values()}
    if len(counts) > 1 or any(len(dict(found)) < len(found) for found in at_place.values()):
        return {}
    ranked = [sorted(found) for found in at_place.values()]
    # A phase that begins before the one before it has ended is none: the slices were taken in another order.
    spans = [(min(times), max(times)) for times in ([time for time, _ in rank] for rank in zip(*ranked, strict=True))]
    if any(ends >= begins for (_, ends), (begins, _) in pairwise(spans)):
        return {}
    # With six digits before the point the clock says no day, and after midnight it begins anew.
    if keyword in _CLOCK and _HALF_A_DAY <= spans[-1][1] - spans[0][0] < 2 * _HALF_A_DAY:
        return {}
    return {
        f"{keyword}#{number}": [slices[index] for _, index in rank]
        for number, rank in enumerate(zip(*ranked, strict=True), start=1)
    }


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
        if item.position is None or not all(abs(part) < _FARTHEST_MM for part in item.position):
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
        name = " ".join(f"{keyword}={shown(moment.get(keyword, 'none'))}" for keyword in keywords)
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
    """What is equal for two slices with the same stored pixels that are read in the same way: a SHA-256.

    Where the frames of one object are compressed, each is taken as different; decoding them to compare is not worth it.
    """
    pixels, instance = item.instance.pixels, item.instance
    if instance.frames > 1 and pixels.length == UNDEFINED:
        return f"{instance.sop_instance_uid} {item.number}"
    offset, length = pixels.offset, min(pixels.length, pixels.file_size - pixels.offset)
    if instance.frames > 1:
        length = instance.rows * instance.columns * pixels.samples * pixels.bits_allocated // 8
        offset += (item.number - 1) * length
    # The same bytes are another picture where they are read in another way.
    digest = hashlib.sha256(
        repr((item.slope, item.intercept, instance.photometric, replace(pixels, offset=0, file_size=0))).encode()
    )
    try:
        if pixels.transfer_syntax == DEFLATED:
            offset, length = 0, instance.path.stat().st_size
        with instance.path.open("rb") as stream:
            stream.seek(offset)
            while length > 0 and (part := stream.read(min(length, _CHUNK))):
                digest.update(part)
                length -= len(part)
    except OSError as error:
        raise UnreadableDicom(instance.path, seen=f"gone since it was scanned ({error.strerror})") from error
    return digest.hexdigest()
