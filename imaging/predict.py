"""One Volume in, one Prediction out.

Invariant: the checkpoint's own preprocessing goes in front of the network and nothing else; what comes out lies on the
series' own grid, voxel for voxel.

Shapes: K classes with the background; ``probability_KXYZ`` on the network's grid, ``mask_XYZ`` on the series' own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch
from monai.data import MetaTensor
from numpy.typing import NDArray

from imaging.checkpoint import Checkpoint
from imaging.config import SegmentConfig
from imaging.errors import CheckpointCorrupt, LooksLikeMask
from imaging.networks import build_segmenter, load_weights
from imaging.selection import check_choice, check_grey, check_images, check_limits, images_taken
from imaging.stages import stage
from imaging.structures import Mask, labels_of
from imaging.tiles import logits_of
from imaging.transforms import IMAGE, affine_of, apply, preprocessing, restore_labels
from imaging.volume import Volume

# A picture has more values than this; a label map of as many structures would pass for one.
_FEW_VALUES = 8
_SAMPLED = 1_000_000
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
    """

    checkpoint: Checkpoint
    volume: Volume
    mask_XYZ: NDArray[np.uint8]
    mean_probability: dict[int, float]
    regions_KXYZ: NDArray[np.bool_] | None = None

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
        ``cuda`` where there is one, else ``cpu``.

    Raises
    ------
    WrongTask
        If the checkpoint does not label voxels.
    CheckpointCorrupt
        If the weights do not fit the config's network.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None) -> None:
        config = checkpoint.segmenter()
        self.checkpoint = checkpoint
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepare = preprocessing(config.preprocess, with_label=False, scales=config.scales)
        self._networks = networks_of(checkpoint, partial(build_segmenter, config), self._device)

    def __call__(self, volume: Volume) -> Prediction:
        """Segment a volume.

        Raises
        ------
        NotApplicable
            If the volume is of another modality, or beyond the checkpoint's limits.
        ConstantImage, LooksLikeMask
            If the voxels hold one value, or so few that it is no picture.
        """
        config = self.checkpoint.segmenter()
        check_choice(config.applies_to, volume.facts, named=True)
        if images_taken(config) == 1:
            check_grey(volume.facts, volume.array.shape[0])
        check_images(config, volume.facts, volume.array.shape[0])
        check_limits(config.applies_to, volume.facts, volume.shape, volume.affine)
        check_not_mask(volume)
        with stage("prepare"):
            image = self._prepared(volume)
        with stage("network"):
            probability_KXYZ = self._probabilities(image.as_tensor()[None].to(self._device))
        with stage("restore"):
            return self._restored(image, probability_KXYZ, volume)

    def _restored(self, image: MetaTensor, probability_KXYZ: torch.Tensor, volume: Volume) -> Prediction:
        """What the network said, on the volume's own grid."""
        config = self.checkpoint.segmenter()
        mean_probability = _mean_probability(probability_KXYZ, config)
        restored = partial(restore_labels, affine=affine_of(image), shape=volume.shape, to_affine=volume.affine)
        found_KXYZ = probability_KXYZ.cpu().numpy()
        if not config.overlapping:
            return Prediction(self.checkpoint, volume, restored(found_KXYZ), mean_probability)
        regions_KXYZ = np.stack([restored(np.stack([1 - found_XYZ, found_XYZ])) > 0 for found_XYZ in found_KXYZ])
        mask_XYZ = labels_of(regions_KXYZ, config.labels)
        return Prediction(self.checkpoint, volume, mask_XYZ, mean_probability, regions_KXYZ)

    def _prepared(self, volume: Volume) -> MetaTensor:
        image = apply(self._prepare, {IMAGE: volume.as_metatensor()}, subject=volume.facts.subject)[IMAGE]
        assert isinstance(image, MetaTensor)
        return image

    @torch.inference_mode()
    def _probabilities(self, image_1CXYZ: torch.Tensor) -> torch.Tensor:
        """Softmax, or sigmoid where structures overlap, averaged over flips and over the members of an ensemble.

        The members take their turns: beside the weights of all of them there is one member's work in memory, and the
        sum so far.
        """
        config = self.checkpoint.segmenter()
        settings = config.predict
        flips: list[tuple[int, ...]] = [()]
        for axis in settings.flip_axes:
            flips += [(*flip, axis + 2) for flip in flips]
        total: torch.Tensor | None = None
        with torch.autocast(self._device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            for network, flip in product(self._networks, flips):
                logits = logits_of(network, image_1CXYZ.flip(flip) if flip else image_1CXYZ, settings)
                probability = logits.float().sigmoid() if config.overlapping else logits.float().softmax(1)
                probability = probability.flip(flip) if flip else probability
                total = probability if total is None else total + probability
        assert total is not None
        return total[0] / (len(self._networks) * len(flips))


def networks_of(
    checkpoint: Checkpoint, build: Callable[[], torch.nn.Module], device: torch.device
) -> tuple[torch.nn.Module, ...]:
    """The network of a checkpoint, or the members of its ensemble, ready to be asked.

    Parameters
    ----------
    checkpoint
        Whose weights.
    build
        Makes a network of the checkpoint's config.
    device
        Where they go.

    Raises
    ------
    CheckpointCorrupt
        If the weights do not fit the config's network.
    """
    networks = []
    for weights in checkpoint.load_members():
        network = build()
        try:
            load_weights(network, weights)
        except (KeyError, ValueError) as error:
            raise CheckpointCorrupt(checkpoint.folder, seen=f"the weights do not fit the network: {error}") from error
        networks.append(network.eval().to(device))
    return tuple(networks)


def _mean_probability(probability_KXYZ: torch.Tensor, config: SegmentConfig) -> dict[int, float]:
    """For each label id that was found, the mean of its probability over its voxels."""
    if config.overlapping:
        each = [probability_XYZ[probability_XYZ > _HALF] for probability_XYZ in probability_KXYZ]
        return {label.id: float(each[label.id - 1].mean()) for label in config.labels if each[label.id - 1].numel()}
    labels_XYZ = probability_KXYZ.argmax(0)
    return {
        label.id: float(probability_KXYZ[label.id][labels_XYZ == label.id].mean())
        for label in config.labels
        if bool((labels_XYZ == label.id).any())
    }


def check_not_mask(volume: Volume) -> None:
    """Refuse a label map that is taken for a picture, such as a mask from an earlier run.

    Raises
    ------
    LooksLikeMask
        If it holds a few whole numbers and nothing else.
    """
    sample = volume.array.reshape(-1)[:: max(1, volume.array.size // _SAMPLED)]
    values = np.unique(sample)
    if 1 < len(values) <= _FEW_VALUES and np.array_equal(values, np.rint(values)):
        raise LooksLikeMask(volume.facts.subject, seen=f"only {len(values)} different values, all whole numbers")
