"""Train a model to read: cross-entropy of texts and of words, AUC and entity F1 on the validation cases.

Invariant: see `imaging.tasks.base`.

Shapes: see `imaging.text.network`; N cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from imaging.config import TextConfig
from imaging.samples import Sample
from imaging.scores import auc
from imaging.tasks.base import FittingTask
from imaging.tasks.losses import mean_over_ranks
from imaging.text.data import ENCODED, IDS, IGNORED, MASK, OWNER, TAG, TRUE_TAGS
from imaging.text.network import Said, TextNetwork, trained_of
from imaging.text.spans import Counts, counted, tags_said
from imaging.transforms import LABEL


@dataclass(frozen=True, slots=True)
class Kept:
    """Of a validation case what its scores are made from; None where it is not known or not said."""

    logits_K: torch.Tensor | None
    label_K: torch.Tensor
    spans: Counts | None


class TextTask(FittingTask[Kept]):
    """One run of a text model.

    Parameters
    ----------
    config
        The resolved config.
    train_names
        Names of the training cases by their index, for messages.
    """

    monitor = "val_score"

    def __init__(self, config: TextConfig, train_names: Sequence[str]) -> None:
        # What is not trained needs no more digits than it is multiplied in.
        low = config.train.precision == "bf16-mixed" and config.train.tuning.method != "full"
        network = TextNetwork(config, frozen_dtype=torch.bfloat16 if low else torch.float32)
        super().__init__(network, config.train, train_names)
        self.config = config

    def answer(self, batch: Sample) -> Said:
        """What the network says of a batch."""
        said: Said = self.network(batch[IDS], batch[MASK], batch[OWNER], len(batch[LABEL]))
        return said

    def loss(self, said: Said, batch: Sample) -> torch.Tensor:
        """Cross-entropy of the texts whose class is known, and of the words that are tagged, added up."""
        losses = []
        known_B = batch[LABEL].sum(1) > 0
        if said.classes_BK is not None:
            of_texts = functional.cross_entropy(
                said.classes_BK[known_B], batch[LABEL][known_B].argmax(1), reduction="sum",
                label_smoothing=self.config.train.label_smoothing,
            )  # fmt: skip
            losses.append(mean_over_ranks(of_texts, known_B.sum()))
        if said.tags_WLT is not None:
            of_words = functional.cross_entropy(
                said.tags_WLT.flatten(0, 1), batch[TAG].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            losses.append(mean_over_ranks(of_words, (batch[TAG] != IGNORED).sum()))
        return torch.stack(losses).sum()

    def validation_step(self, batch: Sample, batch_idx: int) -> None:
        """Keep the logits and the class of each text, and count its mentions."""
        said = self.answer(batch)
        begins = 0
        for at, (index, text) in enumerate(zip(batch["index"].tolist(), batch[ENCODED], strict=True)):
            logits_K = None if said.classes_BK is None else said.classes_BK[at].float().cpu()
            spans, truth = None, batch[TRUE_TAGS][at]
            if said.tags_WLT is not None and truth is not None:
                tags_WLT = said.tags_WLT[begins : begins + len(text.windows)].float().cpu().numpy()
                spans = counted(text.words, truth, tags_said(tags_WLT, text)[0], kinds=len(self.config.kinds))
            begins += len(text.windows)
            self.keep(index, Kept(logits_K, batch[LABEL][at].cpu(), spans))

    def scores(self, kept: list[Kept]) -> dict[str, float]:
        """The mean AUC of the classes and the F1 of all mentions, where there are such, and their mean."""
        found = {}
        judged = [one for one in kept if one.logits_K is not None and one.label_K.sum() > 0]
        if judged:
            logits_NK = torch.stack([one.logits_K for one in judged if one.logits_K is not None]).double()
            label_NK = torch.stack([one.label_K for one in judged]).numpy() > 0
            probability_NK = logits_NK.softmax(1).numpy()
            aucs = [auc(label_NK[:, k], probability_NK[:, k]) for k in range(label_NK.shape[1])]
            found["val_auc"] = float(np.nanmean(aucs))
        counts = [one.spans for one in kept if one.spans is not None]
        if counts:
            found["val_f1"] = Counts.summed(counts).f1
        return {**found, self.monitor: float(np.nanmean(list(found.values())))}

    def published(self) -> dict[str, torch.Tensor]:
        """What was trained; the encoder is not the checkpoint's."""
        assert isinstance(self.network, TextNetwork)
        return trained_of(self.network)
