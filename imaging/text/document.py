"""A text beside a study, the sections it has, and what is marked in it.

Invariant: every place is a pair of offsets into `Document.text`, counted in code points, end not included; the text is
never changed, so that any mark leads back to the words. The words are left out of every `repr`, and so out of logs.
Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from typing import Literal, get_args

from imaging.config.meaning import Code

Role = Literal["request", "report"]
Whose = Literal["named", "unnamed", "unknown"]
SectionName = Literal["indication", "history", "technique", "comparison", "findings", "impression", "other"]
Kind = Literal["finding", "disease", "chemical"]
Assertion = Literal["present", "absent", "uncertain"]

# Sections that say nothing of what this picture shows: "rule out pneumonia", "pneumonia in 2010".
NOT_SEEN: frozenset[SectionName] = frozenset(("indication", "history", "technique", "comparison"))
ASSERTIONS: tuple[Assertion, ...] = get_args(Assertion)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a text by what its heading says; [start, end) are the words below the heading, without it."""

    name: SectionName
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Span:
    """A mention in a text.

    Attributes
    ----------
    start, end
        Where it is; in code points.
    kind
        What is mentioned.
    assertion
        Whether the text says that it is there, that it is not, or leaves it open.
    score
        How sure the marker is of the mention, 0 to 1; 1.0 for one that a table of words gave.
    code
        Of the concept, where a table has one.
    sentence
        [start, end) of the sentence that it stands in.
    """

    start: int
    end: int
    kind: Kind
    assertion: Assertion
    score: float
    code: Code | None
    sentence: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it is from.

    Attributes
    ----------
    text
        Its words, as they were read.
    role
        `request` was written before the image was read, `report` describes the image: to fuse that with the image's own
        scores would be circular.
    source
        Where it stood, such as ``file report.txt`` or ``attribute AdditionalPatientHistory``; for people.
    sha256
        Of the text in UTF-8, lower-case hex.
    sections
        In the order of the text, without overlap; what stands below no known heading is `other`.
    language
        As ISO 639-1 tells it; empty where the text is too short to tell.
    whose
        ``named`` where it names the study, patient or order of the images, ``unnamed`` where it names nobody, so that
        only its place says whose it is, ``unknown`` where there is nothing to compare it with.
    """

    text: str = field(repr=False)
    role: Role
    source: str
    sha256: str
    sections: tuple[Section, ...]
    language: str = ""
    whose: Whose = "unknown"

    @classmethod
    def of(cls, text: str, *, role: Role, source: str, language: str = "", whose: Whose = "unknown") -> Document:
        """The document of a text: its sections found, its digest taken."""
        return cls(text, role, source, hashlib.sha256(text.encode()).hexdigest(), sections_of(text), language, whose)

    def words(self, section: Section) -> str:
        """The text of one section, without its heading."""
        return self.text[section.start : section.end]

    def section_at(self, place: int) -> SectionName:
        """The name of the section that a place lies in; `other` between sections, as in a heading."""
        return next((part.name for part in self.sections if part.start <= place < part.end), "other")


# What headings are called.
_HEADINGS: dict[SectionName, str] = {
    "indication": r"(?:clinical )?indications?(?: for (?:the )?(?:exam(?:ination)?|study|procedure))?"
    r"|reasons?(?: for (?:the )?(?:exam(?:ination)?|study|visit|request(?:ed procedure)?|procedure|test|referral))?"
    r"|clinical (?:question|information|details?|data)|request",
    "history": r"(?:(?:relevant|pertinent|past|additional) )?(?:(?:clinical|patient|medical|surgical) )?history"
    r"(?: of (?:the )?present illness)?",
    "technique": r"techniques?|protocol|procedure|(?:type of )?(?:exam(?:ination)?|study)|views?",
    "comparison": r"comparisons?(?: (?:study|studies|exams?))?|compared (?:to|with)"
    r"|(?:prior|previous) (?:stud(?:y|ies)|exams?(?:inations?)?)",
    "findings": r"findings?|description|observations?|report",
    "impression": r"impressions?|conclusions?|opinion|summary|interpretation|final diagnosis",
    "other": r"recommendations?|addendum|comments?|notes?|notification|communication|attestation"
    r"|(?:electronically )?signed(?: by)?|dictated by|electronic signature",
}
_NAMED = "|".join(f"(?P<{name}>{words})" for name, words in _HEADINGS.items())
_SECOND = "|".join(_HEADINGS.values())
# Every repetition is bounded, so that no text can make the search slow. A second name ("indication and history") is
# part of the heading, and the first decides.
_HEADING = re.compile(
    r"(?:(?P<line>^[ \t]{0,40}(?:[#*_>=]{1,6}[ \t]{0,4}|\d{1,2}[.)][ \t]{1,4})?)"
    r"|(?P<after>(?<=[.;!?)])[ \t]{1,8})|(?<=\s))"
    rf"(?:{_NAMED})(?:[ \t]{{0,4}}(?:and|/|&|,)[ \t]{{0,4}}(?:{_SECOND}))?"
    r"(?P<mark>[ \t]{0,4}[*_]{0,3}[ \t]{0,4}:[*_]{0,3}|[ \t]{1,4}[-\u2013\u2014](?=\s)"
    r"|[*_=]{0,6}[ \t]{0,40}\r?$|(?=[ \t]))",
    re.IGNORECASE | re.MULTILINE,
)
# What may stand before a heading in small letters that has its line to itself.
_PART_ENDS = re.compile(r"(?:^|[.:;]|\n)[ \t]{0,40}\r?\n\Z|\A\Z")
_NEXT_WORD = re.compile(r"[ \t]{1,40}(\S{1,40})")


def sections_of(text: str) -> tuple[Section, ...]:
    """Where the sections of a radiology text are, by their headings.

    A heading is one of the usual names in any case, with a colon, a dash or its own line after it; in capitals it may
    also stand within a line. What stands before the first heading, or in a text without any, is `other`. Sections
    without a word are left out.
    """
    found = [heading for heading in _HEADING.finditer(text) if _is_heading(heading, text)]
    starts = [0, *(heading.end() for heading in found)]
    ends = [*(heading.start() for heading in found), len(text)]
    names: list[SectionName] = ["other", *(_name(heading) for heading in found)]
    parts = (_trimmed(name, start, end, text) for name, start, end in zip(names, starts, ends, strict=True))
    return tuple(part for part in parts if part.start < part.end)


def _is_heading(match: re.Match[str], text: str) -> bool:
    name, mark = match[_name(match)], match["mark"].strip("*_=\r \t")
    begins = match["line"] is not None
    if mark == ":":
        return begins or match["after"] is not None or name.isupper()
    if not begins:
        return False
    if mark:
        return name[0].isupper()
    if match.end() == len(text) or text[match.end()] == "\n":
        before = text[max(0, match.start() - 80) : match.start()]
        return name[0].isupper() or _PART_ENDS.search(before) is not None
    # "FINDINGS The lungs are clear.", but not "FINDINGS ARE STABLE."
    word = _NEXT_WORD.match(text, match.end())
    return name.isupper() and word is not None and not word[1].isupper()


def _name(match: re.Match[str]) -> SectionName:
    return next(name for name in _HEADINGS if match[name] is not None)


def _trimmed(name: SectionName, start: int, end: int, text: str) -> Section:
    words = text[start:end]
    start += len(words) - len(words.lstrip())
    return Section(name, min(start, end), max(min(start, end), start + len(words.strip())))
