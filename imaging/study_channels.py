"""Several series of one DICOM study as the channels of one case, by the rules of a checkpoint's config.

Invariant: a channel is the one series of the study that its rule names, whole and as it was acquired; where none or
several match, or they do not lie on one grid, the case is refused with the reason, and nothing is resampled. Imports no
torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from imaging.channels import allowed_apart, corners_apart
from imaging.checkpoint import Checkpoint
from imaging.config import Channel, SegmentConfig, SeriesRule
from imaging.dicom.scan import Series, Study
from imaging.dicom.stack import Policy, Stack
from imaging.errors import NotApplicable, SetAside
from imaging.inputs import SeriesView, view_series
from imaging.selection import check_choice, check_fit, check_grey


@dataclass(frozen=True, slots=True, eq=False)
class ViewedVolume:
    """One volume of a series, or what of it cannot be one, with what it takes to read it."""

    view: SeriesView
    series: Series
    stack: Stack | None


def view_study(study: Study, models: Sequence[Checkpoint], *, named: bool, policy: Policy) -> list[ViewedVolume]:
    """What the headers of a study tell, series by series, and which checkpoint would take each.

    Parameters
    ----------
    study
        What was scanned.
    models
        Those whose channels have rules take several series as one case (`SeriesView.channel_of`), or none; each of the
        others takes a series by itself.
    named, policy
        As `imaging.inputs.view_series` takes them.
    """
    joining = [model for model in models if _channels(model)]
    single = [model for model in models if not _channels(model)]
    found = [
        ViewedVolume(view, item, stack)
        for item in study.series
        for view, stack in view_series(item, single, named=named, policy=policy)
    ]
    for model in joining:
        found = _with_channels(found, study, model, named=named)
    return found


def _channels(model: Checkpoint) -> tuple[Channel, ...]:
    """The channels of a checkpoint that takes them from the series of a study."""
    config = model.config
    return config.channels if isinstance(config, SegmentConfig) and config.channels_from_series else ()


def _with_channels(found: list[ViewedVolume], study: Study, model: Checkpoint, *, named: bool) -> list[ViewedVolume]:
    """The views with what this checkpoint would take, or the reason why not."""
    try:
        members = _members(found, study, model, named=named)
    except NotApplicable as reason:
        return [_declined(item, model, reason) for item in found]
    names = {id(item): channel.name for item, channel in zip(members, _channels(model), strict=True)}
    viewed = []
    for item in found:
        view, channel = item.view, names.get(id(item))
        if channel is None:
            none = NotApplicable(view.facts.subject, seen="it is no channel of the case",
                                 expected=f"{_told(_channels(model))} was expected")  # fmt: skip
            viewed.append(_declined(item, model, none))
            continue
        taken = replace(
            view, taken_by=(*view.taken_by, model.name), channel_of=(*view.channel_of, (model.name, channel))
        )
        viewed.append(replace(item, view=taken))
    return viewed


def _declined(item: ViewedVolume, model: Checkpoint, reason: NotApplicable) -> ViewedVolume:
    if item.view.refusal is not None:
        return item
    return replace(item, view=replace(item.view, declined_by=(*item.view.declined_by, (model.name, reason))))


def _members(found: Sequence[ViewedVolume], study: Study, model: Checkpoint, *, named: bool) -> list[ViewedVolume]:
    """The volume of each channel, in their order.

    Raises
    ------
    NotApplicable
        With the channel that has no series, or several, and why; or that lies elsewhere than the first.
    """
    channels, rule = _channels(model), model.config.applies_to
    members = [_member(found, study, channel) for channel in channels]
    for number, (item, channel) in enumerate(zip(members, channels, strict=True)):
        facts, earlier = item.view.facts, members[:number]
        if any(item is other for other in earlier):
            other = channels[next(place for place, one in enumerate(earlier) if one is item)]
            raise NotApplicable(facts.subject, seen=f"it matches channels {other.name!r} and {channel.name!r}",
                                expected="a series of its own for each channel was expected")  # fmt: skip
        # The description of applies_to chooses by the first; the others have rules of their own.
        check_choice(rule, facts, named=named or number > 0)
        check_grey(facts, item.view.channels)
        _check_grid(members[0], item, channels[0], channel)
    first = members[0].view
    assert first.shape is not None and first.affine is not None
    check_fit(model.config, first.facts, first.shape, first.affine)
    return members


def _member(found: Sequence[ViewedVolume], study: Study, channel: Channel) -> ViewedVolume:
    """The one volume that is a channel; what is set aside, such as a localizer, does not count."""
    assert channel.series is not None
    matching = [
        item for item in found if _matches(channel.series, item) and not isinstance(item.view.refusal, SetAside)
    ]
    subject, expected = f"study {study.uid}", f"exactly one series for {_told([channel])} was expected"
    if not matching:
        raise NotApplicable(subject, seen=f"no series is channel {channel.name!r}", expected=expected)
    if len(matching) > 1:
        several = ", ".join(sorted({item.view.facts.subject for item in matching}))
        raise NotApplicable(subject, seen=f"several volumes may be channel {channel.name!r}: {several}",
                            expected=expected)  # fmt: skip
    refusal = matching[0].view.refusal
    if refusal is not None:
        raise NotApplicable(
            subject, seen=f"the series of channel {channel.name!r} was refused ({refusal.code})", expected=expected
        )
    return matching[0]


def _matches(rule: SeriesRule, item: ViewedVolume) -> bool:
    facts = item.view.facts
    if rule.modality and facts.modality not in rule.modality:
        return False
    return rule.description is None or re.search(rule.description, facts.description[:256]) is not None


def _check_grid(first: ViewedVolume, other: ViewedVolume, name_of_first: Channel, name: Channel) -> None:
    """Refuse a channel that lies on another grid than the first, or would have to be resampled to be a volume."""
    one, two = first.stack, other.stack
    assert one is not None and two is not None
    frames = [item.view.facts.frame_of_reference_uid for item in (first, other)]
    seen = ""
    if two.regrid is not None:
        seen = "would have to be resampled to be a volume"
    elif one.shape != two.shape:
        seen = f"has the shape {two.shape}, {name_of_first.name!r} has {one.shape}"
    elif (apart := corners_apart(one, two)) > allowed_apart(one):
        seen = f"lies up to {apart:.2f} mm from {name_of_first.name!r}"
    elif all(frames) and frames[0] != frames[1]:
        seen = f"has another frame of reference than {name_of_first.name!r}"
    if seen:
        raise NotApplicable(other.view.facts.subject, seen=f"channel {name.name!r} {seen}",
                            expected="all channels on the grid of the first were expected; nothing is resampled",
                            remedy="Reconstruct the series on one grid")  # fmt: skip


def _told(channels: Sequence[Channel]) -> str:
    """The channels with their rules, in words."""
    told = []
    for channel in channels:
        rule = channel.series
        assert rule is not None
        parts = [f"modality {' or '.join(rule.modality)}"] if rule.modality else []
        parts += [f"description {rule.description!r}"] if rule.description is not None else []
        told.append(f"{channel.name!r} ({', '.join(parts)})")
    return " or ".join(told)
