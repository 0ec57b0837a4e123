"""In which tiles a volume is seen, in which order, and what that takes of memory.

Invariant: tiles and their weights are those of MONAI's `sliding_window_inference` with ``mode="gaussian"``, which
validation uses.

The network's grid is XYZ. The *slab axis* is the one that tiles are worked through along. A *strip* is a box of the
grid over the whole of that axis: where a budget leaves no room for the whole cross-section, strip follows strip, and
tiles on a border are asked for both.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from imaging.config import Predict, Size3

Span = tuple[int, int]

_SIGMA, _SMALLEST_WEIGHT = 0.125, 1e-3
# No strip is cut narrower, for each is asked of tiles of a whole patch.
_NARROWEST = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """Which tiles a volume is seen in, and in which order.

    Attributes
    ----------
    size
        Of the network's grid.
    patch
        Of a tile, along all three axes.
    overlap
        Share of a tile that the next one covers, too.
    flips
        Sets of axes along which the image is mirrored; the first is none.
    axis
        The slab axis.
    ends
        Where along it each block ends; the last is the grid's end.
    cuts
        How many strips there are along each of the other two axes; 1 along the slab axis.
    """

    size: Size3
    patch: Size3
    overlap: float
    flips: tuple[tuple[int, ...], ...]
    axis: int
    ends: tuple[int, ...]
    cuts: Size3

    def starts(self, axis: int, *, flipped: bool) -> list[int]:
        """Where the tiles begin along an axis, below 0 where they are longer than the image."""
        size, patch = self.size[axis], self.patch[axis]
        padded = max(size, patch)
        step = patch if patch == padded else max(1, int(patch * (1 - self.overlap)))
        before = (padded - size) // 2
        count = -(-(padded - patch) // step) + 1
        starts = [min(number * step, padded - patch) - before for number in range(count)]
        return sorted(size - start - patch for start in starts) if flipped else starts

    def strips(self) -> list[tuple[Span, Span, Span]]:
        """Boxes that own the grid together, each with one layer of the next."""
        return list(product(self._spans(0), self._spans(1), self._spans(2)))

    def _spans(self, axis: int) -> list[Span]:
        """Where the strips lie along one axis."""
        size = self.size[axis]
        even = np.linspace(0, size, self.cuts[axis] + 1).round().astype(int).tolist()
        # A last strip of one layer could not be told from the layer that the one before has of it.
        bounds = [*sorted({0, *(bound for bound in even if bound < size - 1)}), size]
        return [(low, min(high + 1, size)) for low, high in pairwise(bounds)]

    def thickness(self, flip: tuple[int, ...]) -> int:
        """How many layers of the slab axis are open at once, seen through one flip."""
        starts, begun, most = self.starts(self.axis, flipped=self.axis in flip), 0, 0
        for end in self.ends:
            reached = max([min(start + self.patch[self.axis], self.size[self.axis]) for start in starts if start < end])
            most, begun = max(most, end - begun, reached - begun), end
        return most

    def bytes_open(self, outputs: int, members: int) -> int:
        """The memory that the largest strip takes: sums of weighted logits and of weights."""
        widest = [max(high - low for low, high in self._spans(axis)) for axis in range(3) if axis != self.axis]
        across = widest[0] * widest[1]
        layers = sum(self.thickness(flip) for flip in self.flips)
        # The first one keeps the last layer of the block before.
        return 4 * across * (members * layers * (outputs + 1) + outputs)

    def tiles(self) -> int:
        """How many tiles one network is asked for; those on a border between strips count for each."""
        total = 0
        for flip in self.flips:
            along = [
                sum(len(self._touching(axis, span, flipped=axis in flip)) for span in self._spans(axis))
                for axis in range(3)
            ]
            total += along[0] * along[1] * along[2]
        return total

    def _touching(self, axis: int, span: Span, *, flipped: bool) -> list[int]:
        starts, (low, high) = self.starts(axis, flipped=flipped), span
        return [start for start in starts if start < high and start + self.patch[axis] > low]

    def starts_in(self, strip: tuple[Span, Span, Span], flip: tuple[int, ...]) -> list[Size3]:
        """The tiles that touch a strip, along the slab axis first."""
        each = [self._touching(axis, span, flipped=axis in flip) for axis, span in enumerate(strip)]
        return sorted(((x, y, z) for x, y, z in product(*each)), key=lambda start: (start[self.axis], start))


def layout_of(settings: Predict, size: Size3, *, cuts: Sequence[int] = (1, 1)) -> Layout:
    """How the tiles of a config cover a grid.

    Parameters
    ----------
    settings
        Patch, overlap, flips, and how many tiles are asked at a time.
    size
        Of the network's grid.
    cuts
        Strips along the two axes that are not the slab axis.
    """
    flips: list[tuple[int, ...]] = [()]
    for axis in settings.flip_axes:
        flips += [(*flip, axis) for flip in flips]
    x, y, *z = settings.patch
    patch = (x, y, *z) if z else (x, y, 1)
    assert len(patch) == 3
    # Across the slab axis least is open at a time.
    thin = [(min(edge, n) / n, -number) for number, (edge, n) in enumerate(zip(patch, size, strict=True))]
    slab = -min(thin)[1]
    first, second = (other for other in range(3) if other != slab)
    strips = [1, 1, 1]
    strips[first], strips[second] = cuts
    layout = Layout(size, patch, settings.overlap, tuple(flips), slab, (size[slab],), (strips[0], strips[1], strips[2]))
    starts = layout.starts(slab, flipped=False)
    a_row = len(layout.starts(first, flipped=False)) * len(layout.starts(second, flipped=False))
    # Thin rows of few tiles, as of a 2D network, are taken together so that there are enough for a batch.
    together = -(-settings.batch_size // a_row) if patch[slab] == 1 else 1
    ends = (*starts[together::together], size[slab])
    return Layout(size, patch, settings.overlap, layout.flips, slab, ends, layout.cuts)


def fitting(
    settings: Predict, size: Size3, *, outputs: int, members: int, left: int, a_tile: int, batch_size: int
) -> tuple[Layout, int, int]:
    """The layout with the least work that fits into some memory.

    Parameters
    ----------
    settings, size
        As `layout_of` takes them.
    outputs, members
        K, and how many networks there are.
    left
        Memory that may be taken, in bytes.
    a_tile
        What asking for one tile takes, in bytes.
    batch_size
        How many are asked at a time where there is room.

    Returns
    -------
    layout : Layout
        Where nothing fits, the one that takes least.
    batch_size : int
        How many tiles may be asked at a time; at most what was given.
    bytes : int
        What both take.
    """
    whole = layout_of(settings, size)
    taken = whole.bytes_open(outputs, members) + batch_size * a_tile
    if taken <= left:
        return whole, batch_size, taken
    one, other = (size[axis] for axis in range(3) if axis != whole.axis)
    cuts = sorted({(-(-one // edge), -(-other // again)) for edge in _halves(one) for again in _halves(other)})
    layouts = sorted((layout_of(settings, size, cuts=cut) for cut in cuts), key=lambda layout: layout.tiles())
    batches = [batch_size >> by for by in range(batch_size.bit_length())]
    choices = [
        (layout.bytes_open(outputs, members) + batch * a_tile, layout, batch) for layout in layouts for batch in batches
    ]
    fits = (choice for choice in choices if choice[0] <= left)
    taken, layout, batch = next(fits, min(choices, key=lambda choice: choice[0]))
    return layout, batch, taken


def _halves(size: int) -> list[int]:
    """Widths of strips, from the whole to an eighth of it, and then in halves down to a few voxels."""
    widths = [-(-size // count) for count in range(1, 9)]
    while widths[-1] > _NARROWEST:
        widths.append(-(-widths[-1] // 2))
    return widths


def gaussian(patch: Size3) -> NDArray[np.float32]:
    """How much each voxel of a tile counts: a Gaussian of an eighth of its edge, nowhere less than a thousandth.

    As `monai.data.utils.compute_importance_map` has it.
    """
    weight = np.ones((1, 1, 1), dtype=np.float32)
    for axis, n in enumerate(patch):
        steps = np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2)
        line = np.exp(steps**2 / np.float32(-2 * (n * _SIGMA) ** 2))
        weight = weight * line.reshape([-1 if other == axis else 1 for other in range(3)])
    clamped: NDArray[np.float32] = np.maximum(weight, max(float(weight.min()), _SMALLEST_WEIGHT))
    return clamped
