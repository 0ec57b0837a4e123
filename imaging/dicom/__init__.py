"""DICOM in and out: folder -> studies and series -> Volumes, and results -> DICOM."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from os import PathLike

import numpy as np

from imaging.dicom.geometry import stacks
from imaging.dicom.pixels import read_pixels
from imaging.dicom.scan import Paths, Scan, Series, Study, scan
from imaging.dicom.stack import Policy, Stack
from imaging.errors import ImagingError, NothingFound, SetAside, SeveralSeries
from imaging.volume import Defect, Frame, Volume

__all__ = ["Policy", "Scan", "Series", "Stack", "Study", "load_series", "read_series", "read_stack", "scan", "stacks"]

# How many volumes a message names.
_NAMED = 8


def read_stack(series: Series, stack: Stack) -> Volume:
    """Read one volume of a series.

    Parameters
    ----------
    series
        As `scan` gives it.
    stack
        One of its `stacks`.

    Returns
    -------
    Volume
        (C, X, Y, Z) float32 in real-world units, affine to RAS+ mm.

    Raises
    ------
    InputRefused
        By the name of what keeps the pixels from being read rightly.
    """
    array, met = read_pixels(stack)
    nearest = range(len(stack.slices))
    if stack.regrid is not None:
        apart = np.abs(stack.regrid.target[:, None] - stack.regrid.along[None, :])
        nearest = apart.argmin(axis=1).tolist()
    chosen = [stack.slices[number] for number in nearest]
    return Volume(
        array=array,
        affine=stack.affine,
        facts=replace(series.facts, volume=stack.name),
        sources=tuple(
            Frame(item.instance.sop_instance_uid, item.number, item.instance.path, item.instance.sop_class_uid)
            for item in chosen
        ),
        defects=(*stack.defects, *met),
        unit=stack.unit,
        keeps=series.unpacked,
        resampled=stack.regrid is not None,
    )


def read_series(series: Series, *, policy: Policy = "repair") -> Volume:
    """Read the one volume of a series.

    Parameters
    ----------
    series
        As `scan` gives it.
    policy
        ``strict`` refuses whatever would have to be changed; ``repair`` changes what it can and tells it.

    Returns
    -------
    Volume
        (C, X, Y, Z) float32 in real-world units, affine to RAS+ mm.

    Raises
    ------
    SeveralSeries
        If the series holds several volumes; `stacks` tells them apart and `read_stack` reads each.
    InputRefused
        If it holds none, if its pixels cannot be read rightly, or, under ``strict``, if a part of it is lost. Under
        ``repair`` what is left out is told in the volume's defects.
    """
    return _the_one([series], policy, series.facts.subject, (), None)


def load_series(
    paths: Paths, *, policy: Policy = "repair", series: str | None = None, volume: str | None = None
) -> Volume:
    """Load the one volume that a folder, an archive or some files hold.

    Parameters
    ----------
    paths
        A folder, a file, a ZIP or TAR, or several of them.
    policy
        As `read_series` takes it.
    series
        Only the series with this SeriesInstanceUID.
    volume
        Only the volume of this name, such as ``EchoTime=4.92``, where a series holds several.

    Returns
    -------
    Volume
        (C, X, Y, Z) float32 in real-world units, affine to RAS+ mm. Localizers and the like beside it, and under
        ``repair`` whatever else was left out, are told in its defects as ``left_out``.

    Raises
    ------
    SeveralSeries
        If there are several volumes; the message names them.
    NothingFound
        If there is none.
    InputRefused
        If it cannot be read rightly, or, under ``strict``, if a file or a part of a series cannot.
    """
    found = scan(paths)
    every = [item for study in found.studies for item in study.series]
    subject = str(paths) if isinstance(paths, str | PathLike) else "load_series"
    chosen = [item for item in every if series in (None, item.uid)]
    if series is not None and not chosen:
        raise NothingFound(subject, seen=f"no series {series} among {len(every)}")
    return _the_one(chosen, policy, subject, found.refused, volume)


def _the_one(
    series: Iterable[Series], policy: Policy, subject: str, refused: Sequence[ImagingError], name: str | None
) -> Volume:
    """The one volume of some series, with a note for whatever was left out beside it."""
    found: list[tuple[Series, Stack]] = []
    left_out: list[ImagingError] = list(refused)
    for item in series:
        stacked, aside = stacks(item, policy=policy)
        found += [(item, stack) for stack in stacked if name in (None, stack.name)]
        left_out += aside
    lost = [error for error in left_out if not isinstance(error, SetAside)]
    if lost and (policy == "strict" or not found):
        raise lost[0]
    if len(found) > 1:
        names = "; ".join(f"{item.uid} {stack.name}".strip() for item, stack in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise SeveralSeries(subject, seen=f"{len(found)} volumes: {names}{more}")
    if not found:
        raise left_out[0] if left_out else NothingFound(subject, seen="no image")
    return telling(read_stack(*found[0]), left_out)


def telling(volume: Volume, left_out: Iterable[ImagingError]) -> Volume:
    """The volume with a note in its defects for whatever was left out beside it."""
    notes = [Defect("left_out", "noted", f"{error.code}: {error.seen}") for error in left_out]
    return replace(volume, defects=(*volume.defects, *notes))
