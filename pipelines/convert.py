"""`imgpipe convert`: the volumes of DICOM series -> NIfTI, each with a JSON beside it that says what was done.

Invariant: a file appears whole, after it was read back and compared; whatever was refused is told. Imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imaging.dicom import read_stack, stacks, telling
from imaging.dicom.scan import Scan, Series
from imaging.dicom.stack import Policy, Stack
from imaging.errors import (
    ImagingError,
    InputRefused,
    NotDicom,
    OutputNotWritable,
    SetAside,
    SeveralSeries,
    UnexpectedFault,
    UnknownName,
)
from imaging.files import sha256_of, write_whole
from imaging.inputs import gather
from imaging.nifti import is_nifti, write_volume
from imaging.volume import Volume, orientation_of

log = logging.getLogger(__name__)

# How many volumes a message names, and how long a name of one may be in a file's.
_NAMED = 8
_LONGEST_NAME = 80


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
        Only the series with this SeriesInstanceUID, or the only one whose UID ends so.
    policy
        ``strict`` refuses whatever would have to be changed, and a series beside which a file was refused that may be a
        part of it; ``repair`` changes what it can and tells it.

    Raises
    ------
    UnknownName
        If there is no such series.
    SeveralSeries
        If `out` is a file name and there are several volumes.
    """
    inputs = gather([path], leave_out=None if is_nifti(out) else out)
    chosen = _chosen(inputs.scan, path, series)
    refused: list[ImagingError] = list(inputs.scan.refused)
    if inputs.nifti:
        refused.append(_already_nifti(path, len(inputs.nifti)))
    volumes: list[tuple[Series, Stack, list[ImagingError]]] = []
    for item in chosen:
        try:
            stacked, aside = stacks(item, policy=policy)
        except Exception as error:  # a fault of ours in one series must not take the others with it
            log.debug("traceback", exc_info=True)
            refused.append(UnexpectedFault(item.facts.subject, seen=type(error).__name__))
            continue
        refused += aside
        left_out = [*inputs.scan.refused, *aside]
        if policy == "strict" and any(not isinstance(error, SetAside) for error in left_out):
            continue  # a part of it may be lost, and what is lost is among the refused
        volumes += [(item, stack, left_out) for stack in stacked]
    if is_nifti(out) and len(volumes) > 1:
        raise _several(path, out, volumes)
    targets = [out] if is_nifti(out) else _targets(out, [(item, stack) for item, stack, _ in volumes])
    written = []
    for (item, stack, left_out), target in zip(volumes, targets, strict=False):
        try:
            written.append(_write(telling(read_stack(item, stack), left_out), target, path, policy))
        except (InputRefused, OutputNotWritable) as error:
            refused.append(error)
    return Converted(tuple(written), tuple(refused))


def _already_nifti(path: Path, count: int) -> NotDicom:
    return NotDicom(
        path, seen=f"{count} NIfTI files", expected="DICOM was expected", remedy="Nothing to do: they are NIfTI already"
    )


def _several(path: Path, out: Path, volumes: Sequence[tuple[Series, Stack, object]]) -> SeveralSeries:
    names = "; ".join(f"{item.uid} {stack.name}".strip() for item, stack, _ in volumes[:_NAMED])
    return SeveralSeries(
        path,
        seen=f"{len(volumes)} volumes: {names}" + (", ..." if len(volumes) > _NAMED else ""),
        expected=f"one volume for {out.name} was expected",
        remedy="Give a folder instead of a file name, or choose one series with --series",
    )


def _chosen(found: Scan, path: Path, uid: str | None) -> Sequence[Series]:
    every = [item for study in found.studies for item in study.series]
    # The table of `inspect` shows the end of a UID.
    chosen = [item for item in every if uid is None or (uid and item.uid.endswith(uid.removeprefix("...")))]
    if uid is not None and len({item.uid for item in chosen}) > 1:
        chosen = [item for item in chosen if item.uid == uid]
    if uid is not None and not chosen:
        known = ", ".join(item.uid for item in every[:_NAMED]) + (", ..." if len(every) > _NAMED else "")
        raise UnknownName("--series", seen=repr(uid), expected=f"one of {known} was expected")
    return chosen


def _targets(out: Path, volumes: Sequence[tuple[Series, Stack]]) -> list[Path]:
    """A file for each volume: by its series, by what tells it apart, and where that is not enough by a number."""
    stems = []
    for series, stack in volumes:
        apart = re.sub(r"[^A-Za-z0-9.+]+", "-", stack.name)[:_LONGEST_NAME]
        stems.append("_".join(filter(None, (series.uid, apart))))
    counts, met = Counter(stem.lower() for stem in stems), Counter[str]()
    targets = []
    for stem in stems:
        met[stem.lower()] += 1
        number = f"_{met[stem.lower()]}" if counts[stem.lower()] > 1 else ""
        targets.append(out / f"{stem}{number}.nii.gz")
    return targets


def _check_free(beside: Path) -> None:
    """Refuse to replace a JSON that is somebody else's, such as a BIDS sidecar."""
    if not beside.exists():
        return
    try:
        ours = str(json.loads(beside.read_text()).get("software", "")).startswith("imgpipe ")
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise OutputNotWritable(beside, seen="a file that imgpipe did not write lies there")


def _write(volume: Volume, target: Path, path: Path, policy: Policy) -> dict[str, Any]:
    beside = target.with_name(re.sub(r"\.nii(\.gz)?$", ".json", target.name, flags=re.IGNORECASE))
    _check_free(beside)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(target.parent, seen=error.strerror or "cannot be made") from error
    write_volume(target, volume)
    document = {
        "file": target.name,
        "sha256": sha256_of(target),
        "software": f"imgpipe {importlib.metadata.version('imgpipe')}",
        "read_from": str(path),
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
    write_whole(beside, json.dumps(document, indent=1).encode())
    return {**document, "file": str(target)}
