"""From the network's grid back to the series' own: labels and numbers, block by block.

Invariant: the way back is computed from the two affines alone and interpolates probabilities, not labels, so that
nothing shifts a mask by half a voxel. Blocks give, bit for bit, what the whole would: no array holds every class of
more than one block, at either grid.

Shapes: K classes with the background; a block is a box of the network's grid. Along each axis it holds one layer more
than it owns, the next block's first, unless it ends where the grid ends: what lies between two blocks is interpolated
from both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.config import Size3
from imaging.errors import GridMismatch
from imaging.resampling import threads_here
from imaging.volume import Affine

# The series' grid is worked on in boxes: so long along an axis, what fits a processor's cache, and small enough to lie
# mostly within one structure.
_PART = 64
# Interpolation in float32 rounds probabilities by less.
_ROUNDING = np.float32(1e-6)
# Rounding of the affines must not turn a whole index into a mixture.
_WHOLE = 1e-4

Box = tuple[slice, slice, slice]
# A box of the own grid, and for each axis which network voxels lie around it.
Part = tuple[Box, tuple["_Line", "_Line", "_Line"]]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Finished probabilities of a box of the network's grid.

    Attributes
    ----------
    low
        The box's first voxel.
    probability_KXYZ
        float32; only until the next block is asked for.
    """

    low: Size3
    probability_KXYZ: NDArray[np.float32]

    def owned(self, size: Size3) -> Box:
        """The part of its voxels that no other block has, of a grid of `size`."""
        lengths = self.probability_KXYZ.shape[1:]
        ends = [n - (low + n < whole) for low, n, whole in zip(self.low, lengths, size, strict=True)]
        return slice(ends[0]), slice(ends[1]), slice(ends[2])


class OwnGrid:
    """Labels on the series' own grid, which come into being block by block.

    Parameters
    ----------
    affine, size
        Of the network's grid: voxel index to RAS+ mm, and its voxels along each axis.
    shape, to_affine
        Of the series' own grid. Its axes must run along those of the network's grid, in any order and direction.

    Raises
    ------
    GridMismatch
        If the two grids' axes are not parallel.
    """

    def __init__(self, affine: Affine, size: Size3, *, shape: Size3, to_affine: Affine) -> None:
        self.shape, self.size = shape, size
        self._axis_for, positions = _positions_along_axes(affine, shape, to_affine)
        across = [size[axis] for axis in self._axis_for]
        self._lines = [_Line.of(at, n) for at, n in zip(positions, across, strict=True)]
        # A network that is certain leaves the voxel midway between two classes undecided. Every second such voxel (as
        # on a chessboard) goes to the later class: always the same way would shrink structures by half a voxel.
        shared = all(np.allclose(at, np.rint(at), atol=_WHOLE) for at in positions)
        self._tie = np.float32(0 if shared else 1e-5)

    def add_labels(self, block: Block, labels_XYZ: NDArray[np.uint8]) -> None:
        """Give the own voxels within a block the number of the likeliest class.

        At each voxel's centre the class of the greatest probability, and of two equal ones either in turn; what lies
        beyond half a voxel outside the network's grid stays as it is. Where the two grids share their voxels, it is the
        argmax voxel for voxel. One class is brought over at a time, so memory does not grow with their number.

        A class that is less likely than one and the same other at every network voxel around a box is so between them,
        too, and is not brought over.
        """

        def decide(part: Part) -> None:
            own, into = part
            x, y, z = (line.span for line in into)
            near_KXYZ = block.probability_KXYZ.transpose(0, *(axis + 1 for axis in self._axis_for))[:, x, y, z]
            able = self._able(near_KXYZ)
            if len(able) == 1:
                self._put(labels_XYZ, own, np.uint8(able[0]))
            else:
                self._put(labels_XYZ, own, self._likeliest(able, (_between(near_KXYZ[k], into) for k in able), own))

        _each(decide, self._parts(block))

    def _able(self, near_KXYZ: NDArray[np.float32]) -> list[int]:
        """The classes that can be the likeliest somewhere between some network voxels, in their order."""
        first = int(near_KXYZ.reshape(len(near_KXYZ), -1).sum(axis=1).argmax())
        least = self._tie + _ROUNDING
        return [k for k, here in enumerate(near_KXYZ) if k == first or bool((here > near_KXYZ[first] - least).any())]

    def add_regions(self, block: Block, regions_KXYZ: NDArray[np.bool_]) -> None:
        """Say of the own voxels within a block which structures they belong to, where each is judged on its own."""
        for own, into in self._parts(block):
            for values, region_XYZ in zip(block.probability_KXYZ, regions_KXYZ, strict=True):
                pair = (self._brought(part, into) for part in (1 - values, values))
                self._put(region_XYZ, own, self._likeliest((0, 1), pair, own) > 0)

    def values(self, values_XYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers of the whole network's grid, linear between neighbours; NaN beyond half a voxel outside of it."""
        restored = np.full(self.shape, np.nan, dtype=np.float32)
        for own, into in self._parts(Block((0, 0, 0), values_XYZ[np.newaxis])):
            self._put(restored, own, self._brought(values_XYZ, into))
        return restored

    def _parts(self, block: Block) -> Iterator[Part]:
        """Boxes of the own grid that a block decides, small ones, each with its lines as indices into the block."""
        owned = block.owned(self.size)
        spans = []
        for line, axis in zip(self._lines, self._axis_for, strict=True):
            low = block.low[axis]
            spans.append(np.flatnonzero((line.lower >= low) & (line.lower < low + owned[axis].stop)))
        if not all(len(span) for span in spans):
            return
        # A line is monotonous, so what a block decides of it is one run.
        runs = [range(int(span[0]), int(span[-1]) + 1) for span in spans]
        cuts = ([slice(at, min(at + _PART, run.stop)) for at in run[::_PART]] for run in runs)
        for x, y, z in product(*cuts):
            own = x, y, z
            lows = (block.low[axis] for axis in self._axis_for)
            first, second, third = (line.part(at, low) for line, at, low in zip(self._lines, own, lows, strict=True))
            yield own, (first, second, third)

    def _brought(self, values_XYZ: NDArray[np.float32], lines: Sequence[_Line]) -> NDArray[np.float32]:
        """One class of a block, on a part of the own grid."""
        x, y, z = (line.span for line in lines)
        return _between(values_XYZ.transpose(self._axis_for)[x, y, z], lines)

    def _likeliest(self, names: Sequence[int], classes: Iterable[NDArray[np.float32]], own: Box) -> NDArray[np.uint8]:
        turn = sum(np.ogrid[own]) % 2 == 1
        labels = np.full([at.stop - at.start for at in own], names[0], dtype=np.uint8)
        greatest: NDArray[np.float32] | None = None
        for label, here in zip(names, classes, strict=True):
            if greatest is None:
                greatest = np.array(here)
                continue
            if self._tie:
                wins = (here > greatest + self._tie) | (turn & (here > greatest - self._tie))
            else:
                wins = here > greatest
            labels[wins] = label
            np.maximum(greatest, here, out=greatest)
        return labels

    def _put(self, target_XYZ: NDArray[Any], own: Box, found: NDArray[Any] | np.uint8) -> None:
        """Write a part, but for what lies outside of the network's grid."""
        x, y, z = (line.inside[at] for line, at in zip(self._lines, own, strict=True))
        if x.all() and y.all() and z.all():
            target_XYZ[own] = found
        else:
            np.copyto(target_XYZ[own], found, where=x[:, None, None] & y[:, None] & z)


def _between(near_XYZ: NDArray[np.float32], lines: Sequence[_Line]) -> NDArray[np.float32]:
    """Values between the network voxels that some lines need."""
    for axis, line in enumerate(lines):
        near_XYZ = line.interpolated(near_XYZ, axis)
    return near_XYZ


def _each(decide: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Decide parts side by side: numpy lets go of the interpreter, and no voxel is in two of them."""
    with ThreadPoolExecutor(threads_here()) as pool:
        deque(pool.map(decide, parts), maxlen=0)


@dataclass(frozen=True, slots=True, eq=False)
class _Line:
    """The own grid's voxels along one axis: between which two network voxels each lies, and how far from the lower.

    `span` are the network voxels that it needs; `lower` and `upper` are indices into these.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float32]
    inside: NDArray[np.bool_]
    span: slice

    @classmethod
    def of(cls, positions: NDArray[np.float64], size: int) -> _Line:
        """Of fractional indices into `size` voxels; the last one is held beyond the ends."""
        whole = np.rint(positions)
        held = np.clip(np.where(np.abs(positions - whole) < _WHOLE, whole, positions), 0, size - 1)
        lower = np.floor(held).astype(np.int64)
        outside = (positions < -0.5) | (positions > size - 0.5)
        upper = np.minimum(lower + 1, size - 1)
        return cls(lower, upper, (held - lower).astype(np.float32), ~outside, slice(0, size))

    def part(self, at: slice, low: int) -> _Line:
        """A run of the line, for a block that begins at `low`."""
        lower, upper = self.lower[at], self.upper[at]
        first, last = int(lower.min()), int(upper.max())
        span = slice(first - low, last + 1 - low)
        return _Line(lower - first, upper - first, self.weight[at], self.inside[at], span)

    def interpolated(self, values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
        """Values along one axis, linear between neighbours."""
        below: NDArray[np.float32] = np.take(values, self.lower, axis=axis)
        if not self.weight.any():
            return below
        shape = [1, 1, 1]
        shape[axis] = -1
        mixed = np.take(values, self.upper, axis=axis)
        mixed -= below
        mixed *= self.weight.reshape(shape)
        mixed += below
        return mixed


def restore_labels(
    probability_KXYZ: NDArray[np.float32], affine: Affine, *, shape: Size3, to_affine: Affine
) -> NDArray[np.uint8]:
    """Bring probabilities from the network's grid back to the series' own, and take the likeliest class there.

    Probabilities are interpolated linearly, since labels cannot be: on a finer grid half of the voxels lie midway
    between two network voxels, and rounding them all the same way would shift the mask.

    Parameters
    ----------
    probability_KXYZ, affine
        Of each class on the network's grid, class 0 is the background; and where that lies: index to RAS+ mm.
    shape, to_affine
        Of the series' own grid; its axes run along those of the network's, in any order and direction.

    Returns
    -------
    ndarray of uint8
        Class ids of `shape`, see `OwnGrid.add_labels`; 0 beyond half a voxel outside the network's grid.

    Raises
    ------
    GridMismatch
        If the two grids' axes are not parallel.
    """
    labels = np.zeros(shape, dtype=np.uint8)
    x, y, z = probability_KXYZ.shape[1:]
    OwnGrid(affine, (x, y, z), shape=shape, to_affine=to_affine).add_labels(Block((0, 0, 0), probability_KXYZ), labels)
    return labels


def restore_values(
    values_XYZ: NDArray[np.float32], affine: Affine, *, shape: Size3, to_affine: Affine
) -> NDArray[np.float32]:
    """Bring numbers from the network's grid back to the series' own, linear between neighbours.

    Parameters
    ----------
    values_XYZ, affine
        On the network's grid, and where that lies: index to RAS+ mm.
    shape, to_affine
        Of the series' own grid; its axes run along those of the network's, in any order and direction.

    Returns
    -------
    ndarray of float32
        Of `shape`; NaN beyond half a voxel outside the network's grid, of which the network has seen nothing.

    Raises
    ------
    GridMismatch
        If the two grids' axes are not parallel.
    """
    x, y, z = values_XYZ.shape
    return OwnGrid(affine, (x, y, z), shape=shape, to_affine=to_affine).values(values_XYZ)


def _positions_along_axes(
    affine: Affine, shape: Size3, to_affine: Affine
) -> tuple[NDArray[np.int64], list[NDArray[np.float64]]]:
    """For each series axis the network axis it runs along, and its voxels' fractional indices there."""
    into = np.linalg.inv(affine) @ to_affine
    axis_for = np.abs(into[:3, :3]).argmax(axis=0)
    steps = into[axis_for, range(3)]
    aligned = np.zeros((3, 3))
    aligned[axis_for, range(3)] = steps
    # How far, in network voxels, the far corner would be misplaced if the axes were taken as parallel.
    drift = np.abs(into[:3, :3] - aligned) @ (np.array(shape) - 1)
    if len(set(axis_for.tolist())) != 3 or drift.max() > 0.01:
        raise GridMismatch("network grid", seen=f"axes that diverge by {drift.max():.3f} voxels")
    return axis_for, [into[axis_for[axis], 3] + steps[axis] * np.arange(shape[axis]) for axis in range(3)]
