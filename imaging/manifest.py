"""Which cases there are, whose they are, and on which side of a split each one stands.

Invariant: no patient is on two sides of a split. Imports no torch.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from imaging.errors import ManifestInvalid, PatientLeak, TooFewCases
from imaging.nifti import case_name

# Headings that people give the column that the split must go by.
_MEANS_PATIENT = frozenset(
    ("patient", "patients", "patient_id", "patientid", "patient id", "subject", "subject_id", "subjectid", "person")
)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of a manifest: an image, its mask, and whose it is.

    Attributes
    ----------
    name
        Name of the case, unique in the manifest.
    image, label
        Files.
    patient
        Who it is of; the case's own name where the manifest does not say.
    """

    name: str
    image: Path
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
        return _read_csv(manifest) if manifest.suffix.lower() == ".csv" else _read_decathlon(manifest)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ManifestInvalid(manifest, seen=f"cannot be read ({type(error).__name__}: {error})") from error


def read_manifest(root: Path) -> list[Case]:
    """Read the cases of a data set.

    Parameters
    ----------
    root
        A CSV with the columns ``image`` and ``label`` (paths relative to the CSV) and optionally ``case`` and
        ``patient``; or a folder with a Medical Segmentation Decathlon ``dataset.json``; or that file itself.

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
        for file in (case.image, case.label):
            if not file.is_file():
                raise ManifestInvalid(manifest, seen=f"case {case.name!r} names {file}, which does not exist")
    images = [case.image.resolve() for case in cases]
    if len(set(images)) < len(images):
        raise ManifestInvalid(manifest, seen=f"{len(images) - len(set(images))} images are listed more than once")
    names = [case.name for case in cases]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ManifestInvalid(manifest, seen=f"the case {min(twice)!r} is there more than once")
    return cases


def _read_csv(manifest: Path) -> list[Case]:
    with manifest.open(newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    columns = list(rows[0]) if rows else []
    near = [name for name in columns if name != "patient" and name.strip().lower() in _MEANS_PATIENT]
    if near and "patient" not in columns:
        raise ManifestInvalid(manifest, seen=f"a column {near[0]!r} and none called 'patient'",
                              remedy="Call it patient, so that the split can go by it")  # fmt: skip
    told = [bool((row.get("patient") or "").strip()) for row in rows]
    if any(told) and not all(told):
        raise ManifestInvalid(manifest, seen=f"{told.count(False)} rows without a patient, the others have one")
    cases = []
    for row in rows:
        image, label = manifest.parent / row["image"], manifest.parent / row["label"]
        name = (row.get("case") or "").strip() or case_name(image)
        cases.append(Case(name, image, label, (row.get("patient") or "").strip() or name))
    return cases


def _read_decathlon(manifest: Path) -> list[Case]:
    content = json.loads(manifest.read_text(encoding="utf-8"))
    cases = []
    for row in content["training"]:
        image, label = manifest.parent / row["image"], manifest.parent / row["label"]
        cases.append(Case(case_name(image), image, label, case_name(image)))
    return cases


def split_by_patient(cases: Sequence[Case], *, test_fraction: float, folds: int, fold: int, seed: int) -> Split:
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


def cases_of(split: Split, cases: Sequence[Case]) -> dict[str, list[Case]]:
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
