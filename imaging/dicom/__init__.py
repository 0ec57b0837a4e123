"""DICOM in and out: folder -> studies and series -> Volume, and results -> DICOM."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from imaging.dicom.geometry import stack
from imaging.dicom.pixels import padding_defects, read_pixels
from imaging.dicom.scan import Scan, Series, Study, scan
from imaging.errors import SeveralSeries
from imaging.volume import Frame, Volume

__all__ = ["Scan", "Series", "Study", "load_series", "read_series", "scan"]


def read_series(series: Series) -> Volume:
    """Read one series of a scan.

    Parameters
    ----------
    series
        As `scan` gives it.

    Returns
    -------
    Volume
        (1, X, Y, Z) float32 in real-world units, affine to RAS+ mm, one `Frame` for each slice.

    Raises
    ------
    SeriesRefused and other InputRefused
        By the name of what keeps the series from being read rightly.
    """
    slices = stack(series)
    frames = tuple(Frame(instance.sop_instance_uid, 1, instance.path) for instance in slices.instances)
    return Volume(
        array=read_pixels(slices),
        affine=slices.affine,
        facts=series.facts,
        frames=frames,
        defects=(*slices.defects, *padding_defects(slices)),
        unit="HU" if series.facts.modality == "CT" else "",
    )


def load_series(paths: Path | Iterable[Path]) -> Volume:
    """Read the one series that a folder or some files hold.

    Raises
    ------
    SeveralSeries
        If there is not one series; `scan` tells them apart.
    InputRefused
        If a file or the series cannot be read rightly.
    """
    found = scan(paths)
    if found.refused:
        raise found.refused[0]
    series = [item for study in found.studies for item in study.series]
    if len(series) != 1:
        raise SeveralSeries("load_series", seen=f"{len(series)} series")
    return read_series(series[0])
