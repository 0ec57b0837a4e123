"""Train the small network of a fusion: cross-entropy on cases of which parts are hidden by chance.

Invariant: each step shows every case with another set of its parts, so that no answer rests on a part that must be
there; a part that a case does not have is never shown. The seed decides all chance.

Shapes: N cases, F columns, P parts; ``values_NF``, ``there_NP``, ``logits_N``.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from imaging.config import FuseConfig
from imaging.stacking import Flags, Floats, columns_of


class FusionNetwork(torch.nn.Module):
    """One hidden layer of `train.hidden` units over the numbers of the parts and whether each part is there."""

    def __init__(self, config: FuseConfig) -> None:
        super().__init__()
        width = len(columns_of(config, config.parts)) + len(config.parts)
        self.hidden = torch.nn.Linear(width, config.train.hidden)
        self.last = torch.nn.Linear(config.train.hidden, 1)

    def forward(self, given_NF: torch.Tensor) -> torch.Tensor:
        """Log-odds (N,)."""
        logits_N1: torch.Tensor = self.last(torch.tanh(self.hidden(given_NF)))
        return logits_N1[:, 0]


class FuseTask(lightning.LightningModule):
    """One training of the network of a fusion; all cases are one batch.

    Parameters
    ----------
    config
        The resolved config.
    """

    def __init__(self, config: FuseConfig) -> None:
        super().__init__()
        self.network = FusionNetwork(config)
        self._settings = config.train
        owner = torch.zeros(len(columns_of(config, config.parts)), dtype=torch.long)
        for number, part in enumerate(config.parts):
            owner[columns_of(config, (part,))] = number
        self._owner_F = owner

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor:
        """Loss of all cases, with other parts hidden in each step."""
        values_NF, there_NP, truth_N = batch
        shown_NP = there_NP * (torch.rand_like(there_NP) >= self._settings.hide)
        logits_N = self.network(torch.cat([values_NF * shown_NP[:, self._owner_F], shown_NP], dim=1))
        return torch.nn.functional.binary_cross_entropy_with_logits(logits_N, truth_N)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at a steady rate."""
        settings = self._settings
        return torch.optim.AdamW(
            self.network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )


def fit_network(config: FuseConfig, values_NF: Floats, there_NP: Flags, truth_N: Flags) -> dict[str, Floats]:
    """The weights of the network, trained on some cases, as `imaging.stacking.log_odds_of` takes them."""
    lightning.seed_everything(config.train.seed, workers=True, verbose=False)
    tensors = (torch.as_tensor(np.asarray(array, dtype=np.float32)) for array in (values_NF, there_NP, truth_N))
    data = TensorDataset(*tensors)
    task = FuseTask(config)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_checkpointing"), False)
    with warnings.catch_warnings():
        # One batch in memory needs no workers and is too short to log.
        warnings.filterwarnings("ignore", message=".*(does not have many workers|number of training batches).*")
        told = logging.getLogger("lightning.pytorch")
        level = told.level
        told.setLevel(logging.ERROR)
        try:
            trainer = lightning.Trainer(
                max_epochs=config.train.epochs, accelerator="cpu", devices=1, enable_model_summary=False, **quiet
            )
            trainer.fit(task, DataLoader(data, batch_size=len(data)))
        finally:
            told.setLevel(level)
    return {name: tensor.detach().double().numpy() for name, tensor in task.network.state_dict().items()}
