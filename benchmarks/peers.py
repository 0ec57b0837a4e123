"""Readers as a user calls them on a folder of unknown content: every volume with its affine, and what they said.

Each entry of `PEERS` follows its project's own documentation. A reader runs in a process of its own (`Peer`), so that
one that dies or hangs ends nothing else.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import pickle
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
# (channels, three spatial axes) and voxel index -> RAS mm.
Volume = tuple[Values, Floats]
SECONDS = 60.0
# A torture case is small: more voxels than this were invented, and more memory is not given to any reader.
_MOST_VOXELS = 2**22
_MOST_BYTES = 4 * 2**30
_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass
class Given:
    """What a reader made of a folder.

    Attributes
    ----------
    volumes
        Array and affine of each.
    told
        Warnings, log lines from WARNING on, and whatever else a user would see.
    raised
        The exception that ended the reading, or what a program's exit status stands for; empty where it ended well.
    crashed
        How its process ended; empty where it did not.
    absurd
        The shape of a volume that is larger than anything that was sent, which is not handed on.
    """

    volumes: list[Volume] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    raised: str = ""
    crashed: str = ""
    absurd: str = ""


def _volume(array: Any, affine: Any) -> Volume:
    """Three spatial axes whatever the reader's own habit is; channels first."""
    values = np.asarray(array, dtype=np.float32)
    while values.ndim < 4:
        values = values[..., None]
    return values, np.asarray(affine, dtype=np.float64)


def _channel_last(array: Any, affine: Any) -> Volume:
    values = np.asarray(array)
    return _volume(np.moveaxis(values, 3, 0) if values.ndim == 4 else values[None], affine)


def imgpipe(folder: Path, given: Given) -> None:
    """`scan`, then each volume of each series; defects and refusals are what it tells."""
    from imaging.dicom import read_stack, scan, stacks
    from imaging.errors import ImagingError

    found = scan(folder)
    refused: list[ImagingError] = list(found.refused)
    for series in (series for study in found.studies for series in study.series):
        made, aside = stacks(series)
        refused += aside
        for stack in made:
            try:
                volume = read_stack(series, stack)
            except ImagingError as error:
                refused.append(error)
                continue
            given.volumes.append((volume.array, volume.affine))
            given.told += [f"{defect.code}: {defect.detail}" for defect in volume.defects]
    given.told += [str(error) for error in refused]
    if refused and not given.volumes:
        given.raised = str(refused[0])


def _monai(reader: Any, folder: Path, given: Given) -> None:
    """MONAI's `LoadImage` with a reader, as its tutorials load a folder of DICOM."""
    from monai.transforms import LoadImage

    image = LoadImage(reader=reader, image_only=True, ensure_channel_first=True)(str(folder))
    given.volumes.append(_volume(image.numpy(), image.affine.numpy()))


def monai_pydicom(folder: Path, given: Given) -> None:
    """MONAI PydicomReader."""
    from monai.data.image_reader import PydicomReader

    _monai(PydicomReader(), folder, given)


def monai_itk(folder: Path, given: Given) -> None:
    """MONAI ITKReader."""
    from monai.data.image_reader import ITKReader

    _monai(ITKReader(), folder, given)


def simpleitk(folder: Path, given: Given) -> None:
    """SimpleITK's DicomSeriesReader example, for each series of the folder."""
    sitk: Any = importlib.import_module("SimpleITK")  # has no types

    reader = sitk.ImageSeriesReader()
    for series in reader.GetGDCMSeriesIDs(str(folder)):
        names = reader.GetGDCMSeriesFileNames(str(folder), series)
        if len(names) == 1:
            image = sitk.ReadImage(names[0])
        else:
            reader.SetFileNames(names)
            image = reader.Execute()
        array = sitk.GetArrayFromImage(image)
        spatial = image.GetDimension()
        array = np.moveaxis(array, range(spatial), range(spatial - 1, -1, -1))
        affine = np.eye(4)
        direction = np.array(image.GetDirection()).reshape(spatial, spatial)
        affine[:spatial, :spatial] = direction * np.array(image.GetSpacing())
        affine[:spatial, 3] = image.GetOrigin()
        given.volumes.append(_channel_last(array, _LPS_TO_RAS @ affine))


def dcm2niix(folder: Path, given: Given) -> None:
    """The program with its defaults, uncompressed; of several volumes in a file each is one."""
    program = _program("dcm2niix")
    with tempfile.TemporaryDirectory() as out:
        command = [program, "-z", "n", "-b", "n", "-o", out, str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
        if done.returncode < 0:
            given.crashed = f"signal {-done.returncode}"
        lines = [*done.stdout.splitlines(), *done.stderr.splitlines()]
        given.told += [line for line in lines if "warning" in line.lower() or "error" in line.lower()]
        if done.returncode:
            given.told.append(f"exit status {done.returncode}: {lines[-1] if lines else ''}")
        _read_nifti(Path(out), given)


def dicom2nifti(folder: Path, given: Given) -> None:
    """`convert_directory`, as its README shows."""
    module: Any = importlib.import_module("dicom2nifti")  # has no types

    with tempfile.TemporaryDirectory() as out:
        module.convert_directory(str(folder), out, compression=False, reorient=True)
        _read_nifti(Path(out), given)


def _read_nifti(folder: Path, given: Given) -> None:
    nib: Any = importlib.import_module("nibabel")  # its `load` has no types

    for path in sorted(folder.glob("**/*.nii")):
        image: Any = nib.load(path)
        array = np.asarray(image.dataobj)
        if array.dtype.names:
            array = np.stack([array[name] for name in array.dtype.names], axis=0)
            given.volumes.append(_volume(array, image.affine))
            continue
        array = array[..., None] if array.ndim == 2 else array
        each = [array] if array.ndim == 3 else [array[..., k] for k in range(array.shape[3])]
        given.volumes += [_volume(part[None], image.affine) for part in each]


def highdicom(folder: Path, given: Given) -> None:
    """`get_volume_from_series` for each series, `imread(...).get_volume()` for multi-frame objects."""
    import highdicom as hd

    series: dict[str, list[Any]] = {}
    for dataset in _datasets(folder):
        series.setdefault(str(dataset.SeriesInstanceUID), []).append(dataset)
    for datasets in series.values():
        try:
            if "NumberOfFrames" in datasets[0]:
                made = [hd.imread(dataset.filename).get_volume() for dataset in datasets]
            else:
                made = [hd.get_volume_from_series(datasets)]
        except Exception as error:  # noqa: BLE001 - one series that is refused does not keep the others from being read
            given.told.append(f"{type(error).__name__}: {error}")
            continue
        given.volumes += [_channel_last(volume.array, _LPS_TO_RAS @ volume.affine) for volume in made]


def pydicom_loop(folder: Path, given: Given) -> None:
    """What tutorials show: dcmread, sort by z, rescale, spacing from the header; here with the cosines as well."""
    datasets = _datasets(folder)
    datasets.sort(key=lambda dataset: float(dataset.ImagePositionPatient[2]))
    array = np.stack([dataset.pixel_array for dataset in datasets]).astype(np.float32)
    for number, dataset in enumerate(datasets):
        array[number] = array[number] * float(dataset.get("RescaleSlope", 1)) + float(
            dataset.get("RescaleIntercept", 0)
        )
    first = datasets[0]
    row, column = (np.array(part, float) for part in np.split(np.array(first.ImageOrientationPatient, float), 2))
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * float(first.PixelSpacing[1]), column * float(first.PixelSpacing[0])
    origin = np.array(first.ImagePositionPatient, float)
    affine[:3, 2] = np.cross(row, column) * float(first.get("SliceThickness", 1))
    if len(datasets) > 1:
        affine[:3, 2] = np.array(datasets[1].ImagePositionPatient, float) - origin
    affine[:3, 3] = origin
    array = np.moveaxis(array, [2, 1, 0], [0, 1, 2])
    given.volumes.append(_channel_last(array, _LPS_TO_RAS @ affine))


def _datasets(folder: Path) -> list[Any]:
    """As everybody's loop: every file that pydicom takes."""
    import pydicom

    datasets = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            datasets.append(pydicom.dcmread(path))
        except pydicom.errors.InvalidDicomError:
            continue
    return datasets


@dataclass(frozen=True)
class _Reader:
    read: Callable[[Path, Given], None]
    package: str


PEERS: dict[str, _Reader] = {
    "imgpipe": _Reader(imgpipe, "imgpipe"),
    "monai-pydicom": _Reader(monai_pydicom, "monai"),
    "monai-itk": _Reader(monai_itk, "itk"),
    "simpleitk": _Reader(simpleitk, "simpleitk"),
    "dcm2niix": _Reader(dcm2niix, "dcm2niix"),
    "highdicom": _Reader(highdicom, "highdicom"),
    "dicom2nifti": _Reader(dicom2nifti, "dicom2nifti"),
    "pydicom-loop": _Reader(pydicom_loop, "pydicom"),
}
_MODULES = {"imgpipe": "imaging", "simpleitk": "SimpleITK"}


def _program(name: str) -> str:
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or ""


def _is_there(package: str) -> bool:
    return bool(_program(package)) or importlib.util.find_spec(_MODULES.get(package, package)) is not None


class Peer:
    """A reader's process; started again after it died."""

    def __init__(self, name: str) -> None:
        self.name = name
        package = PEERS[name].package
        self.missing = "" if _is_there(package) else f"no {package}"
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, folder: Path) -> Given:
        """Have it read a folder, within a minute."""
        if self._process is None or self._process.poll() is not None:
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
            self._process = subprocess.Popen(
                [sys.executable, __file__, self.name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._errors.seek(0)
        self._errors.truncate()
        self._process.stdin.write(f"{folder}\n".encode())
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        size = self._process.stdout.read(8) if ready else b""
        if len(size) < 8:
            self.close()
            how = f"ended with {self._process.returncode}" if ready else f"no answer within {SECONDS:.0f} s"
            return Given(crashed=how)
        given: Given = pickle.loads(self._process.stdout.read(struct.unpack("<Q", size)[0]))
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        # The first line of an ITK warning says only where in ITK; what is indented is a traceback's.
        given.told += [line for line in lines if not line.startswith(("WARNING: In ", "  "))]
        return given

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class _Lines(logging.Handler):
    """Log lines from WARNING on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@contextlib.contextmanager
def _heard(given: Given) -> Iterator[None]:
    """What is warned and logged meanwhile goes into `given`; so does what is raised."""
    handler = _Lines()
    logging.getLogger().addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is its answer
            given.raised = f"{type(error).__name__}: {error}"[:300]
    logging.getLogger().removeHandler(handler)
    given.told += [str(warning.message)[:300] for warning in caught] + handler.lines


def serve(name: str, lines: Sequence[str] | Any) -> None:
    """Answer each folder with a pickled `Given`."""
    resource.setrlimit(resource.RLIMIT_DATA, (_MOST_BYTES, _MOST_BYTES))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a reader prints is heard with stderr, and must not become an answer
    for line in lines:
        given = Given()
        with _heard(given):
            PEERS[name].read(Path(line.rstrip("\n")), given)
        sys.stdout.flush()
        given.absurd = next((str(array.shape) for array, _ in given.volumes if array.size > _MOST_VOXELS), "")
        given.volumes = [] if given.absurd else given.volumes
        content = pickle.dumps(given)
        answers.write(struct.pack("<Q", len(content)) + content)
        answers.flush()


if __name__ == "__main__":
    # Answers are pickled by the module that asks, under its own name.
    import peers

    peers.serve(sys.argv[1], sys.stdin)
