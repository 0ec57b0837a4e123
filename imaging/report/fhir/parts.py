"""FHIR's data types, made from plain values: codes, quantities, identifiers, references.

Invariant: what FHIR cannot hold is told as absent with a reason, never bent into something else; a code comes from a
table, never from a text that was read.

Sources: FHIR R4 (4.0.1) and R5 (5.0.0), pages Data Types, Using Codes, Using SNOMED CT, Using DICOM; RFC 6920 for names
of bytes by their hash.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
import unicodedata
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from imaging.config import Code
from imaging.errors import OutputNotBuilt

Json = dict[str, Any]
Version = Literal["r4", "r5"]

UCUM = "http://unitsofmeasure.org"
DCM = "http://dicom.nema.org/resources/ontology/DCM"
URI = "urn:ietf:rfc:3986"
DICOM_UID = "urn:dicom:uid"
ABSENT = "http://terminology.hl7.org/CodeSystem/data-absent-reason"
ABSENT_EXTENSION = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
# The designators of PS3.16 section 8 -> the systems that HL7 Terminology names; FMA has its OID there (table 8-1).
SYSTEMS = {
    "SCT": "http://snomed.info/sct",
    "DCM": DCM,
    "RADLEX": "http://radlex.org",
    "LN": "http://loinc.org",
    "UCUM": UCUM,
    "FMA": "urn:oid:2.16.840.1.113883.6.119",
    "NCIt": "http://ncicb.nci.nih.gov/xml/owl/EVS/Thesaurus.owl",
}

Reason = Literal["unknown", "not-a-number", "not-performed", "unsupported"]

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
# A defined term of Modality (0008,0060) is a code string: PS3.5 table 6.2-1, PS3.3 C.7.3.1.1.1.
_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
_CODE = re.compile(r"[^\s]+( [^\s]+)*")
_NAMES = uuid.UUID("6f0b7d2e-6a5c-5b9a-9a39-2f0c8f6d1c11")


def plain(value: str) -> str:
    """A text as FHIR's `string` takes it (and XML): no control characters, only blanks for white space, trimmed."""
    return "".join(_plain(character) for character in value).strip()


def _plain(character: str) -> str:
    if character in "\n\t ":
        return character
    if character.isspace():
        return " "
    lost = unicodedata.category(character) in ("Cc", "Cs") or ord(character) & 0xFFFE == 0xFFFE
    return "\N{REPLACEMENT CHARACTER}" if lost else character


def is_uid(value: str) -> bool:
    """Whether it is a DICOM UID (PS3.5 section 9.1), which FHIR's `id` can hold."""
    return len(value) <= 64 and bool(_UID.fullmatch(value))


def name_of(*parts: str) -> str:
    """A UUID (version 5) that is a function of some texts."""
    return str(uuid.uuid5(_NAMES, "\n".join(f"{len(part)}:{part}" for part in parts)))


def of_hash(sha256: str) -> str:
    """The name of bytes by their SHA-256 (RFC 6920 section 3); the hash is given as lower-case hex."""
    try:
        digest = bytes.fromhex(sha256)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise OutputNotBuilt("FHIR", seen="a SHA-256 that is none", expected="64 hexadecimal digits were expected")
    return f"ni:///sha-256;{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def coding(system: str, code: str, display: str = "") -> Json:
    """One code of a code system; a scheme of somebody's own has none that FHIR knows."""
    named = {"system": system} if system else {}
    return {**named, "code": code, **({"display": plain(display)} if display else {})}


def concept(*codings: Json, text: str = "") -> Json:
    """A CodeableConcept: codes, and what people read."""
    shown = plain(text)
    return {**({"coding": list(codings)} if codings else {}), **({"text": shown} if shown else {})}


def coded(code: Code, text: str = "") -> Json:
    """A code of the report's as a CodeableConcept.

    Raises
    ------
    OutputNotBuilt
        If FHIR's `code` cannot hold the value.
    """
    return concept(coding_of(code), text=text or code.meaning)


def coding_of(code: Code) -> Json:
    """The same as a Coding."""
    if not _CODE.fullmatch(code.value):
        raise OutputNotBuilt("FHIR", seen=f"the code {code.value!r} of {code.scheme}")
    return coding(SYSTEMS.get(code.scheme, ""), code.value, code.meaning)


def modality_of(modality: str) -> Json:
    """The Coding of a modality; one that is no code string is told as unknown."""
    return coding(DCM, modality) if _MODALITY.fullmatch(modality) else {"extension": [absent_extension("unknown")]}


def absent(reason: Reason, text: str = "") -> Json:
    """A dataAbsentReason."""
    return concept(coding(ABSENT, reason), text=text)


def absent_extension(reason: Reason) -> Json:
    """The same in the place of a value that its element has no other way to miss."""
    return {"url": ABSENT_EXTENSION, "valueCode": reason}


def quantity(value: float, unit: str, code: str = "1") -> Json:
    """A finite number with its unit as people write it and in UCUM (``1``: a share of one)."""
    return {"value": value, "unit": unit, "system": UCUM, "code": code}


def measured(value: float, unit: str, code: str = "1") -> Json:
    """The `value[x]` of an Observation or a component, or why there is none."""
    if not math.isfinite(value):
        return {"dataAbsentReason": absent("not-a-number")}
    return {"valueQuantity": quantity(value, unit, code)}


def ranged(low: float, high: float, unit: str, code: str = "1") -> Json:
    """The same for an interval."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return {"dataAbsentReason": absent("not-a-number")}
    return {"valueRange": {"low": quantity(low, unit, code), "high": quantity(high, unit, code)}}


def component(code: Json, value: Json) -> Json:
    """A part of an Observation."""
    return {"code": code, **value}


def told(value: str) -> Json:
    """A text as the value of a component, or that there is none."""
    shown = plain(value)
    return {"valueString": shown} if shown else {"dataAbsentReason": absent("unknown")}


def identifier(system: str, value: str) -> Json:
    """An identifier of a system."""
    return {"system": system, "value": value}


def held(value: str) -> str:
    """An identifier's value as it is, or nothing where FHIR would have it changed: another id is another person's."""
    return value.strip() if plain(value) == value.strip() else ""


def reference(name: str, kind: str) -> Json:
    """A reference to a resource of this bundle by its UUID."""
    return {"reference": f"urn:uuid:{name}", "type": kind}


@dataclass(frozen=True, slots=True)
class Page:
    """The page for people, as the bundle shows it: named by its hash, or with all its bytes (`whole`)."""

    content: bytes = field(repr=False)
    name: str
    whole: bool = False


def attachment(page: Page) -> Json:
    """An Attachment of HTML: its SHA-1 as FHIR has it, and its bytes, or without them its RFC 6920 name."""
    place = (
        {"data": base64.b64encode(page.content).decode()}
        if page.whole
        else {"url": of_hash(hashlib.sha256(page.content).hexdigest())}
    )
    sha1 = base64.b64encode(hashlib.sha1(page.content, usedforsecurity=False).digest()).decode()
    return {"contentType": "text/html", "language": "en", **place, "hash": sha1, "title": plain(page.name)}


def of_bytes(sha256: str, kind: str, display: str = "") -> Json:
    """A reference to a document that is not in the bundle, by its hash."""
    shown = plain(display)
    return {"type": kind, "identifier": identifier(URI, of_hash(sha256)), **({"display": shown} if shown else {})}


def patient(patient_id: str) -> Json:
    """The patient, by the id that the pictures have and nothing else; who gave the id is not known."""
    value = held(patient_id)
    if not value:
        return {"type": "Patient", "extension": [absent_extension("unsupported" if patient_id.strip() else "unknown")]}
    kind = concept(coding("http://terminology.hl7.org/CodeSystem/v2-0203", "PI", "Patient internal identifier"))
    return {"type": "Patient", "identifier": {"type": kind, "value": value}}


def ordered(accession: str) -> list[Json]:
    """The order by its accession number, as `basedOn` has it; none where none is told."""
    value = held(accession)
    kind = concept(coding("http://terminology.hl7.org/CodeSystem/v2-0203", "ACSN", "Accession ID"))
    return [{"type": "ServiceRequest", "identifier": {"type": kind, "value": value}}] if value else []


def day(value: str) -> str:
    """A DICOM date (YYYYMMDD) as FHIR has it; empty where it is none."""
    digits = value.strip().replace(".", "")
    if not re.fullmatch(r"[0-9]{8}", digits):
        return ""
    try:
        return date(int(digits[:4]), int(digits[4:6]), int(digits[6:])).isoformat()
    except ValueError:
        return ""


def instant(value: str) -> str:
    """A moment as FHIR's `instant`: to the second at least, with its offset from UTC."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise OutputNotBuilt("FHIR", seen="a moment without its offset from UTC")
    return moment.isoformat(timespec="seconds")


def marked(lines: Sequence[str], version: Version) -> str:
    """Lines of text for a field that is plain in R4 and Markdown in R5."""
    shown = "\n".join(line for line in map(plain, lines) if line)
    if version == "r4":
        return shown
    return re.sub(r"([\\`*_{}\[\]()#+\-.!<>|~&])", r"\\\1", shown).replace("\n", "\n\n")
