"""The model card of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends.

Invariant: every number in it comes from the checkpoint's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imaging.config import Config, SegmentConfig
from imaging.interval import Interval


def _trained(metrics: Mapping[str, Any]) -> list[str]:
    """How many cases took which part, and which epoch was published."""
    training = metrics.get("training")
    if not training:
        return []
    held = ", ".join(f"{metrics[side]['cases']} for {side}" for side in ("validation", "test") if side in metrics)
    return [
        f"{training['cases']} cases for training, {held}; the weights are those of epoch {training['best_epoch']} of"
        f" {training['epochs']}, the best on validation. `metrics.json` names the cases.",
        "",
    ]


def model_card(config: Config, metrics: Mapping[str, Any]) -> str:
    """The README of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends."""
    card = config.card
    lines = [
        f"# {config.title}",
        "",
        f"`{config.name}` version {config.version}. For research use, not for diagnosis.",
        "",
        f"**Intended use.** {card.intended_use}",
        "",
        f"**Limits.** {card.limits}",
        "",
        f"**Data and licence.** {card.data} {card.licence}",
        "",
        "**How it was trained.**",
        "",
        f"    {card.command}",
        "",
        *_trained(metrics),
        "## Measured",
        "",
        *(_overlap(config, metrics) if isinstance(config, SegmentConfig) else []),
    ]
    return "\n".join([*lines, ""])


def _overlap(config: SegmentConfig, metrics: Mapping[str, Any]) -> list[str]:
    """How well a segmenter's masks fit, and how far its volumes may be trusted."""
    lines = [
        "Dice of the masks on each image's own grid, restored by the same code that serves; mean over cases with the",
        "95 % bootstrap interval over cases.",
        "",
        "| cases | n | " + " | ".join(label.title for label in config.labels) + " |",
        "| --- | --- |" + " --- |" * len(config.labels),
    ]
    for side in ("validation", "test"):
        if side in metrics:
            part = metrics[side]
            cells = [str(Interval(**part["dice"][label.name])) for label in config.labels]
            lines.append(f"| {side} | {part['cases']} | " + " | ".join(cells) + " |")
    for label in config.labels:
        interval = (metrics.get("volume_interval") or {}).get(label.name)
        if interval:
            held = (
                f"; it held in {interval['held_on_test']:.0%} of the test cases" if "held_on_test" in interval else ""
            )
            lines += [
                "",
                f"{label.title}: the true volume lies between {interval['low']:.3f} and {interval['high']:.3f} times",
                f"the measured one with {interval['coverage']:.0%} coverage (conformal, from validation cases{held}).",
            ]
    return lines
