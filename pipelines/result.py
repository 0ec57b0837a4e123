"""The result of measuring a checkpoint on some cases, whole and not yet written.

Invariant: it says which checkpoint, by its hashes, and which of the cases the checkpoint had met before.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imaging.checkpoint import NetworkCheckpoint
from imaging.errors import ImagingError

PREDICTIONS, PAGE = "predictions.csv", "evaluation.html"


@dataclass(frozen=True, slots=True)
class Result:
    """What is known of some cases.

    Attributes
    ----------
    metrics
        As metrics.json has them; ``cases`` is 0 where none could be measured.
    rows, page
        predictions.csv and evaluation.html; empty where no case could be measured.
    refused
        Why a case was left out.
    """

    metrics: dict[str, Any]
    rows: str
    page: str
    refused: tuple[ImagingError, ...]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of the held-out cases of a training.

    Attributes
    ----------
    metrics
        As the checkpoint's metrics.json has them.
    pages
        A page like evaluation.html for each side.
    """

    metrics: dict[str, Any]
    pages: dict[str, str]


def provenance(checkpoint: NetworkCheckpoint, data: str, names: Sequence[str]) -> dict[str, Any]:
    """Which checkpoint on what; a case with the name of one that it has met is told, for its figure proves nothing.

    Returns
    -------
    dict
        ``checkpoint``, ``data``, ``software``, ``software_version``; ``seen_in_training`` (cases with the names of
        those that its weights, or the weights that these began with, were fitted on) and ``seen_in_validation`` (of
        those that chose its epoch, and its calibration if it has one).
    """
    training = checkpoint.metrics.get("training", {})
    trained = {*training.get("names", ()), *(training.get("start") or {}).get("trained_on", ())}
    held_out = (checkpoint.metrics.get(side, {}).get("each", ()) for side in ("validation", "cross_validation"))
    # Of a cross-validation all cases have calibrated what was published; its members were fitted on some of them.
    validated = {name for names in held_out for name in names} - set(training.get("names", ()))
    return {
        "checkpoint": {
            "name": checkpoint.name,
            "title": checkpoint.config.title,
            "version": checkpoint.config.version,
            "weights_sha256": checkpoint.weights_sha256,
            "config_sha256": checkpoint.config.digest(),
        },
        "data": data,
        "software": "imgpipe",
        "software_version": importlib.metadata.version("imgpipe"),
        "seen_in_training": [name for name in names if name in trained],
        "seen_in_validation": [name for name in names if name in validated],
    }


def of_side(checkpoint: NetworkCheckpoint, data: str, side: str, names: Sequence[str]) -> dict[str, Any]:
    """The same for one side of a training, whose checkpoint has no metrics yet."""
    about = provenance(checkpoint, f"the {side} cases of {data}", names)
    return {**about, "seen_in_validation": list(names) if side == "validation" else [], "refused": []}
