"""The first pass: a new data set with what the profile lets through.

Invariant: the result is built, not cut down; what is not copied is not there. Private attributes, curves, overlays and
what PS3.6 does not have are never copied, at any depth, and a value that is not what its attribute takes is none.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag

from imaging.dicom.deidentify.options import Options
from imaging.dicom.deidentify.profile import Action, action_of, kept, known_vrs
from imaging.dicom.deidentify.pseudonyms import Pseudonyms

# What pydicom raises for values that are not what they should be.
MALFORMED = (
    AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OverflowError, RecursionError, TypeError,
    ValueError, struct.error, BytesLengthException,
)  # fmt: skip

_DUMMIES: dict[str, Any] = {
    "DA": "19000101", "TM": "000000", "DT": "19000101000000", "PN": "REMOVED", "AS": "000Y", "DS": "0", "IS": "0",
    "CS": "REMOVED", "UR": "urn:removed",
}  # fmt: skip
_NUMERIC = ("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV")
_CODE_STRING = re.compile(r"[A-Za-z0-9_ .+/-]{0,16}")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MOST_DEEP = 32


@dataclass(slots=True)
class Cleaning:
    """One data set on its way.

    Attributes
    ----------
    names
        Pseudonyms by the key.
    options
        Which options of the profile are taken.
    owner
        Whose it is, for what belongs to one patient; never written.
    people
        The words of all names in it, in capitals: none is a word of radiology's.
    gone
        How often what was not copied, by keyword or by what it is.
    """

    names: Pseudonyms
    options: Options
    owner: str
    people: frozenset[str] = frozenset()
    gone: Counter[str] = field(default_factory=Counter)

    def cleaned(self, dataset: Dataset, depth: int = 0) -> Dataset:
        """The data set with what may stay, sequences likewise."""
        result = Dataset()
        for tag in sorted(dataset.keys()):
            found = self._element(dataset, tag, depth)
            if found is not None:
                result[tag] = found
        return result

    def _element(self, dataset: Dataset, tag: BaseTag, depth: int) -> DataElement | None:
        if tag.group <= 0x0002 or tag.element == 0:
            return None
        if tag.is_private or tag.group & 0xFF00 in (0x5000, 0x6000) or tag not in DicomDictionary:
            self.gone["private" if tag.is_private else f"group {tag.group >> 8:02x}xx or unknown"] += 1
            return None
        element = None
        try:
            element = dataset[tag]
            made = self._made(element, depth) if element.VR in known_vrs(tag) else None
        except MALFORMED:
            made = None
        if made is None or (element is not None and made.is_empty and not element.is_empty):
            self.gone[DicomDictionary[tag][4]] += 1
        return made

    def _made(self, element: DataElement, depth: int) -> DataElement | None:
        action = action_of(element.tag, element.VR, empty=element.is_empty, options=self.options)
        if action == "X":
            return None
        if element.VR == "SQ":
            return self._sequence(element, depth) if action == "K" else DataElement(element.tag, "SQ", Sequence())
        if action == "K":
            return self._kept(element)
        return self._named(element) or self._changed(element, action)

    def _named(self, element: DataElement) -> DataElement | None:
        """What has a pseudonym, with it."""
        if element.keyword in ("PatientName", "PatientID"):
            return DataElement(element.tag, element.VR, self.names.patient(self.owner))
        if element.keyword == "AccessionNumber" and not element.is_empty:
            return DataElement(element.tag, "SH", self.names.accession(str(element.value).strip()))
        return None

    def _changed(self, element: DataElement, action: Action) -> DataElement | None:
        if action == "Z" or element.is_empty:
            return DataElement(element.tag, element.VR, None)
        if action == "D":
            return _dummy(element)
        values = [str(value) for value in _values(element)]
        if action == "U":
            return DataElement(element.tag, "UI", [self.names.uid(_uid(value)) for value in values])
        made = [
            self._moved(value, element.VR) if action == "moved" else words_of(value, self.people) for value in values
        ]
        if all(made):
            return DataElement(element.tag, element.VR, made if len(made) > 1 else made[0])
        # What is left of it is nothing: the Basic Profile says whether it may be missing.
        basic = action_of(element.tag, element.VR, empty=False, options=Options())
        return None if basic == "X" else _dummy(element) if basic == "D" else DataElement(element.tag, element.VR, None)

    def _sequence(self, element: DataElement, depth: int) -> DataElement:
        if depth >= _MOST_DEEP:
            raise ValueError("deeper than any IOD")
        items = [self.cleaned(item, depth + 1) for item in element.value]
        return DataElement(element.tag, "SQ", Sequence(items))

    def _kept(self, element: DataElement) -> DataElement | None:
        """The element as it is, if its value is what its attribute takes."""
        if element.VR == "CS" and not all(_CODE_STRING.fullmatch(str(value)) for value in _values(element)):
            return None
        if element.VR in ("DS", "IS"):
            for value in _values(element):
                float(value)
        if element.keyword in kept("bulk") and not isinstance(element.value, bytes | bytearray | int | list):
            return None
        made = DataElement(element.tag, element.VR, element.value, already_converted=True)
        made.is_undefined_length = element.is_undefined_length and element.keyword in _PIXELS
        return made

    def _moved(self, value: str, vr: str) -> str:
        """A date some days earlier; a time of day is the same on another day."""
        value = value.strip()
        if vr == "TM":
            return value if re.fullmatch(r"[0-9:.]{2,16}", value) else ""
        rest = value[8:] if vr == "DT" else ""
        moved = self.names.moved(value[:8] if vr == "DT" else value, self.owner)
        return moved + rest if moved and re.fullmatch(r"[0-9.+-]*", rest) else ""


def _values(element: DataElement) -> list[Any]:
    value = element.value
    if element.is_empty:
        return []
    return list(value) if element.VM > 1 else [value]


def _uid(value: str) -> str:
    return value.strip(" \0")


def _dummy(element: DataElement) -> DataElement:
    """A value that says nothing (PS3.15 E.1.1, action D)."""
    if element.VR in _NUMERIC:
        return DataElement(element.tag, element.VR, 0)
    if element.VR in ("OB", "OW", "OD", "OF", "OL", "OV", "UN"):
        return DataElement(element.tag, element.VR, b"\0" * 8)
    return DataElement(element.tag, element.VR, _DUMMIES.get(element.VR, "REMOVED"))


@cache
def vocabulary() -> frozenset[str]:
    """The words that descriptions may keep."""
    text = files("imaging.dicom.deidentify").joinpath("words.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def words_of(value: str, people: frozenset[str] = frozenset()) -> str:
    """What of a description says what was done, in capitals, word by word; no word that is a name in `people`."""
    words = (word for word in re.split(r"[^A-Z0-9]+", value.upper()) if word in vocabulary() and word not in people)
    return " ".join(words)[:64].strip()


def people_of(dataset: Dataset) -> frozenset[str]:
    """The words of all names in a data set, however deep, in capitals."""
    found: set[str] = set()
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
            if element.VR == "PN":
                found.update(word for value in _values(element) for word in re.split(r"\W+", str(value).upper()))
            elif element.VR == "SQ":
                found.update(*(people_of(item) for item in element.value))
        except MALFORMED:
            continue
    return frozenset(found)
