"""Which classified cases there are: a CSV of pictures with the names of their classes, or a MedMNIST file.

Invariant: a class that the config does not name is refused by row, and each class has a case on every side of a split.
Splits are those of `imaging.manifest`, by patient. Imports no torch.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.channels import read_image
from imaging.config import ClassifyConfig, ClassifyData
from imaging.errors import ManifestInvalid, TooFewCases
from imaging.manifest import SEPARATOR, Split, check_once, patient_problems, rows_of
from imaging.nifti import case_name
from imaging.npz import PARTS, is_npz, read_npz, read_npz_image
from imaging.png import is_png
from imaging.volume import Volume

_KNOWN = ("image", "label", "case", "patient", "split")
_SIDES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class ClassifiedCase:
    """One picture or volume with its classes.

    Attributes
    ----------
    name
        Unique in the manifest.
    image
        A PNG, NIfTI or DICOM file, a folder of DICOM, or a MedMNIST file.
    classes
        Names of its classes, in the manifest's order; none where no class is there.
    patient
        Whose it is; the case's own name where the manifest does not say.
    side
        Where the data set itself puts it: ``train``, ``validation`` or ``test``; empty where it does not say.
    facts
        What else the manifest says (age, sex, view), for metrics by subgroup.
    part, index
        Which picture of a MedMNIST file.
    """

    name: str
    image: Path
    classes: tuple[str, ...]
    patient: str
    side: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    part: str = ""
    index: int = 0


def read_cases(root: Path, config: ClassifyConfig) -> list[ClassifiedCase]:
    """Read the cases of a classification data set.

    Parameters
    ----------
    root
        A CSV with the columns ``image`` (path relative to the CSV) and ``label`` (a class's name; several separated by
        ``|`` where the config's output is sigmoid, and blank for none of them), optionally ``case``, ``patient`` and
        ``split``, and any further columns as facts; or a MedMNIST ``.npz``, whose class numbers are the config's ids.
    config
        Which classes there are.

    Raises
    ------
    ManifestInvalid
        If it cannot be read, names a file that does not exist or a class that the config does not have, or names a
        case twice.
    """
    listing = list_classified(root, config)
    for problem in listing.problems:
        raise problem
    for case in listing.cases:
        if not case.image.exists():
            raise ManifestInvalid(root, seen=f"case {case.name!r} names {case.image}, which does not exist")
    if not is_npz(root):
        check_once(root, [case.name for case in listing.cases], [case.image for case in listing.cases])
    if not listing.cases:
        raise ManifestInvalid(root, seen="no case")
    return list(listing.cases)


@dataclass(frozen=True, slots=True)
class Listing:
    """The cases as a manifest lists them, and what is wrong with the list; a wrong row is among the cases, too."""

    cases: tuple[ClassifiedCase, ...]
    problems: tuple[ManifestInvalid, ...]


def list_classified(root: Path, config: ClassifyConfig | None = None) -> Listing:
    """The cases of a data set whether or not their files exist, with everything that is wrong with the list itself.

    Parameters
    ----------
    root
        See `read_cases`.
    config
        Which classes there are; without one, whatever is told counts, and the class numbers of a MedMNIST file are
        their names.

    Raises
    ------
    ManifestInvalid
        If it cannot be read as a list.
    """
    if not root.is_file():
        raise ManifestInvalid(root, seen="it is no file", expected="a CSV or a MedMNIST .npz was expected",
                              remedy="Check data.root")  # fmt: skip
    if is_npz(root):
        return _from_npz(root, config)
    try:
        return _from_csv(root, config)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise ManifestInvalid(root, seen=f"cannot be read ({type(error).__name__}: {error})") from error


def _from_csv(manifest: Path, config: ClassifyConfig | None) -> Listing:
    rows = rows_of(manifest)
    problems, cases = patient_problems(manifest, rows), []
    for number, row in enumerate(rows, start=2):
        if not row["image"]:
            problems.append(ManifestInvalid(manifest, seen=f"row {number} names no image"))
            continue
        image = manifest.parent / row["image"]
        name = (row.get("case") or "").strip() or case_name(image.with_suffix("") if is_png(image) else image)
        told = (row.get("split") or "").strip().lower()
        if told and told not in _SIDES:
            problems.append(
                ManifestInvalid(manifest, seen=f"row {number} has the split {told!r}",
                                expected="train, validation or test was expected")
            )  # fmt: skip
        facts = {key: value for key, value in row.items() if key and key not in _KNOWN and isinstance(value, str)}
        classes = tuple(part.strip() for part in (row["label"] or "").split(SEPARATOR) if part.strip())
        problems += _class_problems(classes, config, f"{manifest} row {number}")
        patient = (row.get("patient") or "").strip() or name
        cases.append(ClassifiedCase(name, image, classes, patient, _SIDES.get(told, ""), facts))
    return Listing(tuple(cases), tuple(problems))


def _class_problems(classes: Sequence[str], config: ClassifyConfig | None, subject: str) -> list[ManifestInvalid]:
    """What is wrong with the classes of one row, as far as can be known."""
    problems = []
    known = [item.name for item in config.classes] if config else list(classes)
    wrong = [name for name in classes if name not in known]
    if wrong:
        problems.append(ManifestInvalid(subject, seen=f"the class {wrong[0]!r}", expected=f"known: {', '.join(known)}"))
    if len(set(classes)) < len(classes):
        problems.append(ManifestInvalid(subject, seen=f"a class twice in {SEPARATOR.join(classes)!r}"))
    if config and config.output == "softmax" and len(classes) != 1:
        expected = "one class was expected (output: softmax)"
        problems.append(ManifestInvalid(subject, seen=f"{len(classes)} classes", expected=expected))
    return problems


def _from_npz(path: Path, config: ClassifyConfig | None) -> Listing:
    arrays = read_npz(path)
    problems, cases = [], []
    for part, side in PARTS.items():
        labels = arrays.get(f"{part}_labels")
        for index, row in enumerate(labels.tolist() if labels is not None else ()):
            several = config.output == "sigmoid" if config else len(row) > 1
            ids = [number for number, there in enumerate(row) if there] if several else row
            subject, name = f"{path} {part}_labels[{index}]", f"{part}_{index:05d}"
            wanted = len(config.classes) if config else 0
            if config and (len(row) != (wanted if several else 1) or not set(ids) <= set(range(wanted))):
                expected = f"classes 0 to {wanted - 1} were expected"
                problems.append(ManifestInvalid(subject, seen=f"it is {row}", expected=expected))
                continue
            classes = tuple(config.classes[id_].name if config else str(id_) for id_ in ids)
            problems += _class_problems(classes, config, subject)
            cases.append(ClassifiedCase(name, path, classes, name, side, {}, part, index))
    return Listing(tuple(cases), tuple(problems))


def load_picture(case: ClassifiedCase) -> Volume:
    """Read a classified case's image: PNG, NIfTI, one DICOM series, or a picture of a MedMNIST file.

    Raises
    ------
    InputRefused, SeveralSeries
        As the reader of its kind does.
    """
    if is_npz(case.image):
        return read_npz_image(case.image, case.part, case.index)
    return read_image(case.image)


def split_cases(cases: Sequence[ClassifiedCase], config: ClassifyConfig) -> Split:
    """Divide classified cases into train, validation and test, all cases of a patient on one side.

    By patient: patients are dealt class by class, so that each side has about the same share of each class. As given:
    the data set's own sides; if it has no test part, `data.test_fraction` of its training patients become one.

    Raises
    ------
    ManifestInvalid
        If a given split is asked for and a case has none.
    TooFewCases
        If a side would lack a class (or, with sigmoid, every case there would have it).
    """
    settings = config.data
    if settings.split == "given":
        untold = [case.name for case in cases if not case.side]
        if untold:
            raise ManifestInvalid("data.split=given", seen=f"case {untold[0]!r} has no split")
        side_of = _given(cases, settings)
    else:
        tested, validated = _dealt(cases, settings)
        side_of = {
            case.name: "test" if case.patient in tested else "validation" if case.patient in validated else "train"
            for case in cases
        }
    sides: dict[str, list[ClassifiedCase]] = {"train": [], "validation": [], "test": []}
    for case in sorted(cases, key=lambda case: case.name):
        sides[side_of[case.name]].append(case)
    _check_sides(sides, config)
    return Split(*(tuple(case.name for case in sides[side]) for side in ("train", "validation", "test")))


def _given(cases: Sequence[ClassifiedCase], settings: ClassifyData) -> dict[str, str]:
    side_of = {case.name: case.side for case in cases}
    if "test" not in side_of.values():
        trained = [case for case in cases if case.side == "train"]
        tested = _drawn(_by_class(trained, settings.seed), settings.test_fraction)
        side_of |= {case.name: "test" for case in trained if case.patient in tested}
    return side_of


def _dealt(cases: Sequence[ClassifiedCase], settings: ClassifyData) -> tuple[set[str], set[str]]:
    """The patients to test on, the same in every fold, and those to validate on in this one."""
    patients = _by_class(cases, settings.seed)
    tested = _drawn(patients, settings.test_fraction)
    rest = [patient for patient in patients if patient not in tested]
    return tested, set(rest[settings.fold :: settings.folds])


def _by_class(cases: Sequence[ClassifiedCase], seed: int) -> list[str]:
    """The patients in random order within each set of classes, one set after the other."""
    classes: dict[str, set[str]] = {}
    for case in cases:
        classes.setdefault(case.patient, set()).update(case.classes)
    patients = sorted(classes)
    random.Random(seed).shuffle(patients)
    return sorted(patients, key=lambda patient: sorted(classes[patient]))


def _drawn(patients: Sequence[str], share: float) -> set[str]:
    """Every so manyeth of them, so that neighbours (of one class) are drawn in proportion."""
    return {patient for i, patient in enumerate(patients) if int((i + 1) * share + 1e-9) > int(i * share + 1e-9)}


def _check_sides(sides: Mapping[str, Sequence[ClassifiedCase]], config: ClassifyConfig) -> None:
    for side, members in sides.items():
        if not members and side == "test":
            continue
        for item in config.classes:
            having = sum(item.name in case.classes for case in members)
            if not having:
                raise TooFewCases(f"class {item.name}", seen=f"no case among the {len(members)} for {side}")
            if config.output == "sigmoid" and having == len(members):
                raise TooFewCases(f"class {item.name}", seen=f"all {having} cases for {side} have it")
