"""Slices that do not lie on a regular grid -> that grid, two slices in memory at a time.

Invariant: a voxel is a linear mix of acquired pixels around its own place, never of anything farther, and where nothing
was acquired it is NaN, for the caller to fill and tell.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from imaging.dicom.stack import ROUNDING_MM, Regrid

# Shares of a voxel below this are rounding.
_NEGLIGIBLE = 1e-6


def regrid(
    read: Callable[[int], NDArray[np.float32]], plan: Regrid, targets: range, target_ZCYX: NDArray[np.float32]
) -> None:
    """Make some slices of the regular grid.

    Parameters
    ----------
    read
        Gives an acquired slice (C, Y, X) by its number.
    plan
        Where the slices lie and where the grid's lie.
    targets
        Which slices of the grid to make; neighbours are read once.
    target_ZCYX
        The grid, where they go.
    """
    moved: dict[int, NDArray[np.float32]] = {}

    def at(number: int) -> NDArray[np.float32]:
        if number not in moved:
            for old in [key for key in moved if key < number - 1]:
                del moved[old]
            shape = (target_ZCYX.shape[1], *target_ZCYX.shape[2:])
            moved[number] = _moved(read(number), plan.shift[number], shape)
        return moved[number]

    for target in targets:
        lower, share = _neighbours(plan, target)
        if share < _NEGLIGIBLE:
            target_ZCYX[target] = at(lower)
        elif share > 1 - _NEGLIGIBLE:
            target_ZCYX[target] = at(lower + 1)
        else:
            np.multiply(at(lower), np.float32(1 - share), out=target_ZCYX[target])
            target_ZCYX[target] += at(lower + 1) * np.float32(share)


def _neighbours(plan: Regrid, target: int) -> tuple[int, float]:
    """The acquired slice at or before a slice of the grid, and how far it is to the next, from 0 to 1."""
    upper = int(np.clip(np.searchsorted(plan.along, plan.target[target], side="right"), 1, len(plan.along) - 1))
    below, above = plan.along[upper - 1], plan.along[upper]
    place = plan.target[target]
    # A slice of the grid that lies on an acquired one, but for rounding, is that one.
    if place - below <= ROUNDING_MM:
        return upper - 1, 0.0
    if above - place <= ROUNDING_MM:
        return upper - 1, 1.0
    return upper - 1, float((place - below) / (above - below))


def _moved(image_CYX: NDArray[np.float32], shift: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An image moved by (columns, rows) pixels, linear between pixels, on a grid of `shape`."""
    columns = _along(image_CYX, float(shift[0]), shape[2], axis=2)
    return _along(columns, float(shift[1]), shape[1], axis=1)


def _along(image: NDArray[np.float32], by: float, size: int, *, axis: int) -> NDArray[np.float32]:
    source = np.arange(size) - by
    lower = np.floor(source + _NEGLIGIBLE).astype(int)
    weight = np.clip(source - lower, 0, 1).astype(np.float32)
    weight[weight < _NEGLIGIBLE] = 0
    last = image.shape[axis] - 1
    below = np.take(image, np.clip(lower, 0, last), axis=axis)
    outside = (source < -_NEGLIGIBLE) | (source > last + _NEGLIGIBLE)
    if weight.any():
        above = np.take(image, np.clip(lower + 1, 0, last), axis=axis)
        shape = [1] * image.ndim
        shape[axis] = size
        # Where the weight is 0 the neighbour must not count, for it may be NaN.
        below = np.where(weight.reshape(shape) > 0, below + (above - below) * weight.reshape(shape), below)
    index: list[slice | NDArray[np.bool_]] = [slice(None)] * image.ndim
    index[axis] = outside
    below[tuple(index)] = np.nan
    moved: NDArray[np.float32] = below.astype(np.float32, copy=False)
    return moved
