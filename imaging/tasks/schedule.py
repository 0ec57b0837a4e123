"""How the learning rate runs, the same for every task."""

from __future__ import annotations

import math

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig

from imaging.config import Fit

# nnU-Net's (Isensee et al., Nature Methods 18:203, 2021).
_POWER = 0.9


def adamw(network: torch.nn.Module, settings: Fit, *, steps: int) -> OptimizerLRSchedulerConfig:
    """AdamW whose learning rate rises in a line and falls to zero by the config's schedule.

    Parameters
    ----------
    network
        Whose parameters are fitted, but for those that are frozen.
    settings
        Learning rate, weight decay, warm-up and schedule.
    steps
        Of the whole run; the warm-up takes at most a tenth of them.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    warmup = min(settings.warmup_steps, steps // 10)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return float((1 - done) ** _POWER) if settings.schedule == "poly" else 0.5 * (1 + math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
