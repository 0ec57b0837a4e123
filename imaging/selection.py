"""Which checkpoint takes which series, by the rule in the checkpoint's own config.

Invariant: a series beyond what a checkpoint has learnt (modality, size, spacing) is never given to it, not even when
the checkpoint was named explicitly; the reason is always told. Imports no torch.
"""

from __future__ import annotations

import math
import re

from imaging.config import AppliesTo, ClassifyConfig, Config, SegmentConfig, Size3
from imaging.errors import NotApplicable
from imaging.volume import Affine, SeriesFacts, extent_in_ras, spacing_of


def check_choice(rule: AppliesTo, facts: SeriesFacts, *, named: bool) -> None:
    """Refuse a series by what it says of itself.

    Parameters
    ----------
    rule
        The checkpoint's `applies_to`.
    facts
        What the series says.
    named
        Whether the user named the checkpoint. Then the description is not asked, and a modality that the file does not
        tell (NIfTI) is not held against it.

    Raises
    ------
    NotApplicable
        With the first part of the rule that does not hold.
    """
    subject = facts.subject
    wanted = " or ".join(rule.modality)
    if not facts.modality and not named:
        raise NotApplicable(subject, seen="the file does not tell its modality",
                            expected=f"{wanted} was expected", remedy="Name the checkpoint with --model")  # fmt: skip
    if facts.modality and facts.modality not in rule.modality:
        raise NotApplicable(subject, seen=f"modality {facts.modality}", expected=f"{wanted} was expected")
    if facts.body_part and rule.body_part and facts.body_part not in rule.body_part:
        raise NotApplicable(
            subject, seen=f"body part {facts.body_part}", expected=f"{' or '.join(rule.body_part)} was expected"
        )
    if not named and rule.description and not re.search(rule.description, facts.description[:256]):
        raise NotApplicable(
            subject, seen="another series description", expected=f"one that matches {rule.description!r} was expected"
        )


def check_grey(facts: SeriesFacts, channels: int) -> None:
    """Refuse a colour image: the networks take one grey channel.

    Raises
    ------
    NotApplicable
        If there are three channels.
    """
    if channels != 1:
        raise NotApplicable(facts.subject, seen="a colour image", expected="one grey channel was expected")


def images_taken(config: Config) -> int:
    """How many images a case has, one a channel."""
    return len(config.scales) if isinstance(config, SegmentConfig) else 1


def check_images(config: Config, facts: SeriesFacts, images: int) -> None:
    """Refuse a case with another number of images than the network takes.

    Raises
    ------
    NotApplicable
        With both numbers.
    """
    wanted = images_taken(config)
    if images == wanted:
        return
    names = [channel.name for channel in config.channels] if isinstance(config, SegmentConfig) else []
    several = f"{wanted} on one grid were expected: {', '.join(names)}"
    raise NotApplicable(
        facts.subject,
        seen=f"{images} image{'s' * (images > 1)}",
        expected=several if wanted > 1 else "one was expected",
    )


def check_fit(config: Config, facts: SeriesFacts, shape: Size3, affine: Affine) -> None:
    """Refuse a grid that a checkpoint does not take: beyond its limits, or of another number of axes.

    Raises
    ------
    NotApplicable
        With the first limit that is broken.
    """
    check_limits(config.applies_to, facts, shape, affine)
    if not isinstance(config, ClassifyConfig):
        return
    axes = len(config.preprocess.size)
    if (shape[2] == 1) != (axes == 2):
        wanted = "one picture" if axes == 2 else "a volume of several slices"
        raise NotApplicable(facts.subject, seen=f"{shape[2]} slice(s)", expected=f"{wanted} was expected")
    least, most = min(shape[:axes]), max(shape[:axes])
    rule = config.applies_to
    if least < rule.pixels_min:
        raise NotApplicable(
            facts.subject, seen=f"only {least} pixels along an axis", expected=f"{rule.pixels_min} were expected"
        )
    if rule.aspect_max is not None and most > rule.aspect_max * least:
        raise NotApplicable(facts.subject, seen=f"proportions of {most} to {least}",
                            expected=f"at most {rule.aspect_max:g} to 1 was expected")  # fmt: skip


def check_limits(rule: AppliesTo, facts: SeriesFacts, shape: Size3, affine: Affine) -> None:
    """Refuse a grid that lies beyond what the checkpoint has learnt.

    Parameters
    ----------
    rule
        The checkpoint's `applies_to`.
    facts
        For the message.
    shape, affine
        The series' own grid: voxels along X, Y, Z and voxel index to RAS+ mm.

    Raises
    ------
    NotApplicable
        With the first limit that is broken.
    """
    subject = facts.subject
    extent = extent_in_ras(shape, affine)
    least, most = rule.extent_min_mm or (0.0, 0.0, 0.0), rule.extent_max_mm or (math.inf, math.inf, math.inf)
    for size, low, high, axis in zip(extent, least, most, ("R-L", "A-P", "S-I"), strict=True):
        if not low <= size <= high:
            raise NotApplicable(
                subject, seen=f"{size:.0f} mm along {axis}", expected=f"{low:g} to {high:g} mm was expected"
            )
    largest = max(spacing_of(affine))
    if rule.spacing_max_mm is not None and largest > rule.spacing_max_mm:
        raise NotApplicable(
            subject, seen=f"a spacing of {largest:.2f} mm", expected=f"at most {rule.spacing_max_mm:g} mm was expected"
        )
