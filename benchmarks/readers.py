"""What reads a CT series into a float32 volume in HU: this project and its peers, each as its documentation shows.

Each entry of `READERS` imports what it needs and gives a function that reads a folder, so that imports are not timed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from synthetic_ct import INTERCEPT, SIZE, SLOPE

Array = NDArray[Any]
# A reader gives the volume, or what reads back the file that it made: the second is not timed.
Reader = Callable[[Path], Array | Callable[[], Array]]


class Told(Exception):
    """A reader does not do this; the text says why."""


def floor() -> Reader:
    """Where the pixels lie is known beforehand; their bytes go into one fresh array, neither decoded nor scaled."""
    places: dict[Path, list[tuple[Path, int, int]]] = {}

    def find(folder: Path) -> list[tuple[Path, int, int]]:
        found = []
        for path in sorted(folder.iterdir()):
            content = path.read_bytes()
            offset = content.find(b"\xe0\x7f\x10\x00O") + 12  # the first one: nothing like it is in these headers
            found.append((path, offset, len(content) - offset))
        return found

    def read(folder: Path) -> Array:
        files = places.get(folder) or places.setdefault(folder, find(folder))
        array = np.empty(sum(length for _, _, length in files), np.uint8)
        end = 0
        for path, offset, length in files:
            descriptor = os.open(path, os.O_RDONLY)
            os.preadv(descriptor, [array[end : end + length].data], offset)
            os.close(descriptor)
            end += length
        return array

    return read


def imgpipe() -> Reader:
    """The project itself, with everything that it checks."""
    from imaging.dicom import load_series

    return lambda folder: load_series(folder).array


def monai_pydicom() -> Reader:
    """MONAI's reader itself; `LoadImage` around it would copy once more."""
    from monai.data.image_reader import PydicomReader

    def read(folder: Path) -> Array:
        reader = PydicomReader()
        array, _ = reader.get_data(reader.read(str(_single(folder))))
        return np.asarray(array).astype(np.float32, copy=False)

    return read


def monai_itk() -> Reader:
    """MONAI's reader over ITK (GDCM)."""
    importlib.import_module("itk")  # MONAI imports it when asked; here it must be there
    from monai.data.image_reader import ITKReader

    def read(folder: Path) -> Array:
        reader = ITKReader()
        array, _ = reader.get_data(reader.read(str(_single(folder))))
        return np.asarray(array).astype(np.float32, copy=False)

    return read


def simpleitk() -> Reader:
    """As SimpleITK's documentation reads a series (DicomSeriesReader example)."""
    sitk: Any = importlib.import_module("SimpleITK")  # has no types

    def read(folder: Path) -> Array:
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
        image = reader.Execute() if _single(folder) == folder else sitk.ReadImage(str(_single(folder)))
        return np.asarray(sitk.GetArrayFromImage(sitk.Cast(image, sitk.sitkFloat32)))

    return read


def pydicom_loop() -> Reader:
    """As tutorials read a series: dcmread, sort by position, rescale."""
    import pydicom

    def read(folder: Path) -> Array:
        datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
        if "NumberOfFrames" in datasets[0]:
            rescale = datasets[0].SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
            scaled = datasets[0].pixel_array.astype(np.float32)
            return scaled * np.float32(rescale.RescaleSlope) + np.float32(rescale.RescaleIntercept)
        datasets.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
        array = np.empty((len(datasets), datasets[0].Rows, datasets[0].Columns), np.float32)
        for number, dataset in enumerate(datasets):
            array[number] = dataset.pixel_array
            array[number] *= np.float32(dataset.RescaleSlope)
            array[number] += np.float32(dataset.RescaleIntercept)
        return array

    return read


def dicomsdl_loop() -> Reader:
    """The same with dicomsdl; of multi-frame objects it is told the rescale, which it has no call for."""
    dicomsdl: Any = importlib.import_module("dicomsdl")  # has no types

    def read(folder: Path) -> Array:
        datasets = [dicomsdl.open_file(str(path)) for path in folder.iterdir()]
        frames = int(datasets[0].NumberOfFrames or 1)
        datasets.sort(key=lambda dataset: 0.0 if frames > 1 else float(dataset.ImagePositionPatient[2]))
        array = np.empty((max(frames, len(datasets)), SIZE, SIZE), np.float32)
        for number in range(len(array)):
            dataset = datasets[0] if frames > 1 else datasets[number]
            slope = SLOPE if frames > 1 else dataset.RescaleSlope
            intercept = INTERCEPT if frames > 1 else dataset.RescaleIntercept
            array[number] = dataset.pixelData(index=number if frames > 1 else 0, storedvalue=True)
            array[number] *= np.float32(slope)
            array[number] += np.float32(intercept)
        return array

    return read


def dcm2niix() -> Reader:
    """The program, into an uncompressed NIfTI in memory; its int16 and its slope are not turned into float32."""
    nib: Any = importlib.import_module("nibabel")  # its `load` has no types

    program = _dcm2niix()

    def read(folder: Path) -> Callable[[], Array]:
        out = tempfile.TemporaryDirectory(dir=_memory())
        command = [program, "-z", "n", "-b", "n", "-v", "0", "-f", "out", "-o", out.name, str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        found = list(Path(out.name).glob("*.nii"))
        if len(found) != 1:
            raise Told(f"{len(found)} volumes; {(done.stderr or done.stdout).strip()[-120:]}")

        def read_back() -> Array:
            with out:
                return np.asarray(nib.load(found[0]).dataobj)

        return read_back

    return read


def highdicom() -> Reader:
    """As its documentation reads volumes: a series of single frames, or a multi-frame image."""
    import highdicom as hd
    import pydicom

    def read(folder: Path) -> Array:
        if _single(folder) != folder:
            return hd.imread(_single(folder)).get_volume(dtype=np.float32).array
        datasets = [pydicom.dcmread(path) for path in folder.iterdir()]
        return hd.get_volume_from_series(datasets, dtype=np.float32).array

    return read


READERS: dict[str, tuple[Callable[[], Reader], str]] = {
    "floor": (floor, ""),
    "imgpipe": (imgpipe, "imgpipe"),
    "monai-pydicom": (monai_pydicom, "monai"),
    "monai-itk": (monai_itk, "itk"),
    "simpleitk": (simpleitk, "simpleitk"),
    "pydicom": (pydicom_loop, "pydicom"),
    "dicomsdl": (dicomsdl_loop, "dicomsdl"),
    "dcm2niix": (dcm2niix, "dcm2niix"),
    "highdicom": (highdicom, "highdicom"),
}


def _single(folder: Path) -> Path:
    """The file of a folder that has only one, else the folder."""
    files = list(folder.iterdir())
    return files[0] if len(files) == 1 else folder


def _dcm2niix() -> str:
    beside = Path(sys.executable).parent / "dcm2niix"
    program = str(beside) if beside.exists() else shutil.which("dcm2niix")
    if program is None:
        raise ModuleNotFoundError("dcm2niix")
    return program


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
