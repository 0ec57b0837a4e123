"""A segmenter's way where its networks are, on a GPU: tiles, blending, labels.

Invariant: the numbers are those of `imaging.blending` and `imaging.restore`, to rounding. The image goes up once, and
what comes down are labels and sums: logits of ten classes are forty times as large as the labels made of them, and
bringing them down took most of the time.

Shapes are those of `imaging.blending`. Everything here runs on torch's CPU device as well, which is how it is tested
where there is no GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from imaging.blending import ACROSS, Slices, Strip, View, in_strip
from imaging.config import SegmentConfig, Size3
from imaging.engines.torch_engine import TorchEngine
from imaging.errors import AnswerNotNumbers, GpuMemoryTooSmall
from imaging.memory import told
from imaging.restore import Line, OwnGrid, Part, owned
from imaging.tiles import Layout, fitting, gaussian

# The own grid is decided in boxes that are so long along an axis; and what a decision takes of a voxel, at most.
_PART, _BYTES_A_VOXEL = 192, 64
# Of the memory that is free; the rest is for what cuDNN takes now and then.
_SHARE = 0.8


class OnGpu:
    """Networks that lie on one device, and what they say of an image.

    Parameters
    ----------
    engines
        The networks of an ensemble, or the only one.
    config
        Of their checkpoint.
    """

    def __init__(self, engines: Sequence[TorchEngine], config: SegmentConfig) -> None:
        self._engines, self._config, self._device = engines, config, engines[0].device
        self._tile_bytes = 0

    def label(
        self,
        image_CXYZ: NDArray[np.float32],
        grid: OwnGrid,
        labels_XYZ: NDArray[np.uint8],
        regions_KXYZ: NDArray[np.bool_],
        *,
        subject: str,
    ) -> dict[int, float]:
        """Label an image.

        Parameters
        ----------
        image_CXYZ
            Preprocessed, on the network's grid.
        grid
            The way back to the series' own grid.
        labels_XYZ
            Filled, where structures do not overlap.
        regions_KXYZ
            Filled, where they do.
        subject
            What a refusal is about.

        Returns
        -------
        dict
            For each label id that was found, the mean of its probability over its voxels on the network's grid.

        Raises
        ------
        GpuMemoryTooSmall
            If even strips of a few voxels do not fit.
        AnswerNotNumbers
            If a network answers with NaN.
        """
        config, back = self._config, _Back(grid, self._device)
        sums, counts = np.zeros(config.outputs), np.zeros(config.outputs, dtype=np.int64)
        try:
            with torch.inference_mode():
                layout, batch_size = self._fitting(image_CXYZ, subject)
                image = torch.from_numpy(np.ascontiguousarray(image_CXYZ)).to(self._device)
                for low, probability_KXYZ in self._blocks(image, layout, batch_size):
                    if not bool(torch.isfinite(probability_KXYZ.sum())):
                        raise AnswerNotNumbers(subject, seen=f"{config.name} answered with NaN")
                    here = owned(low, _size(probability_KXYZ), grid.size)
                    _count(probability_KXYZ[:, *here], sums, counts, overlapping=config.overlapping)
                    if config.overlapping:
                        back.add_regions(low, probability_KXYZ, regions_KXYZ)
                    else:
                        back.add_labels(low, probability_KXYZ, labels_XYZ)
                    del probability_KXYZ  # with it goes its strip, for which the next one needs the room
        except torch.OutOfMemoryError as error:
            raise GpuMemoryTooSmall(subject, seen="it ran out while the series was labelled") from error
        places = {label.id: label.id - 1 if config.overlapping else label.id for label in config.labels}
        return {label: float(sums[at] / counts[at]) for label, at in places.items() if counts[at]}

    def _blocks(self, image: torch.Tensor, layout: Layout, batch_size: int) -> Iterator[tuple[Size3, torch.Tensor]]:
        overlapping, outputs = self._config.overlapping, self._config.outputs
        for strip in layout.strips():
            views = [
                _DeviceView(engine, layout, strip, flip, outputs)
                for engine, flip in product(self._engines, layout.flips)
            ]
            yield from in_strip(views, image, overlapping=overlapping, batch_size=batch_size)
            del views

    def _fitting(self, image_CXYZ: NDArray[np.float32], subject: str) -> tuple[Layout, int]:
        """The tiles, and how many at a time, that the memory of the device has room for."""
        config = self._config
        _, x, y, z = image_CXYZ.shape
        batch_size = max(config.predict.batch_size, self._engines[0].batch)
        if self._device.type != "cuda":
            left, a_tile = sys.maxsize, 0
        else:
            a_tile = self._tile_bytes = self._tile_bytes or self._measured_tile(image_CXYZ.shape[0])
            # What torch holds and does not use is free to us; giving it back would cost more than a small study takes.
            unused = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            free = torch.cuda.mem_get_info(self._device)[0] + unused
            left = int(_SHARE * free) - image_CXYZ.nbytes - _PART**3 * _BYTES_A_VOXEL
        layout, batch_size, needed = fitting(
            config.predict, (x, y, z), outputs=config.outputs, members=len(self._engines), left=left, a_tile=a_tile,
            batch_size=batch_size,
        )  # fmt: skip
        if needed > left:
            seen = f"{told(needed)} for a strip and a tile, and there is room for {told(max(0, left))}"
            raise GpuMemoryTooSmall(subject, seen=seen)
        return layout, batch_size

    def _measured_tile(self, channels: int) -> int:
        """What asking for one tile takes on the device."""
        tile = torch.zeros((1, channels, *self._config.predict.patch), device=self._device)
        before, most = torch.cuda.memory_allocated(self._device), 0
        for engine in self._engines:
            torch.cuda.reset_peak_memory_stats(self._device)
            engine.logits(tile)
            most = max(most, torch.cuda.max_memory_allocated(self._device) - before)
        return most + tile.nbytes


class _DeviceView(View):
    """A view in torch, on a device."""

    # Each operation costs its start; a block's layers are few enough to be finished together.
    at_once = 2**30

    def __init__(self, engine: TorchEngine, layout: Layout, strip: Strip, flip: tuple[int, ...], outputs: int) -> None:
        super().__init__(layout, strip, flip, outputs)
        self.network, self._device = engine, engine.device
        self._weight_XYZ = torch.from_numpy(gaussian(layout.patch)).to(self._device)
        self.mirrored = [axis - 3 for axis in flip]

    def zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, device=self._device)

    def turned(self, array: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
        return array.permute(axes)

    def asked(self, image_CXYZ: torch.Tensor, tiles: Sequence[tuple[Self, Size3]]) -> Iterator[torch.Tensor]:
        seen_NCXYZ = self.zeros((len(tiles), len(image_CXYZ), *self.layout.patch))
        for seen_CXYZ, (view, start) in zip(seen_NCXYZ, tiles, strict=True):
            of_tile, of_image = view.within(start)
            seen_CXYZ[:, *of_tile] = image_CXYZ[:, *of_image]
            if view.mirrored:
                seen_CXYZ.copy_(seen_CXYZ.flip(view.mirrored))
        flat = self.layout.patch[ACROSS] == 1
        logits = self.network.logits(seen_NCXYZ[..., 0] if flat else seen_NCXYZ)
        for logits_KXYZ, (view, _) in zip(logits[..., None] if flat else logits, tiles, strict=True):
            yield logits_KXYZ.flip(view.mirrored) if view.mirrored else logits_KXYZ

    def add(self, logits_KXYZ: torch.Tensor, of_tile: Slices, of_open: Slices) -> None:
        axis, weight = self.layout.axis, self._weight_XYZ[of_tile]
        self.weights_LAB.movedim(0, axis)[of_open] += weight
        self.sums_KLAB.movedim(1, 1 + axis)[:, *of_open].addcmul_(logits_KXYZ[:, *of_tile], weight)

    def finished(self, layers: slice, *, overlapping: bool) -> torch.Tensor:
        found_KLAB: torch.Tensor = self.sums_KLAB[:, layers]
        found_KLAB /= self.weights_LAB[layers]
        if overlapping:
            return found_KLAB.sigmoid_()
        found_KLAB -= found_KLAB.amax(0)
        found_KLAB.exp_()
        found_KLAB /= found_KLAB.sum(0)
        return found_KLAB


class _Back:
    """From probabilities on a device to labels on the series' own grid; see `imaging.restore.OwnGrid`."""

    def __init__(self, grid: OwnGrid, device: torch.device) -> None:
        self._grid, self._device = grid, device

    def add_labels(self, low: Size3, probability_KXYZ: torch.Tensor, labels_XYZ: NDArray[np.uint8]) -> None:
        """Give the own voxels within a block the number of the likeliest class."""
        for own, lines in self._grid.parts(low, _size(probability_KXYZ), _PART):
            near_KXYZ = self._near(probability_KXYZ, lines)
            self._put(labels_XYZ, (own, lines), self._likeliest((self._at(near, lines) for near in near_KXYZ), own))

    def add_regions(self, low: Size3, probability_KXYZ: torch.Tensor, regions_KXYZ: NDArray[np.bool_]) -> None:
        """Say of the own voxels within a block which structures they belong to, where each is judged on its own."""
        for own, lines in self._grid.parts(low, _size(probability_KXYZ), _PART):
            for near, region_XYZ in zip(self._near(probability_KXYZ, lines), regions_KXYZ, strict=True):
                pair = (self._at(values, lines) for values in (1 - near, near))
                self._put(region_XYZ, (own, lines), self._likeliest(pair, own))

    def _near(self, probability_KXYZ: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
        x, y, z = (line.span for line in lines)
        turned = probability_KXYZ.permute(0, *(int(axis) + 1 for axis in self._grid.axis_for))
        return turned[:, x, y, z]

    def _at(self, near_XYZ: torch.Tensor, lines: Sequence[Line]) -> torch.Tensor:
        """Values between the network voxels that some lines need."""
        for axis, line in enumerate(lines):
            below = near_XYZ.index_select(axis, torch.from_numpy(line.lower).to(self._device))
            if line.weight.any():
                above = near_XYZ.index_select(axis, torch.from_numpy(line.upper).to(self._device))
                shape = [1, 1, 1]
                shape[axis] = -1
                weight = torch.from_numpy(line.weight).to(self._device).reshape(shape)
                below = (above - below) * weight + below
            near_XYZ = below
        return near_XYZ

    def _likeliest(self, classes: Iterator[torch.Tensor], own: Slices) -> torch.Tensor:
        """The class of the greatest probability, and of two equal ones either in turn."""
        tie, greatest = float(self._grid.tie), next(classes).clone()
        labels = torch.zeros(greatest.shape, dtype=torch.uint8, device=self._device)
        turn = torch.from_numpy(np.asarray(sum(np.ogrid[own]) % 2 == 1)).to(self._device) if tie else None
        for label, here in enumerate(classes, start=1):
            wins = here > greatest if turn is None else (here > greatest + tie) | (turn & (here > greatest - tie))
            labels.masked_fill_(wins, label)
            torch.maximum(greatest, here, out=greatest)
        return labels

    def _put(self, target_XYZ: NDArray[np.uint8] | NDArray[np.bool_], part: Part, found: torch.Tensor) -> None:
        self._grid.put(target_XYZ, part[0], found.cpu().numpy())


def _size(array_KXYZ: torch.Tensor) -> Size3:
    _, x, y, z = array_KXYZ.shape
    return x, y, z


def _count(
    probability_KXYZ: torch.Tensor, sums: NDArray[np.float64], counts: NDArray[np.int64], *, overlapping: bool
) -> None:
    """Count voxels and probabilities of each output."""
    outputs = len(sums)
    if overlapping:
        inside = probability_KXYZ > 0.5
        counts += inside.flatten(1).sum(1).cpu().numpy()
        sums += (probability_KXYZ * inside).flatten(1).sum(1, dtype=torch.float64).cpu().numpy()
        return
    greatest, labels = probability_KXYZ.max(0)
    flat = labels.flatten()
    counts += torch.bincount(flat, minlength=outputs).cpu().numpy()
    # bincount with weights adds in no order on a GPU; one class after another is the same each time.
    here = greatest.flatten()
    for label in torch.nonzero(torch.from_numpy(counts)).flatten().tolist():
        sums[label] += float(torch.where(flat == label, here, 0).sum(dtype=torch.float64))
