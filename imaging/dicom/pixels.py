"""Stacks -> arrays of real-world values.

Invariant: each slice is scaled by its own rescale slope and intercept (or its Modality LUT), into the memory of the one
array that is returned; padding is masked, never scaled into a value; what cannot be read rightly is refused.

Shapes: ``volume_ZCYX`` lies slice by slice, rows downwards; what leaves is its (C, X, Y, Z) view.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels import apply_modality_lut

from imaging.dicom.frames import Slice, quietly, read_dataset
from imaging.dicom.regrid import regrid
from imaging.dicom.stack import Stack
from imaging.dicom.stored import FrameReader, InflatedFile, Samples
from imaging.errors import InvalidGeometry, NotFinite, UnreadableDicom
from imaging.volume import Defect

# Bounds what a lying header can make us allocate: 4 GiB of float32 is 1,000 slices of 1,024 x 1,024.
_LARGEST_VOXELS = 2**30
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
# Reading and scaling release the interpreter; more threads than this wait for the memory.
_MOST_THREADS = 8


def read_pixels(stack: Stack) -> tuple[NDArray[np.float32], tuple[Defect, ...]]:
    """Decode the slices of a stack onto its grid.

    Returns
    -------
    array : ndarray of float32
        (C, X, Y, Z) in real-world units (PS3.3 C.11.1, the Modality LUT); a view of memory that lies slice by slice.
    defects
        What was met in the pixels: padding, and what it was set to; the grid beyond what was acquired.

    Raises
    ------
    InvalidGeometry
        If the declared size is beyond any scanner's.
    InputRefused
        By the name of what keeps a slice from being decoded rightly.
    """
    first = stack.slices[0].instance
    subject = f"series {first.series_uid}"
    voxels = max(first.rows * first.columns * len(stack.slices), int(np.prod(stack.shape, dtype=np.int64)))
    if voxels * stack.channels > _LARGEST_VOXELS:
        raise InvalidGeometry(subject, seen=f"{len(stack.slices)} slices of {first.rows} x {first.columns}")
    columns, rows, depth = stack.shape
    volume_ZCYX = np.empty((depth, stack.channels, rows, columns), dtype=np.float32)
    inflated = InflatedFile()
    padding: dict[int, int] = {}
    for found in _in_threads(depth, lambda part: _read_part(stack, part, volume_ZCYX, FrameReader(inflated))):
        padding |= found
    defects = _filled(stack, volume_ZCYX, sum(padding.values()), subject)
    return volume_ZCYX.transpose(1, 3, 2, 0), defects


def _in_threads(count: int, work: Callable[[range], dict[int, int]]) -> list[dict[int, int]]:
    """Neighbouring slices go to one thread, since a resampled slice needs its neighbour."""
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), count)
    bounds = np.linspace(0, count, threads + 1).round().astype(int).tolist()
    parts = [range(start, end) for start, end in pairwise(bounds)]
    if len(parts) == 1:
        return [work(parts[0])]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, parts))


def _read_part(stack: Stack, part: range, volume_ZCYX: NDArray[np.float32], reader: FrameReader) -> dict[int, int]:
    """Some slices of the grid; gives for each acquired slice that was read how many of its pixels were padding."""
    if stack.regrid is None:
        return {number: _real_world(stack, number, reader, volume_ZCYX[number]) for number in part}
    padding: dict[int, int] = {}

    def acquired(number: int) -> NDArray[np.float32]:
        instance = stack.slices[number].instance
        image_CYX = np.empty((stack.channels, instance.rows, instance.columns), np.float32)
        padding[number] = _real_world(stack, number, reader, image_CYX)
        return image_CYX

    regrid(acquired, stack.regrid, part, volume_ZCYX)
    return padding


def _real_world(stack: Stack, number: int, reader: FrameReader, target_CYX: NDArray[np.float32]) -> int:
    """One slice as real-world values, NaN where it is padding; gives how many pixels that is."""
    item = stack.slices[number]
    samples = reader(item)
    if stack.channels == 3:
        target_CYX[...] = np.moveaxis(samples, 2, 0)
        return 0
    target_YX = target_CYX[0]
    padding_YX = _padding(samples, item)
    if stack.is_inverted:
        samples = _inverted(samples, item)
    if item.instance.pixels.lookup:
        samples = _looked_up(samples, item)
    _scale(samples, item, target_YX)
    if padding_YX is None:
        return 0
    target_YX[padding_YX] = np.nan
    return int(padding_YX.sum())


def _scale(samples_YX: Samples, item: Slice, target_YX: NDArray[np.float32]) -> None:
    assert item.slope is not None and item.intercept is not None
    if samples_YX.dtype.itemsize > 2:  # float32 cannot hold what these can before they are scaled
        values = samples_YX.astype(np.float64) * item.slope + item.intercept
        if not np.isfinite(values).all() or float(np.abs(values).max()) > _LARGEST_FLOAT:
            raise NotFinite(item.instance.path, seen="NaN or infinite pixels")
        target_YX[...] = values
        return
    if abs(item.slope) * 2**16 + abs(item.intercept) > _LARGEST_FLOAT:
        raise NotFinite(item.instance.path, seen="a rescale slope or intercept that leads beyond float32")
    np.copyto(target_YX, samples_YX)
    np.multiply(target_YX, np.float32(item.slope), out=target_YX)
    if item.intercept:
        np.add(target_YX, np.float32(item.intercept), out=target_YX)


def _padding(samples_YX: Samples, item: Slice) -> NDArray[np.bool_] | None:
    """Which pixels are padding (PS3.3 C.7.5.1.1.2); None where none are."""
    value, limit = item.instance.pixels.padding, item.instance.pixels.padding_limit
    if value is None or samples_YX.dtype.kind == "f":
        return None
    if limit is None:
        padding_YX = samples_YX == value
    else:
        low, high = min(value, limit), max(value, limit)
        padding_YX = np.greater_equal(samples_YX, low) & np.less_equal(samples_YX, high)
    return padding_YX if bool(padding_YX.any()) else None


def _inverted(samples_YX: Samples, item: Slice) -> Samples:
    """MONOCHROME1 as MONOCHROME2: what is stored as the smallest value becomes the largest."""
    pixels = item.instance.pixels
    if samples_YX.dtype.kind == "f":
        return np.negative(samples_YX)
    total = -1 if pixels.signed else 2**pixels.bits_stored - 1
    return np.subtract(total, samples_YX.astype(np.int64))


def _looked_up(samples_YX: Samples, item: Slice) -> Samples:
    """By the Modality LUT Sequence (PS3.3 C.11.1.1.1)."""
    try:
        with quietly():
            return np.asarray(apply_modality_lut(samples_YX, read_dataset(item.instance)))
    except Exception as error:  # pydicom raises whatever a malformed table leads it to; all of it means one thing here
        seen = f"the Modality LUT cannot be applied ({type(error).__name__})"
        raise UnreadableDicom(item.instance.path, seen=seen) from error


def _filled(stack: Stack, volume_ZCYX: NDArray[np.float32], padding: int, subject: str) -> tuple[Defect, ...]:
    """Give padding, and what lies beyond the acquired slices of a new grid, the smallest value that was measured."""
    if not padding and stack.regrid is None:
        return ()
    smallest = [float(np.nanmin(image)) for image in volume_ZCYX if not np.isnan(image).all()]
    if not smallest:
        raise NotFinite(subject, seen="every pixel is padding")
    filled = 0
    for image in volume_ZCYX:
        empty = np.isnan(image)
        filled += int(empty.sum())
        image[empty] = min(smallest)
    unit = f" {stack.unit}" if stack.unit else ""
    defects = []
    if padding:
        values = sorted({item.instance.pixels.padding for item in stack.slices} - {None}, key=str)
        stored = ", ".join(str(value) for value in values)
        detail = f"{padding} pixels stored as padding ({stored}) are masked: set to the smallest value seen, "
        defects.append(Defect("padding", "noted", f"{detail}{min(smallest):g}{unit}"))
    if stack.regrid is not None and filled:
        share = filled / volume_ZCYX.size
        what = "no acquired value but padding" if padding else "no acquired value"
        detail = f"{share:.1%} of the new grid has {what} and was set to {min(smallest):g}{unit}"
        defects.append(Defect("beyond_acquired", "noted", detail))
    return tuple(defects)
