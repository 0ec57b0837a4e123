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
Part = tuple[Box, tuple["Line", "Line", "Line"]]
Scratch = tuple[NDArray[np.float32], NDArray[np.float32]]


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
        x, y, z = self.probability_KXYZ.shape[1:]
        return owned(self.low, (x, y, z), size)


def owned(low: Size3, shape: Size3, size: Size3) -> Box:
    """The part of a block's voxels that no other block has.

    Parameters
    ----------
    low, shape
        Of the block: its first voxel, and how many there are along each axis.
    size
        Of the network's grid.
    """
    x, y, z = (n - (first + n < whole) for first, n, whole in zip(low, shape, size, strict=True))
    return slice(x), slice(y), slice(z)


class OwnGrid:
    """Labels on the series' own grid, which come into being block by block.

    Parameters
    ----------
    affine, size
        Of the network's grid: voxel index to RAS+ mm, and its voxels along each axis.
    shape, to_affine
        Of the series' own grid. Its axes must run along those of the network's grid, in any order and direction.

    Attributes
    ----------
    axis_for
        For each axis of the own grid the network's that it runs along.
    tie
        Two classes that are nearer than this are equally likely.

    Raises
    ------
    GridMismatch
        If the two grids' axes are not parallel.
    """

    def __init__(self, affine: Affine, size: Size3, *, shape: Size3, to_affine: Affine) -> None:
        self.shape, self.size = shape, size
        self.axis_for, positions = _positions_along_axes(affine, shape, to_affine)
        across = [size[axis] for axis in self.axis_for]
        self._lines = [Line.of(at, n) for at, n in zip(positions, across, strict=True)]
        # A network that is certain leaves the voxel midway between two classes undecided. Every second such voxel (as
        # on a chessboard) goes to the later class: always the same way would shrink structures by half a voxel.
        shared = all(np.allclose(at, np.rint(at), atol=_WHOLE) for at in positions)
        self.tie = np.float32(0 if shared else 1e-5)

    def add_labels(self, block: Block, labels_XYZ: NDArray[np.uint8]) -> None:
        """Give the own voxels within a block the number of the likeliest class.

        At each voxel's centre the class of the greatest probability, and of two equal ones either in turn; what lies
        beyond half a voxel outside the network's grid stays as it is. Where the two grids share their voxels, it is the
        argmax voxel for voxel. One class is brought over at a time, so memory does not grow with their number.

        A class that is less likely than one and the same other at every network voxel around a box is so between them,
        too, and is not brought over.
        """
        near_KXYZ = block.probability_KXYZ.transpose(0, *(axis + 1 for axis in self.axis_for))

        def decide(part: Part) -> None:
            own, into = part
            x, y, z = (line.span for line in into)
            self.put(labels_XYZ, own, self._likeliest(near_KXYZ[:, x, y, z], part))

        _each(decide, self._parts(block))

    def add_regions(self, block: Block, regions_KXYZ: NDArray[np.bool_]) -> None:
        """Say of the own voxels within a block which structures they belong to, where each is judged on its own."""
        near_KXYZ = block.probability_KXYZ.transpose(0, *(axis + 1 for axis in self.axis_for))

        def decide(part: Part) -> None:
            own, into = part
            x, y, z = (line.span for line in into)
            for near_XYZ, region_XYZ in zip(near_KXYZ[:, x, y, z], regions_KXYZ, strict=True):
                pair = np.stack((1 - near_XYZ, near_XYZ))
                self.put(region_XYZ, own, self._likeliest(pair, part) > 0)

        _each(decide, self._parts(block))

    def values(self, values_XYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """Numbers of the whole network's grid, linear between neighbours; NaN beyond half a voxel outside of it."""
        restored = np.full(self.shape, np.nan, dtype=np.float32)
        near_XYZ = values_XYZ.transpose(self.axis_for)
        for own, into in self._parts(Block((0, 0, 0), values_XYZ[np.newaxis])):
            x, y, z = (line.span for line in into)
            self.put(restored, own, _Between(into).of(near_XYZ[x, y, z].T).T)
        return restored

    def _parts(self, block: Block) -> Iterator[Part]:
        x, y, z = block.probability_KXYZ.shape[1:]
        return self.parts(block.low, (x, y, z), _PART)

    def parts(self, low: Size3, shape: Size3, edge: int) -> Iterator[Part]:
        """Boxes of the own grid that a block decides, each with its lines as indices into the block.

        Parameters
        ----------
        low, shape
            Of the block: its first voxel, and how many there are along each axis.
        edge
            How long the boxes are along each axis, at most.
        """
        ends = owned(low, shape, self.size)
        spans = []
        for line, axis in zip(self._lines, self.axis_for, strict=True):
            spans.append(np.flatnonzero((line.lower >= low[axis]) & (line.lower < low[axis] + ends[axis].stop)))
        if not all(len(span) for span in spans):
            return
        # A line is monotonous, so what a block decides of it is one run.
        runs = [range(int(span[0]), int(span[-1]) + 1) for span in spans]
        cuts = ([slice(at, min(at + edge, run.stop)) for at in run[::edge]] for run in runs)
        for x, y, z in product(*cuts):
            own = x, y, z
            begins = (low[axis] for axis in self.axis_for)
            lines = [line.part(at, begin) for line, at, begin in zip(self._lines, own, begins, strict=True)]
            yield own, (lines[0], lines[1], lines[2])

    def _able(self, near_KXYZ: NDArray[np.float32]) -> list[int]:
        """The classes that can be the likeliest somewhere between some network voxels, in their order."""
        first = int(near_KXYZ.reshape(len(near_KXYZ), -1).sum(axis=1).argmax())
        least = self.tie + _ROUNDING
        return [k for k, here in enumerate(near_KXYZ) if k == first or bool((here > near_KXYZ[first] - least).any())]

    def _likeliest(self, near_KXYZ: NDArray[np.float32], part: Part) -> NDArray[np.uint8] | np.uint8:
        """The likeliest class at each own voxel of a part; one number where no other can be it."""
        able, (own, lines) = self._able(near_KXYZ), part
        if len(able) == 1:
            return np.uint8(able[0])
        # Slice by slice in memory, as the labels are: what an axis repeats then lies together.
        between = _Between(lines)
        labels, number = np.full(between.shape, able[0], dtype=np.uint8), np.empty(between.shape, dtype=np.uint8)
        wins, least = np.empty(between.shape, dtype=np.bool_), np.empty(between.shape, dtype=np.float32)
        margin = self._margin(own)
        greatest = between.of(near_KXYZ[able[0]].T).copy()
        for label in able[1:]:
            here = between.of(near_KXYZ[label].T)
            np.greater(here, np.add(greatest, margin, out=least), out=wins)
            # Later classes have greater numbers. All of this is without a branch, so that noise costs no more.
            np.maximum(labels, np.multiply(wins.view(np.uint8), np.uint8(label), out=number), out=labels)
            np.maximum(greatest, here, out=greatest)
        return labels.T

    def _margin(self, own: Box) -> NDArray[np.float32]:
        """(Z, Y, X): by how much a later class has to be greater, or, where it is its turn, may be less."""
        if not self.tie:
            return np.zeros((1, 1, 1), dtype=np.float32)
        x, y, z = (np.arange(at.start, at.stop) % 2 == 1 for at in own)
        return np.where(z[:, None, None] ^ y[:, None] ^ x, -self.tie, self.tie)

    def put(self, target_XYZ: NDArray[Any], own: Box, found: NDArray[Any] | np.generic) -> None:
        """Write a part, but for what lies outside of the network's grid."""
        x, y, z = (line.inside[at] for line, at in zip(self._lines, own, strict=True))
        if x.all() and y.all() and z.all():
            target_XYZ[own] = found
        else:
            np.copyto(target_XYZ[own], found, where=x[:, None, None] & y[:, None] & z)


def _each(decide: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Decide parts side by side: numpy lets go of the interpreter, and no voxel is in two of them."""
    with ThreadPoolExecutor(threads_here()) as pool:
        deque(pool.map(decide, parts), maxlen=0)


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """The own grid's voxels along one axis: between which two network voxels each lies, and how far from the lower.

    `span` are the network voxels that it needs; `lower` and `upper` are indices into these.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    weight: NDArray[np.float32]
    inside: NDArray[np.bool_]
    span: slice

    @classmethod
    def of(cls, positions: NDArray[np.float64], size: int) -> Line:
        """Of fractional indices into `size` voxels; the last one is held beyond the ends."""
        whole = np.rint(positions)
        held = np.clip(np.where(np.abs(positions - whole) < _WHOLE, whole, positions), 0, size - 1)
        lower = np.floor(held).astype(np.int64)
        outside = (positions < -0.5) | (positions > size - 0.5)
        upper = np.minimum(lower + 1, size - 1)
        return cls(lower, upper, (held - lower).astype(np.float32), ~outside, slice(0, size))

    def part(self, at: slice, low: int) -> Line:
        """A run of the line, for a block that begins at `low`."""
        lower, upper = self.lower[at], self.upper[at]
        first, last = int(lower.min()), int(upper.max())
        span = slice(first - low, last + 1 - low)
        return Line(lower - first, upper - first, self.weight[at], self.inside[at], span)

    def among(self, values: NDArray[np.float32], axis: int, out: Scratch | None = None) -> NDArray[np.float32]:
        """Values along one axis, linear between neighbours; they may lie in `out`, which is used again."""
        mixed, below = out if out is not None else (None, None)
        if not self.weight.any():
            return np.take(values, self.lower, axis=axis, out=below, mode="clip")
        # From each voxel to the next one: between two of them there are several of the own ones.
        steps = np.zeros(values.shape, dtype=np.float32)
        after = (slice(None),) * axis
        np.subtract(values[(*after, slice(1, None))], values[(*after, slice(-1))], out=steps[(*after, slice(-1))])
        weight = self.weight.reshape([-1 if other == axis else 1 for other in range(3)])
        found: NDArray[np.float32] = np.take(steps, self.lower, axis=axis, out=mixed, mode="clip")
        found *= weight
        found += np.take(values, self.lower, axis=axis, out=below, mode="clip")
        return found


class _Between:
    """What lies between the network voxels that some lines need: one class after another, in the same memory.

    Parameters
    ----------
    lines
        Of X, Y and Z.
    """

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines
        x, y, z = (len(line.lower) for line in lines)
        self.shape = z, y, x
        self._out = np.empty(self.shape, np.float32), np.empty(self.shape, np.float32)

    def of(self, near_ZYX: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of `shape`, valid until the next call."""
        x, y, z = self._lines
        return z.among(y.among(x.among(near_ZYX, 2), 1), 0, self._out)


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
