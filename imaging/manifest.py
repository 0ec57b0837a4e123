"""Which cases there are, whose they are, and on which side of a split each one stands.

Invariant: no patient is on two sides of a split. Imports no torch.
"""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from imaging.dataset_json import list_files
from imaging.dicom.owner import owner_of
from imaging.errors import ManifestInvalid, PatientLeak, TooFewCases
from imaging.nifti import case_name, is_nifti
from imaging.png import is_png

# Between the images or the classes of one case in one cell.
SEPARATOR = "|"
# Headings that people give the column that the split must go by.
_MEANS_PATIENT = frozenset(
    ("patient", "patients", "patient_id", "patientid", "patient id", "subject", "subject_id", "subjectid", "person")
)


class Member(Protocol):
    """What a split asks of a case: its name, and whose it is."""

    @property
    def name(self) -> str:
        """Unique in the manifest."""

    @property
    def patient(self) -> str:
        """Who it is of."""


M = TypeVar("M", bound=Member)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a manifest: the files of an image, its mask, and whose it is.

    Attributes
    ----------
    name
        Name of the case, unique in the manifest.
    images
        One file a channel, in the order of the network's channels; or one that holds them all.
    label
        The mask.
    patient
        Who it is of; where the manifest does not say, by the PatientID of a DICOM image, else the case's own name.
    """

    name: str
    images: tuple[Path, ...]
    label: Path
    patient: str


@dataclass(frozen=True, slots=True)
class Split:
    """Names of the cases on each side."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def to_json(self) -> str:
        """As the run folder keeps it."""
        return json.dumps(asdict(self), indent=1) + "\n"


def manifest_file(root: Path) -> Path:
    """The file that lists the cases: `root` itself, or the ``dataset.json`` in it."""
    return root / "dataset.json" if root.is_dir() else root


def list_cases(root: Path) -> list[Case]:
    """The cases as the manifest lists them, whether or not their files exist; see `read_manifest`.

    Raises
    ------
    ManifestInvalid
        If it cannot be read as a list of cases.
    """
    manifest = manifest_file(root)
    if not manifest.is_file():
        raise ManifestInvalid(manifest, seen="it does not exist", remedy="Check data.root")
    try:
        if manifest.suffix.lower() == ".csv":
            return _read_csv(manifest)
        return [Case(case.name, case.images, case.label, case.name) for case in list_files(manifest)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__}: {error})") from error


def read_manifest(root: Path) -> list[Case]:
    """Read the cases of a data set.

    Parameters
    ----------
    root
        A CSV with the columns ``image`` and ``label`` (paths relative to the CSV; several images, one a channel, are
        separated by ``|``) and optionally ``case`` and ``patient``; or a folder with a ``dataset.json`` (Medical
        Segmentation Decathlon, nnU-Net 1 or 2; see `imaging.dataset_json`); or that file itself.

    Raises
    ------
    ManifestInvalid
        If it cannot be read, names a file that does not exist, or names a case twice.
    """
    manifest = manifest_file(root)
    cases = list_cases(root)
    if not cases:
        raise ManifestInvalid(manifest, seen="no case")
    for case in cases:
        missing = [image for image in case.images if not image.exists()]
        missing += [] if case.label.is_file() else [case.label]
        if missing:
            raise ManifestInvalid(manifest, seen=f"case {case.name!r} names {missing[0]}, which does not exist")
    check_once(manifest, [case.name for case in cases], [image for case in cases for image in case.images])
    return cases


def check_once(manifest: Path, names: Sequence[str], images: Sequence[Path]) -> None:
    """Refuse a manifest that lists an image or a case twice.

    Raises
    ------
    ManifestInvalid
        With how many images, or with the case.
    """
    different = {image.resolve() for image in images}
    if len(different) < len(images):
        raise ManifestInvalid(manifest, seen=f"{len(images) - len(different)} images are listed more than once")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ManifestInvalid(manifest, seen=f"the case {min(twice)!r} is there more than once")


def read_rows(manifest: Path) -> list[dict[str, str]]:
    """The rows of a CSV whose patients, if it tells them, are told for all and in a column called ``patient``.

    Raises
    ------
    ManifestInvalid
        If they are not: the split would take everybody for somebody else.
    """
    rows = rows_of(manifest)
    for problem in patient_problems(manifest, rows):
        raise problem
    return rows


def rows_of(manifest: Path) -> list[dict[str, str]]:
    """The rows of a CSV by its headings, as they are.

    Raises
    ------
    ManifestInvalid
        If it is no CSV in UTF-8; no word of it is told.
    """
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as stream:
            return list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__})") from error


def patient_problems(
    manifest: Path, rows: Sequence[Mapping[str, str]], column: str = "patient", *, named: bool = False
) -> list[ManifestInvalid]:
    """Why a split could not go by the patients that some rows tell.

    Parameters
    ----------
    manifest, rows
        A CSV, and what is in it.
    column
        What its column of patients is called.
    named
        Whether a config says so; no other heading is then taken for it.
    """
    columns = list(rows[0]) if rows else []
    near = [name for name in columns if name != column and (name or "").strip().lower() in _MEANS_PATIENT]
    problems = []
    if near and column not in columns and not named:
        problems.append(
            ManifestInvalid(manifest, seen=f"a column {near[0]!r} and none called {column!r}",
                            remedy=f"Call it {column}, so that the split can go by it")
        )  # fmt: skip
    told = [bool((row.get(column) or "").strip()) for row in rows]
    if any(told) and not all(told):
        seen = f"{told.count(False)} rows without a patient, the others have one"
        problems.append(ManifestInvalid(manifest, seen=seen))
    return problems


def _read_csv(manifest: Path) -> list[Case]:
    cases = []
    for number, row in enumerate(read_rows(manifest), start=2):
        images = tuple(manifest.parent / part.strip() for part in row["image"].split(SEPARATOR) if part.strip())
        if not images:
            raise ManifestInvalid(manifest, seen=f"row {number} names no image")
        name = (row.get("case") or "").strip() or case_name(images[0])
        told = (row.get("patient") or "").strip()
        patient = told or ("" if is_png(images[0]) or is_nifti(images[0]) else owner_of(images[0])) or name
        cases.append(Case(name, images, manifest.parent / row["label"], patient))
    return cases


def split_by_patient(cases: Sequence[Member], *, test_fraction: float, folds: int, fold: int, seed: int) -> Split:
    """Divide the cases into train, validation and test, all cases of a patient on one side.

    The test part is drawn first and is the same in every fold; the rest is dealt into `folds`, of which number `fold`
    validates. The order of the manifest does not matter.

    Raises
    ------
    TooFewCases
        If train or validation would be empty.
    """
    patients = sorted({case.patient for case in cases})
    random.Random(seed).shuffle(patients)
    tested = set(patients[: round(len(patients) * test_fraction)])
    rest = [patient for patient in patients if patient not in tested]
    validated = set(rest[fold::folds])
    sides: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    for case in sorted(cases, key=lambda case: case.name):
        side = "test" if case.patient in tested else "validation" if case.patient in validated else "train"
        sides[side].append(case.name)
    if not sides["train"] or not sides["validation"]:
        raise TooFewCases("split", seen=f"{len(patients)} patients for {folds} folds and a test part")
    return Split(*(tuple(sides[side]) for side in ("train", "validation", "test")))


def cases_of(split: Split, cases: Sequence[M]) -> dict[str, list[M]]:
    """The cases on each side of a split.

    Raises
    ------
    ManifestInvalid
        If the split names a case that the manifest does not have.
    PatientLeak
        If a patient is on two sides.
    """
    by_name = {case.name: case for case in cases}
    unknown = {*split.train, *split.validation, *split.test} - set(by_name)
    if unknown:
        raise ManifestInvalid("split", seen=f"the case {min(unknown)!r} is not in the manifest")
    sides = {side: [by_name[name] for name in names] for side, names in asdict(split).items()}
    seen: dict[str, str] = {}
    for side, members in sides.items():
        for case in members:
            if seen.setdefault(case.patient, side) != side:
                raise PatientLeak(f"case {case.name}", seen=f"its patient is in {seen[case.patient]} and in {side}")
    return sides
