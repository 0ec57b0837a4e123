"""What networks say of a volume, tile by tile, blended into blocks, with memory for a part of the answer only.

Invariant: what is averaged, and how each tile counts, is that of MONAI's `sliding_window_inference` with
``mode="gaussian"``; probabilities come block by block, each finished, and nothing holds more of them than a strip that
is as thick as a tile.

Shapes: N tiles, C channels, K outputs, L layers of the slab axis with A x B voxels each; the network's grid is XYZ.
Imports no torch: `imaging.on_gpu` has the views whose arrays lie on a device.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, product
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from imaging.config import Size3
from imaging.resampling import threads_here
from imaging.restore import Block
from imaging.tiles import Layout, Span, gaussian

# Takes tiles (N, C, *patch) and gives logits (N, K, *patch), float32 both.
Ask = Callable[[NDArray[np.float32]], NDArray[np.float32]]
Slices = tuple[slice, ...]
Strip = tuple[Span, Span, Span]

# The slices of a 2D network lie across the last axis of `preprocess.orientation`.
ACROSS = 2
# So many layers of a tile are weighted at a time: they stay in a processor's cache, and take little memory.
_WEIGHED = 8
# So many numbers of a tile are added in about a millisecond; fewer are not worth waking threads for.
_WORTH_THREADS = 2**20


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
        the next one of its strip; who holds one on while asking for the next has two strips in memory.
    """
    least_C = image_CXYZ.reshape(len(image_CXYZ), -1).min(axis=1) if skip_air else None
    asked = [_Asked(ask, layout, least_C) for ask in members]
    with ThreadPoolExecutor(threads_here()) as pool:
        for strip in layout.strips():
            views = [_HostView(ask, layout, strip, flip, outputs, pool) for ask, flip in product(asked, layout.flips)]
            for low, block_KXYZ in in_strip(views, image_CXYZ, overlapping=overlapping, batch_size=batch_size):
                yield Block(low, block_KXYZ)
                del block_KXYZ
            # What was open of this strip is let go before the next one takes as much.
            del views


def in_strip(
    views: Sequence[View], image_CXYZ: Any, *, overlapping: bool, batch_size: int
) -> Iterator[tuple[Size3, Any]]:
    """What some views of one strip say together, in finished blocks.

    Parameters
    ----------
    views
        Of each network through each flip.
    image_CXYZ
        Preprocessed; an array of the kind that the views compute with.
    overlapping, batch_size
        As `blocks_of` takes them.

    Yields
    ------
    low : tuple of int
        The block's first voxel.
    probability_KXYZ : array
        The block; the array is used again for the next one.
    """
    first_view, layout, strip = views[0], views[0].layout, views[0].strip
    # The first one's array becomes that of all together; before its open layers it has the last finished one.
    total_KLAB, begun = first_view.zeros((first_view.outputs, 1 + first_view.layers, *first_view.across)), 0
    for view in views:
        view.open(total_KLAB[:, 1:] if view is first_view else None)
    networks = [list(same) for _, same in groupby(views, key=lambda view: id(view.network))]
    low = [span[0] for span in strip]
    for end in layout.ends:
        depth = end - begun
        for same in networks:
            _advance(same, image_CXYZ, end, batch_size)
        for view in views:
            for layer in range(0, depth, view.at_once):
                layers = slice(layer, min(layer + view.at_once, depth))
                found_KLAB = view.finished(layers, overlapping=overlapping)
                if view is not first_view:
                    total_KLAB[:, 1 + layers.start : 1 + layers.stop] += found_KLAB
        if len(views) > 1:
            total_KLAB[:, 1 : 1 + depth] /= len(views)
        first = 1 if begun == 0 else 0
        low[layout.axis] = begun - 1 + first
        axes = [2, 3]
        axes.insert(layout.axis, 1)
        yield (low[0], low[1], low[2]), first_view.turned(total_KLAB[:, first : 1 + depth], (0, *axes))
        total_KLAB[:, 0] = total_KLAB[:, depth]
        for view in views:
            view.shift(depth)
        begun = end


def _advance(views: Sequence[View], image_CXYZ: Any, end: int, batch_size: int) -> None:
    """Ask for every tile that begins before a layer, after which all layers below it are finished.

    All views are of one network. Their tiles go together: a small volume is one tile, seen through each flip.
    """
    due = [(view, start) for view in views for start in view.due(end)]
    for at in range(0, len(due), batch_size):
        tiles = due[at : at + batch_size]
        for logits_KXYZ, (view, start) in zip(views[0].asked(image_CXYZ, tiles), tiles, strict=True):
            view.add(logits_KXYZ, *view.where(start))
        # An answer of many classes takes more than the network's own work; the next one needs its room.
        del logits_KXYZ


class _Asked:
    """One network, asked for batches of tiles; for those that hold nothing but the least value, once only."""

    def __init__(self, ask: Ask, layout: Layout, least_C: NDArray[np.float32] | None) -> None:
        self._ask, self._patch, self._least_C = ask, layout.patch, least_C
        self._of_air: NDArray[np.float32] | None = None

    def __call__(self, tiles_NCXYZ: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        """Logits (K, X, Y, Z) of each tile."""
        if self._least_C is None:
            yield from self._answers(tiles_NCXYZ)
            return
        air = np.array([self._is_air(tile_CXYZ) for tile_CXYZ in tiles_NCXYZ])
        others = iter(self._answers(tiles_NCXYZ if not air.any() else tiles_NCXYZ[~air]) if not air.all() else ())
        for tile_CXYZ, is_air in zip(tiles_NCXYZ, air, strict=True):
            if is_air and self._of_air is None:
                self._of_air = np.array(self._answers(tile_CXYZ[np.newaxis])[0])
            yield self._of_air if is_air and self._of_air is not None else next(others)

    def _is_air(self, tile_CXYZ: NDArray[np.float32]) -> bool:
        least_C = self._least_C
        assert least_C is not None
        # Most tiles are told from air by one voxel.
        return bool((tile_CXYZ[:, 0, 0, 0] == least_C).all() and (tile_CXYZ == least_C[:, None, None, None]).all())

    def _answers(self, tiles_NCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._patch[ACROSS] != 1:
            return self._ask(tiles_NCXYZ)
        return self._ask(tiles_NCXYZ[..., 0])[..., np.newaxis]


class View(ABC):
    """The open layers of one network's answer, for the image mirrored in one way; on a host or on a device.

    Parameters
    ----------
    layout, strip
        The tiles, and the box of the grid that is worked through.
    flip
        Axes along which the image is mirrored.
    outputs
        K.

    Attributes
    ----------
    at_once
        How many layers are best finished at a time.
    network
        What answers; views of one network share it.
    """

    at_once: int
    network: Any

    def __init__(self, layout: Layout, strip: Strip, flip: tuple[int, ...], outputs: int) -> None:
        self.layout, self.strip, self.flip, self.outputs = layout, strip, flip, outputs
        self.layers = layout.thickness(flip)
        self.across = tuple(high - low for axis, (low, high) in enumerate(strip) if axis != layout.axis)
        self._todo, self._begun = layout.starts_in(strip, flip), 0
        self.sums_KLAB: Any
        self.weights_LAB: Any

    @abstractmethod
    def zeros(self, shape: tuple[int, ...]) -> Any:
        """An array of float32."""

    @abstractmethod
    def turned(self, array: Any, axes: tuple[int, ...]) -> Any:
        """An array with its axes in another order, not copied."""

    @abstractmethod
    def asked(self, image_CXYZ: Any, tiles: Sequence[tuple[Self, Size3]]) -> Iterable[Any]:
        """Logits (K, X, Y, Z) of each of some tiles, as they lie in the image; each is seen through its own view."""

    @abstractmethod
    def add(self, logits_KXYZ: Any, of_tile: Slices, of_open: Slices) -> None:
        """Add a part of a tile's logits, weighted, to a part of what is open."""

    @abstractmethod
    def finished(self, layers: slice, *, overlapping: bool) -> Any:
        """The probabilities (K, L, A, B) of finished layers, where their sums were."""

    def open(self, sums_KLAB: Any) -> None:
        """Begin, with an array of zeros of its own or with the one given."""
        shape = (self.layers, *self.across)
        self.weights_LAB = self.zeros(shape)
        self.sums_KLAB = self.zeros((self.outputs, *shape)) if sums_KLAB is None else sums_KLAB

    def due(self, end: int) -> list[Size3]:
        """The tiles that begin before a layer and were not asked for yet; they are taken as asked for now."""
        count = sum(start[self.layout.axis] < end for start in self._todo)
        due, self._todo = self._todo[:count], self._todo[count:]
        return due

    def within(self, start: Size3) -> tuple[Slices, Slices]:
        """Which part of a tile lies in the image, and where in the image; beyond it a tile is 0."""
        layout = self.layout
        ends = [low + n for low, n in zip(start, layout.patch, strict=True)]
        spans = [(max(0, low), min(end, n)) for low, end, n in zip(start, ends, layout.size, strict=True)]
        inside = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, start, strict=True))
        return inside, tuple(slice(*span) for span in spans)

    def where(self, start: Size3) -> tuple[Slices, Slices]:
        """Which part of a tile is open, and where in what is open: (X, Y, Z) both."""
        bounds = list(self.strip)
        bounds[self.layout.axis] = (self._begun, self._begun + self.layers)
        spans = [
            (max(low, first), min(high, first + n))
            for (low, high), first, n in zip(bounds, start, self.layout.patch, strict=True)
        ]
        of_tile = tuple(slice(low - first, high - first) for (low, high), first in zip(spans, start, strict=True))
        return of_tile, tuple(
            slice(low - zero, high - zero) for (low, high), (zero, _) in zip(spans, bounds, strict=True)
        )

    def shift(self, depth: int) -> None:
        """Close the first layers, which are finished."""
        self._begun += depth
        for layer in range(self.layers):
            kept = layer + depth < self.layers
            self.sums_KLAB[:, layer] = self.sums_KLAB[:, layer + depth] if kept else 0
            self.weights_LAB[layer] = self.weights_LAB[layer + depth] if kept else 0


class _HostView(View):
    """A view in numpy; threads share the outputs of a large tile, each of which is added to by one of them."""

    # One layer after another stays in a processor's cache.
    at_once = 1

    def __init__(
        self,
        asked: _Asked,
        layout: Layout,
        strip: Strip,
        flip: tuple[int, ...],
        outputs: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        super().__init__(layout, strip, flip, outputs)
        self.network, self._pool = asked, pool
        self._weight_XYZ = gaussian(layout.patch)
        self.mirror = tuple(slice(None, None, -1 if axis in flip else 1) for axis in range(3))

    def zeros(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.zeros(shape, dtype=np.float32)

    def turned(self, array: NDArray[np.float32], axes: tuple[int, ...]) -> NDArray[np.float32]:
        return array.transpose(axes)

    def asked(
        self, image_CXYZ: NDArray[np.float32], tiles: Sequence[tuple[Self, Size3]]
    ) -> Iterator[NDArray[np.float32]]:
        seen_NCXYZ = np.zeros((len(tiles), len(image_CXYZ), *self.layout.patch), dtype=np.float32)
        for seen_CXYZ, (view, start) in zip(seen_NCXYZ, tiles, strict=True):
            of_tile, of_image = view.within(start)
            seen_CXYZ[:, *view.mirror][:, *of_tile] = image_CXYZ[:, *of_image]
        for logits_KXYZ, (view, _) in zip(self.network(seen_NCXYZ), tiles, strict=True):
            yield logits_KXYZ[:, *view.mirror]
            del logits_KXYZ

    def add(self, logits_KXYZ: NDArray[np.float32], of_tile: Slices, of_open: Slices) -> None:
        axis, weight = self.layout.axis, self._weight_XYZ[of_tile]
        np.moveaxis(self.weights_LAB, 0, axis)[of_open] += weight
        sums_KXYZ = np.moveaxis(self.sums_KLAB, 1, axis + 1)
        # Each is taken out, for a thread lets go of its task only a little after that is done.
        todo = list(zip(logits_KXYZ[:, *of_tile], sums_KXYZ[:, *of_open], strict=True))

        def add_one(_: int) -> None:
            logits_XYZ, sums_XYZ = todo.pop()
            for first in range(0, len(weight), _WEIGHED):
                layers = slice(first, first + _WEIGHED)
                sums_XYZ[layers] += logits_XYZ[layers] * weight[layers]

        # What `map` gives is asked for, so that what went wrong in a thread is raised here.
        in_turn = self._pool.map if len(todo) * weight.size >= _WORTH_THREADS else map
        for _ in in_turn(add_one, range(len(todo))):
            pass

    def finished(self, layers: slice, *, overlapping: bool) -> NDArray[np.float32]:
        found_KLAB: NDArray[np.float32] = self.sums_KLAB[:, layers]
        found_KLAB /= self.weights_LAB[layers]
        if overlapping:
            np.negative(found_KLAB, out=found_KLAB)
        else:
            found_KLAB -= found_KLAB.max(axis=0)
        # exp of what is far below 0 is 0, and of what is far above it infinite; 1 / infinity is the 0 that is meant.
        with np.errstate(under="ignore", over="ignore"):
            np.exp(found_KLAB, out=found_KLAB)
        if overlapping:
            found_KLAB += 1
            np.reciprocal(found_KLAB, out=found_KLAB)
        else:
            found_KLAB /= found_KLAB.sum(axis=0)
        return found_KLAB
