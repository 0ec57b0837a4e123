"""The checkpoints that come with imgpipe: what each takes, and how well it does.

Invariant: a checkpoint is listed as usable only after its checksums held. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from imaging.checkpoint import open_shipped
from imaging.config import Class, Label, NetworkConfig, SegmentConfig


def models() -> dict[str, Any]:
    """Describe the shipped checkpoints.

    Returns
    -------
    dict
        JSON-serialisable: ``models`` (name, version, title, task, what it takes, labels, Dice or scores on test and
        in cross-validation, scores on validation, members of an ensemble, folder) and ``refused`` (checkpoints that
        differ from their checksums).
    """
    shipped, unusable = open_shipped()
    listed = []
    for checkpoint in sorted(shipped, key=lambda checkpoint: checkpoint.name):
        config = checkpoint.config
        listed.append(
            {
                "name": config.name,
                "version": config.version,
                "title": config.title,
                "task": config.task,
                "applies_to": config.applies_to.model_dump(mode="json"),
                "labels": _labels(config),
                "dice_on_test": checkpoint.metrics.get("test", {}).get("dice"),
                "scores_on_validation": checkpoint.metrics.get("validation", {}).get("scores"),
                "scores_on_test": checkpoint.metrics.get("test", {}).get("scores"),
                "spans_on_test": checkpoint.metrics.get("test", {}).get("spans"),
                "members": config.members,
                "dice_cross_validated": checkpoint.metrics.get("cross_validation", {}).get("dice"),
                "scores_cross_validated": checkpoint.metrics.get("cross_validation", {}).get("scores"),
                "licence": config.card.licence,
                "weights_sha256": checkpoint.weights_sha256,
                "folder": str(checkpoint.folder),
            }
        )
    return {"models": listed, "refused": [error.as_dict() for error in unusable]}


def _labels(config: NetworkConfig) -> dict[int, str]:
    items: Sequence[Label | Class] = config.labels if isinstance(config, SegmentConfig) else config.classes
    return {item.id: item.name for item in items}
