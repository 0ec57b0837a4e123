"""Which part of the body a text speaks of, where that decides what its words mean: chest, or elsewhere.

Invariant: what a text says of itself goes before what its pictures say, and where neither says anything nothing is
made up. "Elsewhere" holds as soon as any other part is named: a mass on a CT of chest and abdomen need not lie in the
lung. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from imaging.text.document import Document
from imaging.volume import SeriesFacts

Region = Literal["chest", "elsewhere"]

_CHEST = re.compile(r"chest|thora[xc]|lungs?(?![a-z])|pulmon", re.I)
# As titles and DICOM's Body Part Examined (PS3.16 annex L) have them, one word of which may name two parts
# (CHESTABDOMEN). The heart is elsewhere, too: its edema is none of the lung.
_ELSEWHERE = re.compile(
    r"brain|skull|crani|(?<![a-z])head(?! first)|hippo|pituitar|orbit|(?<![a-z])face|facial|sinus|neck|carotid|thyroid"
    r"|heart|cardi|spin(?:e|al)(?![a-z])|cervic|lumb[ao]|sacr(?:um|al|o)|abdo|abdpel|(?<![a-z])abd(?![a-z])|pelvi"
    r"|(?<![a-z])(?:liver|uter[ui]|colon|rect(?:um|al)|testi[sc])|hepat|biliar|gallbladder|pancrea|spleen|kidney|renal"
    r"|bladder|prostat|ovar|bowel|breast|mammo|scrot|shoulder|clavic|humer|elbow|forearm|wrist|finger|femur|thigh|knee"
    r"|(?<![a-z])(?:hand|hip|leg|toe)s?(?![a-z])|tibia|ankle|foot|feet|extremit|whole ?body"
    r"|cereb|mandib|maxilla|mastoid|zygoma|parotid|laryn|pharyn|stomach|duoden|jejun|intestin|ureter|urethr|vagin"
    r"|vulva|penis|groin|inguin|buttock|coccyx|calcane|patell|upper (?:arm|limb)|lower limb"
    r"|(?<![a-z])(?:ear|eye|eyelid|jaw|tmj|kub|nose|mouth|tongue|cornea|cheek|scalp|anus|ileum|ilium|calf|thumb|limb"
    r"|radius|ulna)s?(?![a-z])",
    re.I,
)
# Mammography, teeth, eyes.
_ONE_PART = frozenset(("MG", "IO", "PX", "OP", "OPT"))
# What titles have and sentences have not.
_EXAM = re.compile(
    r"\b(?:mri?a?|cta?|pet|xr|(?-i:US)|x-?rays?|radiographs?|radiography|ultrasound|sonography|films?|views?|scan"
    r"|tomography|mammogra\w+|angiogra\w+|imaging|exam(?:ination)?|study)\b",
    re.I,
)
_SENTENCE = re.compile(r"\b(?:is|are|was|were|shows?|seen|no|there|with(?:in)? the)\b", re.I)
_TITLE_LINES, _TITLE_CHARACTERS = 3, 100


def region_of(document: Document, series: Iterable[SeriesFacts] = ()) -> Region | None:
    """Where a text's findings lie, as far as anything says it.

    Asked in this order, until one answers: the text's title (what stands above its first heading); the body part of its
    pictures (Body Part Examined, and of a picture without one its description, and a modality of one part only); what
    the text says was examined, in the first line of its technique.

    Parameters
    ----------
    document
        The text.
    series
        What its pictures say of themselves.

    Returns
    -------
    Region or None
        ``chest`` where that alone is named, ``elsewhere`` where any other part is, None where none is.
    """
    return _named(_titles(document)) or _shown(series) or _named(_examined(document))


def _named(said: Iterable[str]) -> Region | None:
    words = "\n".join(said).replace("_", " ")
    if _ELSEWHERE.search(words):
        return "elsewhere"
    return "chest" if _CHEST.search(words) else None


def _titles(document: Document) -> list[str]:
    """The first lines of a text that name an examination, where they stand above every heading."""
    if not document.sections or document.sections[0].name != "other":
        return []
    lines = document.words(document.sections[0]).splitlines()[:_TITLE_LINES]
    short = (line for line in lines if len(line) <= _TITLE_CHARACTERS)
    return [line for line in short if _EXAM.search(line) and not _SENTENCE.search(line)]


def _shown(series: Iterable[SeriesFacts]) -> Region | None:
    """Where the pictures are of: what one of them says of another part counts for all."""
    told = {
        "elsewhere" if facts.modality in _ONE_PART else _named([facts.body_part]) or _named([facts.description])
        for facts in series
    }
    return "elsewhere" if "elsewhere" in told else "chest" if "chest" in told else None


def _examined(document: Document) -> list[str]:
    lines = (document.words(part).splitlines() for part in document.sections if part.name == "technique")
    return [line for each in lines for line in each[:1]]
