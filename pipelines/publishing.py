"""Weights -> a checkpoint, calibrated and measured on its own held-out cases by the code that serves it.

Invariant: every number of a checkpoint comes from loading it as any user does, with all that it will serve with.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from imaging.checkpoint import NetworkCheckpoint, save_checkpoint
from imaging.config import SegmentConfig
from imaging.dataset_check import OnCase
from pipelines.novelty import novelty_of
from pipelines.sides import Cases


def publish_measured(
    cases: Cases,
    weights: Mapping[str, torch.Tensor],
    told: Mapping[str, Any],
    *,
    folder: Path,
    scratch: Path,
    beside: Mapping[str, bytes] | None = None,
    on_case: OnCase | None = None,
) -> tuple[NetworkCheckpoint, dict[str, str]]:
    """Publish weights in a folder.

    Parameters
    ----------
    cases
        Who trained, validates and tests, and the config.
    weights
        The network's.
    told
        What else its metrics say.
    folder, scratch
        Where it goes, and where a first one without numbers lies meanwhile; neither is there yet.
    beside
        Further files by name that it shall have.
    on_case
        Called before each case that is looked at for what is usual; see `pipelines.novelty.novelty_of`.

    Returns
    -------
    checkpoint, pages
        A page of an evaluation for each side.
    """
    config = cases.config
    extras: dict[str, bytes] = {}
    novelty: dict[str, Any] = {}
    try:
        unmeasured = save_checkpoint(scratch, config, weights, {})
        if not isinstance(config, SegmentConfig) and config.calibrate.novelty is not None:
            extras, found = novelty_of(unmeasured, config, cases.sides, on_case=on_case)
            unmeasured = save_checkpoint(scratch, config, weights, {}, extras)  # it is measured as it will serve
            novelty = {"novelty": {**found, "counted": True}}
        measured = cases.measure(unmeasured)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    checkpoint = save_checkpoint(
        folder, config, weights, {**measured.metrics, **novelty, **told}, {**(beside or {}), **extras}
    )
    return checkpoint, measured.pages
