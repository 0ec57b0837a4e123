"""`imgpipe convert`: the volumes of DICOM series -> NIfTI, each with a JSON beside it that says what was done.

Invariant: a file appears whole, after it was read back and compared; whatever was refused is told. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imaging.dicom import read_stack, scan, stacks
from imaging.dicom.scan import Scan, Series
from imaging.dicom.stack import Policy, Stack
from imaging.errors import ImagingError, InputRefused, NothingFound, OutputNotWritable, SeveralSeries
from imaging.files import sha256_of, write_whole
from imaging.nifti import is_nifti, write_volume
from imaging.volume import Volume, orientation_of


@dataclass(frozen=True, slots=True)
class Converted:
    """What became of one call.

    Attributes
    ----------
    written
        For each volume the document that lies beside it, with its path as ``file``.
    refused
        What was refused, by name.
    """

    written: tuple[dict[str, Any], ...]
    refused: tuple[ImagingError, ...]


def convert(*, path: Path, out: Path, series: str | None = None, policy: Policy = "repair") -> Converted:
    """Write the volumes that lie under a path as NIfTI.

    Parameters
    ----------
    path
        A folder, file or archive of DICOM.
    out
        A file name that ends in ``.nii`` or ``.nii.gz`` for a single volume, or a folder, in which each volume is named
        by its SeriesInstanceUID. ``.json`` files lie beside.
    series
        Only the series with this SeriesInstanceUID.
    policy
        ``strict`` refuses whatever would have to be changed; ``repair`` changes what it can and tells it.

    Raises
    ------
    NothingFound
        If there is no such path, or no such series.
    SeveralSeries
        If `out` is a file name and there are several volumes.
    OutputNotWritable
        If `out` cannot be written.
    """
    found = scan(path)
    chosen = _chosen(found, path, series)
    refused: list[ImagingError] = list(found.refused)
    volumes: list[tuple[Series, Stack]] = []
    for item in chosen:
        stacked, aside = stacks(item, policy=policy)
        volumes += [(item, stack) for stack in stacked]
        refused += aside
    if is_nifti(out) and len(volumes) > 1:
        names = ", ".join(sorted({item.uid for item, _ in volumes})[:4])
        raise SeveralSeries(
            path,
            seen=f"{len(volumes)} volumes ({names})",
            expected=f"one volume for {out.name} was expected",
            remedy="Choose one series with --series, or give a folder",
        )
    written = []
    for item, stack in volumes:
        target = out if is_nifti(out) else out / _name(item, stack, len(volumes))
        try:
            written.append(_write(read_stack(item, stack), target, policy))
        except InputRefused as error:
            refused.append(error)
    return Converted(tuple(written), tuple(refused))


def _chosen(found: Scan, path: Path, uid: str | None) -> Sequence[Series]:
    every = [item for study in found.studies for item in study.series]
    chosen = [item for item in every if uid in (None, item.uid)]
    if uid is not None and not chosen:
        known = ", ".join(item.uid for item in every[:8])
        raise NothingFound(path, seen=f"no series {uid}", expected=f"one of {known} was expected")
    return chosen


def _name(series: Series, stack: Stack, volumes: int) -> str:
    """UIDs are digits and dots; what tells volumes apart is cut down to plain characters."""
    apart = re.sub(r"[^A-Za-z0-9.=+-]+", "_", stack.name)[:80]
    return "_".join(filter(None, (series.uid, apart if volumes > 1 else ""))) + ".nii.gz"


def _write(volume: Volume, target: Path, policy: Policy) -> dict[str, Any]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(target.parent, seen=error.strerror or "cannot be made") from error
    write_volume(target, volume)
    document = {
        "file": target.name,
        "sha256": sha256_of(target),
        "software": f"imgpipe {importlib.metadata.version('imgpipe')}",
        "policy": policy,
        **asdict(volume.facts),
        "unit": volume.unit,
        "shape": volume.shape,
        "channels": volume.array.shape[0],
        "spacing_mm": [round(value, 6) for value in volume.spacing],
        "orientation": orientation_of(volume.affine),
        "affine_ras_mm": volume.affine.tolist(),
        "resampled": volume.resampled,
        "defects": [asdict(defect) for defect in volume.defects],
        "sources": [{"sop_instance_uid": frame.sop_instance_uid, "frame": frame.number} for frame in volume.sources],
    }
    beside = target.with_name(re.sub(r"\.nii(\.gz)?$", ".json", target.name, flags=re.IGNORECASE))
    write_whole(beside, json.dumps(document, indent=1).encode())
    return {**document, "file": str(target)}
