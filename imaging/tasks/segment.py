"""Train a network to label voxels: Dice and cross-entropy on patches, Dice on whole validation volumes.

Invariant: see `imaging.tasks.base`.

Shapes: B batch, C channels, K classes with the background; ``image_BCXYZ``, ``logits_BKXYZ``, ``label_B1XYZ``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.inferers import sliding_window_inference

from imaging.config import SegmentConfig
from imaging.data import Sample
from imaging.metrics import dice
from imaging.networks import build_network
from imaging.tasks.base import FittingTask
from imaging.tasks.losses import dice_cross_entropy
from imaging.transforms import IMAGE, LABEL


class SegmentTask(FittingTask[list[float]]):
    """One segmentation run.

    A network with deep supervision gives its logits in training stacked along a new axis 1.

    Parameters
    ----------
    config
        The resolved config.
    train_names
        Names of the training cases by their index, for messages.
    """

    monitor = "val_dice"

    def __init__(self, config: SegmentConfig, train_names: Sequence[str]) -> None:
        network = build_network(config.network, in_channels=len(config.scales), out_channels=len(config.labels) + 1)
        super().__init__(network, config.train, train_names)
        self.config = config

    def loss(self, logits: torch.Tensor, batch: Sample) -> torch.Tensor:
        """Dice and cross-entropy of a batch of patches, the weighted mean over the heads of deep supervision."""
        # DynUNet gives deep supervision as (B, D, K, X, Y, Z); each deeper head counts half of the one above it.
        heads = logits.unbind(1) if logits.ndim == 6 else (logits,)
        weights = [0.5**depth for depth in range(len(heads))]
        losses = [dice_cross_entropy(head.float(), batch[LABEL]) for head in heads]
        return torch.stack([w * value for w, value in zip(weights, losses, strict=True)]).sum() / sum(weights)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Dice of one whole volume on the network's grid."""
        settings = self.config.predict
        logits_BKXYZ = sliding_window_inference(
            batch[IMAGE], settings.patch, settings.batch_size, self, overlap=settings.overlap, mode="gaussian"
        )
        assert isinstance(logits_BKXYZ, torch.Tensor)
        found = logits_BKXYZ.argmax(1)[0].cpu().numpy()
        truth = batch[LABEL][0, 0].cpu().numpy()
        self.keep(int(batch["index"]), [dice(found, truth, label.id) for label in self.config.labels])

    def scores(self, kept: list[list[float]]) -> dict[str, float]:
        """The mean Dice over cases: for each structure, and of them all as ``val_dice``."""
        means = np.nanmean(np.array(kept), axis=0)
        each = {f"val_dice_{label.name}": float(mean) for label, mean in zip(self.config.labels, means, strict=True)}
        return {**each, self.monitor: float(np.nanmean(means))}
