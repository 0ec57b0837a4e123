"""FHIR JSON becomes the words it holds, below headings; whatever breaks it is refused and not quoted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import (
    ImagingError,
    NotAReport,
    NotFhir,
    NotPlainText,
    TextEmpty,
    TextEncoding,
    TextLanguage,
    TextRole,
    TextTooLarge,
)
from imaging.text.fhir import parse_json, read_fhir

Resource = dict[str, Any]
REQUEST: Resource = {
    "resourceType": "ServiceRequest",
    "status": "active",
    "intent": "order",
    "subject": {"reference": "Patient/1", "identifier": {"value": "P-1"}},
    "identifier": [{"type": {"coding": [{"code": "ACSN"}]}, "value": "A-1"}],
    "code": {"text": "Chest, two views"},
    "reasonCode": [{"text": "Cough for two weeks"}, {"coding": [{"code": "1", "display": "Fever"}]}],
    "note": [{"text": "Smoker"}],
}


def packed(text: str, encoding: str = "utf-8") -> str:
    return base64.b64encode(text.encode(encoding)).decode()


def report(**changes: Any) -> Resource:
    text = "FINDINGS: The lungs are clear.\nIMPRESSION: Normal."
    base = {
        "resourceType": "DiagnosticReport",
        "status": "final",
        "presentedForm": [{"contentType": "text/plain", "data": packed(text)}],
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def bundle(*resources: Resource) -> Resource:
    return {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": item} for item in resources]}


def words(resource: object, role: Any = None) -> str:
    return read_fhir(resource, "a file", role)[0]


def test_request_is_a_request_with_its_reasons_first() -> None:
    text, role, kind, owner = read_fhir(REQUEST, "a file", None)
    assert text.split("\n\n") == [
        "INDICATION: Cough for two weeks\nFever",
        "CLINICAL INFORMATION: Smoker",
        "EXAMINATION: Chest, two views",
    ]
    assert (role, kind) == ("request", "ServiceRequest")
    assert (owner.patient_id, owner.accession) == ({"P-1"}, {"A-1"})


def test_reasons_of_r5() -> None:
    resource = {"resourceType": "ServiceRequest", "reason": [{"concept": {"text": "Cough"}}],
                "code": {"concept": {"text": "Chest"}}}  # fmt: skip
    assert words(resource) == "INDICATION: Cough\n\nEXAMINATION: Chest"


def test_report_is_a_report_and_its_conclusion_is_told_once() -> None:
    text, role, kind, _ = read_fhir(report(conclusion="Normal."), "a file", None)
    assert text == "FINDINGS: The lungs are clear.\nIMPRESSION: Normal."
    assert (role, kind) == ("report", "DiagnosticReport")
    assert words(report(conclusion="Flu.")).endswith("IMPRESSION: Normal.\n\nIMPRESSION: Flu.")
    assert words(report(presentedForm=None, conclusion="Flu.")) == "IMPRESSION: Flu."


def test_charset_of_a_form_is_kept_to() -> None:
    form = {"contentType": "text/plain; charset=ISO-8859-1", "data": packed("37 °C is normal", "latin-1")}
    assert words(report(presentedForm=[form])) == "37 °C is normal"
    with pytest.raises(TextEncoding):
        words(report(presentedForm=[{**form, "contentType": "text/plain"}]))


def test_owner_is_followed_into_the_bundle_and_into_what_is_contained() -> None:
    patient = {"resourceType": "Patient", "id": "p", "identifier": [{"value": "P-1"}, {"value": "P-2"}]}
    study = {"resourceType": "ImagingStudy", "id": "s",
             "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}]}  # fmt: skip
    linked = report(subject={"reference": "Patient/p"}, imagingStudy=[{"reference": "#s"}], contained=[study])
    owner = read_fhir(bundle(patient, linked), "a file", None)[3]
    assert (owner.study_uid, owner.patient_id) == ({"1.2.3"}, {"P-1", "P-2"})
    r5 = report(study=[{"reference": "ImagingStudy/s"}])
    assert read_fhir(bundle(study, r5), "a file", None)[3].study_uid == {"1.2.3"}


def test_of_a_request_and_its_report_the_role_chooses() -> None:
    both = bundle(REQUEST, report())
    assert words(both, "request").startswith("INDICATION")
    assert words(both, "report").startswith("FINDINGS")
    with pytest.raises(TextRole, match="in one Bundle"):
        words(both)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ([], NotFhir),
        ("XANTHIPPE", NotFhir),
        ({"XANTHIPPE": 1}, NotFhir),
        ({"resourceType": 7}, NotFhir),
        ({"resourceType": "Patient", "name": "XANTHIPPE"}, NotFhir),
        ({"resourceType": "Bundle"}, NotFhir),
        ({"resourceType": "Bundle", "entry": ["XANTHIPPE"]}, NotFhir),
        (bundle(report(), report()), NotFhir),
        (report(conclusion=["XANTHIPPE"]), NotFhir),
        (report(presentedForm="XANTHIPPE"), NotFhir),
        (report(presentedForm=[{"contentType": "text/plain", "data": "XANTHIPPE?"}]), NotFhir),
        (report(presentedForm=[{"contentType": "application/pdf", "data": "WEFOVA=="}]), NotPlainText),
        (report(presentedForm=[{"contentType": "text/plain", "url": "http://XANTHIPPE"}]), NotPlainText),
        (report(presentedForm=None), TextEmpty),
        (report(presentedForm=[{"contentType": "text/plain", "data": packed("  ")}]), TextEmpty),
        (report(presentedForm=[{"contentType": "text/plain", "data": packed("x" * 1_000_001)}]), TextTooLarge),
        (report(status="entered-in-error"), NotAReport),
        (report(language="de-DE"), TextLanguage),
        (report(category=[{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "LAB"}]}]),
         NotAReport),
        (bundle(report(), {"resourceType": "Observation", "device": {"reference": "Device/1"}}), NotAReport),
        (bundle(report(), {"resourceType": "Provenance", "agent": [{"who": {"reference": "Device/1"}}]}), NotAReport),
        (bundle(report(), {"resourceType": "Provenance", "agent": "XANTHIPPE"}), NotFhir),
        ({"resourceType": "ServiceRequest", "status": "revoked", "reasonCode": [{"text": "XANTHIPPE"}]}, NotAReport),
        ({"resourceType": "ServiceRequest", "code": {"text": "Chest"}}, TextEmpty),
    ],
)  # fmt: skip
def test_refusals_are_named_and_quote_nothing(content: object, error: type[ImagingError]) -> None:
    with pytest.raises(error) as raised:
        words(content)
    assert "XANTHIPPE" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_what_a_person_made_with_a_device_is_taken() -> None:
    agents = [{"who": {"reference": "Device/1"}}, {"who": {"reference": "Practitioner/1"}}]
    assert words(bundle(report(), {"resourceType": "Provenance", "agent": agents})).startswith("FINDINGS")


def test_department_that_reads_images_is_taken() -> None:
    category = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}]
    assert words(report(category=category)).startswith("FINDINGS")


def test_other_role_than_asked_for_is_refused() -> None:
    with pytest.raises(TextRole, match="a DiagnosticReport where a request"):
        words(report(), "request")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"XANTHIPPE": }',
        b"\xff\xfe{}",
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 10_000 + b"}",
    ],
    ids=["nothing", "cut", "malformed", "encoding", "twice", "nan", "deep list", "deep object", "digits"],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    with pytest.raises(NotFhir) as raised:
        parse_json(data, "a file")
    assert "XANTHIPPE" not in str(raised.value)
    assert raised.value.__cause__ is None


KEYS = ["resourceType", "status", "subject", "presentedForm", "conclusion", "contained", "entry", "resource", "result"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["DiagnosticReport", "ServiceRequest", "Bundle", "#a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.sampled_from(["DiagnosticReport", "ServiceRequest", "Bundle"]), st.sampled_from(KEYS), VALUES)
def test_any_json_is_read_or_refused(content: object, kind: str, key: str, value: object) -> None:
    for candidate in (content, {"resourceType": kind, key: value}, bundle({"resourceType": kind, key: value})):
        try:
            text = words(json.loads(json.dumps(candidate)))
        except ImagingError:
            continue
        assert text
