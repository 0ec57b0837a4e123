"""A series' own grid -> the network's: axes turned, then resampled along each of them, in numpy.

Invariant: the grid and every value on it are those of MONAI's `Orientationd` and `Spacingd` (`align_corners=False`,
borders held): the grid to the rounding of its affine, linear values to a few units of float32, and a label wherever its
place is nearer to one voxel than to another. Only the arithmetic differs: MONAI samples in float64, through a grid of
three coordinates a voxel. Midway between two voxels, where MONAI's rounding decides by chance and for a whole plane at
once, labels are taken from either side in turn, as on a chessboard: so no structure moves, grows or shrinks by it.
Imports no torch.

Shapes: ``array_CXYZ`` and its ``affine`` (voxel index to RAS+ mm, float64 (4, 4)) go together.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray

from imaging.config import Preprocess, Size3
from imaging.volume import Affine, spacing_of

# MONAI's tolerance: a spacing in mm, an affine or a place in voxels nearer than this is taken as the same.
_SAME = 1e-3
# Rounding of the affines must not turn a whole index into a mixture, nor decide which neighbour is nearer.
_WHOLE_DIGITS = 6
_HALF = 0.5
# Voxels that a thread works on at a time: their float32 stay in a processor's second cache.
_CHUNK = 1 << 17


def to_network_grid(
    array_CXYZ: NDArray[Any], affine: Affine, config: Preprocess, *, labels: bool = False, threads: int | None = None
) -> tuple[NDArray[Any], Affine]:
    """Bring an image, or a mask, to the grid that a network sees.

    Parameters
    ----------
    array_CXYZ, affine
        Values on their own grid, and where it lies.
    config
        Orientation and spacing are read.
    labels
        Whether the values are label ids, which go by nearest neighbour and keep their type. Others are interpolated
        linearly as float32.
    threads
        How many work on it; by default as `threads_here` says. The result does not depend on it.

    Returns
    -------
    array
        (C, X, Y, Z) with the axes as the config names them. Its memory may be that of the array given, in any order.
    affine
        Where the grid lies.
    """
    array_CXYZ, affine = turned(array_CXYZ, affine, config.orientation)
    shape, target = spaced_grid(array_CXYZ.shape[1:], affine, config.spacing_mm)
    into: Affine = np.asarray(np.linalg.solve(affine, target), dtype=np.float64)
    if not labels:
        array_CXYZ = array_CXYZ.astype(np.float32, copy=False)
    if shape == array_CXYZ.shape[1:] and (_close(affine, target) or _close(into, np.eye(4))):
        return array_CXYZ, affine
    aside = into[:3, :3] - np.diag(into.diagonal()[:3])
    threads = threads or threads_here()
    if (np.abs(aside) @ (np.array(shape) - 1)).max() > _SAME:
        return _sheared(array_CXYZ, into, shape, labels=labels, threads=threads), target
    positions = [into[axis, 3] + into[axis, axis] * np.arange(shape[axis]) for axis in range(3)]
    parts = [resampled(values_XYZ, positions, nearest=labels, threads=threads) for values_XYZ in array_CXYZ]
    return parts[0][None] if len(parts) == 1 else np.stack(parts), target


def size_on_network_grid(shape: Size3, affine: Affine, config: Preprocess) -> Size3:
    """How many voxels an image of some shape has on the grid that a network sees, before it is read."""
    nothing = np.broadcast_to(np.float32(0), (1, *shape))
    there, there_affine = turned(nothing, affine, config.orientation)
    return spaced_grid(there.shape[1:], there_affine, config.spacing_mm)[0]


def preparing_bytes(shape: Size3, size: Size3, *, channels: int) -> int:
    """What bringing an image of `shape` to `size` and scaling it takes at most, beside the image itself."""
    own, there = sorted(shape), sorted(size)
    image = 4 * channels * math.prod(size)
    if own == there:
        return image
    # One axis after another, the greatest loss first: two arrays at a time, then the channels and what is scaled.
    steps = sorted(n / old for n, old in zip(there, own, strict=True))
    lengths = np.cumprod([math.prod(shape), *steps])[1:]
    return max(int(4 * (lengths[0] + lengths[1])), int(4 * (lengths[1] + lengths[2])), image) + image


def turned(array_CXYZ: NDArray[Any], affine: Affine, orientation: str) -> tuple[NDArray[Any], Affine]:
    """An array with its axes flipped and in another order, to run as `orientation` says; nothing is copied."""
    turn = ornt_transform(nib.io_orientation(affine), axcodes2ornt(orientation))
    flipped = array_CXYZ[(slice(None), *(slice(None, None, int(sign)) for sign in turn[:, 1]))]
    order = np.argsort(turn[:, 0]) + 1
    return flipped.transpose(0, *order), np.asarray(affine @ inv_ornt_aff(turn, array_CXYZ.shape[1:]), dtype=np.float64)


def spaced_grid(shape: Sequence[int], affine: Affine, spacing_mm: Sequence[float | None]) -> tuple[Size3, Affine]:
    """The grid of another spacing over the same place: its shape, and its affine.

    Parameters
    ----------
    shape, affine
        Of the grid there is.
    spacing_mm
        Wanted along each axis; None, or within a micrometre of what there is, keeps that.

    Notes
    -----
    The axes keep their directions; where they are not at right angles, the first keeps its own and the others are made
    so (the triangular factor of their Gram matrix is what is replaced). The first voxel's centre stays where it is, and
    the last one's is met to half a voxel. Axes so oblique to each other that no corner is the first one in all of them
    share their middle instead.
    """
    own = spacing_of(affine)
    wanted = [
        have if want is None or abs(want - have) <= _SAME else want for want, have in zip(spacing_mm, own, strict=True)
    ]
    axes = affine[:3, :3]
    directions = axes @ np.linalg.inv(np.linalg.cholesky(axes.T @ axes).T)
    target = np.eye(4)
    target[:3, :3] = directions @ np.diag(wanted)
    corners = np.array(list(product(*((0.0, size - 1.0) for size in shape), [1.0]))).T
    there = (np.linalg.solve(target, affine) @ corners)[:3]
    size = np.round(np.ptp(there, axis=1) + 1.0)
    first = [n for n in range(corners.shape[1]) if np.abs((there - there[:, n : n + 1]).min(axis=1)).max() <= 1e-8]
    if first:
        target[:3, 3] = (affine @ corners)[:3, first[0]]
    else:
        target[:3, 3] = axes @ (np.array(shape) / 2) + affine[:3, 3] - target[:3, :3] @ (size / 2)
    x, y, z = size.astype(int).tolist()
    return (x, y, z), target


def resampled(
    values_XYZ: NDArray[Any],
    positions: Sequence[NDArray[np.float64]],
    *,
    nearest: bool = False,
    threads: int | None = None,
) -> NDArray[Any]:
    """Values at fractional indices along each axis, one axis after another.

    Parameters
    ----------
    values_XYZ
        In any memory order.
    positions
        For each axis the indices at which values are wanted; beyond the ends the last value is held.
    nearest
        Take the nearest value, and midway that of either side in turn, instead of a linear mixture.
    threads
        As in `to_network_grid`.

    Returns
    -------
    ndarray
        Of the lengths of `positions`; the memory order is that of the values.
    """
    # The axis that loses most comes first: what the others then have to do is less.
    order = sorted(range(3), key=lambda axis: len(positions[axis]) / values_XYZ.shape[axis])
    # Longest step in memory first: what a chunk reads then lies together.
    layout = sorted(range(3), key=lambda axis: -abs(values_XYZ.strides[axis]))
    values = values_XYZ.transpose(layout)
    for axis in order:
        values = _along(values, positions[axis], layout.index(axis), nearest, threads or threads_here())
    return values.transpose(np.argsort(layout))


def threads_here() -> int:
    """How many threads to work with: what OMP_NUM_THREADS allows, else the processors that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdecimal() and int(told) else len(os.sched_getaffinity(0))


def _along(
    values: NDArray[Any], positions: NDArray[np.float64], axis: int, nearest: bool, threads: int
) -> NDArray[Any]:
    """Values at fractional indices along one axis, the last one held beyond the ends."""
    last = values.shape[axis] - 1
    held = np.clip(positions.round(_WHOLE_DIGITS) if nearest else _held_whole(positions), 0, last)
    if np.array_equal(held, np.arange(last + 1)):
        return values
    lower = np.floor(held).astype(np.intp)
    weight = held - lower
    if nearest:
        # Midway stays between two; all else is decided here.
        lower += weight > _HALF
        weight[weight != _HALF] = 0
    upper = lower + (weight > 0)
    weights = weight.astype(np.float32).reshape([-1 if n == axis else 1 for n in range(3)])
    mixes = bool(weight.any())
    shape = list(values.shape)
    shape[axis] = len(positions)
    result = np.empty(shape, dtype=values.dtype)

    def work(part: tuple[slice, ...]) -> None:
        block = np.ascontiguousarray(values[part])
        below = np.take(block, lower, axis=axis, mode="clip")
        if mixes:
            above = np.take(block, upper, axis=axis, mode="clip")
            if nearest:
                np.copyto(below, above, where=_chessboard(below.shape, part[-1].start))
            else:
                above -= below
                above *= weights
                below += above
        result[part] = below

    _in_parts(work, values.shape, axis, max(values.size, result.size), threads)
    return result


def _held_whole(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Indices without the rounding of the affines, where they are meant to be whole."""
    whole = positions.round()
    return np.where(np.abs(positions - whole) < 10.0**-_WHOLE_DIGITS, whole, positions)


def _chessboard(shape: Sequence[int], start: int) -> NDArray[np.bool_]:
    """Every second voxel of a part of an array that begins `start` voxels from its beginning."""
    return np.asarray(sum(np.ogrid[start : start + shape[0], : shape[1], : shape[2]]) % 2 == 1)


def _in_parts(
    work: Callable[[tuple[slice, ...]], None], shape: Sequence[int], axis: int, voxels: int, threads: int
) -> None:
    """Work through an array in slabs across its outermost axis that is not `axis`."""
    across = 1 if axis == 0 else 0
    step = max(1, shape[across] * _CHUNK // max(voxels, 1))
    before = (slice(None),) * across
    parts = [(*before, slice(start, start + step)) for start in range(0, shape[across], step)]
    if threads == 1 or len(parts) == 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass


def _sheared(array_CXYZ: NDArray[Any], into: Affine, shape: Size3, *, labels: bool, threads: int) -> NDArray[Any]:
    """The same where the axes of the two grids are not parallel: all three indices of a voxel depend on one another.

    Only NIfTI files with a sheared affine come here: a DICOM series was brought to right angles by its reader.
    """
    result = np.empty((array_CXYZ.shape[0], *shape), dtype=array_CXYZ.dtype)
    last = np.array(array_CXYZ.shape[1:])[:, None, None] - 1
    y, z = np.ogrid[: shape[1], : shape[2]]

    def work(part: tuple[slice, ...]) -> None:
        for x in range(shape[0])[part[0]]:
            places = [into[n, 0] * x + into[n, 1] * y + into[n, 2] * z + into[n, 3] for n in range(3)]
            at = np.clip(np.stack(places), 0, last)
            if labels:
                result[:, x] = array_CXYZ[(slice(None), *np.rint(at.round(_WHOLE_DIGITS)).astype(np.intp))]
                continue
            lower = np.floor(at).astype(np.intp)
            weight = (at - lower).astype(np.float32)
            upper = np.minimum(lower + 1, last)
            mixed: NDArray[Any] = np.zeros((len(result), *shape[1:]), dtype=np.float32)
            for corner in product((False, True), repeat=3):
                index = tuple(np.where(far, upper[n], lower[n]) for n, far in enumerate(corner))
                share = np.prod([weight[n] if far else 1 - weight[n] for n, far in enumerate(corner)], axis=0)
                mixed += share * array_CXYZ[(slice(None), *index)]
            result[:, x] = mixed

    _in_parts(work, shape, 2, result.size, threads)
    return result


def _close(one: Affine, other: Affine) -> bool:
    return np.allclose(one, other, atol=_SAME)
