"""What is done with each attribute: the table of PS3.15 Annex E, and what is let through beyond it.

Invariant: an attribute that neither the table nor a list here knows is not let through. The profile itself keeps what
it does not list; attributes with free text that nobody has looked at are taken away instead.

Source of `profile.csv`: PS3.15 table E.1-1. The actions of the Basic Profile are those of edition 2026c, as
dicom-anonymizer 2.1.0 lists them; the columns of the options those of edition 2020, as dicom-standard 0.1.0 does. What
was listed since has no option here, and is treated by the Basic Profile. Curves and overlays (50xx, 60xx) and private
attributes, which the table has by pattern, are dealt with in `clean.py`.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import Literal

from pydicom.datadict import DicomDictionary

from imaging.dicom.deidentify.options import Options

# Keep; keep and look into (a sequence); empty; dummy; remove; another UID; a moved date; words of a list only.
Action = Literal["K", "Z", "D", "X", "U", "moved", "words"]

_TIMES = ("DA", "TM", "DT")
_BULK = frozenset(["OB", "OD", "OF", "OL", "OV", "OW", "UN"])
_NUMBERS = frozenset(["AT", "DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV", "CS", "SQ", "UI"])


@cache
def kept(section: str) -> frozenset[str]:
    """The keywords of a section of ``kept.txt``: what the table does not list and an image keeps."""
    text = files("imaging.dicom.deidentify").joinpath("kept.txt").read_text(encoding="utf-8")
    parts = dict(part.split("]", 1) for part in text.split("[")[1:])
    return frozenset(parts[section].split())


@cache
def _table() -> dict[int, dict[str, str]]:
    text = files("imaging.dicom.deidentify").joinpath("profile.csv").read_text(encoding="utf-8")
    return {int(row["tag"], 16): row for row in csv.DictReader(text.splitlines())}


def known_vrs(tag: int) -> tuple[str, ...]:
    """The value representations that PS3.6 gives an attribute; none where it does not have it."""
    entry = DicomDictionary.get(tag)
    return tuple(entry[0].split(" or ")) if entry else ()


def action_of(tag: int, vr: str, *, empty: bool, options: Options) -> Action:
    """What is done with an attribute.

    Parameters
    ----------
    tag
        Of a standard attribute that PS3.6 has.
    vr
        Its value representation there.
    empty
        Whether it has no value.
    options
        Which options of the profile are taken.

    Returns
    -------
    Action
        Where the table leaves it to the attribute's type in the IOD (such as ``X/Z/D``), the one of them that every
        type allows: a dummy where there was a value.
    """
    row = _table().get(tag)
    if row is None:
        return _unlisted(tag, vr)
    for column in options.columns:
        if row[column]:
            return _by_option(column, row[column], vr)
    choices = row["action"].split("/")
    if "U*" in choices:
        return "K" if vr == "SQ" else "U"
    if vr == "SQ":
        return "X" if "X" in choices else "Z"
    if empty and "U" not in choices:
        return "Z" if choices != ["X"] else "X"
    last = choices[-1]
    assert last in ("X", "Z", "D", "U")
    return last  # type: ignore[return-value]


def _by_option(column: str, code: str, vr: str) -> Action:
    """K keeps; C cleans in the way of the column, and where it has none, takes away."""
    if code == "K":
        return "K"
    if column == "modified_dates" and vr in _TIMES:
        return "moved"
    return "words" if column == "clean_descriptors" and vr != "SQ" else "X"


def _unlisted(tag: int, vr: str) -> Action:
    keyword = DicomDictionary[tag][4]
    if vr == "UI":
        return "U"
    if vr in _NUMBERS or keyword in kept("texts") or keyword in kept("bulk"):
        return "K"
    # Some IOD may want it there, and none wants an optional one away.
    return "X" if vr in _BULK else "Z"
