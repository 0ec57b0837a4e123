"""The files of one study's folder, each written by its format and checked before it is delivered.

Invariant: an output that fails its check, or that the input cannot have, is withheld and told, and stops no other.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from imaging.classifier import Classification
from imaging.dicom.seg import Algorithm, write_seg
from imaging.errors import FormatNotApplicable, ImagingError, OutputMismatch, OutputNotWritable
from imaging.files import sha256_of
from imaging.nifti import write_mask, write_volume
from imaging.predict import Prediction
from imaging.report.report import OutputEntry
from imaging.volume import SeriesFacts, Volume

FORMATS = ("json", "html", "seg", "nifti")
REPORT = "report.json"
# What a study's folder may hold from an earlier run, and is replaced.
OURS = (REPORT, "report.html", "seg_*.dcm", "mask_*.nii.gz", "heatmap_*.nii.gz")


def output_entries(stage: Path, made_from: Mapping[str, SeriesFacts]) -> tuple[OutputEntry, ...]:
    """The files of a stage with their checksums, and the series that each was made from."""
    return tuple(
        OutputEntry(file=file.name, sha256=sha256_of(file), series_uid=facts.series_uid, volume=facts.volume)
        for file in sorted(stage.iterdir())
        for facts in [made_from.get(file.name, SeriesFacts())]
    )


def write_masks(stage: Path, prediction: Prediction, formats: Collection[str] | None) -> list[ImagingError]:
    """Write the mask as the formats ask; an output that fails its check is withheld and told."""
    volume, config = prediction.volume, prediction.checkpoint.segmenter()
    # highdicom builds a SEG over single-frame instances, one for each slice.
    single = len({frame.sop_instance_uid for frame in volume.sources}) == len(volume.sources) > 0
    has_own_grid = single and not volume.resampled
    wanted = formats if formats is not None else {"seg" if has_own_grid else "nifti"}
    faults: list[ImagingError] = []
    try:
        if "nifti" in wanted:
            write_mask(_free(stage, f"mask_{config.name}", ".nii.gz"), prediction.mask_XYZ, volume.affine)
        if "seg" in wanted and not has_own_grid:
            faults.append(FormatNotApplicable(volume.facts.subject, seen=_why_no_seg(volume)))
        elif "seg" in wanted and prediction.mask_XYZ.any():
            algorithm = Algorithm(
                name=config.name,
                version=config.version,
                weights_sha256=prediction.checkpoint.weights_sha256,
                config_sha256=config.digest(),
                software_version=importlib.metadata.version("imgpipe"),
            )
            path = _free(stage, f"seg_{config.name}", ".dcm")
            write_seg(path, prediction.found, volume, config.labels, algorithm)
    except OutputNotWritable:
        raise
    except ImagingError as error:
        faults.append(error)
    return faults


def write_heat_maps(stage: Path, prediction: Classification) -> list[ImagingError]:
    """Write each map on the image's grid, -1 where the network saw nothing; one that fails its check is withheld."""
    faults: list[ImagingError] = []
    for found in prediction.heat_maps:
        path = _free(stage, f"heatmap_{prediction.checkpoint.name}_{found.target}", ".nii.gz")
        try:
            write_volume(path, Volume(np.nan_to_num(found.heat_XYZ, nan=-1.0)[np.newaxis], prediction.volume.affine))
        except OutputMismatch as error:
            faults.append(error)
    return faults


def _why_no_seg(volume: Volume) -> str:
    if not volume.sources:
        return "a NIfTI file has no instances to refer to"
    return "the volume was resampled" if volume.resampled else "its slices are frames of a multi-frame instance"


def _free(stage: Path, stem: str, suffix: str) -> Path:
    """A name that is not taken: a checkpoint may take several series of one study."""
    path, number = stage / f"{stem}{suffix}", 2
    while path.exists():
        path, number = stage / f"{stem}_{number}{suffix}", number + 1
    return path
