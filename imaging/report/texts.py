"""A text of a study -> its part of the report: sentence by sentence what it mentions, and what a model says of it.

Invariant: every mention has its place in the words, and stands in the one sentence that it begins in. Mentions come
from a table of names, and from a model where one read the text; where two overlap, the table's is kept, for it has a
code. Without a model that judges texts a text is told and not judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from imaging.report.report import Assessment, Score, SectionEntry, SentenceEntry, SpanEntry, TextEntry
from imaging.text.assertion import sentences
from imaging.text.document import Document, Span
from imaging.text.mentions import find_mentions
from imaging.text.region import Region


class Judged(Protocol):
    """What a report asks of a reading: `imaging.text.answer.TextReading`."""

    @property
    def assessment(self) -> Assessment | None:
        """Normal, abnormal or indeterminate; None where no text is judged."""

    @property
    def reason(self) -> str:
        """Why."""


def spans_of(document: Document, marked: Iterable[Span] = (), *, region: Region | None = None) -> tuple[Span, ...]:
    """What a text mentions: by the table as it holds for the region, and what models marked besides; in its order."""
    kept: list[Span] = []
    for span in (*find_mentions(document, region=region), *marked):
        if not any(span.start < other.end and other.start < span.end for other in kept):
            kept.append(span)
    return tuple(sorted(kept, key=lambda span: (span.start, span.end)))


def text_entry(
    document: Document,
    spans: Sequence[Span],
    *,
    model: str = "",
    judged: Judged | None = None,
    score: Score | None = None,
    why_not: str = "",
) -> TextEntry:
    """A text as the report has it.

    Parameters
    ----------
    document
        The text.
    spans
        What it mentions; see `spans_of`.
    model, judged, score
        The checkpoint that judged it, what follows, and the probability that it is of an abnormal study.
    why_not
        Where none judged it, why.
    """
    places = sentences(document)
    known = score is not None and score.low is not None and score.high is not None
    return TextEntry(
        role=document.role,
        source=document.source,
        sha256=document.sha256,
        language=document.language,
        model=model,
        probability=score.probability if score else None,
        interval=(score.low, score.high) if score and known else None,
        assessment=(judged.assessment if judged else None) or "indeterminate",
        assessment_reason=judged.reason if judged else why_not,
        whose=document.whose,
        sentences=tuple(_sentence(document, start, end, spans) for start, end in places),
        sections=tuple(SectionEntry(name=part.name, start=part.start, end=part.end) for part in document.sections),
    )


def _sentence(document: Document, start: int, end: int, spans: Sequence[Span]) -> SentenceEntry:
    own = tuple(
        SpanEntry(
            start=span.start,
            end=span.end,
            text=document.text[span.start : span.end],
            kind=span.kind,
            assertion=span.assertion,
            score=round(span.score, 5),
            code=span.code,
        )
        for span in spans
        if start <= span.start < end
    )
    return SentenceEntry(start=start, end=end, text=document.text[start:end], spans=own)
