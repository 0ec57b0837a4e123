"""What is in a data set of images with masks, and what is wrong with it.

Invariant: every case is looked at once and every problem is told at once; what cannot be read takes part in no figure.
No text here names a patient. Imports no torch.

Shapes: ``mask_XYZ`` lies on its image's grid; sizes and spacings are ordered R-L, A-P, S-I by the patient axis that
each voxel axis is closest to.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from imaging.channels import allowed_apart, corners_apart, read_channels, read_mask
from imaging.config import Size3, Vector3
from imaging.dataset_check.telling import Note, OnCase, range_of, several_cases, some
from imaging.description import Description, describe
from imaging.errors import (
    ChannelMismatch,
    ConstantImage,
    DuplicateImage,
    EmptyClass,
    ImagingError,
    LabelMismatch,
    ManifestInvalid,
    MissingFile,
)
from imaging.manifest import Case, list_cases, manifest_file
from imaging.nifti import is_nifti
from imaging.png import is_png
from imaging.volume import Volume

# So many voxels of a case's structures stand for all of them in the intensity figures, as in nnU-Net.
_SAMPLED = 10_000
_LARGEST_ID = 255


@dataclass(frozen=True, slots=True, eq=False)
class CaseFacts:
    """What one case shows.

    Attributes
    ----------
    name, patient
        As the manifest has them.
    size, spacing_mm
        Voxels and mm along R-L, A-P, S-I.
    orientation
        Where the file's own axes run towards.
    mean, deviation
        Of all voxels, of each channel.
    foreground_CN
        Values of at most 10,000 voxels inside the structures, drawn without order, in each channel.
    voxels
        Number of voxels of each label id that is there, without the background.
    voxel_volume
        mm3.
    known_spacing
        Whether the image tells the size of its voxels; a picture does not, and counts as 1 mm a pixel.
    """

    name: str
    patient: str
    size: Size3
    spacing_mm: Vector3
    orientation: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    foreground_CN: NDArray[np.float32]
    voxels: Mapping[int, int]
    voxel_volume: float
    known_spacing: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """A data set, looked through.

    Attributes
    ----------
    manifest
        The file that lists the cases.
    description
        What the data set says of itself.
    labels
        Names of the structures with the ids 1, 2, 3, ...
    listed
        Number of rows.
    cases
        What could be read whole.
    problems
        What must be mended before training.
    notes
        What should be known.
    """

    manifest: Path
    description: Description
    labels: tuple[str, ...]
    listed: int
    cases: tuple[CaseFacts, ...]
    problems: tuple[ImagingError, ...]
    notes: tuple[Note, ...]

    @property
    def structures(self) -> dict[str, tuple[int, ...]]:
        """Each structure with the mask values that make it up: regions, where the data set tells of some."""
        return dict(self.description.regions) or {name: (id_,) for id_, name in enumerate(self.labels, start=1)}

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        spaced = [case for case in self.cases if case.known_spacing]
        pictures = [case.size for case in self.cases if not case.known_spacing]
        return {
            "path": str(self.manifest),
            "name": self.description.name,
            "modality": self.description.modality or None,
            "cases": self.listed,
            "read": len(self.cases),
            "patients": len({case.patient for case in self.cases}),
            "labels": dict(enumerate(self.labels, start=1)),
            "cases_with": {name: with_label(self.cases, id_) for id_, name in enumerate(self.labels, start=1)},
            "size": range_of([case.size for case in spaced]),
            "spacing_mm": range_of([case.spacing_mm for case in spaced]),
            "pixels": range_of(pictures),
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": [asdict(note) for note in self.notes],
        }


def with_label(cases: Sequence[CaseFacts], label: int) -> int:
    """In how many cases a structure is there."""
    return sum(label in case.voxels for case in cases)


def survey(root: Path, *, on_case: OnCase | None = None) -> Survey:
    """Read every case of a data set once and tell what is there and what is wrong.

    Parameters
    ----------
    root
        As `imaging.manifest.read_manifest` takes it.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    ManifestInvalid
        If there is no list of cases with masks to look through. All else is collected, not raised.
    """
    manifest = manifest_file(root)
    listed, description = list_cases(root), describe(root)
    if not listed:
        raise ManifestInvalid(manifest, seen="no case")
    if not any(is_mask(case.label) for case in listed):
        raise ManifestInvalid(
            manifest,
            seen=f"no label is a mask, the first is {listed[0].label.name!r}",
            expected="NIfTI or PNG masks were expected",
        )
    problems: list[ImagingError] = list(_listed_twice(manifest, listed))
    facts, hashes = [], defaultdict(list)
    for number, case in enumerate(listed):
        if on_case:
            on_case(case.name, number, len(listed))
        image, mask, found = _read(case, description)
        problems += found
        if image is not None:
            hashes[image.content_sha256()].append(case)
        if image is not None and mask is not None and not found:
            # What nothing is known of is no structure.
            known = mask if description.ignore is None else _without(mask, description.ignore)
            facts.append(_facts_of(case, image, known, seed=number))
    labels, of_labels = _named(manifest, description, facts)
    problems += [*of_labels, *_other_channels(listed, facts), *_duplicates(hashes.values())]
    return Survey(manifest, description, labels, len(listed), tuple(facts), tuple(problems),
                  tuple(_notes(listed, facts, hashes.values())))  # fmt: skip


def is_mask(path: Path) -> bool:
    """Whether the name is one that files of masks have."""
    return is_nifti(path) or is_png(path)


def mismatches(image: Volume, mask: Volume, path: Path, ids: Sequence[int] | None) -> list[LabelMismatch]:
    """Why a mask does not belong to an image.

    Parameters
    ----------
    image, mask
        As they were read.
    path
        The mask's file, for the message.
    ids
        The values that it may hold beside 0; None where nobody knows, and any whole number up to 255 will do.

    Returns
    -------
    list of LabelMismatch
        For another shape, another place (0.1 of the smallest spacing is allowed), and a value that has no meaning.
    """
    problems = []
    if image.shape != mask.shape:
        problems.append(LabelMismatch(path, seen=f"shape {mask.shape}, the image has {image.shape}"))
    else:
        apart = corners_apart(image, mask)
        if apart > allowed_apart(image):
            problems.append(LabelMismatch(path, seen=f"it lies up to {apart:.2f} mm from its image"))
    allowed = range(_LARGEST_ID + 1) if ids is None else (0, *ids)
    wrong = [value for value in np.unique(mask.array).tolist() if value not in allowed]
    if wrong:
        last = max(allowed)
        dense = f"whole numbers 0 to {last} were expected"
        expected = dense if len(allowed) == last + 1 else f"one of {', '.join(map(str, allowed))} was expected"
        problems.append(LabelMismatch(path, seen=f"the value {wrong[0]:g}", expected=expected))
    return problems


def _listed_twice(manifest: Path, cases: Sequence[Case]) -> Iterator[ImagingError]:
    for name, times in Counter(case.name for case in cases).items():
        if times > 1:
            yield ManifestInvalid(manifest, seen=f"the case {name!r} is there more than once")
    images = Counter(image.resolve() for case in cases for image in case.images if image.exists())
    for path, times in images.items():
        if times > 1:
            yield ManifestInvalid(manifest, seen=f"the image {path.name!r} is listed {times} times")


def _read(case: Case, description: Description) -> tuple[Volume | None, Volume | None, list[ImagingError]]:
    """Image and mask, as far as they can be read, and what is wrong with them."""
    problems: list[ImagingError] = []
    missing = [path for path in case.images if not path.exists()] + [case.label] * (not case.label.is_file())
    problems += [MissingFile(path, seen=f"case {case.name!r} names it and it does not exist") for path in missing]
    image = None if set(missing) & set(case.images) else _tried(lambda: read_channels(case.images), problems)
    mask = None if case.label in missing else _tried(lambda: read_mask(case.label, image), problems)
    for number, channel_XYZ in enumerate(image.array if image is not None else ()):
        if np.ptp(channel_XYZ) == 0:
            path = case.images[number if len(case.images) > 1 else 0]
            problems.append(ConstantImage(path, seen=f"every voxel is {float(channel_XYZ.flat[0]):g}"))
    if image is not None and mask is not None:
        ids = (
            [*description.labels, *([description.ignore] if description.ignore else [])] if description.labels else None
        )
        problems += mismatches(image, mask, case.label, ids)
    return image, mask, problems


def _tried(read: Callable[[], Volume], problems: list[ImagingError]) -> Volume | None:
    try:
        return read()
    except ImagingError as error:
        problems.append(error)
        return None


def _without(mask: Volume, value: int) -> Volume:
    return replace(mask, array=np.where(mask.array == value, np.float32(0), mask.array))


def _facts_of(case: Case, image: Volume, mask: Volume, *, seed: int) -> CaseFacts:
    labels = mask.array[0].astype(np.uint8)
    counts = np.bincount(labels.reshape(-1), minlength=1)
    places = np.flatnonzero(labels)
    if len(places) > _SAMPLED:
        places = np.random.default_rng(seed).choice(places, _SAMPLED, replace=False)
    order = np.argsort(nib.io_orientation(image.affine)[:, 0])
    size, spacing = np.array(image.shape)[order].tolist(), np.array(image.spacing)[order].tolist()
    return CaseFacts(
        name=case.name,
        patient=case.patient,
        size=(size[0], size[1], size[2]),
        spacing_mm=(spacing[0], spacing[1], spacing[2]),
        orientation=image.orientation,
        mean=tuple(float(channel.mean(dtype=np.float64)) for channel in image.array),
        deviation=tuple(float(channel.std(dtype=np.float64)) for channel in image.array),
        foreground_CN=image.array.reshape(len(image.array), -1)[:, places],
        voxels={int(id_): int(counts[id_]) for id_ in np.flatnonzero(counts) if id_ > 0},
        voxel_volume=image.voxel_volume,
        known_spacing=all(defect.code != "unknown_spacing" for defect in image.defects),
    )


def _named(
    manifest: Path, description: Description, cases: Sequence[CaseFacts]
) -> tuple[tuple[str, ...], list[ImagingError]]:
    """The structures' names by id from 1, and what is wrong with the ids."""
    seen = sorted({id_ for case in cases for id_ in case.voxels})
    told = description.labels
    if told and list(told) != list(range(1, len(told) + 1)):
        return tuple(told.values()), [
            LabelMismatch(manifest, seen=f"labels with the values {', '.join(map(str, told))}",
                          expected="1, 2, 3, ... without a gap were expected", remedy="Renumber the masks")
        ]  # fmt: skip
    names = tuple(told.values()) if told else tuple(f"label {id_}" for id_ in seen)
    if not told and seen != list(range(1, len(seen) + 1)):
        return names, [
            LabelMismatch(manifest, seen=f"masks with the values {', '.join(map(str, [0, *seen]))}",
                          expected="0, 1, 2, ... without a gap were expected", remedy="Renumber the masks")
        ]  # fmt: skip
    if not cases:
        return names, []
    if not names:
        return names, [EmptyClass(manifest, seen="every mask is empty")]
    return names, [
        EmptyClass(manifest, seen=f"none of the {len(cases)} readable cases has {name!r} (value {id_})")
        for id_, name in enumerate(names, start=1)
        if not with_label(cases, id_)
    ]


def _other_channels(listed: Sequence[Case], facts: Sequence[CaseFacts]) -> Iterator[ChannelMismatch]:
    """The cases that have another number of channels than most."""
    counts = Counter(len(case.mean) for case in facts)
    usual = max(counts, key=lambda count: (counts[count], -count), default=0)
    paths = {case.name: case.images[0] for case in listed}
    for case in facts:
        if len(case.mean) != usual:
            yield ChannelMismatch(paths[case.name], seen=f"{len(case.mean)} channels",
                                  expected=f"{usual} as in the other cases were expected")  # fmt: skip


def _duplicates(groups: Iterable[Sequence[Case]]) -> Iterator[ImagingError]:
    for cases in groups:
        if len({case.patient for case in cases}) > 1 and len({case.images[0].resolve() for case in cases}) > 1:
            others = ", ".join(repr(case.name) for case in cases[1:])
            yield DuplicateImage(cases[0].images[0], seen=f"case {cases[0].name!r} has the same voxels as {others}")


def _notes(listed: Sequence[Case], facts: Sequence[CaseFacts], groups: Iterable[Sequence[Case]]) -> Iterator[Note]:
    yield from several_cases(case.patient for case in listed)
    for cases in groups:
        if len(cases) > 1 and len({case.patient for case in cases}) == 1:
            yield Note("same_image_of_one_patient", f"{', '.join(case.name for case in cases)} have the same voxels")
    empty = [case.name for case in facts if not case.voxels]
    if empty:
        yield Note("empty_mask", f"{len(empty)} cases have no structure at all: {some(empty)}")
    turned = Counter(case.orientation for case in facts)
    if len(turned) > 1:
        told = ", ".join(f"{count} {towards}" for towards, count in turned.most_common())
        yield Note("several_orientations", f"the files' axes run differently ({told}); all are turned to one")
