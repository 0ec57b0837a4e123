"""Which classified cases there are: a CSV of pictures with the names of their classes, or a MedMNIST file.

Invariant: a class that the config does not name is refused by row, and each class has a case on every side of a split.
Splits are those of `imaging.manifest`, by patient. Imports no torch.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from imaging.channels import read_image
from imaging.config import ClassifyConfig, ClassifyData, JudgedConfig, TextData
from imaging.dicom import load_series
from imaging.dicom.owner import owner_of
from imaging.errors import ManifestInvalid, TooFewCases
from imaging.label_table import LabelTable, class_problems, read_label_table
from imaging.labelled_studies import KEYS, label_studies
from imaging.manifest import Split, check_once
from imaging.nifti import case_name, is_nifti
from imaging.npz import PARTS, is_npz, read_npz, read_npz_image
from imaging.png import is_png
from imaging.volume import Volume

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClassifiedCase:
    """One picture or volume with its classes.

    Attributes
    ----------
    name
        Unique in the manifest.
    image
        A PNG, NIfTI or DICOM file, a folder of DICOM, or a MedMNIST file.
    files, volume
        The files of a DICOM series that does not lie alone (`image` is then the first of them), and which of its
        volumes.
    classes
        Names of its classes, in the config's order; none where no class is there.
    patient
        Whose it is; where the manifest does not say, by the PatientID of a DICOM file, else the case's own name.
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
    files: tuple[Path, ...] = ()
    volume: str = ""


def read_cases(root: Path, config: ClassifyConfig) -> list[ClassifiedCase]:
    """Read the cases of a classification data set.

    Parameters
    ----------
    root
        A CSV with the columns ``image`` (path relative to `data.images` beside the CSV) and ``label`` (a class's name;
        several separated by ``|`` where the config's output is sigmoid, and blank for none of them) or a column
        ``label_<class>`` of 0 and 1 for each class, optionally ``case``, ``patient`` and ``split``, and any further
        columns as facts, unless `data.columns` calls them otherwise; or, where it has a column ``StudyInstanceUID`` or
        ``PatientID`` in place of ``image``, the folder of the DICOM studies is `data.images`; or the folder of the
        studies itself, the CSV being `data.labels`; or a MedMNIST ``.npz``, whose class numbers are the config's ids.
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
    labels = config.data.labels if config else None
    if labels is None and not root.is_file():
        raise ManifestInvalid(root, seen="it is no file", expected="a CSV or a MedMNIST .npz was expected",
                              remedy="Check data.root")  # fmt: skip
    if is_npz(root):
        return _from_npz(root, config)
    try:
        return _from_csv(Path(labels), config, root) if labels else _from_csv(root, config)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ManifestInvalid(root, seen=f"cannot be read ({type(error).__name__}: {error})") from error


def _from_csv(manifest: Path, config: ClassifyConfig | None, folder: Path | None = None) -> Listing:
    settings = config.data if config else ClassifyData()
    folder, heading = folder or manifest.parent / settings.images, settings.columns.image
    table = read_label_table(manifest, config, keys=KEYS)
    if config and table.rows and heading not in table.rows[0].cells and set(KEYS) & set(table.rows[0].cells):
        return _from_studies(manifest, folder, table, config)
    problems, cases = list(table.problems), []
    for row in table.rows:
        if heading not in row.cells:
            raise ManifestInvalid(manifest, seen=f"no column {heading!r}")
        if not row.cells[heading]:
            problems.append(ManifestInvalid(manifest, seen=f"row {row.number} names no image"))
            continue
        problems += row.problems
        image = folder / row.cells[heading]
        name = row.case or case_name(image.with_suffix("") if is_png(image) else image)
        patient = row.patient or ("" if is_png(image) or is_nifti(image) else owner_of(image)) or name
        cases.append(ClassifiedCase(name, image, row.classes, patient, row.side, row.facts))
    return Listing(tuple(cases), tuple(problems))


def _from_studies(manifest: Path, folder: Path, table: LabelTable, config: ClassifyConfig) -> Listing:
    volumes, problems = label_studies(folder, manifest, table.rows, config)
    cases = [
        ClassifiedCase(
            item.name, item.files[0], item.row.classes, item.patient, item.row.side, item.facts,
            files=item.files, volume=item.volume,
        )
        for item in volumes
    ]  # fmt: skip
    told = [problem for row in table.rows for problem in row.problems]
    return Listing(tuple(cases), (*table.problems, *told, *problems))


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
            problems += class_problems(classes, config, subject)
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
    if case.files:
        return load_series(case.files, volume=case.volume or None)
    return read_image(case.image)


class Classed(Protocol):
    """What a split by classes asks of a case; see `ClassifiedCase`."""

    @property
    def name(self) -> str:
        """Unique in the manifest."""

    @property
    def patient(self) -> str:
        """Whose it is."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of its classes."""

    @property
    def side(self) -> str:
        """Where the data set itself puts it."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What else is known of it."""


def split_cases(cases: Sequence[Classed], config: JudgedConfig) -> Split:
    """Divide classified cases into train, validation and test, all cases of a patient on one side.

    By patient: patients are dealt class by class, so that each side has about the same share of each class. As given:
    the data set's own sides; if it has no test part, `data.test_fraction` of its training patients become one.

    Raises
    ------
    ManifestInvalid
        If a given split is asked for and a case has none.
    TooFewCases
        If a side would lack a class (or, with sigmoid, every case there would have it). With ``data.absent: tell`` the
        validation or test part may.
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
    sides: dict[str, list[Classed]] = {"train": [], "validation": [], "test": []}
    for case in sorted(cases, key=lambda case: case.name):
        sides[side_of[case.name]].append(case)
    _check_sides(sides, config)
    return Split(*(tuple(case.name for case in sides[side]) for side in ("train", "validation", "test")))


def _given(cases: Sequence[Classed], settings: ClassifyData | TextData) -> dict[str, str]:
    side_of = {case.name: case.side for case in cases}
    if "test" not in side_of.values():
        trained = [case for case in cases if case.side == "train"]
        tested = _drawn(_by_class(trained, settings.seed), settings.test_fraction)
        side_of |= {case.name: "test" for case in trained if case.patient in tested}
    return side_of


def _dealt(cases: Sequence[Classed], settings: ClassifyData | TextData) -> tuple[set[str], set[str]]:
    """The patients to test on, the same in every fold, and those to validate on in this one."""
    patients = _by_class(cases, settings.seed)
    tested = _drawn(patients, settings.test_fraction)
    rest = [patient for patient in patients if patient not in tested]
    return tested, set(rest[settings.fold :: settings.folds])


def _by_class(cases: Sequence[Classed], seed: int) -> list[str]:
    """The patients in random order within each set of classes, one set after the other.

    Those who have the rarest class come first and next to each other, so that every so manyeth of them is drawn.
    """
    classes: dict[str, set[str]] = {}
    for case in cases:
        classes.setdefault(case.patient, set()).update(case.classes)
    having = Counter(name for names in classes.values() for name in names)
    patients = sorted(classes)
    random.Random(seed).shuffle(patients)
    # Those without any class come last, not before the rarest.
    return sorted(patients, key=lambda p: (not classes[p], sorted((having[name], name) for name in classes[p])))


def _drawn(patients: Sequence[str], share: float) -> set[str]:
    """Every so manyeth of them, so that neighbours (of one class) are drawn in proportion."""
    return {patient for i, patient in enumerate(patients) if int((i + 1) * share + 1e-9) > int(i * share + 1e-9)}


def _check_sides(sides: Mapping[str, Sequence[Classed]], config: JudgedConfig) -> None:
    for side, members in sides.items():
        if not members and side == "test":
            continue
        for item in config.classes:
            having = sum(item.name in case.classes for case in members)
            if not having:
                _lacking(f"class {item.name}", f"no case among the {len(members)} for {side}", side, config)
            if config.output == "sigmoid" and having == len(members):
                _lacking(f"class {item.name}", f"all {having} cases for {side} have it", side, config)


def _lacking(subject: str, seen: str, side: str, config: JudgedConfig) -> None:
    if side == "train" or config.data.absent == "refuse":
        raise TooFewCases(subject, seen=seen, remedy="Add cases, change data.folds and data.test_fraction, or, where"
                          " validation or test lack it, let data.absent=tell measure it without")  # fmt: skip
    log.warning("%s: %s; nothing is measured of it there", subject, seen)
