"""One Volume in, one Prediction out.

Invariant: the checkpoint's own preprocessing goes in front of the network and nothing else; what comes out lies on the
series' own grid, voxel for voxel. Probabilities come and go block by block: no array holds all classes of the whole.

Shapes: K classes with the background; ``probability_KXYZ`` on the network's grid, ``mask_XYZ`` on the series' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imaging.blending import blocks_of
from imaging.checkpoint import Checkpoint
from imaging.config import SegmentConfig, Size3
from imaging.engines import EngineChoice, Engines, Wanted, engines_of
from imaging.errors import AnswerNotNumbers, LooksLikeMask
from imaging.memory import Budget, rising
from imaging.normalise import scaled
from imaging.resampling import preparing_bytes, size_on_network_grid, threads_here, to_network_grid
from imaging.restore import Block, OwnGrid
from imaging.selection import check_choice, check_grey, check_images, check_limits, images_taken
from imaging.stages import stage
from imaging.structures import Mask, labels_of
from imaging.tiles import Layout, fitting, layout_of
from imaging.volume import Affine, Volume

if TYPE_CHECKING:
    from imaging.on_gpu import OnGpu

# A picture has more values than this; a label map of as many structures would pass for one.
_FEW_VALUES = 8
_SAMPLED = 1_000_000
# What the interpreter takes now and then, and each thread that brings a block to the network's grid or back; in bytes.
_AT_WORK, _A_THREAD = 64 * 2**20, 8 * 2**20
# Above this a region that is judged on its own is there.
_HALF = 0.5


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What one checkpoint said of one volume.

    Attributes
    ----------
    checkpoint
        Who said it.
    volume
        Of what.
    mask_XYZ
        uint8 label ids on the volume's own grid; where structures overlap, that of the last of them.
    mean_probability
        For each label id that was found, the mean of its probability over its voxels on the network's grid.
    regions_KXYZ
        Where the checkpoint's structures overlap, each of them on its own.
    engine
        What computed it.
    """

    checkpoint: Checkpoint
    volume: Volume
    mask_XYZ: NDArray[np.uint8]
    mean_probability: dict[int, float]
    regions_KXYZ: NDArray[np.bool_] | None = None
    engine: EngineChoice | None = None

    @property
    def found(self) -> Mask:
        """What was found, as `imaging.structures.structure_of` takes it."""
        return self.mask_XYZ if self.regions_KXYZ is None else self.regions_KXYZ


class Predictor:
    """A checkpoint with its networks in memory; call it with a Volume.

    Parameters
    ----------
    checkpoint
        A verified checkpoint.
    device
        Of torch: ``cuda`` where there is one, else ``cpu``.
    engine
        What computes: one of `imaging.engines`' own, by name, or engines that are there already.
    budget
        What the process may have in memory at once; None for as much as it takes.

    Attributes
    ----------
    choice
        Which engine that is, and why.

    Raises
    ------
    WrongTask
        If the checkpoint does not label voxels.
    CheckpointCorrupt
        If the weights do not fit the config's network.
    MissingPackage, EngineRefused
        If an engine was asked for by name that cannot be had.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        engine: Wanted | Engines = "auto",
        budget: Budget | None = None,
    ) -> None:
        checkpoint.segmenter()  # refuses what does something else
        self.checkpoint = checkpoint
        self._budget, self._tile_bytes = budget, 0
        engines = engine if isinstance(engine, Engines) else engines_of(checkpoint, wanted=engine, device=device)
        self._engines, self.choice = engines
        self._on_gpu = self._with_gpu()

    def _with_gpu(self) -> OnGpu | None:
        """Where the networks lie on a GPU, what keeps all that they say there."""
        if self.choice.name != "torch":
            return None
        from imaging.engines.torch_engine import TorchEngine

        members = [engine for engine in self._engines if isinstance(engine, TorchEngine)]
        if len(members) < len(self._engines) or members[0].device.type == "cpu":
            return None
        from imaging.on_gpu import OnGpu

        return OnGpu(members, self.checkpoint.segmenter())

    def __call__(self, volume: Volume) -> Prediction:
        """Segment a volume.

        Raises
        ------
        NotApplicable
            If the volume is of another modality, or beyond the checkpoint's limits.
        ConstantImage, LooksLikeMask
            If the voxels hold one value, or so few that it is no picture.
        MemoryTooSmall, GpuMemoryTooSmall
            If it does not fit into the budget, or into the GPU.
        AnswerNotNumbers
            If the network answers with NaN.
        """
        config = self.checkpoint.segmenter()
        check_choice(config.applies_to, volume.facts, named=True)
        if images_taken(config) == 1:
            check_grey(volume.facts, volume.array.shape[0])
        check_images(config, volume.facts, volume.array.shape[0])
        check_limits(config.applies_to, volume.facts, volume.shape, volume.affine)
        check_not_mask(volume)
        self.check_room(volume.shape, volume.affine, subject=volume.facts.subject)
        with stage("prepare"):
            image_CXYZ, affine = to_network_grid(volume.array, volume.affine, config.preprocess)
            image_CXYZ = scaled(image_CXYZ, config.scales, subject=volume.facts.subject)
        _, x, y, z = image_CXYZ.shape
        grid = OwnGrid(affine, (x, y, z), shape=volume.shape, to_affine=volume.affine)
        return self._predicted(volume, image_CXYZ, grid)

    def check_room(self, shape: Size3, affine: Affine, *, subject: str, unread: int = 0, delivering: int = 0) -> None:
        """Refuse a volume that cannot be segmented within the budget, before memory is taken for it.

        Parameters
        ----------
        shape, affine
            Of its own grid.
        subject
            What a refusal is about.
        unread
            How many channels of it are yet to be read.
        delivering
            What is taken beside volume and mask when both are measured and written, in bytes.

        Raises
        ------
        MemoryTooSmall
            If it does not fit, with the smallest budget that would do.
        """
        if self._budget is None:
            return
        config, voxels = self.checkpoint.segmenter(), math.prod(shape)
        x, y, z = size = size_on_network_grid(shape, affine, config.preprocess)
        before = 4 * voxels * unread
        preparing = preparing_bytes(shape, size, channels=len(config.scales))
        image = 4 * len(config.scales) * x * y * z
        sums = 0 if self._on_gpu is not None else self._fitting(size, left=0)[2]
        mask = self._mask_bytes(shape)
        labelling = max(preparing, image + mask + sums) + at_work()
        most = max(labelling, mask + delivering)
        self._budget.check(before + most, subject, "labelling it" if most > mask + delivering else "writing of it")

    def _mask_bytes(self, shape: Size3) -> int:
        config = self.checkpoint.segmenter()
        # With overlaps a region each, and the mask that is made of them.
        return math.prod(shape) * (1 + len(config.labels) * config.overlapping)

    def _fitting(self, size: Size3, *, left: int) -> tuple[Layout, int, int]:
        config = self.checkpoint.segmenter()
        if not self._tile_bytes:
            self._tile_bytes = self._measured_tile()
        return fitting(config.predict, size, outputs=config.outputs, members=len(self._engines), left=left,
                       a_tile=self._tile_bytes, batch_size=self._batch_size())  # fmt: skip

    def _batch_size(self) -> int:
        """What keeps the engine busy, or the config's where that is more."""
        return max(self.checkpoint.segmenter().predict.batch_size, self._engines[0].batch)

    def _measured_tile(self) -> int:
        """What asking for one tile takes: the network's own work is told by nothing but a look."""
        config = self.checkpoint.segmenter()
        tile = np.zeros((1, len(config.scales), *config.predict.patch), dtype=np.float32)
        most = 0
        for engine in self._engines:
            with rising() as rise:
                answer = engine(tile)
            most = max(most, rise.bytes, tile.nbytes + answer.nbytes)
        return most

    def _predicted(self, volume: Volume, image_CXYZ: NDArray[np.float32], grid: OwnGrid) -> Prediction:
        """Labels and mean probabilities of finished blocks, one after another."""
        config = self.checkpoint.segmenter()
        x, y, z = volume.shape
        # Slice by slice in memory, as the volume's own and as they are written.
        labels_XYZ = np.zeros((z, y, x), dtype=np.uint8).transpose(2, 1, 0)
        regions_KXYZ = np.zeros((len(config.labels) * config.overlapping, z, y, x), dtype=np.bool_)
        regions_KXYZ = regions_KXYZ.transpose(0, 3, 2, 1)
        with stage("network"):
            label = self._labelled if self._on_gpu is None else self._on_gpu.label
            means = label(image_CXYZ, grid, labels_XYZ, regions_KXYZ, subject=volume.facts.subject)
        if not config.overlapping:
            return Prediction(self.checkpoint, volume, labels_XYZ, means, engine=self.choice)
        mask_XYZ = labels_of(regions_KXYZ, config.labels)
        return Prediction(self.checkpoint, volume, mask_XYZ, means, regions_KXYZ, self.choice)

    def _labelled(
        self,
        image_CXYZ: NDArray[np.float32],
        grid: OwnGrid,
        labels_XYZ: NDArray[np.uint8],
        regions_KXYZ: NDArray[np.bool_],
        *,
        subject: str,
    ) -> dict[int, float]:
        """On the host; as `imaging.on_gpu.OnGpu.label`."""
        config = self.checkpoint.segmenter()
        means = MeanProbability(config)
        for block in self._blocks(image_CXYZ, shape=grid.shape, subject=subject):
            # No comparison with what is no number holds, so that it would pass for background.
            if not np.isfinite(block.probability_KXYZ.sum()):
                raise AnswerNotNumbers(subject, seen=f"{self.checkpoint.name} answered with NaN")
            with stage("restore"):
                means.add(block, grid.size)
                if config.overlapping:
                    grid.add_regions(block, regions_KXYZ)
                else:
                    grid.add_labels(block, labels_XYZ)
            del block  # with it goes its strip, for which the next one needs the room
        return means.found()

    def _blocks(self, image_CXYZ: NDArray[np.float32], *, shape: Size3, subject: str) -> Iterator[Block]:
        """The members of an ensemble take their turns over each block."""
        config = self.checkpoint.segmenter()
        _, x, y, z = image_CXYZ.shape
        layout, batch_size = layout_of(config.predict, (x, y, z)), self._batch_size()
        if self._budget is not None:
            left = self._budget.left() - self._mask_bytes(shape) - at_work()
            layout, batch_size, needed = self._fitting((x, y, z), left=left)
            self._budget.check(needed + self._budget.left() - left, subject, "asking for one tile at a time")
        return blocks_of(
            self._engines,
            image_CXYZ,
            layout,
            outputs=config.outputs,
            overlapping=config.overlapping,
            batch_size=batch_size,
            skip_air=config.predict.skip_air,
        )


def at_work() -> int:
    """What bringing blocks to the network's grid and back takes beside them, in bytes; more with more processors."""
    return _AT_WORK + threads_here() * _A_THREAD


class MeanProbability:
    """For each label id that was found, the mean of its probability over its voxels on the network's grid."""

    def __init__(self, config: SegmentConfig) -> None:
        self._overlapping = config.overlapping
        self._labels = config.labels
        self._sums_K, self._counts_K = np.zeros(config.outputs), np.zeros(config.outputs, dtype=np.int64)

    def add(self, block: Block, size: Size3) -> None:
        """Count the voxels that a block owns, of a network's grid of `size`."""
        probability_KXYZ = block.probability_KXYZ[:, *block.owned(size)]
        # Layer by layer as they lie in memory, so that nothing is copied whole.
        axis = int(np.argmax(probability_KXYZ.strides[1:])) + 1
        for probability_KXX in np.moveaxis(probability_KXYZ, axis, 0):
            (self._add_regions if self._overlapping else self._add_labels)(probability_KXX)

    def _add_regions(self, probability_KXX: NDArray[np.float32]) -> None:
        inside_KXX = probability_KXX > _HALF
        self._counts_K += inside_KXX.sum(axis=(1, 2))
        self._sums_K += (probability_KXX * inside_KXX).sum(axis=(1, 2), dtype=np.float64)

    def _add_labels(self, probability_KXX: NDArray[np.float32]) -> None:
        greatest_XX = probability_KXX[0].copy()
        labels_XX = np.zeros(greatest_XX.shape, dtype=np.uint8)
        for label, probability_XX in enumerate(probability_KXX[1:], start=1):
            np.copyto(labels_XX, label, where=probability_XX > greatest_XX)
            np.maximum(greatest_XX, probability_XX, out=greatest_XX)
        flat, outputs = labels_XX.ravel(), len(self._sums_K)
        self._counts_K += np.bincount(flat, minlength=outputs)
        self._sums_K += np.bincount(flat, weights=greatest_XX.ravel(), minlength=outputs)

    def found(self) -> dict[int, float]:
        """The means of all blocks."""
        places = {label.id: label.id - 1 if self._overlapping else label.id for label in self._labels}
        return {
            label: float(self._sums_K[place] / self._counts_K[place])
            for label, place in places.items()
            if self._counts_K[place]
        }


def check_not_mask(volume: Volume) -> None:
    """Refuse a label map that is taken for a picture, such as a mask from an earlier run.

    Raises
    ------
    LooksLikeMask
        If it holds a few whole numbers and nothing else.
    """
    # In the order of memory, for in another all of it would be copied; an odd step meets every column of a slice.
    sample = volume.array.ravel(order="K")[:: (volume.array.size // _SAMPLED) | 1]
    values = np.unique(sample)
    if 1 < len(values) <= _FEW_VALUES and np.array_equal(values, np.rint(values)):
        raise LooksLikeMask(volume.facts.subject, seen=f"only {len(values)} different values, all whole numbers")
