"""Train a network to label voxels: Dice and cross-entropy on patches, Dice on whole validation volumes.

Invariant: see `imaging.tasks.base`.

Shapes: B batch, C channels, K classes with the background; ``image_BCXYZ``, ``logits_BKXYZ``, ``label_B1XYZ``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from imaging.config import IGNORED, SegmentConfig
from imaging.metrics import dice
from imaging.networks import build_segmenter
from imaging.samples import Sample
from imaging.structures import structure_of, truth_of
from imaging.tasks.base import FittingTask
from imaging.tasks.losses import dice_cross_entropy, regions_dice_cross_entropy
from imaging.tasks.whole import logits_of
from imaging.transforms import IMAGE, LABEL


class SegmentTask(FittingTask[list[float]]):
    """One segmentation run.

    A network with deep supervision gives several logits in training: stacked along a new axis 1 (DynUNet), or one after
    another and each coarser than the one before (SegResNetDS, MedNeXt).

    Parameters
    ----------
    config
        The resolved config.
    train_names
        Names of the training cases by their index, for messages.
    """

    monitor = "val_dice"

    def __init__(self, config: SegmentConfig, train_names: Sequence[str]) -> None:
        super().__init__(build_segmenter(config), config.train, train_names)
        self.config = config

    def loss(self, logits: torch.Tensor | Sequence[torch.Tensor], batch: Sample) -> torch.Tensor:
        """Dice and cross-entropy of a batch of patches, the weighted mean over the heads of deep supervision."""
        label = batch[LABEL]
        if isinstance(logits, torch.Tensor):
            heads: Sequence[torch.Tensor] = logits.unbind(1) if logits.ndim > label.ndim else (logits,)
        else:
            heads = logits
        # Each deeper head counts half of the one above it.
        weights = [0.5**depth for depth in range(len(heads))]
        losses = [self._of_head(head.float(), _at_size(label, head.shape[2:])) for head in heads]
        return torch.stack([w * value for w, value in zip(weights, losses, strict=True)]).sum() / sum(weights)

    def _of_head(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        ignored = IGNORED if self.config.train.padding == "ignored" else None
        if not self.config.overlapping:
            return dice_cross_entropy(logits, label, ignored=ignored)
        regions = [torch.isin(label, label.new_tensor(item.values)) for item in self.config.labels]
        counted = label != ignored if ignored is not None else None
        return regions_dice_cross_entropy(logits, torch.cat(regions, dim=1).float(), counted=counted)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Dice of one whole volume on the network's grid."""
        logits_BKXYZ = logits_of(self, batch[IMAGE], self.config.predict)
        logits_KXYZ = logits_BKXYZ[0].cpu().numpy()
        found = logits_KXYZ > 0 if self.config.overlapping else logits_KXYZ.argmax(0)
        truth = truth_of(batch[LABEL][0, 0].cpu().numpy(), self.config)
        each = [(structure_of(found, label), structure_of(truth, label)) for label in self.config.labels]
        self.keep(int(batch["index"]), [dice(found_XYZ, truth_XYZ, 1) for found_XYZ, truth_XYZ in each])

    def scores(self, kept: list[list[float]]) -> dict[str, float]:
        """The mean Dice over cases: for each structure, and of them all as ``val_dice``."""
        means = np.nanmean(np.array(kept), axis=0)
        each = {f"val_dice_{label.name}": float(mean) for label, mean in zip(self.config.labels, means, strict=True)}
        return {**each, self.monitor: float(np.nanmean(means))}


def _at_size(label: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """A mask on the coarser grid of a deeper head: at each voxel's centre the label that lies there."""
    if tuple(label.shape[2:]) == tuple(size):
        return label
    return functional.interpolate(label.float(), size=tuple(size), mode="nearest-exact").to(label.dtype)
