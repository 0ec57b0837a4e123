"""DICOM series whose real-world voxel value is a linear function of patient position, so that misplacing shows."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalMammographyXRayImageStorageForPresentation,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    NuclearMedicineImageStorage,
    PositronEmissionTomographyImageStorage,
    UltrasoundMultiFrameImageStorage,
    XRayAngiographicImageStorage,
)
from pydicom.valuerep import DSfloat

from imaging.volume import Volume

PATIENT_ID = "SECRET-4711"
PATIENT_NAME = "Doe^Jane"
STUDY_UID = "1.2.826.0.1.3680043.8.498.1"

# Real-world value = OFFSET + GRADIENT . position in LPS mm. No two steps along any axis give the same difference.
OFFSET = 1000.0
GRADIENT = np.array([11.0, 5.3, -7.9])

SOP_CLASSES = {
    "MR": MRImageStorage,
    "CT": CTImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "MG": DigitalMammographyXRayImageStorageForPresentation,
    "NM": NuclearMedicineImageStorage,
    "XA": XRayAngiographicImageStorage,
    "US": UltrasoundMultiFrameImageStorage,
}

Floats = NDArray[np.float64]
Orientation = tuple[tuple[float, float, float], tuple[float, float, float]]
Edit = Callable[[Dataset, int], None]


def turned(degrees_x: float, degrees_y: float, degrees_z: float) -> Orientation:
    """Axial direction cosines turned about x, then y, then z."""
    x, y, z = np.radians([degrees_x, degrees_y, degrees_z])
    about_x = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    about_y = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    about_z = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    rotation = about_z @ about_y @ about_x
    return tuple(rotation[:, 0]), tuple(rotation[:, 1])


AXIAL: Orientation = ((1, 0, 0), (0, 1, 0))
OBLIQUE = turned(20, -20, 20)
ORIENTATIONS: dict[str, Orientation] = {
    "axial": AXIAL,
    "sagittal": ((0, 1, 0), (0, 0, -1)),
    "coronal": ((1, 0, 0), (0, 0, -1)),
    "oblique": OBLIQUE,
    "negative_row": ((-1, 0, 0), (0, 1, 0)),
    "negative_column": ((1, 0, 0), (0, -1, 0)),
    "negative_both": ((-1, 0, 0), (0, -1, 0)),
}


def _scrambled(count: int) -> list[int]:
    numbers = list(range(1, count + 1))
    random.Random(3).shuffle(numbers)
    return numbers


# InstanceNumber of the slices in the order of their normal; None leaves the attribute out.
NUMBERINGS: dict[str, Callable[[int], Sequence[int | None]]] = {
    "ascending": lambda count: range(1, count + 1),
    "reversed": lambda count: range(count, 0, -1),
    "scrambled": _scrambled,
    "equal": lambda count: [1] * count,
    "missing": lambda count: [None] * count,
}
# Rescale slope of slice k; None writes neither slope nor intercept.
RESCALES: dict[str, Callable[[int], float | None]] = {
    "none": lambda _: None,
    "constant": lambda _: 0.1,
    "per_slice": lambda k: 0.05 * (1 + k % 5),
}


def value_at_lps(points: Floats) -> Floats:
    """The value at points (..., 3) in LPS mm."""
    values: Floats = OFFSET + points @ GRADIENT
    return values


def value_at_ras(points: Floats) -> Floats:
    """The value at points (..., 3) in RAS mm."""
    return value_at_lps(points * [-1, -1, 1])


@dataclass(frozen=True)
class Phantom:
    """A series on disk and the truth about it.

    `paths`, `uids` and `positions` (LPS mm of the first pixel) follow `keep`, that is, the order of the normal;
    `tolerance` is the most that quantisation can take from a value.
    """

    folder: Path
    paths: tuple[Path, ...]
    uids: tuple[str, ...]
    positions: Floats
    tolerance: float

    def worst_error(self, volume: Volume) -> float:
        """The largest difference between a voxel and the truth at the place where the affine puts it."""
        indices = np.indices(volume.shape).reshape(3, -1)
        points = (volume.affine[:3, :3] @ indices + volume.affine[:3, 3:]).T
        return float(np.abs(volume.array.reshape(-1) - value_at_ras(points)).max())


def write_series(
    folder: Path,
    *,
    orientation: Orientation = AXIAL,
    pixel_spacing: tuple[float, float] = (1.3, 0.7),
    slice_spacing: float = 2.5,
    origin: tuple[float, float, float] = (-31.5, 12.25, 40.0),
    rows: int = 5,
    columns: int = 7,
    slices: int = 4,
    modality: str = "MR",
    numbering: str = "ascending",
    rescale: str = "constant",
    keep: Sequence[int] | None = None,
    shift: Callable[[int], tuple[float, float, float]] = lambda _: (0.0, 0.0, 0.0),
    edit: Edit = lambda _dataset, _k: None,
    study_uid: str = STUDY_UID,
    series: int = 1,
    patient_id: str = PATIENT_ID,
) -> Phantom:
    """Write one series, under file names in no order.

    Parameters
    ----------
    folder
        Made if missing.
    pixel_spacing
        As in DICOM: between rows, between columns.
    keep
        Which slices of the regular stack are written, in the order of the normal; twice the same makes a duplicate.
    shift
        Additional mm along row, column and normal for slice k.
    edit
        Called with each dataset and its slice number before it is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = range(slices) if keep is None else keep
    row, column = (np.array(cosine, dtype=float) for cosine in orientation)
    normal = np.cross(row, column)
    names = list(range(len(kept)))
    random.Random(7).shuffle(names)
    numbers = NUMBERINGS[numbering](len(kept))
    paths, uids, positions = [], [], []
    tolerance = 1e-2  # float32 and the decimal strings of positions
    for rank, k in enumerate(kept):
        along_row, along_column, along_normal = shift(k)
        position = origin + along_row * row + along_column * column + (k * slice_spacing + along_normal) * normal
        dataset = header(modality, study_uid, series, rank, patient_id)
        dataset.ImagePositionPatient = [DSfloat(value, auto_format=True) for value in position]
        dataset.ImageOrientationPatient = [DSfloat(value, auto_format=True) for value in (*row, *column)]
        dataset.PixelSpacing = [DSfloat(value, auto_format=True) for value in pixel_spacing]
        dataset.SliceThickness = DSfloat(slice_spacing, auto_format=True)
        if numbers[rank] is not None:
            dataset.InstanceNumber = numbers[rank]
        at = (np.arange(columns)[None, :, None] * pixel_spacing[1] * row
              + np.arange(rows)[:, None, None] * pixel_spacing[0] * column + position)  # fmt: skip
        tolerance = max(tolerance, _set_pixels(dataset, value_at_lps(at), RESCALES[rescale](k)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what tests break on purpose
            edit(dataset, k)
            path = folder / f"{series}_{names[rank]:03d}.dcm"
            dataset.save_as(path)
        paths.append(path)
        uids.append(str(dataset.file_meta.MediaStorageSOPInstanceUID))
        positions.append(position)
    return Phantom(folder, tuple(paths), tuple(uids), np.array(positions), tolerance)


def change(path: Path, **values: object) -> None:
    """Set attributes of a file; None removes one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(path)


def _set_pixels(dataset: Dataset, values: Floats, slope: float | None) -> float:
    """Store values as int16; returns the quantisation error."""
    intercept = float(np.rint(values.mean())) if slope is not None else 0.0
    if slope is not None:
        dataset.RescaleSlope = DSfloat(slope, auto_format=True)
        dataset.RescaleIntercept = DSfloat(intercept, auto_format=True)
        if dataset.Modality != "PT":  # which has Units instead (PS3.3 C.8.9.1)
            dataset.RescaleType = "HU" if dataset.Modality == "CT" else "US"
    stored = np.rint((values - intercept) / (slope or 1.0))
    assert np.abs(stored).max() < 2**15
    dataset.Rows, dataset.Columns = stored.shape
    dataset.PixelData = stored.astype("<i2").tobytes()
    return 0.5 * (slope or 1.0) + 1e-2


def header(modality: str, study_uid: str, series: int, rank: int, patient_id: str) -> Dataset:
    """A data set that lacks its geometry and its pixels."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID("1.2.826.0.1.3680043.8.498.999")
    dataset.SOPClassUID = SOP_CLASSES[modality]
    dataset.SOPInstanceUID = UID(f"{study_uid}.{series}.{rank + 1}")
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = b"\0" * 128
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER" if modality == "MR" else "AXIAL"]
    dataset.StudyInstanceUID = study_uid
    dataset.SeriesInstanceUID = f"{study_uid}.{series}"
    dataset.FrameOfReferenceUID = f"{study_uid}.0"
    dataset.PositionReferenceIndicator = ""
    dataset.PatientName, dataset.PatientID = PATIENT_NAME, patient_id
    dataset.PatientBirthDate, dataset.PatientSex = "19700101", "O"
    dataset.StudyDate, dataset.StudyTime = "20260102", "030405"
    dataset.SeriesDate, dataset.SeriesTime = "20260102", "030405"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "A1", ""
    dataset.StudyDescription, dataset.SeriesDescription = "Phantom", "Linear phantom"
    dataset.Modality, dataset.SeriesNumber = modality, series
    dataset.Manufacturer, dataset.PatientPosition = "phantom", "HFS"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.AcquisitionNumber = 1
    if modality == "CT":
        dataset.KVP = 120
    elif modality == "PT":
        dataset.Units, dataset.DecayCorrection, dataset.CorrectedImage = "BQML", "START", ["DECY", "ATTN"]
        dataset.SeriesType = ["STATIC", "IMAGE"]
    elif modality == "MR":
        dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "GR", "NONE", ""
        dataset.MRAcquisitionType, dataset.EchoTime, dataset.RepetitionTime = "3D", 3, 10
        dataset.EchoTrainLength = 1
    return dataset
