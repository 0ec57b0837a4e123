"""The model card of a checkpoint: what it is for, on what it was trained, how well it does, and where it ends.

Invariant: every number in it comes from the checkpoint's metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from imaging.config import Config
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


def _drawn(metrics: Mapping[str, Any]) -> str:
    """What the intervals were drawn over; earlier checkpoints say nothing of patients."""
    return "patients" if any("patients" in metrics.get(side, {}) for side in ("validation", "test")) else "cases"


def _borders(config: Config, metrics: Mapping[str, Any]) -> list[str]:
    """How far off the borders and the volumes are; checkpoints from before these were measured have none of it."""
    lines = []
    for side in ("validation", "test"):
        part = metrics.get(side, {})
        for label in config.labels if "hd95_mm" in part else ():
            distance, share, error = (
                Interval(**part[score][label.name]) for score in ("hd95_mm", "surface_dice", "volume_error_percent")
            )
            lines.append(f"| {side} | {label.title} | {distance} | {share} | {error} |")
    if not lines:
        return []
    tolerance = next(metrics[side]["tolerance_mm"] for side in ("test", "validation") if side in metrics)
    return [
        "",
        "Borders: the 95th percentile Hausdorff distance, the share of the surfaces within"
        f" {tolerance:g} mm of each other, and the signed error of the volume.",
        "",
        "| cases | structure | HD95, mm | surface Dice | volume error, % |",
        "| --- | --- | --- | --- | --- |",
        *lines,
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
        "Dice of the masks on each image's own grid, restored by the same code that serves; mean over cases with the",
        f"95 % bootstrap interval over {_drawn(metrics)}.",
        "",
        "| cases | n | " + " | ".join(label.title for label in config.labels) + " |",
        "| --- | --- |" + " --- |" * len(config.labels),
    ]
    for side in ("validation", "test"):
        if side in metrics:
            part = metrics[side]
            cells = [str(Interval(**part["dice"][label.name])) for label in config.labels]
            lines.append(f"| {side} | {part['cases']} | " + " | ".join(cells) + " |")
    lines += _borders(config, metrics)
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
    return "\n".join([*lines, ""])
