"""Whether a text says of what it mentions that it is there, that it is not, or leaves it open.

Rules in the manner of ConText (Harkema, Dowling, Thornblade and Chapman, *ConText: an algorithm for determining
negation, experiencer, and temporal status from clinical reports*, J Biomed Inform 42 (2009) 839-851): a **trigger**
("no", "possible") reaches forward or backward over its sentence until a **terminator** ("but"); a **pseudo-trigger**
("no change in") takes a trigger's words away from it. The words are in `triggers.csv`; how often all this is right on
sentences that it was not made for is in docs/text.md.

Invariant: what counts is the text's own words about the patient now. An old illness ("history of COPD") is present, one
that has resolved or that a relative has is absent, and what is only asked ("rule out") is uncertain. Imports no torch.
"""

from __future__ import annotations

import csv
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from imaging.text.document import Assertion, Document

Sense = Literal["absent", "uncertain", "present", "end"]
Place = tuple[int, int]

# Of triggers of the same words the one is meant that takes less away.
_CAUTIOUS: tuple[Sense, ...] = ("present", "uncertain", "absent", "end")
_SENSES: dict[str, Sense] = {sense: sense for sense in _CAUTIOUS}
_TABLE = Path(__file__).with_name("triggers.csv")
# A sentence ends at a mark with a blank and something that may begin one after it, at an empty line, or before an item.
_SENTENCE_END = re.compile(
    r"[.!?]+[)\"'\]]*(?=\s+[^a-z\s,;])|\n[ \t\r]*(?=\n|[-*\u2022]|\d{1,2}[.)]\s)|[ \t](?=\d{1,2}\.\s{1,4}[A-Z])"
)
# A full stop after these ends none; nor does one after a number that begins an item ("1. No effusion").
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|vs|e\.g|i\.e|approx|st|fig|no|resp|incl|cf|ca|[a-z])|(?:^|\s)\d{1,2})\.\Z", re.I
)
_LONGEST_ABBREVIATION = 12
# In characters; what is longer is no prose, and must not make the reading of it slow.
_LONGEST_SENTENCE = 1500
# Numbers and amounts ("two or three nodules") are no choice between two things.
_NO_CHOICE = r"(?!(?:more|so|less|two|three|four|five|\d+)\b)"
_OR_BEFORE = re.compile(rf"[^\W\d]\s(?:and/)?(?P<or>or)\s+{_NO_CHOICE}(?:[\w-]+\s+){{0,2}}\Z", re.I)
_OR_AFTER = re.compile(rf"\s(?:and/)?or\s+{_NO_CHOICE}\w", re.I)
_NEAR = 60
# Between two letters, digits or signs that belong together; "?" is a word of its own.
_NOT_INSIDE = r"(?!(?<=\w)(?=\w))"
# What may stand between two statements; a trigger right after it begins a new one.
_JOINT = re.compile(r"(?:,|;|\band|\bbut|\bwith|\bthen)\s{0,4}\Z", re.I)
_LONGEST_JOINT = 12
_ALTERNATIVE = re.compile(r"\b(?:or|nor|and)\b", re.I)


class Judgement(NamedTuple):
    """What a text says of a place in it, and the sentence that says so."""

    assertion: Assertion
    sentence: Place


@dataclass(frozen=True, slots=True)
class _Trigger:
    """Words of the table where they stand in a sentence."""

    start: int
    end: int
    sense: Sense
    reach: str


def sentences(document: Document) -> tuple[Place, ...]:
    """[start, end) of each sentence, in order and without blanks at its ends; none lies in two sections."""
    return tuple(place for section in document.sections for place in _split(document.text, section.start, section.end))


def _split(text: str, start: int, end: int) -> Iterator[Place]:
    begin = start
    for mark in _SENTENCE_END.finditer(text, start, end):
        if _ABBREVIATION.search(text[max(begin, mark.end() - _LONGEST_ABBREVIATION) : mark.end()]):
            continue
        yield from _trimmed(text, begin, mark.end())
        begin = mark.end()
    yield from _trimmed(text, begin, end)


def _trimmed(text: str, start: int, end: int) -> Iterator[Place]:
    """A place without the blanks around it; one that is longer than any sentence in pieces, cut at blanks."""
    while end - start > _LONGEST_SENTENCE:
        cut = max(text.rfind(blank, start, start + _LONGEST_SENTENCE) for blank in " \n")
        cut = cut if cut > start else start + _LONGEST_SENTENCE
        yield from _trimmed(text, start, cut)
        start = cut
    words = text[start:end]
    start += len(words) - len(words.lstrip())
    words = words.strip()
    if words:
        yield start, start + len(words)


def judged(document: Document, places: Iterable[Place]) -> tuple[Judgement, ...]:
    """What a text says of the places in it.

    Parameters
    ----------
    document
        The text.
    places
        [start, end) of each mention, in code points. One that reaches over the end of its sentence is judged by the
        sentence that it begins in; one outside of all sections is a sentence of its own.

    Returns
    -------
    tuple of Judgement
        In the order of `places`.
    """
    bounds = sentences(document)
    starts = [start for start, _ in bounds]
    read: dict[Place, _Sentence] = {}
    found = []
    for start, end in places:
        at = bisect_right(starts, start) - 1
        sentence = bounds[at] if at >= 0 and start < bounds[at][1] else (start, end)
        if sentence not in read:
            read[sentence] = _Sentence.of(document.text[slice(*sentence)])
        assertion = read[sentence].assertion(start - sentence[0], min(end, sentence[1]) - sentence[0])
        found.append(Judgement(assertion, sentence))
    return tuple(found)


@cache
def _table() -> tuple[tuple[re.Pattern[str], Sense, str], ...]:
    """Patterns of whole words, a blank in them for any space."""
    with _TABLE.open(encoding="utf-8", newline="") as stream:
        return tuple(
            (_whole_words(row["pattern"]), _SENSES[row["sense"]], row["reach"]) for row in csv.DictReader(stream)
        )


def _whole_words(pattern: str) -> re.Pattern[str]:
    spaced = pattern.replace(" ", r"\s{1,8}")
    return re.compile(f"{_NOT_INSIDE}(?:{spaced}){_NOT_INSIDE}", re.I)


@dataclass(frozen=True, slots=True)
class _Sentence:
    """A sentence's triggers in order, and the places in them that nothing before reaches over."""

    words: str
    triggers: Sequence[_Trigger]
    barriers: Sequence[int]

    @classmethod
    def of(cls, words: str) -> _Sentence:
        triggers = _triggers(words)
        barriers = [trigger.start for trigger in triggers if trigger.sense == "end" or _is_after_joint(words, trigger)]
        return cls(words, triggers, barriers)

    def assertion(self, start: int, end: int) -> Assertion:
        """What it says of [start, end)."""
        # Of nested triggers the outer speaks: "no finding that suggests", "not certain that there is no".
        outer = next((trigger.sense for trigger in self._before(start) if self._reaches(trigger, start)), None)
        after = next((trigger.sense for trigger in self._after(end) if self._reaches_back(trigger, end)), None)
        if "absent" in (outer, after):
            return "absent"
        if "uncertain" in (outer, after) or self._is_one_of_two(start, end):
            return "uncertain"
        return "present"

    def _is_one_of_two(self, start: int, end: int) -> bool:
        """Whether it is told as one of two that may be: "scar or nodule"; with a negation both are absent."""
        if _OR_AFTER.match(self.words, end):
            return True
        begin = max(0, start - _NEAR)
        choice = _OR_BEFORE.search(self.words[begin:start])
        return choice is not None and not any(
            begin + choice.end("or") <= trigger.start < start for trigger in self.triggers
        )

    def _before(self, start: int) -> Iterator[_Trigger]:
        """Triggers that end before a place, from the last barrier on."""
        at = bisect_left(self.barriers, start)
        begin = self.barriers[at - 1] if at else 0
        first = bisect_left(self.triggers, begin, key=lambda trigger: trigger.start)
        yield from takewhile(lambda trigger: trigger.end <= start, self.triggers[first:])

    def _after(self, end: int) -> Iterator[_Trigger]:
        first = bisect_left(self.triggers, end, key=lambda trigger: trigger.start)
        yield from takewhile(lambda trigger: trigger.sense != "end", self.triggers[first:])

    def _reaches(self, trigger: _Trigger, start: int) -> bool:
        # A sentence may begin with what else ends one: "Not seen is any effusion."
        if trigger.sense not in ("absent", "uncertain") or (trigger.reach == "backward" and trigger.start > 0):
            return False
        if trigger.sense == "absent" or trigger.reach == "list" or "," not in self.words[trigger.end : start]:
            return True
        # A comma ends what is open, unless it is one of a list of alternatives.
        return _ALTERNATIVE.search(self.words, trigger.end) is not None

    def _reaches_back(self, trigger: _Trigger, end: int) -> bool:
        if trigger.sense not in ("absent", "uncertain") or trigger.reach in ("forward", "list"):
            return False
        between = self.words[end : trigger.start]
        if trigger.reach == "both":
            # Of "X may be Y versus Z" only Y and Z are open.
            return "," not in between and not any(end <= other.start < trigger.start for other in self.triggers)
        if "," not in between:
            return True
        return _ALTERNATIVE.search(between.rpartition(",")[2]) is not None


def _triggers(sentence: str) -> Sequence[_Trigger]:
    """The triggers of a sentence in order; of two that share a word the earlier, the longer, the more cautious one."""
    found = [
        _Trigger(*match.span(), sense, reach)
        for pattern, sense, reach in _table()
        for match in pattern.finditer(sentence)
        if match.end() > match.start()
    ]
    found.sort(key=lambda trigger: (trigger.start, -trigger.end, _CAUTIOUS.index(trigger.sense), trigger.reach))
    chosen: list[_Trigger] = []
    for trigger in found:
        if not chosen or trigger.start >= chosen[-1].end:
            chosen.append(trigger)
    return chosen


def _is_after_joint(sentence: str, trigger: _Trigger) -> bool:
    return _JOINT.search(sentence[max(0, trigger.start - _LONGEST_JOINT) : trigger.start]) is not None
