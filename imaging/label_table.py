"""A CSV of cases with their classes -> rows, whatever its columns are called.

Invariant: every row is taken as the config says or what is wrong with it is told by its number; nothing that a cell
says is guessed at, and a word that names no class is told rather than read as "none". Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imaging.config import ClassifyConfig, Columns
from imaging.errors import ManifestInvalid
from imaging.manifest import SEPARATOR, patient_problems, rows_of

# A column for each class, with 0 or 1 in it.
OF_A_CLASS = "label_"
_SIDES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_YEARS = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_THERE = {0.0: False, 1.0: True}


@dataclass(frozen=True, slots=True)
class Row:
    """What a row says.

    Attributes
    ----------
    number
        As a spreadsheet shows it: the first row below the headings is 2.
    cells
        Its text by heading, without blanks around it.
    classes
        Names of its classes, in the config's order, and then the words that name none.
    patient, case
        Empty where the table does not say.
    side
        ``train``, ``validation`` or ``test``; empty where the table does not say.
    facts
        What else it says (age, sex, view).
    problems
        What is wrong with it.
    """

    number: int
    cells: Mapping[str, str] = field(repr=False)
    classes: tuple[str, ...]
    patient: str = field(repr=False)
    case: str
    side: str
    facts: Mapping[str, str] = field(repr=False)
    problems: tuple[ManifestInvalid, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The rows of a table, and what is wrong with it as a whole."""

    rows: tuple[Row, ...]
    problems: tuple[ManifestInvalid, ...]


def read_label_table(manifest: Path, config: ClassifyConfig | None, *, keys: tuple[str, ...] = ()) -> LabelTable:
    """Read a table of cases with their classes.

    Parameters
    ----------
    manifest
        The CSV. Its columns are those that `data.columns` names.
    config
        Which classes there are, and what the table calls them; without one, each word is a class.
    keys
        Headings that say of which image a row is; they are no facts.

    Raises
    ------
    ManifestInvalid
        If a column is missing. What is wrong with single rows is collected.
    """
    columns = config.data.columns if config else Columns()
    raw = rows_of(manifest)
    headings = [key for key in (raw[0] if raw else {}) if key]
    for heading in columns.named():
        if raw and heading not in headings:
            among = f"one of {', '.join(map(repr, headings))} was expected"
            raise ManifestInvalid(manifest, seen=f"no column {heading!r}", expected=among)
    of_class = _class_columns(manifest, columns, config, headings) if raw else {}
    # A table of studies has no images: whose they are is for the files to say.
    keys = () if columns.image in headings else keys
    known = {columns.image, columns.label, columns.case, columns.patient, columns.split, *keys, *of_class}
    facts = columns.facts if columns.facts is not None else {key: key for key in headings if key not in known}
    rows = []
    for number, cells in enumerate(raw, start=2):
        told = {key: (value or "").strip() for key, value in cells.items() if key and isinstance(value, str | None)}
        words, problems = _from_columns(told, of_class, f"{manifest} row {number}")
        words = words if of_class else _words(told[columns.label], columns)
        side = told.get(columns.split, "").lower()
        if side and side not in _SIDES:
            expected = "train, validation or test was expected"
            problems.append(ManifestInvalid(manifest, seen=f"row {number} has the split {side!r}", expected=expected))
        problems += class_problems(words, config, f"{manifest} row {number}")
        rows.append(
            Row(
                number,
                told,
                (*named_by(words, config), *_unknown(words, config)),
                told.get(columns.patient, ""),
                told.get(columns.case, ""),
                _SIDES.get(side, ""),
                {name: _fact(name, told.get(heading, "")) for name, heading in facts.items()},
                tuple(problems),
            )
        )
    told_elsewhere = columns.patient != Columns().patient or columns.image not in headings
    of_patients = patient_problems(manifest, raw, columns.patient, named=told_elsewhere)
    return LabelTable(tuple(rows), tuple(of_patients))


def named_by(words: Sequence[str], config: ClassifyConfig | None) -> tuple[str, ...]:
    """The classes that some words name, in the config's order.

    A word names each class whose name or title it is, or that lists it under `told_as`; so one class may stand for
    several words, and one word for several classes.
    """
    if config is None:
        return tuple(words)
    return tuple(item.name for item in config.classes if {item.name, item.title, *item.told_as} & set(words))


def _unknown(words: Sequence[str], config: ClassifyConfig | None) -> tuple[str, ...]:
    return tuple(word for word in words if not named_by([word], config))


def class_problems(words: Sequence[str], config: ClassifyConfig | None, subject: str) -> Iterator[ManifestInvalid]:
    """What is wrong with the classes of one row, as far as can be known."""
    wrong = _unknown(words, config)
    if wrong and config:
        yield ManifestInvalid(subject, seen=f"the class {wrong[0]!r}",
                              expected=f"known: {', '.join(item.name for item in config.classes)}",
                              remedy="Correct it, or add the word to told_as of its class or to data.columns.none"
                              )  # fmt: skip
    if len(set(words)) < len(words):
        yield ManifestInvalid(subject, seen=f"a class twice in {SEPARATOR.join(words)!r}")
    found = named_by(words, config)
    if config and config.output == "softmax" and not wrong and len(found) != 1:
        expected = "one class was expected (output: softmax)"
        yield ManifestInvalid(subject, seen=f"{len(found)} classes", expected=expected)


def age_in_years(told: str) -> str:
    """An age as DICOM writes it (PS3.5 section 6.2, AS: ``058Y``, ``011M``) as years; anything else as it is.

    Some writers leave the leading zeros out, and some blanks in.
    """
    match = re.fullmatch(r"(\d{1,3})([DWMY])", told.strip().upper())
    return f"{int(match[1]) * _YEARS[match[2]]:.4g}" if match else told


def is_age(name: str) -> bool:
    """Whether a fact of this name is an age: age, Age, PatientAge, Patient Age."""
    return "".join(filter(str.isalpha, name.lower())) in ("age", "patientage")


def _fact(name: str, told: str) -> str:
    return age_in_years(told) if is_age(name) else told


def _words(cell: str, columns: Columns) -> tuple[str, ...]:
    """The names in a label cell; a word that means none of the classes may not stand beside others."""
    words = tuple(part.strip() for part in cell.split(SEPARATOR) if part.strip())
    return () if len(words) == 1 and words[0] in columns.none else words


def _class_columns(
    manifest: Path, columns: Columns, config: ClassifyConfig | None, headings: Sequence[str]
) -> dict[str, str]:
    """The columns of 0 and 1, each with the word in its heading; none where there is a column of names."""
    found = {heading: heading.removeprefix(OF_A_CLASS) for heading in headings if heading.startswith(OF_A_CLASS)}
    if columns.label in headings:
        if found:
            seen = f"a column {columns.label!r} and a column {min(found)!r}"
            raise ManifestInvalid(manifest, seen=seen, expected="the classes in one place were expected")
        return {}
    if not found:
        expected = f"it, or a column {OF_A_CLASS}<class> for each class was expected"
        raise ManifestInvalid(manifest, seen=f"no column {columns.label!r}", expected=expected)
    for heading, word in found.items():
        if not named_by([word], config):
            raise ManifestInvalid(manifest, seen=f"the column {heading!r}, whose name names no class")
    told = named_by(list(found.values()), config)
    for item in config.classes if config else ():
        if item.name not in told:
            expected = f"{OF_A_CLASS}{item.name} was expected"
            raise ManifestInvalid(manifest, seen=f"no column for the class {item.name!r}", expected=expected)
    return found


def _from_columns(
    told: Mapping[str, str], of_class: Mapping[str, str], subject: str
) -> tuple[tuple[str, ...], list[ManifestInvalid]]:
    """The words whose column has a 1, and what is wrong with the others' cells."""
    words, wrong = [], []
    for heading, word in of_class.items():
        try:
            words += [word] if _THERE[float(told[heading])] else []
        except (KeyError, ValueError):
            wrong.append(
                ManifestInvalid(subject, seen=f"{told[heading]!r} in {heading!r}",
                                expected="0 or 1 was expected: what is not known cannot be learnt",
                                remedy="Decide what it is to count as, or leave the row out")
            )  # fmt: skip
    return tuple(words), wrong
