"""One file's bytes -> the bytes that may be given away, or a refusal."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import ImplicitVRLittleEndian

from imaging.dicom.deidentify.check import check_identity
from imaging.dicom.deidentify.clean import MALFORMED, Cleaning, people_of
from imaging.dicom.deidentify.options import Options, declare
from imaging.dicom.deidentify.pixels import check_pixels, trim_pixels
from imaging.dicom.deidentify.pseudonyms import Pseudonyms
from imaging.dicom.frames import quietly
from imaging.dicom.header import read_header
from imaging.errors import NotDeidentifiable, NotDicom, UnreadableDicom

_UNREADABLE = (*MALFORMED, InvalidDicomError, OSError, MemoryError)


@dataclass(frozen=True, slots=True)
class Deidentified:
    """What may be given away of one file.

    Attributes
    ----------
    content
        The file's bytes.
    patient, study_uid, series_uid, sop_instance_uid
        Whose and what it is, by pseudonyms.
    unsure_pixels
        Whether it is a kind of picture that often has text burnt in.
    gone
        How often what was taken away, by keyword or by what it is.
    """

    content: bytes
    patient: str
    study_uid: str
    series_uid: str
    sop_instance_uid: str
    unsure_pixels: bool
    gone: Mapping[str, int]


def deidentified(path: Path, names: Pseudonyms, options: Options) -> Deidentified:
    """De-identify one DICOM file.

    Parameters
    ----------
    path
        The file; it is only read.
    names
        Pseudonyms by the key; it learns what they stand for.
    options
        Which options of the profile are taken.

    Raises
    ------
    NotDicom, UnreadableDicom, UnsupportedTransferSyntax
        If it cannot be read whole.
    NotDeidentifiable, BurnedIn
        If it is none of the pictures that this can be done to.
    IdentityLeft
        If the second pass finds what should not be there.
    """
    with quietly():
        original = _read(path)
        try:
            return _made(original, path, names, options)
        except MALFORMED as error:
            raise UnreadableDicom(path, seen=f"pydicom cannot take it ({type(error).__name__})") from error


def _read(path: Path) -> Dataset:
    # Bounds what pydicom would inflate or walk without an end.
    read_header(path, frozenset())
    try:
        dataset: Dataset = pydicom.dcmread(path, force=True)
        known = all(str(dataset.get(name, "")).strip(" \0") for name in ("SOPClassUID", "SOPInstanceUID"))
    except _UNREADABLE as error:
        raise UnreadableDicom(path, seen=f"pydicom cannot read it ({type(error).__name__})") from error
    if not known:
        raise NotDicom(path, seen="no SOPClassUID and SOPInstanceUID")
    return dataset


def _made(original: Dataset, path: Path, names: Pseudonyms, options: Options) -> Deidentified:
    subject = f"instance {str(original.SOPInstanceUID)[:64]}"
    if str(original.SOPClassUID) == "1.2.840.10008.1.3.10":
        raise NotDeidentifiable(path, seen="a DICOMDIR, which lists patients")
    unsure = check_pixels(original, subject, unsure=options.unsure_pixels)
    cleaning = Cleaning(names, options, owner_of(original), people_of(original))
    result = cleaning.cleaned(original)
    syntax = getattr(original.file_meta, "TransferSyntaxUID", None) or ImplicitVRLittleEndian
    result.PatientName = result.PatientID = names.patient(cleaning.owner)
    declare(result, options)
    trim_pixels(result, original, subject, syntax)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = result.SOPClassUID
    meta.MediaStorageSOPInstanceUID = result.SOPInstanceUID
    result.file_meta = meta
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, result, enforce_file_format=True)
    content = stream.getvalue()
    check_identity(content, path, subject)
    return Deidentified(
        content=content,
        patient=str(result.PatientID),
        study_uid=str(result.get("StudyInstanceUID", "") or ""),
        series_uid=str(result.get("SeriesInstanceUID", "") or ""),
        sop_instance_uid=str(result.SOPInstanceUID),
        unsure_pixels=unsure,
        gone=dict(sorted(cleaning.gone.items())),
    )


def owner_of(dataset: Dataset) -> str:
    """What one patient's files have in common: id and issuer; without an id, the study."""
    found = []
    for keyword in ("PatientID", "IssuerOfPatientID", "StudyInstanceUID"):
        try:
            found.append(str(dataset.get(keyword, "") or "").strip(" \0"))
        except MALFORMED:
            found.append("")
    patient, issuer, study = found
    if not patient:
        return f"no id, study {study}"
    return f"{patient}^^^{issuer}" if issuer else patient
