"""The files of one study's folder, each written by its format and checked before it is delivered.

Invariant: an output that fails its check, or that the input cannot have, is withheld and told, and stops no other.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from imaging.dicom.seg import Algorithm, SegType, write_seg
from imaging.errors import FormatNotApplicable, ImagingError, OutputNotWritable, UnknownName
from imaging.files import sha256_of, write_whole
from imaging.judgement import Classification
from imaging.nifti import write_mask, write_volume
from imaging.predict import Prediction
from imaging.report.capture import write_captures
from imaging.report.fhir import Page, Version, write_fhir
from imaging.report.findings import refusals_of
from imaging.report.html import render_html
from imaging.report.pictures import key_pictures
from imaging.report.report import Format, OutputEntry, Report
from imaging.report.sr import write_sr
from imaging.volume import SeriesFacts, Volume

FORMATS = get_args(Format)
FhirPage = Literal["hash", "whole"]
REPORT, PAGE, SR, FHIR = "report.json", "report.html", "sr.dcm", "fhir.json"
# What outputs take in memory, in bytes, rounded up from what was measured: highdicom's tables and the sample that the
# window of pictures comes from; the header of each slice; each slice of each structure, as evidence and as JSON.
_ANY, _SLICE, _EVIDENCE = 256 * 2**20, 32 * 2**10, 2 * 2**10
# The same for each voxel: highdicom fills a label map's frames twice. NIfTI is written slice by slice.
_LABELMAP = 2
# What a study's folder may hold from an earlier run, and is replaced.
OURS = (REPORT, PAGE, SR, FHIR, "seg_*.dcm", "capture*.dcm", "mask_*.nii.gz", "heatmap_*.nii.gz")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are wanted of a study.

    Attributes
    ----------
    formats
        Some of `FORMATS`; None for what fits the input: the page, a mask as the input's own kind, and of a DICOM study
        of which something is said an SR. `report.json` is always written: it vouches for the others.
    seg_type
        Of a SEG.
    fhir_version
        Of FHIR.
    fhir_page
        Whether FHIR names the page by its ``hash`` or holds it ``whole``, where a page is written.

    Raises
    ------
    UnknownName
        If there is no such format, type or version.
    """

    formats: frozenset[str] | None = None
    seg_type: SegType = "binary"
    fhir_version: Version = "r4"
    fhir_page: FhirPage = "hash"

    def __post_init__(self) -> None:
        _check("formats", self.formats or (), FORMATS)
        _check("seg_type", (self.seg_type,), get_args(SegType))
        _check("fhir_version", (self.fhir_version,), get_args(Version))
        _check("fhir_page", (self.fhir_page,), get_args(FhirPage))

    def has(self, name: str, *, by_default: bool = False) -> bool:
        """Whether a format is wanted, by name or by default."""
        return by_default if self.formats is None else name in self.formats


def _check(what: str, given: Sequence[str] | frozenset[str], known: Sequence[str]) -> None:
    unknown = set(given) - set(known)
    if unknown:
        raise UnknownName(what, seen=repr(min(unknown)), expected=f"some of {', '.join(known)} were expected")


def delivering_bytes(wanted: Wanted, slices: int, voxels: int, labels: int, *, as_nifti: bool) -> int:
    """What measuring and writing a mask takes at most, beside volume and mask, in bytes.

    Parameters
    ----------
    wanted
        The files.
    slices, voxels, labels
        Of the volume; and how many structures there may be.
    as_nifti
        Whether the mask becomes NIfTI where no format is named.
    """
    as_labelmap = wanted.seg_type == "labelmap" and wanted.has("seg", by_default=not as_nifti)
    return _ANY + slices * (_SLICE + labels * _EVIDENCE) + _LABELMAP * voxels * as_labelmap


@dataclass(frozen=True, slots=True)
class Stage:
    """The folder that a study's files are put together in.

    Attributes
    ----------
    folder
        Where the files are; what is wrong leaves none there.
    made_from
        For a file made of one series what is known of that.
    faults
        Why an output was withheld.
    """

    folder: Path
    made_from: dict[str, SeriesFacts]
    faults: list[ImagingError]

    def attempt(self, write: Callable[[], object]) -> None:
        """Write an output, or tell why it is withheld; a disk that is full withholds all."""
        try:
            write()
        except OutputNotWritable:
            raise
        except ImagingError as error:
            self.faults.append(error)

    def entries(self) -> tuple[OutputEntry, ...]:
        """The files with their checksums, and the series that each was made from."""
        return tuple(
            OutputEntry(file=file.name, sha256=sha256_of(file), series_uid=facts.series_uid, volume=facts.volume)
            for file in sorted(self.folder.iterdir())
            for facts in [self.made_from.get(file.name, SeriesFacts())]
        )

    def name(self, stem: str, suffix: str, facts: SeriesFacts) -> Path:
        """A name that is not taken, for a checkpoint may take several series of one study; `facts` are the series'."""
        path, number = self.folder / f"{stem}{suffix}", 2
        while path.name in self.made_from:
            path, number = self.folder / f"{stem}_{number}{suffix}", number + 1
        self.made_from[path.name] = facts
        return path


def write_predictions(stage: Stage, predictions: Sequence[Prediction | Classification], wanted: Wanted) -> None:
    """Write what has voxels: masks, and where NIfTI is asked for heat maps."""
    for prediction in predictions:
        if isinstance(prediction, Prediction):
            _write_masks(stage, prediction, wanted)
        elif wanted.has("nifti"):
            _write_heat_maps(stage, prediction)


def write_report(
    stage: Stage,
    report: Report,
    predictions: Sequence[Prediction | Classification],
    wanted: Wanted,
    *,
    instances: Sequence[Path] = (),
    predecessors: Sequence[Path] = (),
) -> Report:
    """Write a report in every format that is wanted, and `report.json` last, which names and vouches for all others.

    Parameters
    ----------
    stage
        Holds the masks already.
    report
        What is said; its outputs, and what was refused of them, are added here.
    predictions
        What the pictures of the page are made of.
    wanted
        The formats.
    instances
        DICOM files of the study: those that were read, or where nothing was, any.
    predecessors
        SRs that this one replaces.

    Returns
    -------
    Report
        As `report.json` holds it.
    """
    something = bool(report.findings or report.texts)

    def so_far() -> Report:
        refused = (*report.refused, *refusals_of(stage.faults))
        return report.model_copy(update={"outputs": stage.entries(), "refused": refused})

    if wanted.has("sr", by_default=something and bool(report.study.uid)):
        file = stage.folder / SR
        stage.attempt(partial(write_sr, file, so_far(), instances, predecessors=predecessors))
    with_pictures = wanted.has("html", by_default=True) or wanted.has("sc")
    pictures = [shown for said in predictions for shown in key_pictures(said)] if with_pictures else []
    if wanted.has("sc"):
        stage.attempt(partial(write_captures, stage.folder, so_far(), pictures, instances))
    if wanted.has("html", by_default=True):
        write_whole(stage.folder / PAGE, render_html(so_far(), pictures))
    if wanted.has("fhir"):  # after the page, which it shows
        stage.attempt(partial(write_fhir, stage.folder / FHIR, so_far(), wanted.fhir_version, _page(stage, wanted)))
    written = so_far()
    write_whole(stage.folder / REPORT, written.to_json())
    return written


def _page(stage: Stage, wanted: Wanted) -> Page | None:
    file = stage.folder / PAGE
    return Page(file.read_bytes(), PAGE, wanted.fhir_page == "whole") if file.is_file() else None


def _write_masks(stage: Stage, prediction: Prediction, wanted: Wanted) -> None:
    volume, config = prediction.volume, prediction.checkpoint.segmenter()
    # highdicom builds a SEG over single-frame instances, one for each slice.
    single = len({frame.sop_instance_uid for frame in volume.sources}) == len(volume.sources) > 0
    has_own_grid = single and not volume.resampled
    if wanted.has("nifti", by_default=not has_own_grid):
        path = stage.name(f"mask_{config.name}", ".nii.gz", volume.facts)
        stage.attempt(partial(write_mask, path, prediction.mask_XYZ, volume.affine))
    if not wanted.has("seg", by_default=has_own_grid):
        return
    if not has_own_grid:
        stage.faults.append(FormatNotApplicable(volume.facts.subject, seen=_why_no_seg(volume)))
    elif prediction.mask_XYZ.any():
        algorithm = Algorithm(
            name=config.name,
            version=config.version,
            weights_sha256=prediction.checkpoint.weights_sha256,
            config_sha256=config.digest(),
            software_version=importlib.metadata.version("imgpipe"),
        )
        path = stage.name(f"seg_{config.name}", ".dcm", volume.facts)
        write = partial(write_seg, path, prediction.found, volume, config.labels, algorithm, seg_type=wanted.seg_type)
        stage.attempt(write)


def _write_heat_maps(stage: Stage, prediction: Classification) -> None:
    """Write each map on the image's grid, -1 where the network saw nothing."""
    volume = prediction.volume
    for found in prediction.heat_maps:
        path = stage.name(f"heatmap_{prediction.checkpoint.name}_{found.target}", ".nii.gz", volume.facts)
        heat = Volume(np.nan_to_num(found.heat_XYZ, nan=-1.0)[np.newaxis], volume.affine)
        stage.attempt(partial(write_volume, path, heat))


def _why_no_seg(volume: Volume) -> str:
    if not volume.sources:
        return "a NIfTI file has no instances to refer to"
    return "the volume was resampled" if volume.resampled else "its slices are frames of a multi-frame instance"


def instances_of(predictions: Sequence[Prediction | Classification], files: Sequence[Path]) -> tuple[Path, ...]:
    """The DICOM files that were read, and then the others of the study: of several channels one is named as read."""
    read = (frame.path for prediction in predictions for frame in prediction.volume.sources)
    return tuple(dict.fromkeys((*read, *files)))
