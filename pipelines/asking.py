"""The pictures of one study: each series read once, and asked of every checkpoint that takes it.

Invariant: no series goes unmentioned; what is refused is told with the series, and stops no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imaging.channels import joined
from imaging.errors import ImagingError, InputRefused, NotApplicable
from imaging.inputs import SeriesView
from imaging.judgement import Classification, Explained
from imaging.predict import Prediction, Predictor
from imaging.report.findings import refusals_of
from imaging.report.report import DefectEntry, Replaced, SeriesEntry, StudyEntry
from imaging.stages import stage
from imaging.text.document import Document
from imaging.volume import Volume, orientation_of, spacing_of

if TYPE_CHECKING:
    from imaging.classifier import Classifier

# Gives the predictor of a checkpoint by its name.
Predictors = Callable[[str], "Predictor | Classifier"]
# What the outputs of a series will take in memory, in bytes, by the series and the number of structures.
Delivering = Callable[[SeriesView, int], int]

T = TypeVar("T")

# Seconds by checkpoint; somebody who wants to know sets it to an empty one.
TOOK: ContextVar[dict[str, float] | None] = ContextVar("TOOK", default=None)


@dataclass(frozen=True, slots=True)
class Source:
    """One study before it is read.

    Attributes
    ----------
    entry
        Whose it is.
    series
        Each series as its header tells it, with the way to read it.
    refused
        Files beside its images that were refused, and so may belong to it.
    files, pictures
        Those of its DICOM series, or NIfTI and PNG files, a channel each.
    documents
        The texts that belong to it.
    version, replaces
        As the report has them.
    earlier
        Where the result lies that is replaced, if not where this one goes.
    """

    entry: StudyEntry
    series: tuple[tuple[SeriesView, Callable[[], Volume]], ...]
    refused: tuple[ImagingError, ...] = ()
    files: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()
    documents: tuple[Document, ...] = ()
    version: int = 1
    replaces: Replaced | None = None
    earlier: Path | None = None


def ask_pictures(
    source: Source,
    predictor: Predictors,
    problems: list[ImagingError],
    explain: Explained,
    *,
    delivering: Delivering = lambda *_: 0,
) -> tuple[list[SeriesEntry], list[Prediction | Classification]]:
    """Read each series that a checkpoint takes and ask the checkpoint; what is refused goes to `problems`."""
    entries: list[SeriesEntry] = []
    predictions: list[Prediction | Classification] = []
    cases: dict[str, dict[str, tuple[int, Volume | None]]] = {}
    room = partial(_has_room, predictor, delivering)
    too_large = _too_large_together(source, room)
    for view, read in source.series:
        reasons: list[ImagingError] = [view.refusal] if view.refusal is not None else []
        if view.refusal is None and not view.taken_by:
            reasons += [reason for _, reason in view.declined_by]
        alone = [model for model in view.taken_by if model not in dict(view.channel_of)]
        alone = [model for model in alone if attempt(partial(room, model, view), reasons)]
        wanted = alone or any(model not in too_large for model, _ in view.channel_of)
        with stage("read"):
            volume = attempt(read, reasons) if wanted else None
        found: list[Prediction | Classification] = []
        if volume is not None:
            said = [attempt(partial(_ask, predictor, model, volume, explain), reasons) for model in alone]
            found = [prediction for prediction in said if prediction is not None]
        for model, channel in view.channel_of:
            cases.setdefault(model, {})[channel] = (len(entries), volume)
        entries.append(_entry(view, volume, found, reasons))
        predictions += found
        # A study's own reason is that of each of its series.
        problems += [reason for reason in reasons if not any(reason is problem for problem in problems)]
    for model, members in cases.items():
        reasons = too_large.get(model, [])
        together = None if reasons else attempt(partial(_ask_together, predictor, model, members), reasons)
        models, refusals = ((model,) if together is not None else ()), refusals_of(reasons)
        for place, _ in members.values():
            entry = entries[place]
            told = {"models": (*entry.models, *models), "refusals": (*entry.refusals, *refusals)}
            entries[place] = entry.model_copy(update=told)
        predictions += [together] if together is not None else []
        problems += reasons
    return entries, predictions


def _ask_together(predictor: Predictors, model: str, members: Mapping[str, tuple[int, Volume | None]]) -> Prediction:
    """What a checkpoint says of several series, each a channel; the case is that of the first channel's series."""
    with stage("open"):
        asked = predictor(model)
    assert isinstance(asked, Predictor)
    volumes = []
    for channel in asked.checkpoint.segmenter().channels:
        volume = members[channel.name][1]
        if volume is None:
            raise NotApplicable(model, seen=f"the series of channel {channel.name!r} could not be read",
                                expected="every channel was expected")  # fmt: skip
        volumes.append(volume)
    with _timed(model):
        return asked(joined(volumes, [(volume.facts.subject, volume.facts.subject) for volume in volumes]))


def _too_large_together(source: Source, room: Callable[..., bool]) -> dict[str, list[ImagingError]]:
    """Why checkpoints of several series, each a channel, have no room for them: told before one of them is read."""
    firsts: dict[str, tuple[SeriesView, int]] = {}
    for view, _ in source.series:
        for model, _ in view.channel_of:
            first, channels = firsts.get(model, (view, 0))
            firsts[model] = first, channels + 1
    reasons: dict[str, list[ImagingError]] = {model: [] for model in firsts}
    for model, (view, channels) in firsts.items():
        attempt(partial(room, model, view, unread=2 * channels), reasons[model])
    return {model: told for model, told in reasons.items() if told}


def _has_room(predictor: Predictors, delivering: Delivering, model: str, view: SeriesView, unread: int = 0) -> bool:
    """Whether a series may be read for a checkpoint; what would not fit into memory is refused before it is there."""
    # The files of one case are read, and together they are one volume more of as many channels.
    unread = unread or (2 * view.images if view.images > 1 else 1)
    if view.shape is None or view.affine is None:
        return True
    with stage("open"):
        asked = predictor(model)
    if isinstance(asked, Predictor):
        labels = len(asked.checkpoint.segmenter().labels)
        asked.check_room(view.shape, view.affine, subject=view.facts.subject, unread=unread,
                         delivering=delivering(view, labels))  # fmt: skip
    else:
        asked.check_room(view.shape, subject=view.facts.subject, channels=view.channels, unread=unread)
    return True


@contextmanager
def _timed(model: str) -> Iterator[None]:
    """Count what a checkpoint takes, where somebody wants to know."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        took = TOOK.get()
        if took is not None:
            took[model] = took.get(model, 0.0) + time.perf_counter() - begun


def _ask(predictor: Predictors, model: str, volume: Volume, explain: Explained) -> Prediction | Classification:
    with stage("open"):
        asked = predictor(model)
    with _timed(model):
        if isinstance(asked, Predictor):
            return asked(volume)
        with stage("network"):
            return asked.explain(asked(volume), of=explain)


def attempt(step: Callable[[], T], reasons: list[ImagingError]) -> T | None:
    """What a step gives, or None with the reason why the input was refused."""
    try:
        return step()
    except InputRefused as error:
        reasons.append(error)
        return None


def _entry(
    view: SeriesView,
    volume: Volume | None,
    found: Sequence[Prediction | Classification],
    reasons: Sequence[ImagingError],
) -> SeriesEntry:
    defects = volume.defects if volume is not None else view.defects
    sources = volume.sources if volume is not None else ()
    return SeriesEntry(
        uid=view.facts.series_uid,
        description=view.facts.description,
        modality=view.facts.modality,
        volume=view.facts.volume,
        instances=view.instances,
        models=tuple(prediction.checkpoint.name for prediction in found),
        channel_of=dict(view.channel_of),
        shape=view.shape,
        spacing_mm=spacing_of(view.affine) if view.affine is not None else None,
        orientation=orientation_of(view.affine) if view.affine is not None else None,
        frame_of_reference_uid=view.facts.frame_of_reference_uid,
        resampled=volume is not None and volume.resampled,
        defects=tuple(DefectEntry(code=d.code, action=d.action, detail=d.detail, error_mm=d.error_mm) for d in defects),
        source_sop_instance_uids=tuple(frame.sop_instance_uid for frame in sources),
        sop_class_uid=sources[0].sop_class_uid if sources else "",
        refusals=refusals_of(reasons),
    )
