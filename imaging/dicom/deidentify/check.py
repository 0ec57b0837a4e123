"""The second pass: what the file that would be written still says.

Invariant: it knows nothing of the first pass: not its table, its pseudonyms or its options. It starts from the bytes.
It takes what the original says of people, places and days, and looks for that in the bytes of the result in every
character set of DICOM; and it holds every attribute of the result against a list of its own. One hit and the file is
withheld; what was hit is named by its attribute, never by its value.
"""

from __future__ import annotations

import io
import re
import unicodedata
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pydicom
from pydicom.charset import python_encoding
from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import PYDICOM_IMPLEMENTATION_UID, DeflatedExplicitVRLittleEndian, UID_dictionary

from imaging.dicom.deidentify.left import left
from imaging.errors import IdentityLeft

# What is an identifier wherever it stands in an original: by name, for no table is asked here.
_IDENTIFYING = re.compile(
    r"PatientName|PatientID|OtherPatient|IssuerOf|Accession|Address|Telephone|Institution|Physician|Operator|Serial"
    r"|StationName|StationAETitle|Admission|BirthName|BirthDate|Mother|Military|Insurance|Residence|Occupation"
    r"|Religious|PersonName|Verifying|Author|Custodia|Referring|Requesting|Responsible|OrderNumber|Comments|History"
    r"|PersonIdent|SourceApplicationEntity|PlateID|CassetteID|GantryID|GeneratorID|DetectorID|Visit|ClinicalTrialSubject"
)
# Of those, what a maker's or a model's name is often written into.
_PLACES = re.compile(r"Institution|Station|Serial|SourceApplicationEntity|GantryID|GeneratorID|DetectorID|PlateID")
_MAKERS = ("Manufacturer", "ManufacturerModelName", "SoftwareVersions")
_TEXT_VRS = ("AE", "AS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT")
_BULK_VRS = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
# What an identifier must at least have to be looked for anywhere, and to be looked for as a word.
_LONG, _WORD = 6, 3
# In a character set of two bytes or more a name of two characters is four bytes; it is looked for beside the pixels.
_WIDE = 4
_ENCODINGS = tuple(
    sorted({"utf-8", "utf-16-le", "utf-16-be", *(name for name in python_encoding.values() if name != "iso2022_jp_2")})
)
_DUMMIES = {"REMOVED", "000Y", "19000101", "000000", "19000101000000", "urn:removed"}
_SAID = (
    b"imgpipe, PS3.15 Annex E Basic Profile",
    b"Basic Application Confidentiality Profile",
    b"Retain Longitudinal Temporal Information Modified Dates Option",
    b"Clean Descriptors Option",
    b"Retain Patient Characteristics Option",
    b"Retain Device Identity Option",
)
_PSEUDONYM = re.compile(r"[PA][A-Z2-7]{15}")
_DATE = re.compile(r"(?<![0-9])(1[89]|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])")


def check_identity(content: bytes, original: Path, subject: str) -> None:
    """Look at a file before it is written.

    Parameters
    ----------
    content
        Its bytes.
    original
        The file that it was made from.
    subject
        How an error names it.

    Raises
    ------
    IdentityLeft
        If anything of the original's identifiers is in the bytes, or an attribute that does not belong there.
    """
    result = pydicom.dcmread(io.BytesIO(content))
    if result.preamble != b"\0" * 128:
        raise IdentityLeft(subject, seen="bytes in the preamble")
    for element in [*result.file_meta, *_elements(result)]:
        fault = _fault(element, result)
        if fault:
            raise IdentityLeft(subject, seen=f"{element.keyword or element.tag}: {fault}")
    source = pydicom.dcmread(original, force=True)
    _search(_open(content, result), result, source, subject)


def _declared(result: Dataset) -> set[str]:
    """The codes of what was done, as the result says."""
    return {str(item.CodeValue) for item in result.DeidentificationMethodCodeSequence}


def _is_moved(result: Dataset) -> bool:
    return str(result.get("LongitudinalTemporalInformationModified", "")) == "MODIFIED"


def _elements(dataset: Dataset) -> Iterator[DataElement]:
    """Every attribute, however deep, that can be looked at."""
    for tag in sorted(dataset.keys()):
        try:
            element = dataset[tag]
            value = element.value
        except Exception:  # noqa: BLE001, S112 - whatever a malformed original leads pydicom to: nothing to look for
            continue
        yield element
        if element.VR == "SQ":
            for item in value:
                yield from _elements(item)


# ------------------------------------------------------------------------------------------ every attribute by a list


def _fault(element: DataElement, result: Dataset) -> str:
    """What is wrong with an attribute's being there; empty where nothing is."""
    if element.tag.is_private or element.tag not in DicomDictionary or element.tag.group >> 8 in (0x50, 0x60):
        return "does not belong there"
    if element.VR in _BULK_VRS:
        harmless = element.keyword in left("bulk") or not any(element.value or b"")
        return "" if harmless else "bulk of unknown content"
    values = [str(value) for value in _values(element)]
    return "" if all(_may_stay(element, value, result) for value in values) else f"a value of {element.VR}"


def _may_stay(element: DataElement, value: str, result: Dataset) -> bool:
    if element.VR == "UI":
        return value in UID_dictionary or value.startswith("2.25.") or value == PYDICOM_IMPLEMENTATION_UID
    if element.VR in ("DA", "DT", "TM"):
        return _is_moved(result) or value in _DUMMIES
    if element.VR in _TEXT_VRS:
        return _may_be_left(element.keyword, value, result)
    return element.VR not in ("CS", "DS", "IS") or (value.isascii() and len(value) <= 16)


def _values(element: DataElement) -> list[Any]:
    if element.is_empty or element.VR == "SQ":
        return []
    return list(element.value) if element.VM > 1 else [element.value]


def _may_be_left(keyword: str, value: str, result: Dataset) -> bool:
    if not value or value in _DUMMIES or keyword in left("texts"):
        return True
    if keyword in ("PatientName", "PatientID", "AccessionNumber"):
        return bool(_PSEUDONYM.fullmatch(value))
    declared = _declared(result)
    if any(keyword in left(code) for code in ("113108", "113109") if code in declared):
        return True
    return "113105" in declared and keyword in left("113105") and not re.search(r"[^A-Z0-9 ]|[0-9]{3}", value)


# --------------------------------------------------------------------------------- what the original says, in the bytes


def _open(content: bytes, result: Dataset) -> bytes:
    """The bytes as they can be read: a deflated data set inflated."""
    if result.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        return content
    start = 132 + 12 + int(result.file_meta.FileMetaInformationGroupLength)
    return content[:start] + zlib.decompress(content[start:], -zlib.MAX_WBITS)


def _pixels(result: Dataset) -> list[bytes]:
    return [
        bytes(result[name].value) for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData") if name in result
    ]


def _search(header: bytes, result: Dataset, source: Dataset, subject: str) -> None:
    """Look for what the original says in the bytes of the result, its pixels apart from the rest."""
    pixels = _pixels(result)
    for bulk in pixels:
        header = header.replace(bulk, b"") if len(bulk) > _LONG else header
    # What the file says of its own making are fixed words of the standard; a name may be one of them.
    for said in _SAID:
        header = header.replace(said, b"")
    parts, words = [header.lower(), *(bulk.lower() for bulk in pixels)], _words(header)
    texts = {word for element in _elements(result) if element.VR in _TEXT_VRS for text in _texts(element)
             for word in re.split(r"\W+", text.lower())}  # fmt: skip
    for keyword, text in _identifiers(source, _declared(result) & {"113108", "113109"}):
        if _is_there(text, parts, words, texts):
            raise IdentityLeft(subject, seen=f"the original's {keyword} is in the bytes")
    for keyword, uid in _uids(source):
        if _alone(uid, header):
            raise IdentityLeft(subject, seen=f"the original's {keyword} is in the bytes")
    days = {match.group(0).encode() for match in map(_DATE.search, _days(source)) if match} - {b"19000101"}
    if {match.group(0) for match in re.finditer(rb"(?<![0-9.])[0-9]{8}(?=[^0-9]|[0-9]{6})", header)} & days:
        raise IdentityLeft(subject, seen="a day of the original's is in the bytes")


def _is_there(text: str, parts: list[bytes], words: set[bytes], texts: set[str]) -> bool:
    """Whether an identifier is in a file: as it is from six bytes on, as a word from three characters on."""
    if text.isascii() and text.isdigit():
        # Digits are everywhere in an image; an id of digits stands by itself.
        return _alone(text, parts[0]) if len(text) >= _LONG else len(text) >= _WORD and text in texts
    if text.isascii() and len(text) < _LONG:
        return len(text) >= _WORD and text.lower().encode() in words
    return any(form in part for form in _forms(text) for part in (parts if len(form) >= _LONG else parts[:1]))


def _alone(text: str, header: bytes) -> bool:
    """Whether a number or a UID is there and no part of a longer one."""
    return bool(re.search(rb"(?<![0-9.])" + re.escape(text.encode(errors="replace")) + rb"(?!\.?[0-9])", header))


def _identifiers(source: Dataset, declared: set[str]) -> Iterator[tuple[str, str]]:
    """Names, ids, places and what is in private attributes, with the attribute each is of."""
    elements = list(_elements(source))
    openly = _joined(element for element in elements if element.keyword in left("texts"))
    made = _joined(element for element in elements if element.keyword in _MAKERS)
    for element in [*getattr(source, "file_meta", []), *elements]:
        keyword = element.keyword
        if any(keyword in left(code) for code in declared):
            continue
        if element.VR == "PN":
            for text in _texts(element):
                yield from ((keyword or "PN", part) for part in re.split(r"[\^=\\ ,]+", text) if part)
        elif element.VR in (*_TEXT_VRS, "CS", "UN") and _IDENTIFYING.search(keyword):
            # A station called as its model, or a place as the maker, tells nothing that the image does not say openly.
            said = made if _PLACES.search(keyword) else ""
            yield from ((keyword, text) for text in _texts(element) if text.lower() not in said)
        elif element.tag.is_private and element.VR in (*_TEXT_VRS, "UN"):
            # What a maker writes in private and openly is no secret, and neither is a code string.
            texts = [text for text in _texts(element) if len(text) >= _LONG and text.lower() not in openly]
            yield from (("private attribute", text) for text in texts if not re.fullmatch(r"[A-Z0-9_ ]{,16}", text))


def _joined(elements: Iterable[DataElement]) -> str:
    """Their texts one below the other, in small letters."""
    return "\n".join(text.lower() for element in elements for text in _texts(element))


def _texts(element: DataElement) -> list[str]:
    if element.VR == "UN":
        raw = element.value if isinstance(element.value, bytes) else b""
        text = raw.decode("latin-1").strip(" \0")
        return [text] if text.isprintable() and len(text) <= 1024 else []
    return [text for value in _values(element) if (text := str(value).strip(" \0")) and text not in _DUMMIES]


def _uids(source: Dataset) -> Iterator[tuple[str, str]]:
    for element in _elements(source):
        if element.VR == "UI":
            for value in _values(element):
                uid = str(value).strip(" \0")
                if uid and uid not in UID_dictionary:
                    yield element.keyword or "UID", uid


def _days(source: Dataset) -> Iterator[str]:
    for element in _elements(source):
        if element.VR in ("DA", "DT"):
            yield from (str(value) for value in _values(element))


def _forms(text: str) -> set[bytes]:
    """A text in every character set that has it, and without its accents, in small letters."""
    bare = "".join(mark for mark in unicodedata.normalize("NFKD", text) if not unicodedata.combining(mark))
    forms = set()
    for written in {text, text.lower(), text.upper(), bare}:
        for encoding in _ENCODINGS:
            try:
                forms.add(written.encode(encoding).lower())
            except (UnicodeError, LookupError):
                continue
    return {form for form in forms if len(form) >= (_LONG if form.isascii() else _WIDE)}


def _words(header: bytes) -> set[bytes]:
    """Runs of letters and digits, in small letters; those beyond ASCII as they are."""
    return set(re.findall(rb"[0-9a-z\x80-\xff]+", header.lower()))
