"""A synthetic CT series, 512 x 512 int16, in several transfer syntaxes, for benchmarks.

A body of smooth organs with a scanner's noise, and a rescale that is no whole number, so that neither a codec nor a
reader has it easier than with a patient.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIZE = 512
SLOPE, INTERCEPT = 1.0125, -1023.5
# So many pictures are drawn and encoded; the slices repeat them, since no codec looks from one slice to another.
PICTURES = 20
SYNTAXES = {
    "uncompressed": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg-lossless": "1.2.840.10008.1.2.4.70",
    "jpeg-ls": "1.2.840.10008.1.2.4.80",
    "jpeg-2000": "1.2.840.10008.1.2.4.90",
    "enhanced": "1.2.840.10008.1.2.1",
}


def picture(number: int) -> NDArray[np.int16]:
    """One slice as stored: air, a body with organs and bone, and noise that a kernel has smoothed a little."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    hounsfield = np.full((SIZE, SIZE), -1000.0)
    body = (x / 0.85) ** 2 + (y / 0.65) ** 2 < 1
    hounsfield[body] = 40 + 15 * np.sin(5 * x[body] + number) * np.cos(4 * y[body])
    for _ in range(12):
        centre_x, centre_y, radius = rng.uniform(-0.6, 0.6), rng.uniform(-0.4, 0.4), rng.uniform(0.03, 0.2)
        organ = (x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2
        hounsfield[organ & body] = rng.choice([-850, -90, 20, 60, 120, 400, 900])
    noise = rng.normal(0, 1, (SIZE, SIZE))
    noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, (1, 1), (0, 1))) / 2
    hounsfield += noise * np.where(body, 14.0, 5.0)
    return np.rint((hounsfield - INTERCEPT) / SLOPE).astype(np.int16)


def encoded(number: int, syntax: str) -> bytes:
    """One picture in a transfer syntax, as a fragment where that encapsulates."""
    import imagecodecs
    from pydicom.pixels import get_encoder
    from pydicom.uid import UID

    pixels = picture(number)
    if syntax == SYNTAXES["uncompressed"]:
        return pixels.astype("<i2").tobytes()
    if syntax == SYNTAXES["jpeg-lossless"]:
        return bytes(imagecodecs.jpeg_encode(pixels.view(np.uint16), lossless=True, predictor=1, bitspersample=16))
    if syntax == SYNTAXES["jpeg-2000"]:
        return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="J2K", reversible=True))
    encoder = get_encoder(UID(syntax))
    return encoder.encode(
        pixels, rows=SIZE, columns=SIZE, samples_per_pixel=1, number_of_frames=1, bits_allocated=16, bits_stored=16,
        pixel_representation=1, photometric_interpretation="MONOCHROME2",
    )  # fmt: skip


def header(syntax: str, sop_class: str) -> Any:
    """What the instances of one series have in common."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID(sop_class)
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "2.25.300.1", "2.25.300.1.1"
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = "2.25.300.1.2", ""
    dataset.Modality, dataset.Manufacturer = "CT", "synthetic"
    dataset.PatientName, dataset.PatientID = "Synthetic", "SYNTHETIC"
    dataset.PatientBirthDate, dataset.PatientSex = "", "O"
    dataset.StudyDate = dataset.SeriesDate = dataset.AcquisitionDate = dataset.ContentDate = "20260101"
    dataset.StudyTime = dataset.SeriesTime = dataset.AcquisitionTime = dataset.ContentTime = "120000"
    dataset.StudyID, dataset.AccessionNumber, dataset.ReferringPhysicianName = "1", "1", ""
    dataset.StudyDescription, dataset.SeriesDescription, dataset.SeriesNumber = "Benchmark", "Synthetic body", 1
    dataset.KVP, dataset.AcquisitionNumber, dataset.PatientPosition = 120, 1, "HFS"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIZE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


def position(number: int) -> list[float]:
    """Image Position (Patient) of a slice."""
    return [-180.0, -180.0, -200.0 + 1.25 * number]


def write_single_frames(folder: Path, slices: int, syntax: str, pictures: Sequence[bytes]) -> None:
    """A series of CT Image objects, file names in no order."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, CTImageStorage

    native = syntax == SYNTAXES["uncompressed"]
    order = np.random.default_rng(5).permutation(slices)
    for number in range(slices):
        dataset = header(syntax, CTImageStorage)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(f"2.25.300.1.1.{number + 1}")
        dataset.InstanceNumber = number + 1
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = position(number), [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.703125, 0.703125], 1.25
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = SLOPE, INTERCEPT, "HU"
        pixels = pictures[number % PICTURES]
        dataset.add_new(0x7FE00010, "OW" if native else "OB", pixels if native else encapsulate([pixels]))
        dataset["PixelData"].is_undefined_length = not native
        dataset.save_as(folder / f"{order[number]:04d}.dcm", enforce_file_format=True)


def write_enhanced(folder: Path, slices: int, syntax: str, pictures: Sequence[bytes]) -> None:
    """The same as one Enhanced CT Image object (PS3.3 A.38), uncompressed."""
    from pydicom.dataset import Dataset
    from pydicom.uid import UID, EnhancedCTImageStorage

    def item(**values: Any) -> Dataset:
        made = Dataset()
        for keyword, value in values.items():
            setattr(made, keyword, value)
        return made

    dataset = header(syntax, EnhancedCTImageStorage)
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID("2.25.300.1.1.1")
    dataset.InstanceNumber, dataset.NumberOfFrames = 1, slices
    kind = item(FrameType=["ORIGINAL", "PRIMARY", "VOLUME", "NONE"])
    rescale = item(RescaleSlope=SLOPE, RescaleIntercept=INTERCEPT, RescaleType="HU")
    measures = item(PixelSpacing=[0.703125, 0.703125], SliceThickness=1.25, SpacingBetweenSlices=1.25)
    dataset.SharedFunctionalGroupsSequence = [
        item(
            PixelMeasuresSequence=[measures],
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelValueTransformationSequence=[rescale],
            CTImageFrameTypeSequence=[kind],
        )
    ]
    pointer = item(DimensionIndexPointer=0x00200032, FunctionalGroupPointer=0x00209113)
    pointer.DimensionOrganizationUID = "2.25.300.1.3"
    dataset.DimensionOrganizationSequence = [item(DimensionOrganizationUID="2.25.300.1.3")]
    dataset.DimensionIndexSequence = [pointer]
    content = {"StackID": "1", "FrameAcquisitionNumber": 1}
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=position(number))],
            FrameContentSequence=[item(DimensionIndexValues=[number + 1], InStackPositionNumber=number + 1, **content)],
        )
        for number in range(slices)
    ]
    dataset.add_new(0x7FE00010, "OW", b"".join(pictures[number % PICTURES] for number in range(slices)))
    dataset.save_as(folder / "enhanced.dcm", enforce_file_format=True)


def write(folder: Path, name: str, slices: int) -> None:
    """Write one series, unless it is there."""
    done = folder / f"{name}-{slices}.done"
    if done.exists():
        return
    target = folder / f"{name}-{slices}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with ProcessPoolExecutor() as pool:
        pictures = list(pool.map(encoded, range(PICTURES), [SYNTAXES[name]] * PICTURES))
    (write_enhanced if name == "enhanced" else write_single_frames)(target, slices, SYNTAXES[name], pictures)
    done.touch()
