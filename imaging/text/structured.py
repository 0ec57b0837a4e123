"""The words of a DICOM SR.

Invariant: only what a person wrote or chose is taken, below the heading that its concept names: text as it stands, a
coded finding by the meaning that the SR itself gives the code; an SR that a device alone observed, and one about doses,
is no report. Values never get into messages. DICOM PS3.16 TID 2000 (Basic Diagnostic Imaging Report), CID 7001 and 7002
(its headings and elements), TID 1002 (who observed), CID 240 (present or not). Imports no torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import pydicom
from pydicom.uid import UID

from imaging.dicom.attributes import Instance
from imaging.dicom.frames import quietly, read_dataset
from imaging.errors import DeviceReport, InputRefused, TextEmpty, TextTooLarge, UnreadableDicom
from imaging.text.owner import Owner, told
from imaging.text.plain import LARGEST_CONTAINER, LARGEST_TEXT

# Basic Text, Enhanced, Comprehensive, Comprehensive 3D and Extensible SR; the others hold doses, marks or references.
_TEXT_REPORTS = frozenset(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34, 35))
# By (scheme, value): DCM's and LOINC's code of each heading (CID 7001) and of its elements (CID 7002).
_HEADINGS = {
    "INDICATION": (("DCM", "121062"), ("LN", "55115-0"), ("DCM", "121109"), ("LN", "18785-6"), ("LN", "55752-0")),
    "HISTORY": (("DCM", "121060"), ("LN", "11329-0"), ("DCM", "121110"), ("LN", "55108-5")),
    "TECHNIQUE": (("DCM", "121064"), ("LN", "55111-9"), ("DCM", "121065")),
    "COMPARISON": (("DCM", "121066"), ("LN", "55114-3"), ("DCM", "121068"), ("LN", "18834-2"), ("DCM", "121069")),
    "FINDINGS": (("DCM", "121070"), ("LN", "59776-5"), ("DCM", "121071")),
    "IMPRESSION": (
        *(("DCM", "121072"), ("LN", "19005-8"), ("DCM", "121073"), ("DCM", "121076"), ("LN", "55110-1")),
        *(("DCM", "121077"), ("DCM", "121111"), ("LN", "55112-7")),
    ),
    "RECOMMENDATION": (("DCM", "121074"), ("LN", "18783-1"), ("DCM", "121075")),
    "ADDENDUM": (("DCM", "121078"), ("LN", "55107-7")),
}
_HEADING_OF = {code: heading for heading, codes in _HEADINGS.items() for code in codes}
# Of dose and radiopharmaceutical reports, whatever class they come in (TID 10011, 10021).
_DOSES = frozenset([("DCM", "113701"), ("DCM", "113500")])
# Coded answers to whether something is there, and what a reader would say (CID 240); the concept's name is put in.
_THERE = {
    ("SCT", "52101004"): "{} is present.",
    ("SCT", "2667000"): "No {}.",
    ("SCT", "373068000"): "Possible {}.",
    ("SRT", "G-A203"): "{} is present.",
    ("SRT", "R-4089B"): "No {}.",
}
# Concepts that say what a coded item is, such as a finding, and nothing that is worth a word.
_PLAIN = frozenset([("DCM", "121071"), ("DCM", "121073"), ("SRT", "F-04B29")])
# How an item that was found is tied to what it is below; the others say of it where, with what and by whom.
_FOUND, _OF_IT = frozenset(["CONTAINS", "INFERRED FROM"]), "HAS CONCEPT MOD"
_OTHER = "COMMENT"
_OBSERVER_TYPE, _DEVICE = ("DCM", "121005"), ("DCM", "121007")
_DEEPEST = 32
_MOST_ITEMS = 2_000


def is_text_report(instance: Instance) -> bool:
    """Whether an instance is of an SR class that reports are written in."""
    return instance.sop_class_uid in _TEXT_REPORTS


def report_words(instance: Instance) -> tuple[str, Owner, int]:
    """The text of an SR below the headings of a report, and whose it is.

    Returns
    -------
    text, owner, coded
        How many of its lines are coded findings in words, as `coded`.

    Raises
    ------
    DeviceReport
        If a device alone observed it, or it is about doses.
    TextEmpty, TextTooLarge
        As their names say.
    UnreadableDicom
        If the file or its content tree cannot be read.
    """
    subject = f"sr {instance.sop_instance_uid}"
    try:
        if instance.path.stat().st_size > LARGEST_CONTAINER:
            raise TextTooLarge(subject, seen=f"an SR of more than {LARGEST_CONTAINER} bytes")
        with quietly():
            dataset = read_dataset(instance)
            items = _Items(dataset)
            lines = list(_grouped(items.walk()))
            ids = told(str(dataset.get("PatientID") or ""))
            accessions = told(str(dataset.get("AccessionNumber") or ""))
    except InputRefused:
        raise
    except Exception as error:  # noqa: BLE001  pydicom raises whatever it meets, with values in its words
        seen = f"its content cannot be read ({type(error).__name__})"
        raise UnreadableDicom(instance.path, seen=seen) from None
    if items.observers == {_DEVICE}:
        raise DeviceReport(subject, seen=f"{UID(instance.sop_class_uid).name} that a device observed")
    if items.title in _DOSES:
        raise DeviceReport(subject, seen="a dose report")
    text = "\n\n".join(lines)
    if not text:
        raise TextEmpty(subject, seen="no content item of type TEXT, and no coded finding")
    if len(text) > LARGEST_TEXT:
        raise TextTooLarge(subject, seen=f"{len(text)} characters")
    return text, Owner(told(instance.study_uid), ids, accessions), items.coded


class _Items:
    """The content tree of an SR (PS3.3 C.17.3), in the order in which it is read aloud."""

    def __init__(self, dataset: pydicom.Dataset) -> None:
        self._root = dataset
        self.title = _code(dataset)
        self.observers: set[tuple[str, str]] = set()
        self.coded = 0

    def walk(self) -> Iterator[tuple[str, str]]:
        """Heading and words of each TEXT item and of each coded finding."""
        # Without recursion, so that no tree is too deep to be refused.
        waiting = deque((item, _HEADING_OF.get(_code(self._root), ""), 1) for item in self._children(self._root))
        count = 0
        while waiting:
            item, heading, depth = waiting.popleft()
            count += 1
            if depth > _DEEPEST or count > _MOST_ITEMS:
                raise ValueError("a content tree beyond the bounds")
            concept = _code(item)
            heading = _HEADING_OF.get(concept, heading)
            kind = str(item.get("ValueType") or "")
            if kind == "TEXT":
                words = str(item.get("TextValue") or "").strip()
                if words:
                    yield heading, words
            elif kind == "CODE" and concept == _OBSERVER_TYPE:
                self.observers.add(_first_code(item.get("ConceptCodeSequence")))
            elif kind == "CODE" and heading and str(item.get("RelationshipType") or "") in _FOUND:
                words = _in_words(item, self._children(item))
                self.coded += bool(words)
                if words:
                    yield heading, words
            waiting.extendleft((child, heading, depth + 1) for child in reversed(self._children(item)))

    @staticmethod
    def _children(item: pydicom.Dataset) -> list[pydicom.Dataset]:
        return list(item.get("ContentSequence") or [])


def _in_words(item: pydicom.Dataset, children: Sequence[pydicom.Dataset]) -> str:
    """A coded finding by the meanings of its codes, with what is said of it (its site, its laterality) after commas."""
    meaning = _meaning(item.get("ConceptCodeSequence"))
    named = _meaning(item.get("ConceptNameCodeSequence"))
    if not meaning:
        return ""
    there = _THERE.get(_first_code(item.get("ConceptCodeSequence")))
    if there is not None and named:
        return there.format(named)
    mods = (child for child in children if str(child.get("RelationshipType") or "") == _OF_IT)
    said = ", ".join([meaning, *(mod for child in mods if (mod := _meaning(child.get("ConceptCodeSequence"))))])
    return f"{said}." if _code(item) in _PLAIN or not named else f"{named}: {said}."


def _meaning(sequence: Sequence[pydicom.Dataset] | None) -> str:
    return " ".join(str(sequence[0].get("CodeMeaning") or "").split()) if sequence else ""


def _code(item: pydicom.Dataset) -> tuple[str, str]:
    return _first_code(item.get("ConceptNameCodeSequence"))


def _first_code(sequence: Sequence[pydicom.Dataset] | None) -> tuple[str, str]:
    code = sequence[0] if sequence else pydicom.Dataset()
    return str(code.get("CodingSchemeDesignator") or ""), str(code.get("CodeValue") or "")


def _grouped(items: Iterator[tuple[str, str]]) -> Iterator[str]:
    """Paragraphs, each with its heading where that differs from the one before."""
    last = ""
    for known, words in items:
        # What no known heading stands above must not pass for more of the section before it.
        heading = known or (_OTHER if last else "")
        yield f"{heading}:\n{words}" if heading != last else words
        last = heading
