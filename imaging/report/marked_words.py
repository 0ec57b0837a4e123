"""A text's sentences cut at what they mention, for the eye.

Invariant: the pieces of a sentence, put together, are the sentence: a mark changes no word of it. Of mentions that
overlap the one that begins first is marked, of those the longest; all of them are in the list of mentions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imaging.report.report import Disagreement, SectionEntry, SentenceEntry, SpanEntry, TextEntry
from imaging.text.document import ASSERTIONS, Assertion

# What a page shows at once; a text may be as long as it likes.
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Piece:
    """Some words of a sentence, and the mention that they are, if they are one."""

    text: str
    span: SpanEntry | None = None


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence in pieces.

    `begins` says that it is the first of its section; `section` is then the section's name, unless the sentence holds
    its heading. `disputed` says that the picture contradicts it.
    """

    pieces: tuple[Piece, ...]
    begins: bool = False
    section: str = ""
    disputed: bool = False


@dataclass(frozen=True, slots=True)
class Words:
    """A text for the eye.

    Attributes
    ----------
    entry
        As the report has it.
    shown, further
        Its sentences: those that a page shows at once, and the rest.
    mentions
        What is mentioned as present, absent and uncertain, each mention once.
    """

    entry: TextEntry
    shown: tuple[Sentence, ...]
    further: tuple[Sentence, ...]
    mentions: tuple[tuple[Assertion, tuple[str, ...]], ...]


def words_of(entry: TextEntry, disagreements: Sequence[Disagreement] = ()) -> Words:
    """Cut a text's sentences at what they mention, and list that."""
    disputed = {(item.sentence.start, item.sentence.end) for item in disagreements
                if item.sentence is not None and item.sentence.text_sha256 == entry.sha256}  # fmt: skip
    sentences: list[Sentence] = []
    last: SectionEntry | None = None
    for sentence in entry.sentences:
        within = (part for part in entry.sections if part.start < sentence.end and sentence.start < part.end)
        section = next(within, None)
        begins = section is not None and section != last
        named = section.name if section is not None and begins and sentence.start >= section.start else ""
        contradicted = (sentence.start, sentence.end) in disputed
        sentences.append(Sentence(pieces_of(sentence), begins, "" if named == "other" else named, contradicted))
        last = section
    return Words(entry, tuple(sentences[:_SHOWN]), tuple(sentences[_SHOWN:]), _mentions(entry))


def pieces_of(sentence: SentenceEntry) -> tuple[Piece, ...]:
    """The words of a sentence, cut where a mention begins and ends."""
    pieces, at = [], sentence.start
    for span in sorted(sentence.spans, key=lambda span: (span.start, -span.end)):
        if span.start < at or span.end > sentence.end or span.end <= span.start:
            continue
        if span.start > at:
            pieces.append(Piece(_between(sentence, at, span.start)))
        pieces.append(Piece(_between(sentence, span.start, span.end), span))
        at = span.end
    rest = sentence.text[at - sentence.start :]
    return (*pieces, Piece(rest)) if rest else tuple(pieces)


def _between(sentence: SentenceEntry, start: int, end: int) -> str:
    return sentence.text[start - sentence.start : end - sentence.start]


def _mentions(entry: TextEntry) -> tuple[tuple[Assertion, tuple[str, ...]], ...]:
    spans = [span for sentence in entry.sentences for span in sentence.spans]
    told = []
    for assertion in ASSERTIONS:
        names: dict[str, str] = {}
        for span in spans:
            if span.assertion == assertion:
                names.setdefault(_name(span).lower(), _name(span))
        if names:
            told.append((assertion, tuple(names.values())))
    return tuple(told)


def _name(span: SpanEntry) -> str:
    return f"{span.code.meaning} ({span.code.scheme} {span.code.value})" if span.code else span.text
