"""The words of one study: read, told beside its pictures, fused with them, and held against them.

Invariant: a text is read by a checkpoint that takes its role, or it is told why none did; a request is fused with the
pictures, a report, which somebody wrote who had seen them, is held against them. No text stops a study.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from imaging.checkpoint import FusionCheckpoint, TextCheckpoint
from imaging.config import Class
from imaging.errors import (
    EncoderUnusable,
    FusionMismatch,
    ImagingError,
    InputRefused,
    MissingPackage,
    NotApplicable,
    TextNotJudged,
)
from imaging.judgement import Classification
from imaging.labelled_studies import header_facts
from imaging.predict import Prediction
from imaging.report.disagreement import Words, disagreements
from imaging.report.fusion import Fusion, Part, fusion_entries, judged_whole, text_part
from imaging.report.models import model_entry
from imaging.report.report import Disagreement, Finding, FusionEntry, ModelEntry, TextEntry
from imaging.report.texts import spans_of, text_entry
from imaging.text.answer import TextReading, check_pictures, check_text
from imaging.text.document import Document
from imaging.text.region import region_of
from imaging.volume import SeriesFacts

_NO_MODEL = "No checkpoint that judges such texts took part."


class Reader(Protocol):
    """A checkpoint that reads texts."""

    @property
    def classes(self) -> Sequence[Class]:
        """What it tells apart."""

    def __call__(self, document: Document, series: Sequence[SeriesFacts]) -> TextReading:
        """Read a text that lies beside some pictures, or refuse it."""


class LazyReader:
    """A checkpoint that reads texts, whose networks are read when the first text comes: most studies have none.

    Parameters
    ----------
    checkpoint
        A verified one.
    """

    def __init__(self, checkpoint: TextCheckpoint) -> None:
        self._checkpoint, self.classes = checkpoint, checkpoint.config.classes
        self._opened: Callable[[Document], TextReading] | None = None

    def __call__(self, document: Document, series: Sequence[SeriesFacts]) -> TextReading:
        """Read a text.

        Parameters
        ----------
        document
            The text.
        series
            What the pictures say of themselves that it lies beside.

        Raises
        ------
        NotApplicable
            If the checkpoint does not take it.
        MissingPackage, EncoderUnusable, CheckpointCorrupt
            If its networks cannot be read.
        """
        check_text(self._checkpoint.config, document)
        check_pictures(self._checkpoint.config, document, series)
        if self._opened is None:
            from imaging.text.reading import TextReader

            self._opened = TextReader(self._checkpoint)
        return self._opened(document)


@dataclass(frozen=True, slots=True)
class Said:
    """What the words add to a report; see `imaging.report.report.Report`."""

    texts: tuple[TextEntry, ...] = ()
    fusion: tuple[FusionEntry, ...] = ()
    disagreements: tuple[Disagreement, ...] = ()
    models: tuple[ModelEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class _Heard:
    """One text with what was made of it."""

    entry: TextEntry
    words: Words
    part: Part | None
    models: tuple[ModelEntry, ...]


def say(
    documents: Sequence[Document],
    predictions: Sequence[Prediction | Classification],
    findings: Sequence[Finding],
    *,
    readers: Sequence[Reader],
    fusion: FusionCheckpoint | None,
    files: Sequence[Path],
    problems: list[ImagingError],
    series: Sequence[SeriesFacts] = (),
) -> Said:
    """What the words of a study say, alone, with its pictures and against them.

    Parameters
    ----------
    documents
        Its texts.
    predictions, findings
        What the pictures say.
    readers
        Checkpoints that read texts.
    fusion
        A trained one; None where there is none.
    files
        DICOM files of the study, whose headers tell age, sex and view.
    problems
        What is refused is added here.
    series
        What the pictures say of themselves, also those that nobody looked at.
    """
    shown = tuple(_shown(series, predictions))
    heard = [_heard(document, readers, problems, shown) for document in documents]
    said = [prediction for prediction in predictions if isinstance(prediction, Classification)]
    whole = {one.checkpoint.name: judged_whole(one.checkpoint.classifier()) for one in said}
    named = {model: name for model, name in whole.items() if name is not None}
    return Said(
        texts=tuple(item.entry for item in heard),
        fusion=_fused(said, heard, fusion, files, problems),
        disagreements=tuple(one for item in heard for one in disagreements(findings, item.words, whole=named)),
        models=tuple(
            {model.name: model for item in heard for model in item.models}.values()
        ) + ((model_entry(fusion),) if fusion is not None else ()),
    )  # fmt: skip


def _shown(series: Sequence[SeriesFacts], predictions: Sequence[Prediction | Classification]) -> Iterator[SeriesFacts]:
    """What the pictures are of; of a file that does not tell, what the checkpoints are for that took it."""
    for facts in series:
        rules = [said.checkpoint.config.applies_to for said in predictions if said.volume.facts == facts]
        if facts.modality or not rules:
            yield facts
        else:
            yield from (replace(facts, modality=modality) for rule in rules for modality in rule.modality)


def _heard(
    document: Document, readers: Sequence[Reader], problems: list[ImagingError], series: Sequence[SeriesFacts]
) -> _Heard:
    read: list[tuple[Reader, TextReading]] = []
    judge: Reader | None
    judged: TextReading | None
    why_not: list[str] = []
    for reader in readers:
        try:
            read.append((reader, reader(document, series)))
        except (InputRefused, MissingPackage, EncoderUnusable) as refusal:
            why_not.append(_why_not(refusal))
            problems += _problem(document, refusal)
    marked = (span for _, reading in read for span in reading.spans)
    spans = spans_of(document, marked, region=region_of(document, series))
    judge, judged = next(((reader, one) for reader, one in read if one.assessment is not None), (None, None))
    part = text_part(judged, classes=judge.classes) if judged is not None and judge is not None else None
    name = judged.checkpoint.name if judged is not None else ""
    reason = " ".join(why_not) or _NO_MODEL
    entry = text_entry(document, spans, model=name, judged=judged, score=part.score() if part else None, why_not=reason)
    words = Words(document, spans, judged.probability if judged else None, judged.assessment if judged else None)
    return _Heard(entry, words, part, tuple(model_entry(reading.checkpoint) for _, reading in read))


def _why_not(refusal: ImagingError) -> str:
    """One sentence or two for a report; whoever reads it there has no command to give."""
    if isinstance(refusal, NotApplicable):
        return f"A checkpoint did not take it: {refusal.seen}; {refusal.expected}."
    return f"{refusal}."


def _problem(document: Document, refusal: ImagingError) -> list[ImagingError]:
    """What is wrong with the study where a checkpoint did not read one of its texts."""
    if isinstance(refusal, NotApplicable):  # that it reads other texts is no fault of this one
        return []
    if isinstance(refusal, MissingPackage):  # nor is it that nobody installed what it needs, but that can be mended
        return [TextNotJudged(document.source, seen=refusal.seen, remedy=refusal.remedy)]
    return [refusal]


def _fused(
    said: Sequence[Classification],
    heard: Sequence[_Heard],
    fusion: FusionCheckpoint | None,
    files: Sequence[Path],
    problems: list[ImagingError],
) -> tuple[FusionEntry, ...]:
    """Picture and words together: a request before a report, and of those that a model judged the first."""
    ordered = sorted(heard, key=lambda item: (item.part is None, item.entry.role != "request"))
    part = ordered[0].part if ordered else None
    no_text = (ordered[0].entry.assessment_reason or _NO_MODEL) if ordered else "none came with the study"
    facts = _facts(said, files) if fusion is not None else {}
    try:
        trained = Fusion(fusion) if fusion is not None else None
        return fusion_entries(said, part, facts, fusion=trained, no_text=no_text)
    except FusionMismatch as error:
        # It was trained with other checkpoints: what there is is told without it, and that it was left out, too.
        problems.append(error)
        return fusion_entries(said, part, facts, no_text=no_text)


def _facts(said: Sequence[Classification], files: Sequence[Path]) -> Mapping[str, str]:
    """Age, sex and view as the header of what was looked at tells them; a PNG or NIfTI file tells none."""
    looked_at = [frame.path for one in said for frame in one.volume.sources[:1]]
    return next((header_facts(path) for path in (*looked_at, *files)), {})
