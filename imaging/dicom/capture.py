"""A picture -> DICOM Secondary Capture that says in its own pixels that it is not for diagnosis.

Invariant: no picture gets out of this room without the words, whatever a viewer shows of its header; read back, it
holds the very pixels that were meant, of the patient and the study of its source. No word of the patient is burnt in.
It has no pixel spacing, so that nobody measures on it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DT

from imaging.dicom.frames import quietly
from imaging.dicom.source import MANUFACTURER, OF_THE_PATIENT, read_source, uid_of
from imaging.errors import OutputMismatch, OutputNotBuilt
from imaging.files import write_whole

NOT_FOR_DIAGNOSIS = "NOT FOR DIAGNOSIS - FOR RESEARCH USE ONLY"
Picture = NDArray[np.uint8]
# Of letters, in pixels.
_LARGEST, _SMALLEST = 24, 10
# CID 7202: what the source is to the capture.
_PURPOSE = hd.sr.CodedConcept("121322", "DCM", "Source image for image processing operation")


@dataclass(frozen=True, slots=True)
class Capture:
    """A picture with what is to be written below it.

    Attributes
    ----------
    picture
        RGB (rows, columns, 3).
    caption
        Lines below it; nothing that identifies a patient.
    directions
        Patient directions that rows and columns run towards, such as ``("L", "P")``; None where nobody knows them.
    software_version
        Version of imgpipe.
    moment
        When it was made: ContentDate, ContentTime and the other times of the instance.
    """

    picture: Picture
    caption: tuple[str, ...]
    directions: tuple[str, str] | None
    software_version: str
    moment: datetime


def write_capture(path: Path, capture: Capture, source: Path, *, series: Sequence[str] = (), number: int = 1) -> None:
    """Write a Secondary Capture image (PS3.3 A.8.1).

    Parameters
    ----------
    path
        Where it goes.
    capture
        What it shows.
    source
        The instance that it shows: it says whose study it is.
    series
        What captures of one series have in common; by default each is a series of its own.
    number
        Which of its series it is, from 1.

    Raises
    ------
    OutputNotBuilt
        If highdicom cannot make a capture of the source.
    OutputMismatch
        If the bytes, read back, do not hold the picture, or of whom; nothing is written.
    """
    pixels = burnt(capture.picture, capture.caption)
    try:
        header = read_source(source)
        with quietly():
            made = _build(capture, pixels, header, series, number)
            stream = io.BytesIO()
            made.save_as(stream)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom raises for what it cannot take
        raise OutputNotBuilt(path.name, seen=f"highdicom refuses the source ({type(error).__name__})") from error
    check_capture(stream.getvalue(), pixels, header)
    write_whole(path, stream.getvalue())


def burnt(picture: Picture, caption: Sequence[str]) -> Picture:
    """A picture with the warning above it and a caption below it, each on black, as wide as the picture.

    Raises
    ------
    OutputNotBuilt
        If the picture is too narrow for the words to be read.
    """
    columns = picture.shape[1]
    fitting = (size for size in range(_LARGEST, _SMALLEST - 1, -1) if _width(NOT_FOR_DIAGNOSIS, size) <= columns - 8)
    size = next(fitting, None)
    if size is None:
        raise OutputNotBuilt("capture", seen=f"a picture {columns} pixels wide has no room for the warning")
    warning = _strip(columns, (NOT_FOR_DIAGNOSIS,), size, (255, 214, 0))
    below = _strip(columns, caption, max(_SMALLEST, int(size * 0.75)), (255, 255, 255))
    return np.concatenate([warning, picture, below])


def _width(line: str, size: int) -> float:
    return ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(line, font=ImageFont.load_default(size))


def _strip(columns: int, lines: Sequence[str], size: int, colour: tuple[int, int, int]) -> Picture:
    font = ImageFont.load_default(size)
    height = int(size * 1.5)
    image = Image.new("RGB", (columns, max(1, height * len(lines))))
    draw = ImageDraw.Draw(image)
    for row, line in enumerate(lines):
        text = line
        while text and _width(text, size) > columns - 8:
            text = text[:-1]
        draw.text((4, row * height + size // 4), text, fill=colour, font=font)
    return np.asarray(image)


def _build(
    capture: Capture, pixels: Picture, source: pydicom.Dataset, series: Sequence[str], number: int
) -> hd.sc.SCImage:
    # A corrected PatientID is another object: an archive keeps the first of two with one UID.
    owner = [source.StudyInstanceUID, str(source.PatientID), capture.software_version]
    identity = [*owner, source.SOPInstanceUID, hashlib.sha256(pixels.tobytes()).hexdigest(), str(pixels.shape)]
    made = hd.sc.SCImage.from_ref_dataset(
        source,
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=capture.directions or ("L", "P"),
        series_instance_uid=uid_of("capture series", *((series and (*owner, *series)) or identity)),
        series_number=9003,
        sop_instance_uid=uid_of("capture", *identity),
        instance_number=number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=capture.software_version,
        series_description="imgpipe key image (research)",
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=source.get("SpecificCharacterSet"),
        content_date=capture.moment.date(),
        content_time=capture.moment.time(),
    )
    made.copy_patient_and_study_information(source)
    made.Laterality = source.get("Laterality") or ""  # type 2C: a viewer may want it, nobody may know it
    if capture.directions is None:
        made.PatientOrientation = []
    made.ConversionType = "WSD"  # made by software, PS3.3 C.8.6.1
    made.BurnedInAnnotation = "YES"
    made.DerivationDescription = NOT_FOR_DIAGNOSIS
    made.SourceImageSequence = [_reference(source)]
    made.InstanceCreationDate = made.DateOfSecondaryCapture = made.ContentDate
    made.InstanceCreationTime = made.TimeOfSecondaryCapture = made.ContentTime
    for equipment in made.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(capture.moment)
    return made


def _reference(source: pydicom.Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    item.PurposeOfReferenceCodeSequence = [_PURPOSE]
    return item


def check_capture(content: bytes, pixels: Picture, source: pydicom.Dataset) -> None:
    """Read a capture back from its own bytes and compare it with what was meant, and of whom.

    Raises
    ------
    OutputMismatch
        If it holds other pixels, is of somebody else, or does not tell that words are burnt in.
    """
    capture = pydicom.dcmread(io.BytesIO(content))
    others = [keyword for keyword in OF_THE_PATIENT if str(capture.get(keyword, "")) != str(source.get(keyword, ""))]
    if others:
        raise OutputMismatch("capture", seen=f"{others[0]} is not that of the source")
    if capture.get("BurnedInAnnotation") != "YES":
        raise OutputMismatch("capture", seen="BurnedInAnnotation is not YES")
    if not np.array_equal(capture.pixel_array, pixels):
        raise OutputMismatch("capture", seen="its pixels differ from the picture's")
