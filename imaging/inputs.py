"""What lies under some paths: DICOM studies, NIfTI and PNG files, each as its header tells it, and who would take it.

Invariant: nothing that lies there goes unmentioned, and no pixel is read. Imports no torch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imaging.checkpoint import Checkpoint
from imaging.config import Size3
from imaging.dicom.geometry import stacks
from imaging.dicom.scan import Scan, Series, files_under, scan_files
from imaging.dicom.stack import Policy, Stack, check_policy
from imaging.errors import ImagingError, NotApplicable, NothingFound, SetAside, UnexpectedFault
from imaging.nifti import case_name, is_nifti, read_geometry
from imaging.png import affine_of_picture, defects_of_picture, is_png, read_png_shape
from imaging.selection import check_choice, check_fit, check_grey, check_images, images_taken
from imaging.volume import Affine, Defect, SeriesFacts, orientation_of, spacing_of

# nnU-Net's ending of a channel's file.
_CHANNEL = re.compile(r"_\d{4}$")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files under some paths, told apart.

    Attributes
    ----------
    scan
        The DICOM studies, and what was refused.
    nifti, pictures
        NIfTI files, and PNG pictures; each is a study of its own.
    """

    scan: Scan
    nifti: tuple[Path, ...]
    pictures: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class SeriesView:
    """One volume of a series, or one NIfTI or PNG file, as its headers tell it; or what of a series cannot be a volume.

    Attributes
    ----------
    facts
        What it says of itself.
    instances
        Number of files.
    shape, affine
        Its grid, where the geometry could be read.
    channels
        1 for grey values, 3 for red, green and blue.
    images
        How many files are the images of one case.
    defects
        What is wrong with it.
    refusal
        Why the reader refuses it, if it does.
    taken_by
        Names of the checkpoints that would take it.
    declined_by
        For each other checkpoint the reason.
    channel_of
        Checkpoints that take it as one of several channels of a case, each with the channel's name.
    """

    facts: SeriesFacts
    instances: int
    shape: Size3 | None = None
    affine: Affine | None = None
    defects: tuple[Defect, ...] = ()
    refusal: ImagingError | None = None
    channels: int = 1
    images: int = 1
    taken_by: tuple[str, ...] = ()
    declined_by: tuple[tuple[str, NotApplicable], ...] = ()
    channel_of: tuple[tuple[str, str], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        grid = None
        if self.shape is not None and self.affine is not None:
            grid = {
                "shape": self.shape,
                "spacing_mm": [round(value, 6) for value in spacing_of(self.affine)],
                "orientation": orientation_of(self.affine),
                "channels": self.channels,
                "affine_ras_mm": self.affine.tolist(),
            }
        return {
            **asdict(self.facts),
            "instances": self.instances,
            "grid": grid,
            "defects": [asdict(defect) for defect in self.defects],
            "refusal": self.refusal.as_dict() if self.refusal else None,
            "set_aside": isinstance(self.refusal, SetAside),
            "taken_by": list(self.taken_by),
            "declined_by": {name: reason.as_dict() for name, reason in self.declined_by},
            "channel_of": dict(self.channel_of),
        }


def gather(paths: Iterable[Path], *, leave_out: Path | None = None) -> Inputs:
    """Tell NIfTI files and PNG pictures from the rest and scan the rest.

    Parameters
    ----------
    paths
        Folders or files; one that holds nothing is among what was refused.
    leave_out
        A folder whose files are not looked at: that of our own results, which may lie inside an input.
    """
    files: dict[Path, Path] = {}  # ordered, each once, also where the paths overlap
    refused: list[ImagingError] = []
    links: list[Path] = []
    own = leave_out.resolve() if leave_out is not None else None
    for path in paths:
        try:
            below = files_under([path])
        except NothingFound as error:
            refused.append(error)
            continue
        refused += below.unreadable
        links += below.links
        for file in below.files:
            place = file.resolve()
            if own is None or not place.is_relative_to(own):
                files.setdefault(place, file)
    nifti = tuple(path for path in files.values() if is_nifti(path))
    pictures = tuple(path for path in files.values() if is_png(path))
    found = scan_files([path for path in files.values() if not (is_nifti(path) or is_png(path))])
    if found.strays and not (found.studies or found.refused or nifti or pictures):
        refused.append(NothingFound(found.strays[0].parent, seen="only files that hold no image by design"))
    scan = replace(found, refused=(*refused, *found.refused), strays=(*links, *found.strays))
    return Inputs(scan, nifti, pictures)


def view_series(
    series: Series, models: Sequence[Checkpoint], *, named: bool, policy: Policy = "repair"
) -> list[tuple[SeriesView, Stack | None]]:
    """What the headers of a DICOM series tell: a view for each of its volumes and for what was set aside or refused."""
    check_policy(policy)
    try:
        found, refused = stacks(series, policy=policy)
    except Exception as error:  # a fault of ours in one series must not take the others with it
        log.debug("traceback", exc_info=True)
        fault = UnexpectedFault(series.facts.subject, seen=type(error).__name__)
        return [(SeriesView(series.facts, len(series.instances), refusal=fault), None)]
    views: list[tuple[SeriesView, Stack | None]] = []
    for stack in found:
        files = len({item.instance.path for item in stack.slices})
        facts = replace(series.facts, volume=stack.name)
        view = SeriesView(facts, files, stack.shape, stack.affine, stack.defects, channels=stack.channels)
        views.append((_chosen(view, models, named=named), stack))
    return views + [(SeriesView(series.facts, len(series.instances), refusal=error), None) for error in refused]


def cases_in(nifti: Iterable[Path], models: Sequence[Checkpoint]) -> list[tuple[str, tuple[Path, ...]]]:
    """NIfTI files as the cases that they make up.

    Parameters
    ----------
    nifti
        Files.
    models
        Where one of them takes several images a case, files called ``CASE_0000``, ``CASE_0001``, ... in one folder, as
        many as it takes, are one case (nnU-Net's convention). Any other file is a case of its own.

    Returns
    -------
    list of (str, tuple of Path)
        The name of each case, and its files in the order of its channels.
    """
    wanted = {images_taken(model.config) for model in models} - {1}
    together: dict[tuple[Path, str], list[Path]] = {}
    for path in nifti:
        together.setdefault((path.parent, _CHANNEL.sub("", case_name(path))), []).append(path)
    found: list[tuple[str, tuple[Path, ...]]] = []
    for (_, case), files in together.items():
        ordered = tuple(sorted(files, key=case_name))
        names = [f"{case}_{channel:04d}" for channel in range(len(files))]
        if len(files) in wanted and [case_name(path) for path in ordered] == names:
            found.append((case, ordered))
        else:
            found += [(case_name(path), (path,)) for path in files]
    return found


def view_nifti(files: Sequence[Path], models: Sequence[Checkpoint], *, named: bool) -> SeriesView:
    """What the headers of a case's NIfTI files tell, one file a channel, and who would take it."""
    facts = SeriesFacts(description=files[0].name)
    try:
        geometry = read_geometry(files[0])
    except ImagingError as error:
        return SeriesView(facts, len(files), refusal=error)
    view = SeriesView(facts, len(files), geometry.shape, geometry.affine, geometry.defects, images=len(files))
    return _chosen(view, models, named=named)


def view_picture(path: Path, models: Sequence[Checkpoint], *, named: bool) -> SeriesView:
    """What the header of a PNG picture tells, and who would take it."""
    facts = SeriesFacts(description=path.name)
    try:
        shape = read_png_shape(path)
    except ImagingError as error:
        return SeriesView(facts, 1, refusal=error)
    view = SeriesView(facts, 1, shape, affine_of_picture(), defects_of_picture())
    return _chosen(view, models, named=named)


def _chosen(view: SeriesView, models: Sequence[Checkpoint], *, named: bool) -> SeriesView:
    assert view.shape is not None and view.affine is not None
    taken, declined = [], []
    for model in models:
        rule = model.config.applies_to
        try:
            check_choice(rule, view.facts, named=named)
            check_grey(view.facts, view.channels)
            check_images(model.config, view.facts, view.images)
            check_fit(model.config, view.facts, view.shape, view.affine)
            taken.append(model.name)
        except NotApplicable as reason:
            declined.append((model.name, reason))
    return replace(view, taken_by=tuple(taken), declined_by=tuple(declined))
