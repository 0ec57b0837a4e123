"""FHIR JSON -> the words of a request or a report.

Invariant: a ServiceRequest is a request and a DiagnosticReport a report, whatever the file is called; only what stands
in the JSON is read, and no URL is followed. Whatever breaks JSON or the fields that are read is refused without quoting
a value. FHIR R4 and R5 (hl7.org/fhir: ServiceRequest, DiagnosticReport, Bundle). Imports no torch.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from imaging.errors import NotAReport, NotFhir, NotPlainText, TextEmpty, TextLanguage, TextRole
from imaging.text.document import Role
from imaging.text.owner import Owner, told
from imaging.text.plain import LARGEST_TEXT, decoded

_UID_SYSTEM = "urn:dicom:uid"
_OID = "urn:oid:"
_ACCESSION = "ACSN"  # hl7.org/fhir/v2/0203
# hl7.org/fhir/v2/0074: departments that read images.
_DEPARTMENTS = frozenset(("RAD", "RX", "CT", "CUS", "NMR", "NMS", "OUS", "RUS", "VUS", "XRC", "IMG", "CTH", "EC"))
_DEPARTMENT_SYSTEM = re.compile(r"v2[-/]0074$")
_WITHDRAWN = frozenset(("entered-in-error", "cancelled", "revoked"))
_CHARSET = re.compile(r"charset\s*=\s*\"?([\w.:-]{1,40})", re.IGNORECASE)
_MEDIA_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}")


class _Part(BaseModel):
    """What is read of an element; other elements are not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class _Coding(_Part):
    system: str = ""
    code: str = ""
    display: str = ""


class _Concept(_Part):
    text: str = ""
    coding: list[_Coding] = []

    def words(self) -> str:
        return self.text or next((coding.display for coding in self.coding if coding.display), "")


class _CodeableReference(_Concept):
    """A CodeableConcept (R4), or the CodeableReference that R5 has in its place."""

    concept: _Concept | None = None

    def words(self) -> str:
        return super().words() or (self.concept.words() if self.concept else "")


class _Identifier(_Part):
    system: str = ""
    value: str = ""
    type: _Concept | None = None

    @property
    def is_accession(self) -> bool:
        return self.type is not None and any(coding.code == _ACCESSION for coding in self.type.coding)


class _Reference(_Part):
    reference: str = ""
    identifier: _Identifier | None = None


class _Annotation(_Part):
    text: str = ""


class _Attachment(_Part):
    contentType: str = ""
    data: str = ""


class _Resource(_Part):
    status: str = ""
    language: str = ""
    identifier: list[_Identifier] = []
    subject: _Reference | None = None
    basedOn: list[_Reference] = []
    note: list[_Annotation] = []
    contained: list[dict[str, Any]] = []


class _Report(_Resource):
    resourceType: Literal["DiagnosticReport"]
    category: list[_Concept] = []
    imagingStudy: list[_Reference] = []  # R4
    study: list[_Reference] = []  # R5
    result: list[_Reference] = []
    conclusion: str = ""
    presentedForm: list[_Attachment] = []


class _Request(_Resource):
    resourceType: Literal["ServiceRequest"]
    code: _CodeableReference | None = None
    reasonCode: list[_Concept] = []  # R4
    reason: list[_CodeableReference] = []  # R5


class _Who(_Part):
    """Who took part, by the kind of thing that the reference says or leads to."""

    type: str = ""
    reference: str = ""

    def is_device(self, resources: Mapping[str, dict[str, Any]]) -> bool:
        meant = [item for url, item in resources.items() if url == self.reference]
        kinds = {self.type, self.reference.split("/")[0], *(item.get("resourceType") for item in meant)}
        return "Device" in kinds


class _Agent(_Part):
    who: _Who = _Who()


class _Provenance(_Part):
    agent: list[_Agent] = []


class _Identified(_Part):
    identifier: list[_Identifier] = []


_KINDS: dict[Role, type[_Report] | type[_Request]] = {"request": _Request, "report": _Report}
_ROLES: dict[object, Role] = {"ServiceRequest": "request", "DiagnosticReport": "report"}


def parse_json(data: bytes, subject: object) -> object:
    """A JSON value (RFC 8259) in UTF-8.

    Raises
    ------
    NotFhir
        If it is none: malformed, nested too deep, with a name twice in one object, or with numbers that are none.
    """
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_number)
    except RecursionError:
        raise NotFhir(subject, seen="JSON that is nested too deep") from None
    except json.JSONDecodeError as error:
        raise NotFhir(subject, seen=f"no JSON at line {error.lineno}, column {error.colno}") from None
    except ValueError:  # UnicodeDecodeError, a number of thousands of digits, and the two below
        raise NotFhir(subject, seen="no JSON in UTF-8 with each name once and finite numbers") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name twice")
    return content


def _no_number(name: str) -> float:
    raise ValueError(name)


def read_fhir(content: object, subject: object, role: Role | None) -> tuple[str, Role, str, Owner]:
    """The words of the one request or report that a resource or Bundle holds.

    Parameters
    ----------
    content
        A JSON value; see `parse_json`.
    subject
        What it is, for messages.
    role
        Which of the two is expected, if that is known.

    Returns
    -------
    text, role, resource, owner
        The words below headings of their own, what they are, the resource's type, and whose they are as it says.

    Raises
    ------
    NotFhir, NotAReport, NotPlainText, TextEmpty, TextLanguage, TextRole
        As their names say.
    """
    resources = _resources(content, subject)
    chosen = _chosen(resources, subject, role)
    kind: Role = _ROLES[chosen["resourceType"]]
    try:
        resource = _KINDS[kind].model_validate(chosen)
    except ValidationError as error:
        # The error's own text quotes values.
        places = sorted({".".join(map(str, item["loc"])) for item in error.errors(include_input=False)})
        raise NotFhir(subject, seen=f"a {chosen['resourceType']} with a malformed {', '.join(places[:4])}") from None
    if resource.status in _WITHDRAWN:
        raise NotAReport(subject, seen=f"a {resource.resourceType} that is {resource.status}")
    if resource.language and resource.language.split("-")[0].lower() != "en":
        raise TextLanguage(subject, seen=f"a {resource.resourceType} that says that it is in another language")
    if isinstance(resource, _Report):
        _check_written_by_a_reader(resource, resources, subject)
        text = _report_words(resource, subject)
    else:
        text = _request_words(resource)
    if not text:
        raise TextEmpty(subject, seen=f"a {resource.resourceType} without words")
    return text, kind, resource.resourceType, _owner(resource, resources)


def _resources(content: object, subject: object) -> dict[str, dict[str, Any]]:
    """The resources of a Bundle by their URL and by ``Type/id``; a resource that stands alone by itself."""
    if not isinstance(content, dict) or not isinstance(content.get("resourceType"), str):
        raise NotFhir(subject, seen="JSON without a resourceType")
    if content["resourceType"] != "Bundle":
        return {"": content}
    entries = content.get("entry", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise NotFhir(subject, seen="a Bundle with a malformed entry")
    found: dict[str, dict[str, Any]] = {}
    for number, entry in enumerate(entries):
        resource = entry.get("resource")
        if isinstance(resource, dict):
            url = entry.get("fullUrl")
            found[url if isinstance(url, str) and url not in found else f"#{number}"] = resource
    return found


def _chosen(resources: Mapping[str, dict[str, Any]], subject: object, role: Role | None) -> dict[str, Any]:
    texts = [resource for resource in resources.values() if resource.get("resourceType") in list(_ROLES)]
    roles = {_ROLES[resource["resourceType"]] for resource in texts}
    if role is not None and roles and role not in roles:
        raise TextRole(subject, seen=f"a {texts[0]['resourceType']} where a {role} was asked for")
    if role is None and len(roles) > 1:
        raise TextRole(subject, seen="a ServiceRequest and a DiagnosticReport in one Bundle")
    texts = [resource for resource in texts if role in (None, _ROLES[resource["resourceType"]])]
    if len(texts) != 1:
        raise NotFhir(subject, seen=f"{len(texts) or 'no'} such resources")
    return texts[0]


def _check_written_by_a_reader(report: _Report, resources: Mapping[str, dict[str, Any]], subject: object) -> None:
    departments = {
        coding.code
        for category in report.category
        for coding in category.coding
        if _DEPARTMENT_SYSTEM.search(coding.system)
    }
    if departments and not departments & _DEPARTMENTS:
        raise NotAReport(subject, seen="a DiagnosticReport of a department that reads no images")
    beside = [*report.contained, *resources.values()]
    if any(item.get("resourceType") == "Observation" and item.get("device") for item in beside):
        raise NotAReport(subject, seen="a DiagnosticReport with Observations that a device made")
    for item in (item for item in beside if item.get("resourceType") == "Provenance"):
        try:
            agents = _Provenance.model_validate(item).agent
        except ValidationError:
            raise NotFhir(subject, seen="a Bundle with a malformed Provenance") from None
        if agents and all(agent.who.is_device(resources) for agent in agents):
            raise NotAReport(subject, seen="a DiagnosticReport that devices made, as its Provenance says")


def _report_words(report: _Report, subject: object) -> str:
    texts = [_attached(form, subject) for form in report.presentedForm if _is_plain(form)]
    if report.presentedForm and not texts and not report.conclusion.strip():
        kinds = {m[0] for form in report.presentedForm if (m := _MEDIA_TYPE.match(form.contentType))}
        raise NotPlainText(subject, seen=f"presentedForm holds {', '.join(sorted(kinds)) or 'no data'}")
    words = "\n\n".join(text for text in texts if text.strip())
    if report.conclusion.strip() and _spaced(report.conclusion) not in _spaced(words):
        words = _below(words, "IMPRESSION", [report.conclusion])
    return _below(words, "NOTE", [note.text for note in report.note])


def _is_plain(form: _Attachment) -> bool:
    return form.contentType.split(";")[0].strip().lower() == "text/plain" and bool(form.data)


def _attached(form: _Attachment, subject: object) -> str:
    charset = _CHARSET.search(form.contentType)
    # Four letters stand for three bytes; nothing larger is decoded.
    packed = "".join(form.data.split())
    if len(packed) > LARGEST_TEXT // 3 * 4 + 8:
        return decoded(bytes(LARGEST_TEXT + 1), subject)
    try:
        data = base64.b64decode(packed, validate=True)
    except (binascii.Error, ValueError):
        raise NotFhir(subject, seen="presentedForm.data that is not base64") from None
    return decoded(data, subject, encoding=charset[1] if charset else "").removeprefix("\ufeff")


def _request_words(request: _Request) -> str:
    reasons = [reason.words() for reason in (*request.reasonCode, *request.reason)]
    words = _below("", "INDICATION", reasons)
    words = _below(words, "CLINICAL INFORMATION", [note.text for note in request.note])
    return _below(words, "EXAMINATION", [request.code.words()]) if words and request.code else words


def _below(words: str, heading: str, more: Iterable[str]) -> str:
    """Words with more of them below a heading."""
    texts = [text.strip() for text in more if text.strip()]
    return "\n\n".join(part for part in (words, f"{heading}: " + "\n".join(texts) if texts else "") if part)


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _owner(resource: _Report | _Request, resources: Mapping[str, dict[str, Any]]) -> Owner:
    """Whose it is, by identifiers in it, in what it contains and in what lies beside it in the Bundle."""
    patient = _identifiers([resource.subject] if resource.subject else [], resource, resources)
    studies: list[_Identifier] = []
    if isinstance(resource, _Report):
        studies = _identifiers([*resource.imagingStudy, *resource.study], resource, resources)
    orders = [*resource.identifier, *studies, *_identifiers(resource.basedOn, resource, resources)]
    uids = (item.value.removeprefix(_OID) for item in studies if item.system == _UID_SYSTEM)
    return Owner(
        told(*uids),
        told(*(item.value for item in patient)),
        told(*(item.value for item in orders if item.is_accession)),
    )


def _identifiers(
    references: Iterable[_Reference], resource: _Resource, resources: Mapping[str, dict[str, Any]]
) -> list[_Identifier]:
    found: list[_Identifier] = []
    for reference in references:
        if reference.identifier is not None:
            found.append(reference.identifier)
        for candidate in _meant(reference.reference, resource, resources):
            try:
                found += _Identified.model_validate(candidate).identifier
            except ValidationError:
                # What lies beside the text has identifiers that cannot be compared; the text itself is whole.
                continue
    return found


def _meant(reference: str, resource: _Resource, resources: Mapping[str, dict[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The resources that a reference leads to, in what is at hand."""
    if reference.startswith("#"):
        return [item for item in resource.contained if item.get("id") == reference[1:]]
    if not reference:
        return []
    return [
        item
        for url, item in resources.items()
        if url == reference or f"{item.get('resourceType')}/{item.get('id')}" == reference
    ]
