"""What is in a data set of pictures or volumes with classes, and what is wrong with it.

Invariant: every case is looked at once and every problem is told at once; what cannot be read takes part in no figure.
No text here names a patient. Imports no torch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from imaging.cases import ClassifiedCase, list_classified, load_picture, split_cases
from imaging.config import ClassifyConfig, Size3
from imaging.dataset_check.shortcuts import shortcuts
from imaging.dataset_check.telling import Note, OnCase, range_of, several_cases, some
from imaging.dicom.header import read_header
from imaging.errors import (
    ConstantImage,
    DuplicateImage,
    EmptyClass,
    ImagingError,
    LabelConflict,
    ManifestInvalid,
    MissingFile,
    NotFinite,
    PatientLeak,
    TooFewCases,
)
from imaging.nifti import is_nifti
from imaging.npz import is_npz
from imaging.png import is_png
from imaging.selection import check_choice, check_fit, check_grey
from imaging.volume import Volume

_SIDES = ("train", "validation", "test")
_MAKER = {"manufacturer": 0x00080070, "model": 0x00081090}


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What one case shows.

    Attributes
    ----------
    case
        As the manifest has it.
    size
        Pixels or voxels along X, Y and Z.
    kind
        What sort of file it is.
    modality
        As DICOM writes it; empty where the file does not say.
    maker
        Manufacturer and model of a DICOM file, by these names.
    """

    case: ClassifiedCase
    size: Size3
    kind: str
    modality: str
    maker: Mapping[str, str] = field(default_factory=dict)

    def traits(self) -> dict[str, str]:
        """What is known of the case without looking at what its picture shows."""
        columns, rows, slices = self.size
        own = {"width": columns, "height": rows, "slices": slices, "proportions": round(columns / rows, 4)}
        told = {"file": self.kind, "modality": self.modality, **self.maker}
        return {**{name: str(value) for name, value in own.items()}, **told, **self.case.facts}


@dataclass(frozen=True, slots=True, eq=False)
class ClassSurvey:
    """A data set, looked through.

    Attributes
    ----------
    manifest
        The file that lists the cases.
    classes
        Every class that the config names or, without one, that a case has.
    listed
        All cases of the list.
    pictures
        What could be read.
    problems
        What must be mended before training.
    notes
        What should be known.
    """

    manifest: Path
    classes: tuple[str, ...]
    listed: tuple[ClassifiedCase, ...]
    pictures: tuple[PictureFacts, ...]
    problems: tuple[ImagingError, ...]
    notes: tuple[Note, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        modalities = Counter(picture.modality for picture in self.pictures if picture.modality)
        return {
            "path": str(self.manifest),
            "name": self.manifest.stem,
            "modality": "|".join(sorted(modalities)) or None,
            "cases": len(self.listed),
            "read": len(self.pictures),
            "patients": len({case.patient for case in self.listed}),
            "cases_with": _having(self.classes, self.listed),
            "sides": {
                side: {"cases": len(members), "cases_with": _having(self.classes, members)}
                for side, members in _by_side(self.listed).items()
            },
            "kinds": dict(Counter(picture.kind for picture in self.pictures).most_common()),
            "pixels": range_of([picture.size for picture in self.pictures]),
            "facts": _filled(self.listed),
            "problems": [problem.as_dict() for problem in self.problems],
            "notes": [asdict(note) for note in self.notes],
        }


def survey_classes(root: Path, *, config: ClassifyConfig | None = None, on_case: OnCase | None = None) -> ClassSurvey:
    """Read every case of a data set once and tell what is there and what is wrong.

    Parameters
    ----------
    root
        As `imaging.cases.read_cases` takes it.
    config
        Which classes there are, how the columns are called, what the checkpoint takes and how it splits. Without one
        each word is a class, and nothing of the rest can be wrong.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    ManifestInvalid
        If there is no list of cases. All else is collected, not raised.
    """
    listing = list_classified(root, config)
    cases = listing.cases
    if not cases and not listing.problems:
        raise ManifestInvalid(root, seen="no case")
    problems: list[ImagingError] = [*listing.problems, *_listed_twice(root, cases)]
    pictures, hashes = [], defaultdict(list)
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        try:
            volume = _read(case, config)
        except ImagingError as error:
            problems.append(error)
            continue
        hashes[volume.content_sha256()].append(case)
        pictures.append(_facts_of(case, volume))
    classes = tuple(item.name for item in config.classes) if config else _told(cases)
    copies = [group for group in hashes.values() if len(group) > 1]
    problems += [*_copies(copies), *_leaks(root, cases), *_empty(root, classes, cases, config)]
    notes = [*_notes(cases, copies, config), *shortcuts([(one.case, one.traits()) for one in pictures], classes)]
    return ClassSurvey(root, classes, cases, tuple(pictures), tuple(problems), tuple(notes))


def _read(case: ClassifiedCase, config: ClassifyConfig | None) -> Volume:
    """The image, if it can be trained on; with a config, if it would be served, too."""
    if not case.image.exists():
        raise MissingFile(case.image, seen=f"case {case.name!r} names it and it does not exist",
                          expected="an image for each row of the manifest was expected")  # fmt: skip
    volume = load_picture(case)
    if not np.isfinite(volume.array).all():
        raise NotFinite(f"case {case.name}", seen="NaN or infinite pixels")
    if np.ptp(volume.array) == 0:
        raise ConstantImage(f"case {case.name}", seen=f"every pixel is {float(volume.array.flat[0]):g}")
    check_grey(volume.facts, volume.array.shape[0])
    if config:
        check_choice(config.applies_to, volume.facts, named=True)
        check_fit(config, volume.facts, volume.shape, volume.affine)
    return volume


def _facts_of(case: ClassifiedCase, volume: Volume) -> PictureFacts:
    kinds = {"MedMNIST": is_npz(case.image), "PNG": is_png(case.image), "NIfTI": is_nifti(case.image)}
    kind = next((name for name, there in kinds.items() if there), "DICOM")
    maker = {}
    if kind == "DICOM" and volume.sources:
        values = read_header(volume.sources[0].path, frozenset(_MAKER.values())).values
        maker = {name: values.get(tag, b"").decode("ascii", "replace").strip(" \0") for name, tag in _MAKER.items()}
    return PictureFacts(case, volume.shape, kind, volume.facts.modality, maker)


def _told(cases: Sequence[ClassifiedCase]) -> tuple[str, ...]:
    return tuple(sorted({name for case in cases for name in case.classes}))


def _having(classes: Sequence[str], cases: Sequence[ClassifiedCase]) -> dict[str, int]:
    counts = Counter(name for case in cases for name in set(case.classes))
    return {name: counts[name] for name in classes}


def _by_side(cases: Sequence[ClassifiedCase]) -> dict[str, list[ClassifiedCase]]:
    """The cases of each side that the data set itself gives."""
    sides = {side: [case for case in cases if case.side == side] for side in _SIDES}
    return {side: members for side, members in sides.items() if members}


def _filled(cases: Sequence[ClassifiedCase]) -> dict[str, dict[str, int]]:
    """Of each further column in how many cases it is filled, and how many different values it has."""
    columns = sorted({name for case in cases for name in case.facts})
    told = {column: [case.facts.get(column, "").strip() for case in cases] for column in columns}
    return {
        column: {"filled": sum(map(bool, values)), "values": len(set(values) - {""})} for column, values in told.items()
    }


def _listed_twice(root: Path, cases: Sequence[ClassifiedCase]) -> Iterator[ImagingError]:
    for name, times in Counter(case.name for case in cases).items():
        if times > 1:
            yield ManifestInvalid(root, seen=f"the case {name!r} is there more than once")
    for path, times in Counter(case.image.resolve() for case in cases if not is_npz(case.image)).items():
        if times > 1:
            yield ManifestInvalid(root, seen=f"the image {path.name!r} is listed {times} times")


def _copies(groups: Sequence[Sequence[ClassifiedCase]]) -> Iterator[ImagingError]:
    """Cases with the same pixels, the worst first: with other classes, on several sides, of several patients."""
    within: list[ImagingError] = []
    across: list[ImagingError] = []
    for cases in groups:
        subject, others = f"case {cases[0].name}", ", ".join(map(_placed, cases[1:]))
        torn = len({case.side for case in cases}) > 1
        if len({frozenset(case.classes) for case in cases}) > 1:
            told = "; ".join(f"{_placed(case)}: {', '.join(case.classes) or 'none'}" for case in cases)
            yield LabelConflict(subject, seen=f"the same pixels with other classes ({told})")
        elif torn or len({case.patient for case in cases}) > 1:
            remedy = "Take one of them out, give both rows the same patient, or train with data.duplicates=drop"
            seen = f"{_placed(cases[0])} has the same pixels as {others}"
            (across if torn else within).append(DuplicateImage(subject, seen=seen, remedy=remedy))
    yield from (*across, *within)


def _placed(case: ClassifiedCase) -> str:
    return f"{case.name!r} in {case.side}" if case.side else repr(case.name)


def _leaks(root: Path, cases: Sequence[ClassifiedCase]) -> Iterator[ImagingError]:
    """Patients whom the data set itself puts on several sides."""
    owned: dict[str, dict[str, str]] = defaultdict(dict)
    for case in cases:
        if case.side:
            owned[case.patient].setdefault(case.side, case.name)
    torn = [sides for sides in owned.values() if len(sides) > 1]
    if torn:
        told = " and ".join(f"case {name!r} in {side}" for side, name in torn[0].items())
        yield PatientLeak(root, seen=f"{len(torn)} of {len(owned)} patients are on several sides, one with {told}")


def _empty(
    root: Path, classes: Sequence[str], cases: Sequence[ClassifiedCase], config: ClassifyConfig | None
) -> Iterator[ImagingError]:
    """Classes that nobody has, on the whole or on a side that the data set gives, or that a split would lack."""
    absent = [name for name, count in _having(classes, cases).items() if not count]
    for name in absent:
        yield EmptyClass(root, seen=f"none of the {len(cases)} cases has {name!r}")
    if len(classes) == 1 and all(case.classes for case in cases):
        yield EmptyClass(root, seen=f"every case has {classes[0]!r}", expected="cases with and without were expected")
    for side, members in _by_side(cases).items():
        for name, count in _having(classes, members).items():
            if not count and name not in absent:
                yield EmptyClass(root, seen=f"none of the {len(members)} cases for {side} has {name!r}",
                                 expected="at least one case with each class on each side was expected",
                                 remedy="Split anew, or add cases")  # fmt: skip
    if config and not absent and not (config.data.split == "given" and _by_side(cases)):
        try:
            split_cases(cases, config)
        except (TooFewCases, ManifestInvalid) as error:
            yield error


def _notes(
    cases: Sequence[ClassifiedCase], copies: Sequence[Sequence[ClassifiedCase]], config: ClassifyConfig | None
) -> Iterator[Note]:
    yield from several_cases(case.patient for case in cases)
    if all(case.patient == case.name for case in cases):
        detail = "no column tells the patients: each case counts as a patient of its own, and nothing checks that"
        yield Note("patients_not_told", detail)
    for group in copies:
        same = len({case.patient for case in group}) == 1 and len({frozenset(case.classes) for case in group}) == 1
        if same and len({case.side for case in group}) == 1:
            yield Note("same_image_of_one_patient", f"{', '.join(case.name for case in group)} have the same pixels")
    blank = [case.name for case in cases if not case.classes]
    if blank:
        yield Note("no_class", f"{len(blank)} cases have no class: {some(blank)}")
    if config is None and any(len(case.classes) > 1 for case in cases):
        yield Note("several_classes", "some cases have several classes: only output: sigmoid can tell them")
    near: dict[str, set[str]] = defaultdict(set)
    for name in _told(cases) if config is None else ():
        near["".join(filter(str.isalnum, name.lower()))].add(name)
    for names in near.values():
        if len(names) > 1:
            yield Note("similar_classes", f"{', '.join(map(repr, sorted(names)))} may be meant as one class")
