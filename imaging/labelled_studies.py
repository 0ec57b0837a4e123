"""A folder of DICOM studies and a table of their classes -> the volumes to learn from, each with its row.

Invariant: a row without an image, two rows of one study and a patient whom nobody names are refused, for each of them
would bend what is learnt; what is merely left over (studies without a row, series that the config does not take) is
told. Nothing told here names a patient: studies and series are named by UID, rows by number. Imports no torch.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pydicom

from imaging.config import ClassifyConfig
from imaging.dicom.geometry import stacks
from imaging.dicom.owner import digest_of
from imaging.dicom.scan import Series, Study, scan
from imaging.dicom.stack import Stack
from imaging.errors import ImagingError, ManifestInvalid, NotApplicable, NotDicom, NothingFound
from imaging.label_table import Row, age_in_years
from imaging.selection import check_choice, check_fit, check_grey

log = logging.getLogger(__name__)

BY_STUDY, BY_PATIENT = "StudyInstanceUID", "PatientID"
# The headings by which a row may say whose it is.
KEYS = (BY_STUDY, BY_PATIENT)
# What metrics by subgroup ask for, by the attribute that has it (PS3.3 C.7.2.2, C.7.1.1, C.8.11.7).
_HEADER_FACTS = {"age": "PatientAge", "sex": "PatientSex", "view": "ViewPosition"}


@dataclass(frozen=True, slots=True)
class LabelledVolume:
    """One volume of a study that has a row.

    Attributes
    ----------
    name
        SeriesInstanceUID, with the volume's name where the series holds several.
    files
        Of the series.
    volume
        Its name in the series; empty where there is only one.
    row
        What the table says of its study or patient.
    patient
        The row's, or else a digest of the files' PatientID, which is not to be read in any log.
    facts
        The row's, and age, sex and view from the headers where the table has no such columns.
    """

    name: str
    files: tuple[Path, ...]
    volume: str
    row: Row
    patient: str = field(repr=False)
    facts: Mapping[str, str] = field(repr=False)


def label_studies(
    folder: Path, manifest: Path, rows: Sequence[Row], config: ClassifyConfig
) -> tuple[list[LabelledVolume], list[ManifestInvalid]]:
    """Find the volumes that the rows of a table speak of.

    Parameters
    ----------
    folder
        Holds the studies, at any depth.
    manifest, rows
        The table, with a column StudyInstanceUID or PatientID.
    config
        Its `applies_to` says which series are taken.

    Returns
    -------
    (volumes, problems)
        In the order of the rows; and what is wrong.

    Raises
    ------
    ManifestInvalid
        If there is nothing in the folder.
    """
    try:
        found = scan(folder)
    except NothingFound as error:
        raise ManifestInvalid(folder, seen="no DICOM study lies there", remedy="Check data.root") from error
    for code, count in Counter(error.code for error in found.refused if not isinstance(error, NotDicom)).items():
        log.warning("%s: %d file(s) or studies cannot be taken: %s", folder, count, code)
    key = BY_STUDY if BY_STUDY in rows[0].cells else BY_PATIENT
    studies: defaultdict[str, list[Study]] = defaultdict(list)
    for study in found.studies:
        studies[study.uid if key == BY_STUDY else study.patient_id].append(study)
    problems = list(_row_problems(manifest, rows, key, studies))
    left = sorted({study.uid for told in studies.values() for study in told}
                  - {study.uid for row in rows for study in studies.get(row.cells[key], ())})  # fmt: skip
    if left:
        log.warning("%d studies have no row in %s and are left out: %s", len(left), manifest.name, ", ".join(left[:5]))
    volumes: list[LabelledVolume] = []
    for row in _once(rows, key):
        of_row = studies.get(row.cells[key], ()) if row.cells[key] else ()
        taken, declined = _taken(of_row, row, config)
        volumes += taken
        if of_row and not taken:
            why = f": {declined[0].seen}, {declined[0].expected}" if declined else ""
            problems.append(ManifestInvalid(manifest, seen=f"no series of row {row.number} is taken{why}",
                                            expected="one that applies_to takes was expected"))  # fmt: skip
    problems += _nameless(manifest, volumes)
    problems += _torn(manifest, rows, studies) if key == BY_STUDY else []
    return volumes, problems


def _row_problems(
    manifest: Path, rows: Sequence[Row], key: str, studies: Mapping[str, Sequence[Study]]
) -> Iterator[ManifestInvalid]:
    numbers: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        told = row.cells[key]
        numbers[told].append(row)
        if not told:
            yield ManifestInvalid(manifest, seen=f"row {row.number} has no {key}")
        elif not studies.get(told):
            named = f"the study {told}" if key == BY_STUDY else f"a {key}"
            yield ManifestInvalid(manifest, seen=f"row {row.number} names {named} that is not there",
                                  remedy="Bring the files, or take the row out")  # fmt: skip
    for told, several in numbers.items():
        if told and len({(row.classes, row.side, row.patient) for row in several}) > 1:
            yield ManifestInvalid(
                manifest, seen=f"rows {', '.join(str(row.number) for row in several)} are of one {key} and disagree",
                expected="one row for each was expected",
            )  # fmt: skip


def _torn(manifest: Path, rows: Sequence[Row], studies: Mapping[str, Sequence[Study]]) -> Iterator[ManifestInvalid]:
    """Where the PatientID of the table and that of the files put studies together in different ways.

    The split goes by the files' where no column ``patient`` tells better; pseudonyms made for each study would put one
    person on both sides of it.
    """
    by_table: defaultdict[str, set[str]] = defaultdict(set)
    by_files: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        told = "" if row.patient else row.cells.get(BY_PATIENT, "")
        for study in studies.get(row.cells[BY_STUDY], ()):
            if told and study.patient_id:
                by_table[told].add(study.patient_id)
                by_files[study.patient_id].add(told)
    torn = [sum(len(group) > 1 for group in groups.values()) for groups in (by_table, by_files)]
    if any(torn):
        seen = (
            f"{torn[0]} PatientIDs of the table are several in the files, {torn[1]} of the files several in the table"
        )
        yield ManifestInvalid(manifest, seen=seen, expected="one patient for one was expected",
                              remedy="Add a column patient, by which the split goes")  # fmt: skip


def _once(rows: Sequence[Row], key: str) -> list[Row]:
    """The first row of each study or patient."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.cells[key], row)
    return list(first.values())


def _taken(
    studies: Sequence[Study], row: Row, config: ClassifyConfig
) -> tuple[list[LabelledVolume], list[ImagingError]]:
    """The volumes that the config takes, and why the others are not."""
    taken: list[LabelledVolume] = []
    declined: list[ImagingError] = []
    for study in studies:
        for series in study.series:
            found, refused = stacks(series)
            declined += refused
            for stack in found:
                try:
                    _check(series, stack, config)
                except NotApplicable as reason:
                    declined.append(reason)
                    continue
                name = f"{series.uid} {stack.name}".strip()
                files = tuple(sorted({item.instance.path for item in stack.slices}))
                patient = row.patient or digest_of(study.patient_id)
                facts = {**header_facts(files[0]), **row.facts}
                taken.append(LabelledVolume(name, files, stack.name, row, patient, facts))
    return taken, declined


def _check(series: Series, stack: Stack, config: ClassifyConfig) -> None:
    if series.unpacked:
        raise NotApplicable(series.facts.subject, seen="it lies in an archive", expected="plain files were expected",
                            remedy="Unpack it")  # fmt: skip
    check_choice(config.applies_to, series.facts, named=False)
    check_grey(series.facts, stack.channels)
    check_fit(config, series.facts, stack.shape, stack.affine)


def header_facts(path: Path) -> dict[str, str]:
    """Age (in years), sex and view as a DICOM header tells them; empty where it does not."""
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_HEADER_FACTS.values()))
    told = {name: str(header.get(keyword) or "").strip() for name, keyword in _HEADER_FACTS.items()}
    return {name: age_in_years(value) if name == "age" else value for name, value in told.items()}


def _nameless(manifest: Path, volumes: Sequence[LabelledVolume]) -> list[ManifestInvalid]:
    nobody = sum(not volume.patient for volume in volumes)
    if not nobody:
        return []
    return [
        ManifestInvalid(manifest, seen=f"{nobody} series have no PatientID, so that no split can go by it",
                        expected="a PatientID in the files or a column patient was expected")
    ]  # fmt: skip
