"""DICOM in and out: folder -> studies and series -> Volumes, and results -> DICOM."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from imaging.dicom.frames import SET_ASIDE
from imaging.dicom.geometry import stacks
from imaging.dicom.pixels import read_pixels
from imaging.dicom.scan import Scan, Series, Study, scan
from imaging.dicom.stack import Policy, Stack
from imaging.errors import ImagingError, SeveralSeries
from imaging.volume import Defect, Frame, Volume

__all__ = ["Policy", "Scan", "Series", "Stack", "Study", "load_series", "read_series", "read_stack", "scan", "stacks"]


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
        sources=tuple(Frame(item.instance.sop_instance_uid, item.number, item.instance.path) for item in chosen),
        defects=(*stack.defects, *met),
        unit=stack.unit,
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

    Raises
    ------
    SeveralSeries
        If the series holds several volumes; `stacks` tells them apart and `read_stack` reads each.
    InputRefused
        If it holds none, if its pixels cannot be read rightly, or, under ``strict``, if a part of it is lost. Under
        ``repair`` what is left out is told in the volume's defects.
    """
    found, refused = stacks(series, policy=policy)
    if len(found) > 1 or not (found or refused):
        raise SeveralSeries(series.facts.subject, seen=f"{len(found)} volumes")
    lost = [error for error in refused if not isinstance(error, SET_ASIDE)]
    if not found or (lost and policy == "strict"):
        raise (lost or refused)[0]
    return _telling(read_stack(series, found[0]), refused)


def _telling(volume: Volume, refused: Iterable[ImagingError]) -> Volume:
    """The volume with a note for whatever was left out beside it."""
    notes = [Defect("left_out", "noted", f"{error.code}: {error.seen}") for error in refused]
    return replace(volume, defects=(*volume.defects, *notes))


def load_series(paths: Path | Iterable[Path], *, policy: Policy = "repair") -> Volume:
    """Load the one volume that a folder or some files hold.

    Parameters
    ----------
    paths
        A folder, a file, or several of both.
    policy
        As `read_series` takes it.

    Raises
    ------
    SeveralSeries
        If there is not one series with one volume; `scan` and `stacks` tell them apart.
    InputRefused
        If the series cannot be read rightly, or, under ``strict``, if a file cannot.
    """
    found = scan(paths)
    series = [item for study in found.studies for item in study.series]
    if found.refused and (policy == "strict" or not series):
        raise found.refused[0]
    if len(series) != 1:
        raise SeveralSeries("load_series", seen=f"{len(series)} series")
    return _telling(read_series(series[0], policy=policy), found.refused)
