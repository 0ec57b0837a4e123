"""What a checkpoint is asked with, whatever its task.

Invariant: what a task needs is imported when a checkpoint of that task is opened: a classifier needs torch, a segmenter
only where its engine is torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imaging.checkpoint import Checkpoint
from imaging.config import ClassifyConfig
from imaging.engines import Engines, Wanted
from imaging.memory import Budget
from imaging.predict import Predictor

if TYPE_CHECKING:
    from imaging.classifier import Classifier


def open_predictor(
    checkpoint: Checkpoint,
    *,
    device: str | None = None,
    engine: Wanted | Engines = "auto",
    budget: Budget | None = None,
) -> Predictor | Classifier:
    """What a checkpoint is asked with, whatever its task."""
    if isinstance(checkpoint.config, ClassifyConfig):
        from imaging.classifier import Classifier

        return Classifier(checkpoint, device=device, engine=engine, budget=budget)
    return Predictor(checkpoint, device=device, engine=engine, budget=budget)
