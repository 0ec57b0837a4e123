"""Whether a text is English, which is all that imgpipe's models and rules of language know.

Invariant: a text is called another language only on evidence: letters of another script, or more of another language's
small words than of English ones. What is too short to tell is not called anything.

Counting small words is the simpler of the two schemes of Grefenstette, *Comparing two language identification schemes*
(JADT 1995); `benchmarks/bench_assertion.py` measures its error. Imports no torch.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import cache
from pathlib import Path

ENGLISH = "en"
# Share of letters that are of no Latin script from which a text is not English; units and Greek letters stay below it.
_FOREIGN_SCRIPT = 0.3
# Fewer small words than this of a language are no evidence.
_LEAST = 2
# Single letters are left out: in English requests they are abbreviations (w/o, h/o, r/o), elsewhere words.
_WORD = re.compile(r"[^\W\d_]{2,}|[^\W\d_a-z]")
_LIST = Path(__file__).with_name("frequent_words.txt")


@cache
def _known() -> dict[str, frozenset[str]]:
    """The words of each language; one that two languages share is in both."""
    lines = (line.partition(":") for line in _LIST.read_text(encoding="utf-8").splitlines() if line[:1] != "#")
    known: dict[str, set[str]] = {}
    for language, _, words in lines:
        known.setdefault(language, set()).update(words.split())
    return {language: frozenset(words) for language, words in known.items()}


def language_of(text: str) -> str:
    """The language of a text.

    Returns
    -------
    str
        ISO 639-1; `und` (ISO 639-2) for another script, whose languages are not told apart; empty where there is too
        little to tell.
    """
    letters = [letter for letter in text if letter.isalpha()]
    foreign = sum(not _is_latin(letter) for letter in letters)
    if letters and foreign > _FOREIGN_SCRIPT * len(letters):
        return "und"
    words = Counter(_WORD.findall(unicodedata.normalize("NFC", text).lower()))
    counts = {language: sum(words[word] for word in known) for language, known in _known().items()}
    other = max((language for language in counts if language != ENGLISH), key=lambda language: counts[language])
    if counts[other] > counts[ENGLISH]:
        return other if counts[other] >= _LEAST else ""
    return ENGLISH if counts[ENGLISH] >= _LEAST else ""


def _is_latin(letter: str) -> bool:
    return letter.isascii() or unicodedata.name(letter, "").startswith(("LATIN", "MICRO", "FEMININE", "MASCULINE"))
