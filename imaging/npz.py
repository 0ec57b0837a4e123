"""MedMNIST's `.npz` files: pictures and labels of all parts in one file, each picture as a Volume.

Invariant: no pickle is loaded, and a file that unpacks to more than a bound is refused before it is unpacked.

Yang et al., *MedMNIST v2*, Scientific Data 10:41 (2023): ``<part>_images`` is (N, rows, columns) or, for the 3D sets,
(N, depth, rows, columns), uint8; ``<part>_labels`` is (N, 1) of class numbers or (N, K) of 0 and 1.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.errors import ManifestInvalid
from imaging.png import affine_of_picture, defects_of_picture
from imaging.volume import SeriesFacts, Volume

PARTS = {"train": "train", "val": "validation", "test": "test"}
_LARGEST_BYTES = 8 * 2**30


def is_npz(path: Path) -> bool:
    """Whether the name is one that NumPy's archives have."""
    return path.name.lower().endswith(".npz")


@lru_cache(maxsize=1)
def read_npz(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of a file by their names; the last file read is kept.

    Raises
    ------
    ManifestInvalid
        If it is no such file, holds objects, or is too large.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _LARGEST_BYTES:
            raise ManifestInvalid(path, seen=f"it unpacks to {size} bytes", expected=f"at most {_LARGEST_BYTES}")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ManifestInvalid(path, seen=f"cannot be read as .npz ({type(error).__name__})") from error
    for part in PARTS:
        images, labels = arrays.get(f"{part}_images"), arrays.get(f"{part}_labels")
        if (images is None) != (labels is None):
            raise ManifestInvalid(path, seen=f"images or labels of {part!r} are missing")
        if images is not None and labels is not None:
            _check(path, part, images, labels)
    return arrays


def _check(path: Path, part: str, images: NDArray[Any], labels: NDArray[Any]) -> None:
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] != 3)
    if not grey or images.dtype.kind not in "ui":
        raise ManifestInvalid(path, seen=f"{part}_images is {images.dtype} {images.shape}",
                              expected="whole numbers (N, rows, columns) or (N, depth, rows, columns)")  # fmt: skip
    if labels.ndim != 2 or len(labels) != len(images) or labels.dtype.kind not in "uib":
        raise ManifestInvalid(path, seen=f"{part}_labels is {labels.dtype} {labels.shape}",
                              expected=f"whole numbers ({len(images)}, 1) or ({len(images)}, classes)")  # fmt: skip


def read_npz_image(path: Path, part: str, index: int) -> Volume:
    """One picture of a file as a Volume (1, X, Y, Z) of its stored values.

    Parameters
    ----------
    path
        The file.
    part, index
        Which of its pictures: ``train``, ``val`` or ``test``, and its number there from 0.
    """
    image = read_npz(path)[f"{part}_images"][index]
    array_XYZ = image.T[..., None] if image.ndim == 2 else image.T
    return Volume(
        array=np.ascontiguousarray(array_XYZ, dtype=np.float32)[None],
        affine=affine_of_picture(),
        facts=SeriesFacts(description=f"{part}_{index:05d} of {path.name}"),
        defects=defects_of_picture(),
    )


def stored_digest(path: Path, part: str, index: int) -> str:
    """SHA-256 of one picture's stored values with their type and shape; see `read_npz_image`."""
    image = np.ascontiguousarray(read_npz(path)[f"{part}_images"][index])
    return hashlib.sha256(f"{image.dtype.str} {image.shape}\n".encode() + image.tobytes()).hexdigest()
