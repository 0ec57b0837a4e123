"""A report as FHIR is valid R4 and R5, says what the report says, and bends nothing that FHIR cannot hold."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from fhir.resources.bundle import Bundle as BundleR5
from fhir.resources.R4B.bundle import Bundle as BundleR4B
from fhirclient.models.bundle import Bundle as BundleR4
from fhirclient.models.fhirabstractbase import FHIRValidationError
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.config import Code
from imaging.errors import OutputMismatch, OutputNotBuilt, UnknownName
from imaging.report.fhir import Page, Version, bundle_of, write_fhir
from imaging.report.fhir.check import check_fhir
from imaging.report.report import (
    ClassProbability,
    Disagreement,
    Explanation,
    Finding,
    FusionEntry,
    ModelEntry,
    Refusal,
    Replaced,
    Report,
    Score,
    SentenceEntry,
    SentenceRef,
    SeriesEntry,
    SliceEvidence,
    SpanEntry,
    StructureVolume,
    StudyEntry,
    TextEntry,
    VolumeInterval,
)

VERSIONS: tuple[Version, ...] = ("r4", "r5")
SCHEMA = jsonschema.Draft6Validator(
    json.loads((Path(__file__).parents[2] / "data" / "fhir" / "r4.schema.json").read_text())
)
PNEUMONIA = Code(value="233604007", meaning="Pneumonia")
HIPPOCAMPUS = Code(value="5366008", meaning="Hippocampus")
MORPHOLOGY = Code(value="49755003", meaning="Morphologically Abnormal Structure")
MR, CR = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.1"
TEXT = "Clinical words. Cannot exclude pneumonia."
TEXT_SHA = hashlib.sha256(TEXT.encode()).hexdigest()


def volume_finding(**changes: Any) -> Finding:
    structure = StructureVolume(
        voxels=1730, volume_mm3=1730.25, volume_ml=1.73025, interval_note="", mean_probability=0.93,
        interval=VolumeInterval(low_mm3=1500.5, high_mm3=1990.125, coverage=0.9),
        centre_ras_mm=(1, 2, 3), evidence=(SliceEvidence(index=4, sop_instance_uid="1.2.3.4", frame=1, voxels=1730,
                                                         area_mm2=1730.25),),
    )  # fmt: skip
    given = Finding(
        name="anterior", title="Hippocampus, anterior part", category=MORPHOLOGY, code=HIPPOCAMPUS,
        modifier=Code(value="255549009", meaning="Anterior"), assessment="indeterminate",
        assessment_reason="Volume only.", model="hippocampus_mr", series_uid="1.2.3", structure=structure,
    )  # fmt: skip
    return given.model_copy(update=changes)


def probability_finding(**changes: Any) -> Finding:
    given = Finding(
        name="pneumonia", title="Pneumonia", category=MORPHOLOGY, code=PNEUMONIA, modifier=None,
        assessment="abnormal", assessment_reason="Above its threshold.", model="chest_xray", series_uid="1.2.5",
        classification=ClassProbability(probability=0.98314, temperature=1.7, threshold=0.61, sensitivity_goal=0.95,
                                        classes={"normal": 0.01686, "pneumonia": 0.98314}),
        explanation=Explanation(method="grad_cam_pp", layer="x", cells=(7, 7), seen=1.0, greatest_at=(3, 4, 0),
                                sop_instance_uid="1.2.5.1", completeness_gap=None, steps=None),
    )  # fmt: skip
    return given.model_copy(update=changes)


def series(uid: str, modality: str, sop_class: str, instances: tuple[str, ...], model: str) -> SeriesEntry:
    return SeriesEntry(
        uid=uid, description="a series", modality=modality, instances=len(instances), models=(model,),
        source_sop_instance_uids=instances, sop_class_uid=sop_class,
    )  # fmt: skip


def model(name: str, digit: str) -> ModelEntry:
    return ModelEntry(name=name, version="1.0", title=name.title(), weights_sha256=digit * 64, config_sha256="c" * 64)


def text_entry(**changes: Any) -> TextEntry:
    span = SpanEntry(start=31, end=40, text="pneumonia", kind="finding", assertion="uncertain", score=0.8,
                     code=PNEUMONIA)  # fmt: skip
    given = TextEntry(
        role="request", source="file report.txt", sha256=TEXT_SHA, model="report_text", probability=0.7,
        interval=(0.6, 0.8), assessment="abnormal", assessment_reason="Above its threshold.",
        sentences=(SentenceEntry(start=16, end=41, text="Cannot exclude pneumonia.", spans=(span,)),),
    )  # fmt: skip
    return given.model_copy(update=changes)


def fusion_entry(**changes: Any) -> FusionEntry:
    given = FusionEntry(
        name="pneumonia", title="Pneumonia", code=PNEUMONIA, method="stacked", model="fusion", text_role="request",
        image=Score(probability=0.98, low=0.9, high=0.99, logit=3.9, source="image chest_xray"),
        text=Score(probability=0.7, logit=0.85, source="text report_text"),
        fused=Score(probability=0.985, logit=4.2, source="fused"),
        assessment="abnormal", assessment_reason="Above.", error_rate=0.1,
    )  # fmt: skip
    return given.model_copy(update=changes)


def report_of(**changes: Any) -> Report:
    given = Report(
        created="2026-11-22T10:11:12+00:00", software="imgpipe", software_version="0.1.0",
        study=StudyEntry(name="1.2", uid="1.2", description="Chest", patient_id="P1", date="20260102", accession="A7"),
        findings=(volume_finding(), probability_finding()),
        series=(series("1.2.3", "MR", MR, ("1.2.3.4", "1.2.3.5"), "hippocampus_mr"),
                series("1.2.5", "CR", CR, ("1.2.5.1",), "chest_xray")),
        models=(model("hippocampus_mr", "a"), model("chest_xray", "b"), model("report_text", "d"),
                model("fusion", "e")),
        texts=(text_entry(),), fusion=(fusion_entry(),),
        disagreements=(Disagreement(kind="image_abnormal_report_denies", name="pneumonia", title="Pneumonia",
                                    series_uid="1.2.5", sop_instance_uid="1.2.5.1", score=2.5, note="They differ.",
                                    sentence=SentenceRef(text_sha256=TEXT_SHA, start=16, end=41,
                                                         text="Cannot exclude pneumonia.")),),
        not_looked_at=("Series 9: no checkpoint takes it.",),
        refused=(Refusal(code="not_dicom", subject="x", seen="y", expected="z", remedy="w"),),
    )  # fmt: skip
    return given.model_copy(update=changes)


def assert_valid(bundle: dict[str, Any], version: Version) -> None:
    """By models that others made: R4 by SMART's (4.0.1) and HL7's own schema, and R4B and R5 by fhir.resources."""
    content = json.loads(json.dumps(bundle, allow_nan=False))
    if version == "r4":
        SCHEMA.validate(content)
        assert BundleR4(content, strict=True).as_json() == without_extended_values(content)
        BundleR4B.model_validate_json(json.dumps(content))
    else:
        BundleR5.model_validate_json(json.dumps(content))


def without_extended_values(node: Any) -> Any:
    """What SMART's models keep: they read over what extends a plain value (``_effectiveDateTime``)."""
    if isinstance(node, dict):
        return {key: without_extended_values(value) for key, value in node.items() if not key.startswith("_")}
    return [without_extended_values(item) for item in node] if isinstance(node, list) else node


def resources(bundle: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [entry["resource"] for entry in bundle["entry"] if entry["resource"]["resourceType"] == kind]


def observation(bundle: dict[str, Any], text: str) -> dict[str, Any]:
    (found,) = (item for item in resources(bundle, "Observation") if item["code"]["text"].startswith(text))
    return found


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from walk(value)
    elif isinstance(node, list):
        for item in node:
            yield from walk(item)


REPORTS = {
    "all": report_of(),
    "nothing": report_of(findings=(), series=(), models=(), texts=(), fusion=(), disagreements=()),
    "nifti": report_of(
        study=StudyEntry(name="crop"), findings=(volume_finding(series_uid=""),), texts=(), fusion=(), disagreements=(),
        series=(SeriesEntry(uid="", description="crop.nii.gz", modality="", instances=1),)),
    "report": report_of(texts=(text_entry(role="report"),), fusion=(fusion_entry(text_role="report"),)),
    "no_date": report_of(study=StudyEntry(name="1.2", uid="1.2", date="20261332")),
    "unknown_modality": report_of(series=(series("1.2.3", "<b>", MR, (), "m"), series("1.2.5", "", CR, (), "m"))),
}  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", REPORTS)
def test_it_is_valid(name: str, version: Version, tmp_path: Path) -> None:
    path = tmp_path / "fhir.json"
    write_fhir(path, REPORTS[name], version)
    assert_valid(json.loads(path.read_text(encoding="utf-8")), version)


def test_the_validators_see_what_is_wrong() -> None:
    bundle = bundle_of(report_of())
    for change in ({"status": "prelim"}, {"issued": "2026-11-22"}, {"conclusoin": "x"}, {"code": None}):
        broken = json.loads(json.dumps(bundle))
        broken["entry"][0]["resource"].update(change)
        with pytest.raises((jsonschema.ValidationError, FHIRValidationError)):
            assert_valid(broken, "r4")
        with pytest.raises(ValueError):  # pydantic's, of fhir.resources
            BundleR5.model_validate_json(json.dumps(broken))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_diagnostic_report_refers_to_all_that_was_found(version: Version) -> None:
    bundle = bundle_of(report_of(), version)
    (result,) = resources(bundle, "DiagnosticReport")
    assert result["status"] == "preliminary"
    (code,) = result["code"]["coding"]
    assert (code["system"], code["code"]) == ("http://loinc.org", "18748-4")
    assert result["effectiveDateTime"] == "2026-01-02"
    assert result["issued"] == "2026-11-22T10:11:12+00:00"
    assert result["basedOn"][0]["identifier"]["value"] == "A7"
    found = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    referred = [found[item["reference"]] for item in result["result"]]
    assert referred == resources(bundle, "Observation")
    assert len(referred) == 5
    study = found[result["imagingStudy" if version == "r4" else "study"][0]["reference"]]
    assert study["identifier"][0] == {"system": "urn:dicom:uid", "value": "urn:oid:1.2"}
    assert [code["coding"][0]["code"] for code in result["conclusionCode"]] == ["233604007"]
    for said in ("For research use", "1.730 mL", "Abnormal: ", "0.983", "Series 9", "disagree"):
        assert said in result["conclusion"].replace("\\", ""), said


def test_a_volume_has_its_unit_interval_place_and_device() -> None:
    bundle = bundle_of(report_of())
    found = observation(bundle, "Volume of Hippocampus")
    assert found["valueQuantity"] == {
        "value": 1730.25, "unit": "mm³", "system": "http://unitsofmeasure.org", "code": "mm3"
    }  # fmt: skip
    assert found["bodySite"]["coding"][0]["code"] == "5366008"
    assert "interpretation" not in found, "nobody judged it: that is not indeterminate"
    assert found["note"] == [{"text": "Volume only."}]
    parts = {json.dumps(part["code"]): part for part in found["component"]}
    interval = next(part for part in parts.values() if "valueRange" in part)["valueRange"]
    assert (interval["low"]["value"], interval["high"]["value"]) == (1500.5, 1990.125)
    modifier = next(part for part in parts.values() if "valueCodeableConcept" in part)
    assert modifier["valueCodeableConcept"]["coding"][0]["code"] == "255549009"
    assert any(part.get("valueString") == "1.2.3" for part in parts.values())
    device = next(item for item in resources(bundle, "Device") if found["device"]["reference"].endswith(item["id"]))
    assert "a" * 64 in [version["value"] for version in device["version"]]
    assert device["identifier"][1]["value"] == "ni:///sha-256;" + "qqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqqo"


def test_one_set_of_weights_under_two_configs_is_two_devices() -> None:
    other = model("other", "a").model_copy(update={"config_sha256": "1" * 64})
    bundle = bundle_of(report_of(models=(*report_of().models, other)))
    assert_valid(bundle, "r4")
    asked = [entry["request"]["ifNoneExist"] for entry in bundle["entry"] if "ifNoneExist" in entry["request"]]
    assert len(set(asked)) == len(asked)


def test_a_probability_has_its_threshold_and_judgement() -> None:
    found = next(
        item
        for item in resources(bundle_of(report_of()), "Observation")
        if item["code"].get("coding", [{}])[0].get("code") == "233604007" and "referenceRange" in item
    )
    assert (found["valueQuantity"]["value"], found["valueQuantity"]["code"]) == (0.98314, "1")
    assert found["referenceRange"][0]["high"]["value"] == 0.61
    assert found["interpretation"][0]["coding"][0]["code"] == "A"
    assert found["interpretation"][0]["text"] == "Above its threshold."


def test_what_is_missing_has_its_reason() -> None:
    structure = volume_finding().structure
    assert structure is not None
    nothing = structure.model_copy(update={"voxels": 0, "volume_mm3": 0.0, "evidence": (), "interval": None,
                                           "interval_note": "nothing was found"})  # fmt: skip
    lost = fusion_entry(text=None, fused=None, missing=("the study has no text",))
    report = report_of(
        findings=(volume_finding(structure=nothing, assessment_reason="Not found."),), fusion=(lost,)
    )  # fmt: skip
    bundle = bundle_of(report)
    assert_valid(bundle, "r4")
    volume = observation(bundle, "Volume of Hippocampus")
    assert "valueQuantity" not in volume
    assert volume["dataAbsentReason"]["coding"][0]["code"] == "unknown"
    assert volume["dataAbsentReason"]["text"] == "Not found."
    texts = [part["dataAbsentReason"]["text"] for part in volume["component"] if "dataAbsentReason" in part]
    assert texts == ["nothing was found"]
    fused = next(
        item for item in resources(bundle, "Observation") if "stacked" in item.get("method", {}).get("text", "")
    )
    parts = {part["code"]["text"]: part for part in fused["component"]}
    assert parts["image only"]["valueQuantity"]["value"] == 0.98
    assert parts["text only"]["dataAbsentReason"]["text"] == "the study has no text"
    # The picture alone was judged.
    assert fused["valueQuantity"]["value"] == 0.98


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"method": "stacked"}, 0.985),
        ({"method": "log_odds"}, 0.98),  # without a threshold of its own: the assessment is the picture's
        ({"method": "log_odds", "image": None, "fused": None}, None),  # a picture that is strange
        ({"method": "stacked", "image": None, "fused": None}, 0.7),
    ],
)
def test_the_value_of_a_fusion_is_what_was_judged(changes: dict[str, Any], value: float | None) -> None:
    report = report_of(fusion=(fusion_entry(**changes),))
    bundle = bundle_of(report)
    check_fhir(json.dumps(bundle).encode(), report)
    (found,) = (item for item in resources(bundle, "Observation") if "image and text" in str(item.get("method")))
    assert found.get("valueQuantity", {}).get("value") == value
    assert ("dataAbsentReason" in found) == (value is None)


def test_a_report_is_never_fused_with_what_it_describes() -> None:
    by_role = {}
    for role in ("request", "report"):
        bundle = bundle_of(report_of(texts=(text_entry(role=role),), fusion=(fusion_entry(text_role=role),)))
        (found,) = (item for item in resources(bundle, "Observation") if "stacked" in str(item.get("method")))
        by_role[role] = found["valueQuantity"]["value"]
        parts = {part["code"]["text"]: part for part in found["component"]}
        three = [parts[name]["valueQuantity"]["value"] for name in ("image only", "text only", "image and text")]
        assert three == [0.98, 0.7, 0.985]
    assert by_role == {"request": 0.985, "report": 0.98}


def test_a_code_of_somebodys_own_has_no_system_that_fhir_knows() -> None:
    own = Code(scheme="99ACME", value="X1", meaning="Something")
    bundle = bundle_of(report_of(findings=(probability_finding(code=own),), fusion=()))
    assert_valid(bundle, "r4")
    check_fhir(json.dumps(bundle).encode(), report_of(findings=(probability_finding(code=own),), fusion=()))
    assert observation(bundle, "Pneumonia")["code"]["coding"] == [{"code": "X1", "display": "Something"}]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_told_as_absent(value: float) -> None:
    found = probability_finding().classification
    assert found is not None
    odd = probability_finding(classification=found.model_copy(update={"probability": value}))
    bundle = bundle_of(report_of(findings=(odd,)))
    assert_valid(bundle, "r4")
    check_fhir(json.dumps(bundle, allow_nan=False).encode(), report_of(findings=(odd,)))
    told = [item for item in resources(bundle, "Observation") if "referenceRange" in item]
    assert told[0]["dataAbsentReason"]["coding"][0]["code"] == "not-a-number"


def test_instances_are_named_with_their_class_or_not_at_all() -> None:
    bundle = bundle_of(report_of())
    (study,) = resources(bundle, "ImagingStudy")
    assert [item["uid"] for item in study["series"][0]["instance"]] == ["1.2.3.4", "1.2.3.5"]
    assert study["series"][0]["instance"][0]["sopClass"]["code"] == f"urn:oid:{MR}"
    unknown = report_of(series=(series("1.2.3", "MR", "", ("1.2.3.4",), "hippocampus_mr"),))
    (study,) = resources(bundle_of(unknown), "ImagingStudy")
    assert "instance" not in study["series"][0]


def test_r5_names_the_instances_that_a_finding_rests_on() -> None:
    bundle = bundle_of(report_of(), "r5")
    chosen = {item["seriesUid"]: item for item in resources(bundle, "ImagingSelection")}
    assert chosen["1.2.3"]["instance"][0] == {
        "uid": "1.2.3.4", "sopClass": {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{MR}"}, "subset": ["1"]
    }  # fmt: skip
    assert chosen["1.2.5"]["instance"][0]["uid"] == "1.2.5.1"
    assert not resources(bundle_of(report_of(), "r4"), "ImagingSelection")


def test_the_patient_is_an_id_and_nothing_else() -> None:
    bundle = bundle_of(report_of())
    assert not resources(bundle, "Patient")
    for item in walk(bundle):
        if item.get("type") == "Patient":
            assert item["identifier"]["value"] == "P1"
            assert "reference" not in item


def test_an_id_that_fhir_cannot_hold_is_not_bent_into_another() -> None:
    report = report_of(study=StudyEntry(name="1.2", uid="1.2", patient_id="P\x011", date="20260102"))
    bundle = bundle_of(report)
    assert_valid(bundle, "r4")
    (study,) = resources(bundle, "ImagingStudy")
    assert study["subject"]["extension"][0]["valueCode"] == "unsupported"
    assert "P\N{REPLACEMENT CHARACTER}1" not in json.dumps(bundle, ensure_ascii=False)


def test_the_same_report_is_the_same_bytes_but_for_the_time(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    write_fhir(first, report_of(), "r4")
    write_fhir(second, report_of(), "r4")
    assert first.read_bytes() == second.read_bytes()
    write_fhir(second, report_of(created="2027-01-01T00:00:00+00:00"), "r4")
    told = second.read_text().replace("2027-01-01T00:00:00+00:00", "2026-11-22T10:11:12+00:00")
    assert told == first.read_text()
    places = {key for item in walk(json.loads(first.read_text())) for key, value in item.items()
              if value == "2026-11-22T10:11:12+00:00"}  # fmt: skip
    assert places == {"timestamp", "issued", "recorded", "occurredDateTime"}


def test_another_finding_is_another_report() -> None:
    one, other = (
        bundle_of(report_of(findings=findings)) for findings in ((volume_finding(),), (volume_finding(name="other"),))
    )
    assert one["id"] != other["id"]
    ids = [entry["fullUrl"] for entry in one["entry"]]
    assert len(set(ids)) == len(ids)


def test_what_is_sent_twice_is_stored_once() -> None:
    for entry in bundle_of(report_of())["entry"]:
        kind = entry["resource"]["resourceType"]
        assert entry["request"]["method"] == "POST"
        assert entry["request"]["url"] == kind
        assert ("ifNoneExist" in entry["request"]) == (kind != "Provenance")
    study = next(e for e in bundle_of(report_of())["entry"] if e["resource"]["resourceType"] == "ImagingStudy")
    assert study["request"]["ifNoneExist"] == "identifier=urn:dicom:uid|urn:oid:1.2"


def test_provenance_names_who_said_it_and_from_what() -> None:
    bundle = bundle_of(report_of())
    (provenance,) = resources(bundle, "Provenance")
    kinds = [agent["type"]["coding"][0]["code"] for agent in provenance["agent"]]
    assert kinds == ["author"] * 4 + ["assembler"]
    sources = [entity["what"] for entity in provenance["entity"]]
    assert sources[0]["type"] == "ImagingStudy"
    assert sources[1]["identifier"]["value"].startswith("ni:///sha-256;")
    assert len(sources) == 2
    assert len(provenance["target"]) == 1 + len(resources(bundle, "Observation"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_result_that_replaces_another_names_it(version: Version) -> None:
    bundle = bundle_of(report_of(version=2, replaces=Replaced(version=1, report_sha256="a" * 64)), version)
    assert_valid(bundle, version)
    (provenance,) = resources(bundle, "Provenance")
    assert provenance["entity"][-1]["role"] == "revision"
    assert provenance["entity"][-1]["what"]["identifier"]["value"].endswith("qqqo")
    assert bundle["id"] != bundle_of(report_of(), version)["id"]


def test_words_of_a_text_never_become_codes() -> None:
    bundle = bundle_of(report_of())
    for item in walk(bundle):
        if "system" in item and "code" in item:
            assert "exclude" not in json.dumps(item)
            assert "Clinical words" not in json.dumps(item)
    # A span's code is a text model's, and no finding: it gets no Observation of its own.
    assert len(resources(bundle, "Observation")) == 5


HOSTILE = [
    "<script>alert(1)</script>", "]]></div><img src=x onerror=alert(1)>", "\x00\x1b[31m", "\ufffe\uffff",
    "a\u2028b\u00a0c", "|,$\\", "[click](javascript:alert(1))", '{"resourceType":"Patient"}', " \t\n ", "😀" * 2000,
]  # fmt: skip


def hostile_report(text: str) -> Report:
    """The text in every place that comes from outside."""
    return report_of(
        study=StudyEntry(name=text, uid="1.2", description=text, patient_id=text, date=text, accession=text),
        findings=(
            volume_finding(title=text, assessment_reason=text, volume=text, name=text, novelty=(text,)),
            probability_finding(title=text, assessment_reason=text),
        ),
        series=tuple(item.model_copy(update={"description": text, "modality": text, "volume": text})
                     for item in report_of().series),
        texts=(text_entry(source=text, assessment_reason=text),),
        fusion=(fusion_entry(title=text, code=None, missing=(text,), text=None, fused=None),),
        disagreements=(Disagreement(kind="image_abnormal_report_silent", name=text, title=text, note=text, score=1.0,
                                    sentence=SentenceRef(text_sha256=TEXT_SHA, start=0, end=1, text=text)),),
        not_looked_at=(text,),
    )  # fmt: skip


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str, version: Version, tmp_path: Path) -> None:
    path = tmp_path / "fhir.json"
    write_fhir(path, hostile_report(text), version)
    bundle = json.loads(path.read_text(encoding="utf-8"))
    assert_valid(bundle, version)
    (result,) = resources(bundle, "DiagnosticReport")
    assert "<script" not in result["text"]["div"]
    assert "<img" not in result["text"]["div"]
    if version == "r5":
        assert "](" not in result["conclusion"]
        assert "<" not in result["conclusion"].replace("\\<", "")


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
@settings(max_examples=25, deadline=None)
def test_any_text_makes_a_valid_bundle(text: str) -> None:
    for version in VERSIONS:
        assert_valid(bundle_of(hostile_report(text), version), version)


def test_a_bundle_that_says_something_else_is_withheld() -> None:
    report = report_of()
    content = json.dumps(bundle_of(report)).encode()
    check_fhir(content, report)
    for changed in (
        content.replace(b"1730.25", b"1730.26", 1),
        content.replace(b"0.98314", b"0.88314", 1),
        content.replace(b'"A", "display": "Abnormal"', b'"N", "display": "Normal"', 1),
        content.replace(b'"233604007"', b'"233604008"', 1),
        content.replace(b"255549009", b"255551008", 1),
        content.replace(b"1990.125", b"1991.125", 1),
        content.replace(b'"value": 0.985', b'"value": 0.785', 1),
        content.replace(b'"P1"', b'"P2"', 1),
        content.replace(b"1.2.3.5", b"1.2.3.6", 1),
        content.replace(b"a" * 64, b"f" * 64, 1),
        content.replace(b'"reference": "urn:uuid:', b'"reference": "urn:uuid:0', 1),
        content.replace(b'"conclusion": "', b'"conclusion": "No finding. ', 1),
        content.replace(b"</p>", b" Nothing abnormal.</p>", 1),
        content.replace(b"not reported on: 1", b"not reported on: 2", 1),
        content.replace(b'"conclusionCode": [{', b'"conclusionCode": [{"coding": [{"code": "1"}]}, {', 1),
    ):
        assert changed != content
        with pytest.raises(OutputMismatch):
            check_fhir(changed, report)


@pytest.mark.parametrize("version", ["r4", "r5"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_page_is_shown_by_its_hash_or_whole(whole: bool, version: Version, tmp_path: Path) -> None:
    page = Page("<p>\N{LATIN SMALL LETTER E WITH ACUTE}</p>".encode(), "report.html", whole)
    write_fhir(tmp_path / "fhir.json", report_of(), version, page)
    bundle = json.loads((tmp_path / "fhir.json").read_text())
    (form,) = resources(bundle, "DiagnosticReport")[0]["presentedForm"]
    assert form["hash"] == base64.b64encode(hashlib.sha1(page.content).digest()).decode()
    assert form["contentType"] == "text/html"
    if whole:
        assert base64.b64decode(form["data"]) == page.content
        assert "url" not in form
    else:
        assert "data" not in form
        assert form["url"].startswith("ni:///sha-256;")
    assert_valid(bundle, version)
    content, other = json.dumps(bundle).encode(), Page(page.content + b" ", page.name, whole)
    check_fhir(content, report_of(), page, version)
    for wrong in (other, None, Page(page.content, page.name, not whole)):
        with pytest.raises(OutputMismatch):
            check_fhir(content, report_of(), wrong, version)


def test_what_fhir_cannot_hold_is_refused(tmp_path: Path) -> None:
    broken = [
        report_of(created="2026-11-22T10:11:12"),
        report_of(created="yesterday"),
        report_of(findings=(probability_finding(code=Code(value="a  b", meaning="x")),)),
        report_of(models=(model("chest_xray", "z"),)),
        report_of(series=(series("x y", "MR", MR, (), "m"),)),
    ]
    for report in broken:
        with pytest.raises(OutputNotBuilt):
            write_fhir(tmp_path / "fhir.json", report)
    with pytest.raises(UnknownName):
        write_fhir(tmp_path / "fhir.json", report_of(), "r3")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
