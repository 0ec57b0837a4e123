"""FHIR bytes, read back and compared with the report.

Invariant: the way back shares only the names of code systems with the way out. It starts from the bytes, follows the
references, and gathers what a reader would gather: findings, scores, the conclusion in words and in codes, the page;
only then is the report asked what it says.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

from imaging.errors import OutputMismatch
from imaging.report.conclusion import conclusion_of, kind_of
from imaging.report.fhir.parts import SYSTEMS, Page, Version
from imaging.report.report import Finding, FusionEntry, Report

# (code, body site, series, volume or probability, its unit, low, high, judgement, hash of the weights)
_Said = tuple[str, str, str, float | None, str, float | None, float | None, str, str]
_JUDGED = {"A": "abnormal", "N": "normal", "IND": "indeterminate"}
# Codes that say what a number is, not what was found.
_OWN = {"118565006", "106233006", "112002", "113000", "123110", "18748-4", "1", "mm3"}


def check_fhir(content: bytes, report: Report, page: Page | None = None, version: Version = "r4") -> None:
    """Compare a bundle with the report, and with the page, it was made from.

    Raises
    ------
    OutputMismatch
        If a reference leads nowhere, an id is there twice, a code is not of the report, a finding's code, number,
        interval, judgement, series or checkpoint is another, or the conclusion or the page is.
    """
    bundle = json.loads(content)
    resources = {entry["fullUrl"]: entry["resource"] for entry in bundle["entry"]}
    if len(resources) != len(bundle["entry"]):
        raise OutputMismatch("fhir", seen="two resources of one id")
    for name in _values(bundle, "reference"):
        if name not in resources:
            raise OutputMismatch("fhir", seen="a reference to a resource that is not there")
    _check_codes(bundle, report)
    findings = Counter(_said(item, resources) for item in resources.values() if _is_finding(item))
    if findings != Counter(_meant(finding, report) for finding in report.findings):
        raise OutputMismatch("fhir", seen="findings that are not those of the report")
    fused = Counter(scores for item in resources.values() if (scores := _scores(item)) is not None)
    if fused != Counter(_meant_scores(entry) for entry in report.fusion):
        raise OutputMismatch("fhir", seen="scores of image and text that are not those of the report")
    results = [item for item in resources.values() if item["resourceType"] == "DiagnosticReport"]
    observed = sum(item["resourceType"] == "Observation" for item in resources.values())
    if len(results) != 1 or len(results[0].get("result", [])) != observed:
        raise OutputMismatch("fhir", seen="observations that the report does not refer to")
    _check_subject(results[0], report)
    _check_conclusion(results[0], report, version)
    _check_page(results[0], page)
    _check_instances(resources.values(), report)


def _values(node: Any, key: str) -> Iterator[Any]:
    """Every value of a key, however deep."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from _values(value, key)
    elif isinstance(node, list):
        for item in node:
            yield from _values(item, key)


def _check_codes(bundle: Any, report: Report) -> None:
    known = set(_OWN) | {entry.modality for entry in report.series}
    for code in _values(report.model_dump(mode="json"), "code"):
        if isinstance(code, dict):
            known.add(code["value"])
    known |= {finding.modifier.value for finding in report.findings if finding.modifier}
    for item in _codings(bundle):
        if item.get("system") in SYSTEMS.values() and item.get("code") not in known:
            raise OutputMismatch("fhir", seen="a code that is not of the report")


def _codings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "system" in node and "code" in node:
            yield node
        for value in node.values():
            yield from _codings(value)
    elif isinstance(node, list):
        for item in node:
            yield from _codings(item)


def _is_finding(resource: dict[str, Any]) -> bool:
    """Whether it is an Observation about one series by one code; texts, fusions and disagreements are not."""
    return resource["resourceType"] == "Observation" and "coding" in resource["code"] and _scores(resource) is None


def _scores(resource: dict[str, Any]) -> tuple[float | None, ...] | None:
    """What an Observation says: its own number, image only, text only, both; None for one of something else."""
    parts = {_name(part["code"]): part for part in resource.get("component", [])}
    if "image only" not in parts:
        return None
    three = [parts[name] for name in ("image only", "text only", "image and text")]
    return tuple(part.get("valueQuantity", {}).get("value") for part in (resource, *three))


def _meant_scores(entry: FusionEntry) -> tuple[float | None, ...]:
    judged = entry.judged_by
    return tuple(score.probability if score else None for score in (judged, entry.image, entry.text, entry.fused))


def _said(item: dict[str, Any], resources: dict[str, Any]) -> _Said:
    """What an Observation says, as a reader takes it."""
    parts = {_name(part["code"]): part for part in item.get("component", [])}
    number = item.get("valueQuantity", {})
    bounds = parts.get("interval of the volume", {}).get("valueRange", {})
    device = resources[item["device"]["reference"]] if "device" in item else {}
    hashes = [each["value"] for each in device.get("version", []) if "weights" in each.get("type", {}).get("text", "")]
    site = item.get("bodySite", {"coding": [{"code": ""}]})["coding"][0]["code"]
    modifier = parts.get("106233006", {}).get("valueCodeableConcept", {"coding": [{"code": ""}]})["coding"][0]["code"]
    return (
        item["code"]["coding"][0]["code"],
        f"{site} {modifier}".strip(),
        parts.get("112002", {}).get("valueString", ""),
        number.get("value"),
        number.get("code", ""),
        bounds.get("low", {}).get("value"),
        bounds.get("high", {}).get("value"),
        _JUDGED[item["interpretation"][0]["coding"][0]["code"]] if "interpretation" in item else "measured",
        "".join(hashes),
    )


def _name(code: dict[str, Any]) -> str:
    name: str = code["coding"][0]["code"] if "coding" in code else code["text"]
    return name


def _meant(finding: Finding, report: Report) -> _Said:
    """What the report says of a finding, in the same words."""
    hashes = {entry.name: entry.weights_sha256 for entry in report.models}
    last = (kind_of(finding), hashes.get(finding.model, ""))
    structure, found = finding.structure, finding.classification
    if structure is None:
        value = _finite(found.probability) if found else None
        unit = "" if value is None else "1"
        return (finding.code.value, "", finding.series_uid, value, unit, None, None, *last)
    modifier = finding.modifier.value if finding.modifier else ""
    value = _finite(structure.volume_mm3) if structure.voxels else None
    unit = "" if value is None else "mm3"
    bounds = structure.interval
    low, high = (_finite(bounds.low_mm3), _finite(bounds.high_mm3)) if bounds else (None, None)
    if low is None or high is None:
        low = high = None
    site = f"{finding.code.value} {modifier}".strip()
    return ("118565006", site, finding.series_uid, value, unit, low, high, *last)


def _finite(value: float) -> float | None:
    """JSON has no other numbers."""
    return value if math.isfinite(value) else None


def _check_subject(result: dict[str, Any], report: Report) -> None:
    said = result.get("subject", {}).get("identifier", {}).get("value")
    if said is not None and said != report.study.patient_id.strip():
        raise OutputMismatch("fhir", seen="another patient")


def _check_conclusion(result: dict[str, Any], report: Report, version: Version) -> None:
    """What people read, as text and as XHTML, is what the report concludes, and how much was refused."""
    meant = _letters("".join((report.disclaimer, *map(str, conclusion_of(report, whole=True)))))
    refused = len(report.refused) + sum(len(entry.refusals) for entry in report.series)
    words = str(result.get("conclusion", ""))
    if version == "r5":  # Markdown has a stroke before each sign
        words = re.sub(r"\\(.)", r"\1", words)
    div = ElementTree.fromstring(result["text"]["div"])  # noqa: S314  our own words, just written
    for said in (_letters(words), _letters("".join(div.itertext()))):
        if not said.startswith(meant) or re.findall("[0-9]+", said[len(meant) :]) != [str(refused)] * (refused > 0):
            raise OutputMismatch("fhir", seen="a conclusion that is not that of the report")
    coded = [(item["coding"][0].get("system"), item["coding"][0]["code"]) for item in result.get("conclusionCode", [])]
    abnormal = [one.code for one in report.findings if one.assessment == "abnormal" and one.structure is None]
    if coded != list(dict.fromkeys((SYSTEMS.get(code.scheme), code.value) for code in abnormal)):
        raise OutputMismatch("fhir", seen="codes of a conclusion that are not those of the report")


def _letters(words: str) -> str:
    """Words without what FHIR cannot hold or lays out otherwise: blanks and control characters."""
    return "".join(sign for sign in words if sign.isprintable() and not sign.isspace() and sign != "\ufffd")


def _check_page(result: dict[str, Any], page: Page | None) -> None:
    """The page is the very one, by its hash, and where it is in the bundle byte for byte."""
    shown = result.get("presentedForm", [])
    if page is None or len(shown) != 1:
        if shown or page is not None:
            raise OutputMismatch("fhir", seen=f"{len(shown)} pages")
        return
    (form,) = shown
    same = base64.b64decode(form["hash"]) == hashlib.sha1(page.content, usedforsecurity=False).digest()
    if not same or ("data" in form) != page.whole or (page.whole and base64.b64decode(form["data"]) != page.content):
        raise OutputMismatch("fhir", seen="a page that is not that of the report")


def _check_instances(resources: Any, report: Report) -> None:
    meant = {uid for entry in report.series for uid in entry.source_sop_instance_uids}
    for resource in resources:
        if resource["resourceType"] == "ImagingStudy":
            said = {item["uid"] for series in resource.get("series", []) for item in series.get("instance", [])}
            if not said <= meant:
                raise OutputMismatch("fhir", seen="instances that were not measured")
