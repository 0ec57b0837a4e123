"""A checkpoint -> its entry in a report: which it is, by its hashes, and how well it did on held-out cases.

Invariant: every figure is the checkpoint's own, from its `metrics.json`, and told as what it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imaging.checkpoint import FusionCheckpoint, NetworkCheckpoint
from imaging.config import AnyConfig, FuseConfig, TextConfig
from imaging.engines import EngineChoice
from imaging.report.report import Figure, MeanDice, ModelEntry


def model_entry(checkpoint: NetworkCheckpoint | FusionCheckpoint, engine: EngineChoice | None = None) -> ModelEntry:
    """The entry of a checkpoint, whatever it does; `engine` is what computed its answers, where that was chosen."""
    sides = ("validation", "test", "cross_validation")
    validation, test, held_out = (checkpoint.metrics.get(side, {}) for side in sides)
    return ModelEntry(
        name=checkpoint.name,
        version=checkpoint.config.version,
        title=checkpoint.config.title,
        weights_sha256=checkpoint.weights_sha256,
        config_sha256=checkpoint.config.digest(),
        measured_on=_measured_on(checkpoint.config),
        validation_cases=validation.get("cases", 0),
        dice_on_validation=_dice_of(validation),
        scores_on_validation=_scores_of(validation),
        test_cases=test.get("cases", 0),
        dice_on_test=_dice_of(test),
        scores_on_test=_scores_of(test),
        spans_on_test=_figures(test.get("spans", {})),
        members=1 if isinstance(checkpoint, FusionCheckpoint) else checkpoint.config.members,
        cross_validated_cases=held_out.get("cases", 0),
        dice_cross_validated=_dice_of(held_out),
        scores_cross_validated=_scores_of(held_out),
        engine=engine.name if engine else None,
        precision=engine.precision if engine else None,
        engine_note=engine.why if engine else "",
    )


def _measured_on(config: AnyConfig) -> str:
    """What its cases are, in the plural."""
    if isinstance(config, TextConfig):
        if not config.classes:  # mentions are counted sentence by sentence
            return "sentences"
        return " and ".join(f"{role}s" for role in sorted(config.applies_to.roles))
    return "studies" if isinstance(config, FuseConfig) else "cases"


def _dice_of(side: dict[str, Any]) -> dict[str, MeanDice]:
    return {name: MeanDice(**value) for name, value in side.get("dice", {}).items()}


def _scores_of(side: dict[str, Any]) -> dict[str, dict[str, Figure]]:
    """By what is judged; of a fusion by the parts that were there, for each such set has its own figures."""
    patterns = {name: part["scores"] for name, part in side.get("patterns", {}).items()}
    return _figures(side.get("scores") or patterns)


def _figures(told: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Figure]]:
    """Those of each name that have an interval."""
    return {
        name: {key: Figure(**value) for key, value in figures.items() if isinstance(value, dict)}
        for name, figures in told.items()
    }
