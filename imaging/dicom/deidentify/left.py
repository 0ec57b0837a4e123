"""What a de-identified image may still say in words: the second pass's own list, `left.txt`.

Invariant: nothing is on it that names a person, a place or a day. It is written out rather than derived from the
profile's table, so that a slip in the one is seen by the other; a test holds the two against each other.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def left(section: str) -> frozenset[str]:
    """The keywords that may be left: of ``texts``, of an option by its code in CID 7050, or of values in ``bulk``."""
    text = files("imaging.dicom.deidentify").joinpath("left.txt").read_text(encoding="utf-8")
    parts = dict(part.split("]", 1) for part in text.split("[")[1:])
    return frozenset(parts[section].split())
