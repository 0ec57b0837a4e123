"""Tiny instances as they arrive, for the tests of every room that takes them in or passes them on."""

from __future__ import annotations

from io import BytesIO
from typing import TypedDict

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

ROOT = "1.2.826.0.1.3680043.10.1503"


class Told(TypedDict):
    """What a receiver says of an instance."""

    sop_instance_uid: str
    sop_class_uid: str
    series_uid: str
    study_uid: str
    transfer_syntax: str


def study_uid(study: int) -> str:
    return f"{ROOT}.{study}"


def told(study: int, number: int, series: int = 1) -> Told:
    return Told(
        sop_instance_uid=f"{ROOT}.{study}.{series}.{number}",
        sop_class_uid=str(MRImageStorage),
        series_uid=f"{ROOT}.{study}.{series}",
        study_uid=study_uid(study),
        transfer_syntax=str(ExplicitVRLittleEndian),
    )


def instance(
    study: int, number: int, series: int = 1, *, value: int = 0, writer: str = "TESTS", size: int = 8
) -> bytes:
    """An MR slice of `size` x `size` pixels, as a whole file; `writer` is in its meta header only."""
    about = told(study, number, series)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = about["sop_class_uid"]
    meta.MediaStorageSOPInstanceUID = about["sop_instance_uid"]
    meta.TransferSyntaxUID = about["transfer_syntax"]
    meta.ImplementationClassUID = f"{ROOT}.0"
    meta.ImplementationVersionName = writer
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = about["sop_class_uid"], about["sop_instance_uid"]
    data.StudyInstanceUID, data.SeriesInstanceUID = about["study_uid"], about["series_uid"]
    data.PatientID, data.PatientName, data.Modality = f"P{study}", "Test^Arriving", "MR"
    data.FrameOfReferenceUID = f"{about['series_uid']}.0"
    data.SeriesDescription, data.StudyDescription = "T1 tiny", "Arriving"
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
    data.PixelSpacing, data.SliceThickness, data.InstanceNumber = [1, 1], 1, number
    data.Rows = data.Columns = size
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    noise = np.random.default_rng([study, series, number]).integers(0, 100, (size, size))
    data.PixelData = (noise + value).astype("<u2").tobytes()
    stream = BytesIO()
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
