"""The header of a source instance, as whatever is derived from it needs it, and UIDs made of content.

Invariant: patient and study are taken over as the source has them, in its own character set; the same content has the
same UIDs.
"""

from __future__ import annotations

import json
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from imaging.dicom.frames import quietly

MANUFACTURER = "imgpipe"
UNICODE = "ISO_IR 192"
# Whose a result is: what must be the same in it and in its source (PS3.3 C.7.1.1, C.7.2.1).
OF_THE_PATIENT = ("PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex",
                  "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
                  "ReferringPhysicianName")  # fmt: skip
# Attributes that are taken from the source and that highdicom wants present (type 2: may be empty).
_MAY_BE_EMPTY = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
                 "AccessionNumber", "ReferringPhysicianName", "Manufacturer", "PositionReferenceIndicator")  # fmt: skip


def read_source(path: Path, *, study_uid: str = "", series_uid: str = "") -> pydicom.Dataset:
    """An instance's header, with the type 2 attributes that some writers leave out.

    Parameters
    ----------
    path
        A DICOM file.
    study_uid, series_uid
        The UIDs that it is known by, where it does not tell them itself.
    """
    with quietly():
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    # Some files have no meta header; highdicom asks for the transfer syntax of its sources.
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    for keyword in _MAY_BE_EMPTY:
        if keyword not in dataset:
            setattr(dataset, keyword, "")
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = study_uid
    if not dataset.get("SeriesInstanceUID"):
        dataset.SeriesInstanceUID = series_uid
    _mend_character_set(dataset)
    return dataset


def _mend_character_set(dataset: pydicom.Dataset) -> None:
    """Write Specific Character Set (PS3.3 C.12.1.1.2) as highdicom takes it, without changing what it means.

    Where it knows the set, texts stay as they are, byte for byte. Sets with code extensions, which few viewers read,
    and sets that it does not know become Unicode.
    """
    declared = dataset.get("SpecificCharacterSet")
    values = [declared] if isinstance(declared, str) else list(declared or [])
    if not any(values):
        dataset.pop("SpecificCharacterSet", None)  # the default repertoire
    elif values == ["ISO 2022 IR 100"]:
        dataset.SpecificCharacterSet = "ISO_IR 100"  # without code extensions the two are one repertoire
    elif len(values) > 1 or values[0] not in {known.value for known in hd.SpecificCharacterSetValues}:
        to_unicode(dataset)


def to_unicode(dataset: pydicom.Dataset) -> None:
    """Let a header's texts be written as UTF-8, whatever character set they were in."""
    if dataset.get("SpecificCharacterSet") != UNICODE:
        with quietly():
            dataset.decode()
        dataset.SpecificCharacterSet = UNICODE


def uid_of(*content: str) -> str:
    """A UID that is a function of some content; where one part ends and the next begins counts, too."""
    return str(generate_uid(entropy_srcs=[json.dumps(content)]))


def tracking_uid(series_uid: str, volume: str, model: str, name: str) -> str:
    """What one thing that a checkpoint looks for in one volume of a series is tracked by, in SEG and SR alike."""
    return uid_of("tracking", series_uid, model, name, *([volume] if volume else []))
