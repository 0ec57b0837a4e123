"""The DICOM files that the packages `pydicom` and `pydicom-data` carry, by name; nothing is fetched from anywhere."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import files
from pathlib import Path, PurePosixPath

from imaging.dicom.attributes import Instance
from imaging.dicom.frames import Slice, _single

# Where each package keeps them; what lies there is DICOM, or a text that explains it.
_FOLDERS = {"pydicom": ("pydicom/data/test_files", "pydicom/data/charset_files"), "pydicom-data": ("data_store/data",)}


def corpus() -> dict[str, Path]:
    """Every file, by its path from the package's folder of data, such as ``test_files/CT_small.dcm``."""
    found: dict[str, Path] = {}
    for package, folders in _FOLDERS.items():
        for file in files(package) or ():
            inside = [folder for folder in folders if PurePosixPath(file).is_relative_to(folder)]
            if inside and file.suffix not in (".py", ".pyc"):
                name = PurePosixPath(file).relative_to(PurePosixPath(inside[0]).parent)
                found[str(name)] = Path(str(file.locate()))
    return dict(sorted(found.items()))


def as_slice(instance: Instance, number: int) -> Slice:
    """A frame as the reader of frames takes it, also of what is set aside and never becomes a slice of a volume."""
    return replace(_single(instance), number=number)
