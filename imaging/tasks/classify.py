"""Train a network to say what a picture or a volume shows: weighted cross-entropy, AUC on the validation cases.

Invariant: see `imaging.tasks.base`.

Shapes: B batch, C channels, K classes, N cases; ``image_BC...`` with two or three spatial axes, ``logits_BK``,
``label_BK`` of 0 and 1 (with softmax exactly one 1 a case).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from imaging.config import ClassifyConfig
from imaging.networks import build_classifier
from imaging.samples import Sample
from imaging.scores import auc
from imaging.tasks.base import FittingTask
from imaging.tasks.losses import classes_cross_entropy, findings_cross_entropy
from imaging.transforms import IMAGE, LABEL


class ClassifyTask(FittingTask[tuple[torch.Tensor, torch.Tensor]]):
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
        network = build_classifier(
            config.network, spatial_dims=len(config.preprocess.size), in_channels=1, classes=len(config.classes)
        )
        super().__init__(network, config.train, train_names)
        self.config = config
        self._weights_K = _weights(config, train_counts, len(train_names))

    def loss(self, logits: torch.Tensor, batch: Sample) -> torch.Tensor:
        """Weighted cross-entropy of a batch."""
        of_output = classes_cross_entropy if self.config.output == "softmax" else findings_cross_entropy
        weights_K = None if self._weights_K is None else self._weights_K.to(logits.device)
        return of_output(logits.float(), batch[LABEL], weights=weights_K, smoothing=self.config.train.label_smoothing)

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Keep the logits and the classes of each case."""
        logits_BK, label_BK = self(batch[IMAGE]).float().cpu(), batch[LABEL].cpu()
        for index, logits_K, label_K in zip(batch["index"].tolist(), logits_BK, label_BK, strict=True):
            self.keep(index, (logits_K, label_K))

    def scores(self, kept: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        """The AUC of each class against all others, and their mean as ``val_auc``."""
        logits_NK, label_NK = (torch.stack(tensors) for tensors in zip(*kept, strict=True))
        softmax = self.config.output == "softmax"
        # In double precision: in single precision all cases tie of which the network is sure.
        probability_NK = (logits_NK.double().softmax(1) if softmax else logits_NK.double().sigmoid()).numpy()
        aucs = [auc(label_NK[:, k].numpy() > 0, probability_NK[:, k]) for k in range(len(self.config.classes))]
        each = {f"val_auc_{item.name}": score for item, score in zip(self.config.classes, aucs, strict=True)}
        return {**each, self.monitor: float(np.nanmean(aucs))}


def _weights(config: ClassifyConfig, counts: Sequence[int] | None, cases: int) -> torch.Tensor | None:
    """A weight for each class, so that each counts the same in all (softmax), or as much as its absence (sigmoid)."""
    if config.train.class_weights == "none" or counts is None:
        return None
    counts_K = torch.tensor(counts, dtype=torch.float32)
    if config.output == "softmax":
        return cases / (len(counts_K) * counts_K)
    return (cases - counts_K) / counts_K
