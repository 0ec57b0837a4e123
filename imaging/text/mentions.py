"""Findings that a report mentions, by their names.

Invariant: a code comes from the table of codes and from nowhere else; what is mentioned and has no verified code is a
span without one. Of words that overlap the longest are meant, so that a pericardial effusion is no pleural one. What
findings are called is in the table (`imaging/codes.csv`: name, meaning, synonyms) and, for what reports say in other
words, in `phrases.csv`. These are the names of chest reports: what a bare word means elsewhere, where a mass is no
lung's, is in `elsewhere.csv`. Imports no torch.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from imaging.codes import shipped_codes
from imaging.config.meaning import Code
from imaging.text.assertion import judged
from imaging.text.document import Document, Section, Span
from imaging.text.region import Region

_PHRASES, _ELSEWHERE = (Path(__file__).with_name(name) for name in ("phrases.csv", "elsewhere.csv"))
# What was done, and what earlier images showed, is no finding of this study.
_SILENT = frozenset(("technique", "comparison"))
# An entry's meaning may say more than its name ("Nodule of lung"), never less.
_FINDING, _MORPHOLOGY = "finding", "morphology"
_PLURALS = (("is", "(?:is|es)"), ("y", "(?:y|ies)"), ("ss", "ss(?:es)?"), ("x", "x(?:es)?"), ("s", "s"), ("", "s?"))

Place = tuple[int, int]


def find_mentions(document: Document, *, region: Region | None = None) -> tuple[Span, ...]:
    """The findings that a text mentions, each with what the text says of it.

    Parameters
    ----------
    document
        The text.
    region
        Where its findings lie (`imaging.text.region.region_of`); where nothing is known the text is read as one of a
        chest.

    Returns
    -------
    tuple of Span
        In the order of the text, without overlap, in every section but `technique` and `comparison`; what the
        indication of a report asks is among them, and its place tells.
    """
    found = [
        item
        for section in document.sections
        if section.name not in _SILENT
        for item in _in_section(document, section, region or "chest")
    ]
    judgements = judged(document, [place for place, _ in found])
    return tuple(
        Span(*place, "finding", judgement.assertion, 1.0, code, judgement.sentence)
        for (place, code), judgement in zip(found, judgements, strict=True)
    )


def is_general(code: Code) -> bool:
    """Whether a code says what was found and nothing of where: a mass, and not a mass of the lung."""
    return code in {entry.code for entry in shipped_codes().entries if entry.category == _MORPHOLOGY}


def _in_section(document: Document, section: Section, region: Region) -> list[tuple[Place, Code | None]]:
    """Mentions that do not overlap: of two that do the earlier, of two that begin together the longer."""
    every = [
        (_place(match), code)
        for pattern, code in _vocabulary(region)
        for match in pattern.finditer(document.text, section.start, section.end)
    ]
    # Of equal places the one that comes first in the vocabulary is kept.
    every.sort(key=lambda item: (item[0][0], -item[0][1]))
    chosen: list[tuple[Place, Code | None]] = []
    for place, code in every:
        if not chosen or place[0] >= chosen[-1][0][1]:
            chosen.append((place, code))
    return chosen


def _place(match: re.Match[str]) -> Place:
    """A phrase's group is the mention, what is around it only tells what it means."""
    return match.span(1) if match.re.groups else match.span()


@cache
def _vocabulary(region: Region) -> tuple[tuple[re.Pattern[str], Code | None], ...]:
    return tuple((re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.I), code) for pattern, code in _patterns(region))


def _patterns(region: Region) -> Iterator[tuple[str, Code | None]]:
    """Patterns with their codes; of two for the same words the first one counts."""
    if region == "elsewhere":
        yield from _of_table(_ELSEWHERE)
    for entry in shipped_codes().entries:
        if entry.category == _FINDING:
            for name in dict.fromkeys((entry.name.replace("_", " "), entry.code.meaning, *entry.synonyms)):
                yield _spelled(name), entry.code
    yield from _of_table(_PHRASES)


def _of_table(path: Path) -> Iterator[tuple[str, Code | None]]:
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            yield _spaced(row["pattern"]), shipped_codes().code_of(row["name"]) if row["name"] else None


def _spelled(name: str) -> str:
    """A name in singular or plural, with blanks or hyphens between its words."""
    *words, last = re.split(r"[ -]", name.lower())
    ending, plural = next((ending, plural) for ending, plural in _PLURALS if last.endswith(ending))
    return r"[\s-]+".join([*map(re.escape, words), re.escape(last.removesuffix(ending)) + plural])


def _spaced(pattern: str) -> str:
    """A blank of the table is any space; one that may be left out is a hyphen, too."""
    return pattern.replace(" ?", r"[\s-]?").replace(" ", r"[\s-]+")
