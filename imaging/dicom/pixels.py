"""Frames -> one float32 array of real-world values.

Invariant: each slice is scaled by its own rescale slope and intercept, in the memory of the one array that is returned;
a file whose pixels are not what its header declared is refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut

from imaging.dicom.geometry import Stack
from imaging.dicom.scan import Instance
from imaging.errors import (
    InvalidGeometry,
    MissingAttribute,
    NotFinite,
    TruncatedPixels,
    UnreadableDicom,
    UnsupportedTransferSyntax,
)
from imaging.volume import Defect

# Bounds what a lying header can make us allocate: 4 GiB of float32 is 1,000 slices of 1,024 x 1,024.
_LARGEST_VOXELS = 2**30


def read_pixels(stack: Stack) -> NDArray[np.float32]:
    """Decode the slices of a stack.

    Returns
    -------
    ndarray of float32
        (1, X, Y, Z) in real-world units (PS3.3 C.11.1, the Modality LUT); a view of memory that lies slice by slice.

    Raises
    ------
    InvalidGeometry
        If the declared size is beyond any scanner's.
    UnsupportedTransferSyntax, TruncatedPixels, UnreadableDicom, NotFinite
        If a slice cannot be decoded rightly.
    """
    first = stack.instances[0]
    if first.rows * first.columns * len(stack.instances) > _LARGEST_VOXELS:
        raise InvalidGeometry(
            f"series {first.series_uid}", seen=f"{len(stack.instances)} slices of {first.rows} x {first.columns}"
        )
    _check_sizes(stack)
    slices_ZYX = np.empty((len(stack.instances), first.rows, first.columns), dtype=np.float32)
    for slice_YX, instance in zip(slices_ZYX, stack.instances, strict=True):
        slice_YX[...] = _decode(instance)
    if not np.isfinite(slices_ZYX).all():
        raise NotFinite(f"series {first.series_uid}", seen="NaN or infinite voxels after rescaling")
    return slices_ZYX.transpose(2, 1, 0)[np.newaxis]


def padding_defects(stack: Stack) -> tuple[Defect, ...]:
    """Tell of Pixel Padding Value (0028,0120), which this version leaves in the array."""
    headers = (_dataset(instance.path, stop_before_pixels=True) for instance in stack.instances)
    values = {header.get("PixelPaddingValue") for header in headers} - {None}
    if not values:
        return ()
    told = ", ".join(map(str, sorted(values)))
    return (Defect("padding", "noted", f"voxels of value {told} before rescaling are padding and are not masked"),)


def _check_sizes(stack: Stack) -> None:
    """Refuse a header that declares more pixels than its file could hold, before anything is allocated for it."""
    for instance in stack.instances:
        syntax = pydicom.uid.UID(instance.transfer_syntax_uid, pydicom.config.IGNORE)
        native = syntax.is_transfer_syntax and not syntax.is_encapsulated
        # Even one bit a pixel needs rows x columns / 8 bytes.
        if native and instance.path.stat().st_size < instance.rows * instance.columns // 8:
            raise TruncatedPixels(instance.path, seen=f"{instance.path.stat().st_size} bytes in the file",
                                  expected=f"{instance.rows} x {instance.columns} pixels were expected")  # fmt: skip


def _decode(instance: Instance) -> NDArray[np.float64]:
    dataset = _dataset(instance.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pydicom warns of missing and of excess bytes, and goes on
            stored = dataset.pixel_array
    except (NotImplementedError, RuntimeError) as error:
        raise UnsupportedTransferSyntax(
            instance.path, seen=f"{instance.transfer_syntax_uid} cannot be decoded"
        ) from error
    except Exception as error:
        raise TruncatedPixels(instance.path, seen=f"the pixels cannot be decoded ({type(error).__name__})") from error
    if stored.shape != (instance.rows, instance.columns):
        raise TruncatedPixels(instance.path, seen=f"pixels of shape {stored.shape}")
    if ("RescaleSlope" in dataset) != ("RescaleIntercept" in dataset):
        # pydicom would leave the values unscaled; each is required with the other (PS3.3 C.11.1).
        raise MissingAttribute(instance.path, seen="RescaleSlope and RescaleIntercept: only one is present")
    try:
        values: NDArray[np.float64] = apply_modality_lut(stored, dataset).astype(np.float64)
    except Exception as error:
        raise UnreadableDicom(instance.path, seen=f"the Modality LUT is malformed ({type(error).__name__})") from error
    return values


def _dataset(path: Path, *, stop_before_pixels: bool = False) -> pydicom.Dataset:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            return pydicom.dcmread(path, stop_before_pixels=stop_before_pixels)
    except Exception as error:
        raise UnreadableDicom(path, seen=f"cannot be parsed ({type(error).__name__})") from error
