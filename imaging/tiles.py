"""A network over a whole volume, tile by tile, with memory for a part of the answer only.

Invariant: the tiles, their weights and what is averaged are those of MONAI's `sliding_window_inference` with
``mode="gaussian"``, which validation uses; probabilities come block by block, each finished, and nothing holds more of
them than a strip that is as thick as a tile.

Shapes: B tiles, C channels, K outputs; the network's grid is XYZ. The *slab axis* is the one that tiles are worked
through along. A *strip* is a box of the grid over the whole of that axis: where a budget leaves no room for the whole
cross-section, strip follows strip, and tiles on a border are asked for both.
Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from numpy.typing import NDArray

from imaging.config import Predict, Size3
from imaging.restore import Block

# Takes tiles (B, C, *patch) and gives logits (B, K, *patch), float32 both.
Ask = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Span = tuple[int, int]

# The slices of a 2D network lie across the last axis of `preprocess.orientation`.
_ACROSS = 2
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


def blocks_of(
    members: Sequence[Ask],
    image_CXYZ: NDArray[np.float32],
    layout: Layout,
    *,
    outputs: int,
    overlapping: bool,
    batch_size: int = 1,
    skip_air: bool = False,
) -> Iterator[Block]:
    """What networks say of a whole volume, in finished blocks.

    Parameters
    ----------
    members
        The networks of an ensemble, or the only one.
    image_CXYZ
        Preprocessed.
    layout
        The tiles.
    outputs
        K.
    overlapping
        Whether structures overlap: the sigmoid of each output, else the softmax of all.
    batch_size
        How many tiles are asked at a time.
    skip_air
        Whether a network is asked once only for all the tiles that hold nothing but the least value of each channel,
        as air does where the config's window ends above it. All such tiles are the same to it, so that its answer is.

    Yields
    ------
    Block
        Probabilities, averaged over flips and members; together they own each voxel once. The array is used again for
        the next one.
    """
    least_C = image_CXYZ.reshape(len(image_CXYZ), -1).min(axis=1) if skip_air else None
    asked = [_Asked(ask, layout, least_C) for ask in members]
    for strip in layout.strips():
        yield from _in_strip(asked, image_CXYZ, layout, strip, outputs, overlapping, batch_size)


def _in_strip(
    members: Sequence[_Asked],
    image_CXYZ: NDArray[np.float32],
    layout: Layout,
    strip: tuple[Span, Span, Span],
    outputs: int,
    overlapping: bool,
    batch_size: int,
) -> Iterator[Block]:
    views = [_View(ask, layout, strip, flip, outputs) for ask, flip in product(members, layout.flips)]
    # The first one's array becomes that of all together; before its open layers it has the last finished one.
    total_KLXX, begun = np.zeros((outputs, 1 + views[0].layers, *views[0].across), dtype=np.float32), 0
    for view in views:
        view.open(total_KLXX[:, 1:] if view is views[0] else None)
    low = [span[0] for span in strip]
    for end in layout.ends:
        depth = end - begun
        for view in views:
            view.advance(image_CXYZ, end, batch_size)
            for layer in range(depth):
                found_KXX = view.finished(layer, overlapping)
                if view is not views[0]:
                    total_KLXX[:, 1 + layer] += found_KXX
        if len(views) > 1:
            total_KLXX[:, 1 : 1 + depth] /= len(views)
        first = 1 if begun == 0 else 0
        low[layout.axis] = begun - 1 + first
        block_KLXX = total_KLXX[:, first : 1 + depth]
        yield Block((low[0], low[1], low[2]), np.moveaxis(block_KLXX, 1, 1 + layout.axis))
        total_KLXX[:, 0] = total_KLXX[:, depth]
        for view in views:
            view.shift(depth)
        begun = end


class _Asked:
    """One network, asked for batches of tiles; for those that hold nothing but the least value, once only."""

    def __init__(self, ask: Ask, layout: Layout, least_C: NDArray[np.float32] | None) -> None:
        self._ask, self._patch, self._least_C = ask, layout.patch, least_C
        self._of_air: NDArray[np.float32] | None = None

    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Logits (K, X, Y, Z) of each tile."""
        if self._least_C is None:
            yield from self._answers(tiles_BCXYZ)
            return
        air = np.array([self._is_air(tile_CXYZ) for tile_CXYZ in tiles_BCXYZ])
        others = iter(self._answers(tiles_BCXYZ if not air.any() else tiles_BCXYZ[~air]) if not air.all() else ())
        for tile_CXYZ, is_air in zip(tiles_BCXYZ, air, strict=True):
            if is_air and self._of_air is None:
                self._of_air = np.array(self._answers(tile_CXYZ[np.newaxis])[0])
            yield self._of_air if is_air and self._of_air is not None else next(others)

    def _is_air(self, tile_CXYZ: NDArray[np.float32]) -> bool:
        least_C = self._least_C
        assert least_C is not None
        # Most tiles are told from air by one voxel.
        return bool((tile_CXYZ[:, 0, 0, 0] == least_C).all() and (tile_CXYZ == least_C[:, None, None, None]).all())

    def _answers(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._patch[_ACROSS] != 1:
            return self._ask(tiles_BCXYZ)
        return self._ask(tiles_BCXYZ[..., 0])[..., np.newaxis]


class _View:
    """The open layers of one network's answer, for the image mirrored in one way."""

    def __init__(
        self, asked: _Asked, layout: Layout, strip: tuple[Span, Span, Span], flip: tuple[int, ...], outputs: int
    ) -> None:
        self._asked, self._layout, self._strip, self._flip = asked, layout, strip, flip
        self._outputs, self._begun = outputs, 0
        self.layers = layout.thickness(flip)
        self.across = tuple(high - low for axis, (low, high) in enumerate(strip) if axis != layout.axis)
        self._todo = layout.starts_in(strip, flip)
        self._weight_XYZ = gaussian(layout.patch)
        self._sums_KLXX: NDArray[np.float32]
        self._weights_LXX: NDArray[np.float32]

    def open(self, sums_KLXX: NDArray[np.float32] | None) -> None:
        """Begin, with an array of zeros of its own or with the one given."""
        shape = (self.layers, *self.across)
        self._weights_LXX = np.zeros(shape, dtype=np.float32)
        self._sums_KLXX = np.zeros((self._outputs, *shape), dtype=np.float32) if sums_KLXX is None else sums_KLXX

    def advance(self, image_CXYZ: NDArray[np.float32], end: int, batch_size: int) -> None:
        """Ask for every tile that begins before a layer, after which all layers below it are finished."""
        count = sum(start[self._layout.axis] < end for start in self._todo)
        due, self._todo = self._todo[:count], self._todo[count:]
        mirror = tuple(slice(None, None, -1 if axis in self._flip else 1) for axis in range(3))
        for at in range(0, len(due), batch_size):
            starts = due[at : at + batch_size]
            tiles = np.zeros((len(starts), len(image_CXYZ), *self._layout.patch), dtype=np.float32)
            for tile_CXYZ, start in zip(tiles, starts, strict=True):
                self._fill(tile_CXYZ[:, *mirror], image_CXYZ, start)
            for logits_KXYZ, start in zip(self._asked(tiles), starts, strict=True):
                self._add(logits_KXYZ[:, *mirror], start)

    def _fill(self, tile_CXYZ: NDArray[np.float32], image_CXYZ: NDArray[np.float32], start: Size3) -> None:
        """Cut a tile out of the image; beyond the image it stays 0."""
        ends = [low + n for low, n in zip(start, self._layout.patch, strict=True)]
        spans = [(max(0, low), min(end, n)) for low, end, n in zip(start, ends, self._layout.size, strict=True)]
        inside = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, start, strict=True))
        tile_CXYZ[:, *inside] = image_CXYZ[:, *(slice(*span) for span in spans)]

    def _add(self, logits_KXYZ: NDArray[np.float32], start: Size3) -> None:
        """Add a tile's logits, weighted, to what is open."""
        axis = self._layout.axis
        bounds = list(self._strip)
        bounds[axis] = (self._begun, self._begun + self.layers)
        spans = [
            (max(low, first), min(high, first + n))
            for (low, high), first, n in zip(bounds, start, self._layout.patch, strict=True)
        ]
        of_tile = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, start, strict=True))
        of_open = tuple(slice(low - zero, high - zero) for (low, high), (zero, _) in zip(spans, bounds, strict=True))
        weight = self._weight_XYZ[of_tile]
        np.moveaxis(self._weights_LXX, 0, axis)[of_open] += weight
        weighted = np.empty_like(weight)
        for logits_XYZ, sums_LXX in zip(logits_KXYZ, self._sums_KLXX, strict=True):
            np.multiply(logits_XYZ[of_tile], weight, out=weighted)
            np.moveaxis(sums_LXX, 0, axis)[of_open] += weighted

    def finished(self, layer: int, overlapping: bool) -> NDArray[np.float32]:
        """The probabilities of a finished layer, where its sums were."""
        found_KXX: NDArray[np.float32] = self._sums_KLXX[:, layer]
        found_KXX /= self._weights_LXX[layer]
        if overlapping:
            np.negative(found_KXX, out=found_KXX)
        else:
            found_KXX -= found_KXX.max(axis=0)
        # exp of what is far below 0 is 0, and of what is far above it infinite; 1 / infinity is the 0 that is meant.
        with np.errstate(under="ignore", over="ignore"):
            np.exp(found_KXX, out=found_KXX)
        if overlapping:
            found_KXX += 1
            np.reciprocal(found_KXX, out=found_KXX)
        else:
            found_KXX /= found_KXX.sum(axis=0)
        return found_KXX

    def shift(self, depth: int) -> None:
        """Close the first layers, which are finished."""
        self._begun += depth
        for layer in range(self.layers):
            kept = layer + depth < self.layers
            self._sums_KLXX[:, layer] = self._sums_KLXX[:, layer + depth] if kept else 0
            self._weights_LXX[layer] = self._weights_LXX[layer + depth] if kept else 0


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
