"""Train a network to label voxels: Dice and cross-entropy on patches, Dice on whole validation volumes.

Invariant: the network is the only part with weights, so that a state of the run is a state of `network`, whatever
Lightning wraps around it.

Shapes: B batch, C channels, K classes with the background; ``image_BCXYZ``, ``logits_BKXYZ``, ``label_B1XYZ``.
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss

from imaging.config import SegmentConfig
from imaging.data import Sample
from imaging.errors import TrainingDiverged
from imaging.metrics import dice
from imaging.networks import build_network
from imaging.tasks.schedule import adamw_with_cosine
from imaging.transforms import IMAGE, LABEL


class SegmentTask(lightning.LightningModule):
    """One segmentation run.

    Parameters
    ----------
    config
        The resolved config.
    train_names
        Names of the training cases by their index, for messages.
    """

    monitor = "val_dice"

    def __init__(self, config: SegmentConfig, train_names: Sequence[str]) -> None:
        super().__init__()
        self.config = config
        self.network = build_network(config.network, in_channels=1, out_channels=len(config.labels) + 1)
        self._train_names = train_names
        self._loss = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, include_background=False)
        self._scores: list[list[float]] = []

    def forward(self, image_BCXYZ: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, X, Y, Z); a network with deep supervision gives them stacked along a new axis 1 in training."""
        logits: torch.Tensor = self.network(image_BCXYZ)
        return logits

    def training_step(self, batch: Sample, batch_idx: int) -> torch.Tensor:
        """Loss of one batch of patches.

        Raises
        ------
        TrainingDiverged
            If the loss is not finite; the cases of the batch are named.
        """
        logits = self(batch[IMAGE])
        # DynUNet gives deep supervision as (B, D, K, X, Y, Z); each deeper head counts half of the one above it.
        heads = logits.unbind(1) if logits.ndim == 6 else (logits,)
        weights = [0.5**depth for depth in range(len(heads))]
        losses = [self._loss(head.float(), batch[LABEL]) for head in heads]
        loss: torch.Tensor = sum(w * value for w, value in zip(weights, losses, strict=True)) / sum(weights)
        if not torch.isfinite(loss):
            names = ", ".join(self._train_names[index] for index in batch["index"].tolist())
            raise TrainingDiverged(f"step {self.global_step}, cases {names}", seen=f"the loss is {loss.item()}")
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Dice of one whole volume on the network's grid."""
        settings = self.config.predict
        logits_BKXYZ = sliding_window_inference(
            batch[IMAGE], settings.patch, settings.batch_size, self, overlap=settings.overlap, mode="gaussian"
        )
        assert isinstance(logits_BKXYZ, torch.Tensor)
        found = logits_BKXYZ.argmax(1)[0].cpu().numpy()
        truth = batch[LABEL][0, 0].cpu().numpy()
        self._scores.append([dice(found, truth, label.id) for label in self.config.labels])

    def on_validation_epoch_end(self) -> None:
        """Log the mean Dice over cases: for each structure, and of them all as ``val_dice``."""
        means = np.nanmean(np.array(self._scores), axis=0)
        self._scores.clear()
        for label, mean in zip(self.config.labels, means, strict=True):
            self.log(f"val_dice_{label.name}", float(mean))
        self.log(self.monitor, float(np.nanmean(means)), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to zero over the run's steps."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return adamw_with_cosine(self.network, self.config.train, steps=steps)
