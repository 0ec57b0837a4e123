"""A folder or files -> studies and series, from headers alone.

Invariant: one bad file never stops the scan, and no file disappears: each one is an instance of a series or is named
with the reason why it is not. Studies of different patients are never joined. Imports no torch.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pydicom

from imaging.errors import (
    ImagingError,
    InvalidUid,
    MissingAttribute,
    MixedPatients,
    NotDicom,
    NothingFound,
    UnreadableDicom,
    UnsupportedTransferSyntax,
)
from imaging.volume import SeriesFacts

# PS3.5 section 9.1. Components with a leading zero break the rule and are common; they are safe as file names.
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_PIXEL_GROUP = (b"\xe0\x7f", b"\x7f\xe0")  # (7FE0,....) in either byte order
# Files that media and operating systems leave beside images; they hold no image by design.
_KNOWN_STRAYS = ("dicomdir", "dirfile", "thumbs.db", ".ds_store", "desktop.ini", "autorun.inf")

_REQUIRED_UIDS = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID")
_KEYWORDS = (
    *_REQUIRED_UIDS, "FrameOfReferenceUID", "PatientID", "PatientName", "PatientBirthDate", "IssuerOfPatientID",
    "Modality", "SeriesDescription", "StudyDescription", "StudyDate", "AccessionNumber",
    "BodyPartExamined", "ImageType", "NumberOfFrames", "Rows", "Columns",
    "SamplesPerPixel", "PhotometricInterpretation", "PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instance:
    """What the header of one file says, as far as ordering and choosing need it.

    Attributes
    ----------
    path
        The file.
    sop_class_uid, sop_instance_uid, study_uid, series_uid, frame_of_reference_uid, transfer_syntax_uid
        DICOM UIDs; the frame of reference may be empty.
    modality, image_type, photometric
        Modality, Image Type and Photometric Interpretation.
    rows, columns, frames, samples
        Size of the pixel data; 0 rows where there is none.
    spacing
        Pixel Spacing (0028,0030) in mm: between rows, between columns; None where missing or malformed.
    orientation
        Image Orientation (Patient) (0020,0037): direction cosines in LPS along a row and down a column, or None.
    position
        Image Position (Patient) (0020,0032) in LPS mm of the first pixel's centre, or None.
    """

    path: Path
    sop_class_uid: str
    sop_instance_uid: str
    study_uid: str
    series_uid: str
    frame_of_reference_uid: str
    transfer_syntax_uid: str
    modality: str
    image_type: tuple[str, ...]
    photometric: str
    rows: int
    columns: int
    frames: int
    samples: int
    spacing: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    position: tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class Series:
    """The instances of one SeriesInstanceUID of one study, in no particular order."""

    uid: str
    facts: SeriesFacts
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class Study:
    """One StudyInstanceUID of one patient.

    `patient_id`, `date` and `accession` go into the report for the reader who must know whose it is, never into a log.
    """

    uid: str
    description: str
    series: tuple[Series, ...]
    patient_id: str = field(default="", repr=False)
    date: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies under some paths.

    Attributes
    ----------
    studies
        By StudyInstanceUID.
    refused
        For each file or study that could not be taken, the named reason.
    strays
        Files that are known to hold no image (DICOMDIR, Thumbs.db, ``._*``).
    """

    studies: tuple[Study, ...]
    refused: tuple[ImagingError, ...]
    strays: tuple[Path, ...] = ()


def scan(paths: Path | Iterable[Path]) -> Scan:
    """Read the headers of all files under the given folders or files.

    Parameters
    ----------
    paths
        A folder, a file, or several of both; folders are searched to any depth, links to folders are not followed.

    Raises
    ------
    NothingFound
        If a path does not exist or is an empty folder.
    """
    refused: list[ImagingError] = []
    strays: list[Path] = []
    read: list[_Read] = []
    files, unreadable = files_under([paths] if isinstance(paths, Path) else paths)
    refused += unreadable
    for path in files:
        try:
            if _is_stray(path):
                strays.append(path)
            else:
                read.append(_read(path))
        except ImagingError as error:
            refused.append(error)
    studies, conflicts = _group(read)
    return Scan(studies, (*refused, *conflicts), tuple(strays))


def files_under(roots: Iterable[Path]) -> tuple[list[Path], list[UnreadableDicom]]:
    """All files under some folders or files, sorted within each, each once.

    Returns
    -------
    files
        Links to nothing are among them, so that whoever reads them names them.
    unreadable
        A refusal for each folder that cannot be listed; what lies in it may belong to a study that was found.

    Raises
    ------
    NothingFound
        If a root does not exist or is an empty folder.
    """
    files: dict[Path, Path] = {}  # ordered, each once, also where the roots overlap or are spelled differently
    unreadable: list[UnreadableDicom] = []

    def refuse(error: OSError) -> None:
        unreadable.append(UnreadableDicom(Path(error.filename), seen=f"the folder cannot be listed ({error.strerror})"))

    for root in roots:
        if not root.exists():
            raise NothingFound(root, seen="the path does not exist")
        before = len(unreadable)
        walked = os.walk(root, onerror=refuse)
        below = (
            [root] if root.is_file() else sorted(Path(folder) / name for folder, _, names in walked for name in names)
        )
        if not below and len(unreadable) == before:
            raise NothingFound(root, seen="the folder holds no file")
        for path in below:
            files.setdefault(path.resolve(), path)
    return list(files.values()), unreadable


def _is_stray(path: Path) -> bool:
    return path.name.lower() in _KNOWN_STRAYS or path.name.startswith("._")


@dataclass(frozen=True, slots=True)
class _Read:
    """One header: the instance, and what its study and series take from it."""

    instance: Instance
    facts: SeriesFacts
    patient: tuple[str, str, str] = field(repr=False)
    patient_id: str = field(repr=False)
    study_description: str = field(repr=False)
    date: str = field(repr=False)
    accession: str = field(repr=False)


def _read(path: Path) -> _Read:
    header = _header(path)

    def text(keyword: str) -> str:
        return str(header.get(keyword) or "").strip()

    uids = {keyword: _uid(path, keyword, text(keyword) or _from_meta(header, keyword)) for keyword in _REQUIRED_UIDS}
    instance = Instance(
        path=path,
        sop_class_uid=uids["SOPClassUID"],
        sop_instance_uid=uids["SOPInstanceUID"],
        study_uid=uids["StudyInstanceUID"],
        series_uid=uids["SeriesInstanceUID"],
        frame_of_reference_uid=text("FrameOfReferenceUID"),
        transfer_syntax_uid=str(header.file_meta.get("TransferSyntaxUID", "")),
        modality=text("Modality"),
        image_type=tuple(str(part) for part in _many(header.get("ImageType"))),
        photometric=text("PhotometricInterpretation"),
        rows=_whole(path, header, "Rows", 0),
        columns=_whole(path, header, "Columns", 0),
        frames=_whole(path, header, "NumberOfFrames", 1),
        samples=_whole(path, header, "SamplesPerPixel", 1),
        spacing=_numbers(header, "PixelSpacing", 2),
        orientation=_numbers(header, "ImageOrientationPatient", 6),
        position=_numbers(header, "ImagePositionPatient", 3),
    )
    facts = SeriesFacts(
        study_uid=instance.study_uid,
        series_uid=instance.series_uid,
        frame_of_reference_uid=instance.frame_of_reference_uid,
        modality=instance.modality,
        description=text("SeriesDescription"),
        body_part=text("BodyPartExamined"),
    )
    patient_id = text("PatientID")
    # Without an id only name and birth date can tell two people apart; they are compared and kept nowhere else.
    by_name = ("no id", text("PatientName").rstrip("^ ").upper(), text("PatientBirthDate"))
    patient = ("id", patient_id, text("IssuerOfPatientID")) if patient_id else by_name
    return _Read(
        instance,
        facts,
        patient,
        patient_id,
        text("StudyDescription"),
        text("StudyDate"),
        text("AccessionNumber"),
    )


def _header(path: Path) -> pydicom.Dataset:
    """The attributes that a scan needs; refuses what is not DICOM before pydicom sees it."""
    try:
        with path.open("rb") as stream:
            head = stream.read(1024)
    except OSError as error:
        raise UnreadableDicom(path, seen=f"cannot be opened ({error.strerror})") from error
    if head[128:132] != b"DICM":
        raise NotDicom(path, seen=_kind(head))
    if _DEFLATED in head:
        # Inflating takes as much memory as the sender likes, before anything can be checked.
        raise UnsupportedTransferSyntax(path, seen="a deflated data set")
    try:
        with warnings.catch_warnings(), pydicom.config.disable_value_validation(), path.open("rb") as stream:
            warnings.simplefilter("ignore")  # pydicom's warnings and its log quote header values
            header = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=list(_KEYWORDS))
            at_pixels = stream.read(2) in _PIXEL_GROUP
            # Values are parsed when they are looked at; look now, inside this try.
            for element in (*header.file_meta, *header):
                _ = element.value
    except Exception as error:
        raise UnreadableDicom(path, seen=f"the header cannot be parsed ({type(error).__name__})") from error
    # pydicom takes the end of a file for the end of its data set; an image ends with its pixels.
    sop_class = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    is_image = "Image Storage" in pydicom.uid.UID(sop_class, pydicom.config.IGNORE).name
    if not len(header) or (is_image and not at_pixels):
        raise UnreadableDicom(path, seen="the file ends before its pixel data")
    return header


def _kind(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[:4] == b"PK\x03\x04":
        return "a ZIP archive"
    if head[:2] == b"\x1f\x8b":
        return "a gzip archive"
    if b"\0" not in head:
        return "a text file"
    return "no 'DICM' at byte 128"


def _from_meta(header: pydicom.Dataset, keyword: str) -> str:
    """The same UID from the meta header, which must repeat it (PS3.10 table 7.1-1); some writers leave only it."""
    return str(header.file_meta.get(f"MediaStorage{keyword}") or "").strip()


def _uid(path: Path, keyword: str, value: str) -> str:
    if not value:
        raise MissingAttribute(path, seen=f"{keyword} is missing or empty")
    if len(value) > 64 or not _UID.fullmatch(value):
        raise InvalidUid(path, seen=f"{keyword} is not a UID")
    return value


def _whole(path: Path, header: pydicom.Dataset, keyword: str, default: int) -> int:
    value = header.get(keyword)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise MissingAttribute(path, seen=f"{keyword} is not one whole number") from error


def _many(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]


def _numbers(header: pydicom.Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(value) for value in _many(header.get(keyword)))
    except (TypeError, ValueError):
        return None
    return numbers if len(numbers) == count else None


def _group(read: Iterable[_Read]) -> tuple[tuple[Study, ...], list[ImagingError]]:
    """Headers -> studies; a study with two patients is refused, for nobody can tell whose it is."""
    by_study: dict[str, list[_Read]] = {}
    for item in read:
        by_study.setdefault(item.instance.study_uid, []).append(item)
    studies: list[Study] = []
    refused: list[ImagingError] = []
    for uid in sorted(by_study):
        members = by_study[uid]
        patients = {item.patient for item in members}
        if len(patients) > 1:
            refused.append(MixedPatients(f"study {uid}", seen=f"{len(patients)} different patients"))
            continue
        first = members[0]
        studies.append(
            Study(uid, first.study_description, _series(members), first.patient_id, first.date, first.accession)
        )
    return tuple(studies), refused


def _series(members: Iterable[_Read]) -> tuple[Series, ...]:
    by_series: dict[str, list[_Read]] = {}
    for item in members:
        by_series.setdefault(item.instance.series_uid, []).append(item)
    return tuple(
        Series(uid, items[0].facts, tuple(item.instance for item in items)) for uid, items in sorted(by_series.items())
    )
