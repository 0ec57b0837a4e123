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
from imaging.manifest import Split, check_once, read_rows
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
    if not root.is_file():
        raise ManifestInvalid(root, seen="it is no file", expected="a CSV or a MedMNIST .npz was expected",
                              remedy="Check data.root")  # fmt: skip
    if is_npz(root):
        cases = _from_npz(root, config)
    else:
        try:
            cases = _from_csv(root, config)
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise ManifestInvalid(root, seen=f"cannot be read ({type(error).__name__}: {error})") from error
        check_once(root, [case.name for case in cases], [case.image for case in cases])
    if not cases:
        raise ManifestInvalid(root, seen="no case")
    return cases


def _from_csv(manifest: Path, config: ClassifyConfig) -> list[ClassifiedCase]:
    cases = []
    for number, row in enumerate(read_rows(manifest), start=2):
        image = manifest.parent / row["image"]
        name = (row.get("case") or "").strip() or case_name(image.with_suffix("") if is_png(image) else image)
        if not row["image"] or not image.exists():
            raise ManifestInvalid(manifest, seen=f"case {name!r} names {image}, which does not exist")
        told = (row.get("split") or "").strip().lower()
        if told and told not in _SIDES:
            raise ManifestInvalid(manifest, seen=f"row {number} has the split {told!r}",
                                  expected="train, validation or test was expected")  # fmt: skip
        facts = {key: value for key, value in row.items() if key and key not in _KNOWN and isinstance(value, str)}
        classes = _classes(row["label"] or "", config, f"{manifest} row {number}")
        patient = (row.get("patient") or "").strip() or name
        cases.append(ClassifiedCase(name, image, classes, patient, _SIDES.get(told, ""), facts))
    return cases


def _classes(told: str, config: ClassifyConfig, subject: str) -> tuple[str, ...]:
    """The names in a label cell, checked against the config."""
    names = tuple(part.strip() for part in told.split("|") if part.strip())
    known = [item.name for item in config.classes]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise ManifestInvalid(subject, seen=f"the class {wrong[0]!r}", expected=f"known: {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ManifestInvalid(subject, seen=f"a class twice in {told!r}")
    if config.output == "softmax" and len(names) != 1:
        raise ManifestInvalid(
            subject, seen=f"{len(names)} classes", expected="one class was expected (output: softmax)"
        )
    return names


def _from_npz(path: Path, config: ClassifyConfig) -> list[ClassifiedCase]:
    arrays = read_npz(path)
    names = [item.name for item in config.classes]
    cases = []
    for part, side in PARTS.items():
        labels = arrays.get(f"{part}_labels")
        for index, row in enumerate(labels.tolist() if labels is not None else ()):
            ids = [number for number, there in enumerate(row) if there] if config.output == "sigmoid" else row
            if (config.output == "sigmoid" and len(row) != len(names)) or not set(ids) <= set(range(len(names))):
                raise ManifestInvalid(path, seen=f"{part}_labels[{index}] is {row}",
                                      expected=f"classes 0 to {len(names) - 1} were expected")  # fmt: skip
            classes = _classes("|".join(names[number] for number in ids), config, f"{path} {part}_labels[{index}]")
            name = f"{part}_{index:05d}"
            cases.append(ClassifiedCase(name, path, classes, name, side, {}, part, index))
    return cases


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
