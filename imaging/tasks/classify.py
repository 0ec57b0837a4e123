"""Train a network to say what a picture or a volume shows: weighted cross-entropy, AUC on the validation cases.

Invariant: the network is the only part with weights, so that a state of the run is a state of `network`, whatever
Lightning wraps around it.

Shapes: B batch, C channels, K classes; ``image_BC...`` with two or three spatial axes, ``logits_BK``, ``label_BK`` of 0
and 1 (with softmax exactly one 1 a case).
"""

from __future__ import annotations

from collections.abc import Sequence

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.nn import functional

from imaging.config import ClassifyConfig
from imaging.data import Sample
from imaging.errors import TrainingDiverged
from imaging.networks import build_classifier
from imaging.scores import auc
from imaging.tasks.schedule import adamw_with_cosine
from imaging.transforms import IMAGE, LABEL


class ClassifyTask(lightning.LightningModule):
    """One classification run.

    Parameters
    ----------
    config
        The resolved config.
    train_names
        Names of the training cases by their index, for messages.
    train_counts
        How many training cases have each class, by its id; asked for where `class_weights` are balanced.
    """

    monitor = "val_auc"

    def __init__(
        self, config: ClassifyConfig, train_names: Sequence[str], train_counts: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.network = build_classifier(
            config.network, spatial_dims=len(config.preprocess.size), in_channels=1, classes=len(config.classes)
        )
        self._train_names = train_names
        self._weights_K = _weights(config, train_counts, len(train_names))
        self._logits: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits (B, K)."""
        logits_BK: torch.Tensor = self.network(image)
        return logits_BK

    def training_step(self, batch: Sample, batch_idx: int) -> torch.Tensor:
        """Loss of one batch.

        Raises
        ------
        TrainingDiverged
            If the loss is not finite; the cases of the batch are named.
        """
        loss = self._loss(self(batch[IMAGE]).float(), batch[LABEL])
        if not torch.isfinite(loss):
            names = ", ".join(self._train_names[index] for index in batch["index"].tolist())
            raise TrainingDiverged(f"step {self.global_step}, cases {names}", seen=f"the loss is {loss.item()}")
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def _loss(self, logits_BK: torch.Tensor, label_BK: torch.Tensor) -> torch.Tensor:
        smoothing = self.config.train.label_smoothing
        weights_K = None if self._weights_K is None else self._weights_K.to(logits_BK.device)
        if self.config.output == "softmax":
            return functional.cross_entropy(logits_BK, label_BK.argmax(1), weights_K, label_smoothing=smoothing)
        softened_BK = label_BK * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits_BK, softened_BK, pos_weight=weights_K)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Keep the logits of a batch."""
        self._logits.append(self(batch[IMAGE]).float().cpu())
        self._labels.append(batch[LABEL].cpu())

    def on_validation_epoch_end(self) -> None:
        """Log the AUC of each class against all others, and their mean as ``val_auc``."""
        logits_NK, label_NK = torch.cat(self._logits), torch.cat(self._labels)
        self._logits.clear()
        self._labels.clear()
        softmax = self.config.output == "softmax"
        probability_NK = (logits_NK.softmax(1) if softmax else logits_NK.sigmoid()).double().numpy()
        scores = [auc(label_NK[:, k].numpy() > 0, probability_NK[:, k]) for k in range(len(self.config.classes))]
        for item, score in zip(self.config.classes, scores, strict=True):
            self.log(f"val_auc_{item.name}", score)
        self.log(self.monitor, float(np.mean(scores)), prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW with a linear warm-up and a cosine to zero over the run's steps."""
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        return adamw_with_cosine(self.network, self.config.train, steps=steps)


def _weights(config: ClassifyConfig, counts: Sequence[int] | None, cases: int) -> torch.Tensor | None:
    """A weight for each class, so that each counts the same in all (softmax), or as much as its absence (sigmoid)."""
    if config.train.class_weights == "none" or counts is None:
        return None
    counts_K = torch.tensor(counts, dtype=torch.float32)
    if config.output == "softmax":
        return cases / (len(counts_K) * counts_K)
    return (cases - counts_K) / counts_K
