"""Chest films as an X-ray machine sends them, made of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

STUDY = "1.2.826.0.1.3680043.8.498.77"


def write_film(path: Path, image: np.ndarray[Any, Any], *, number: int = 1, **values: object) -> Path:
    """A DX film of whole 8 bit values (rows, columns): no position in the patient. `values` are further attributes."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = f"{STUDY}.{number}.1"
    film.StudyInstanceUID, film.SeriesInstanceUID = STUDY, f"{STUDY}.{number}"
    film.SpecificCharacterSet = "ISO_IR 100"
    film.PatientName, film.PatientID = "Film^Fanny", "F1"
    film.PatientBirthDate, film.PatientSex, film.StudyID, film.AccessionNumber = "20200101", "F", "1", "A77"
    film.StudyDate, film.StudyTime, film.ReferringPhysicianName = "20260102", "030405", "Ref^Erring"
    film.Modality, film.BodyPartExamined, film.ImagerPixelSpacing = "DX", "CHEST", [0.2, 0.2]
    film.PatientOrientation, film.ViewPosition, film.SeriesNumber, film.InstanceNumber = ["L", "F"], "AP", number, 1
    film.Rows, film.Columns = image.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.PixelData = (image.astype(np.uint16) * 8).astype("<u2").tobytes()
    for keyword, value in values.items():
        setattr(film, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)
    return path
