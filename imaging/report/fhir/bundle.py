"""A Report -> one FHIR Bundle, of R4 or R5.

Invariant: the bundle is a transaction, so that a server stores all of it or nothing, and the same report sent again
makes no second one: ids are functions of the content, and what is stored already is found by its identifier. Only
`issued`, `recorded`, `occurred` and the bundle's `timestamp` tell when it was made.

A transaction is what IHE Radiology's Interactive Multimedia Report asks of who stores a report (RAD-141, Bundle.type
`transaction`, the DiagnosticReport by POST). A `collection` would have to be taken apart by the receiver, and a
`document` says that somebody has attested it, which nobody has.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import get_args
from urllib.parse import quote

from markupsafe import Markup

from imaging.codes import code_of
from imaging.errors import OutputNotBuilt, UnknownName
from imaging.files import write_whole
from imaging.report.conclusion import conclusion_of
from imaging.report.fhir.check import check_fhir
from imaging.report.fhir.observations import observations_of, subject_and_time
from imaging.report.fhir.parts import (
    URI,
    Json,
    Page,
    Version,
    attachment,
    coded,
    coding,
    coding_of,
    concept,
    identifier,
    instant,
    marked,
    name_of,
    of_bytes,
    ordered,
    plain,
    reference,
)
from imaging.report.fhir.study import imaging_study, model, model_name, software, software_name, study_name
from imaging.report.report import Report

# LOINC's own name of it; DICOM, and so the table, calls it a report.
_CODE = concept({**coding_of(code_of("imaging_report")), "display": "Diagnostic imaging study"})
_CATEGORY = concept(coding("http://terminology.hl7.org/CodeSystem/v2-0074", "RAD", "Radiology"))
_PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"


def write_fhir(path: Path, report: Report, version: Version = "r4", page: Page | None = None) -> None:
    """Write a report as FHIR JSON.

    Parameters
    ----------
    path
        Where it goes.
    report
        What was found.
    version
        Of FHIR: ``r4`` (4.0.1) or ``r5`` (5.0.0).
    page
        The report's page, as its `presentedForm`; None where there is none.

    Raises
    ------
    UnknownName
        If there is no such version.
    OutputNotBuilt
        If FHIR cannot hold the report.
    OutputMismatch
        If the bytes, read back, do not say what the report says; nothing is written.
    """
    try:
        content = json.dumps(bundle_of(report, version, page), indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise OutputNotBuilt(path.name, seen="a number that is not finite") from error
    encoded = (content + "\n").encode()
    check_fhir(encoded, report, page, version)
    write_whole(path, encoded)


def bundle_of(report: Report, version: Version = "r4", page: Page | None = None) -> Json:
    """The bundle as JSON's values; see `write_fhir`."""
    if version not in get_args(Version):
        raise UnknownName("fhir_version", seen=repr(version), expected="r4 or r5 was expected")
    digest = _digest(report)
    found = observations_of(report, digest, version)
    observed = [item for item in found if item["resourceType"] == "Observation"]
    shown = [attachment(page)] if page is not None else []
    resources = [_diagnostic_report(report, digest, version, observed, shown), *found]
    if study_name(report):
        resources.append(imaging_study(report, version))
    # Two entries may be of one checkpoint, which measured two series.
    devices = {model_name(entry): model(entry, version) for entry in report.models}
    resources += [*devices.values(), software(report, version)]
    resources.append(_provenance(report, digest, observed))
    name = name_of("Bundle", digest, version)
    return {
        "resourceType": "Bundle",
        "id": name,
        "identifier": identifier(URI, f"urn:uuid:{name}"),
        "type": "transaction",
        "timestamp": instant(report.created),
        "entry": [_entry(resource) for resource in resources],
    }


def _digest(report: Report) -> str:
    """SHA-256 of what the report says, whenever it was said and whatever was written beside it."""
    said = report.model_dump_json(exclude={"created", "outputs"})
    return hashlib.sha256(said.encode()).hexdigest()


def _entry(resource: Json) -> Json:
    kind = resource["resourceType"]
    request = {"method": "POST", "url": kind}
    for known_by in resource.get("identifier", [])[:1]:
        # What the server has already is referred to and left as it is (FHIR RESTful API, conditional create).
        request["ifNoneExist"] = f"identifier={quote(known_by['system'] + '|' + known_by['value'], safe=':|/;-._~')}"
    return {"fullUrl": f"urn:uuid:{resource['id']}", "resource": resource, "request": request}


def _diagnostic_report(report: Report, digest: str, version: Version, observed: list[Json], shown: list[Json]) -> Json:
    name = name_of("DiagnosticReport", digest)
    lines = _lines(report)
    study = [reference(study_name(report), "ImagingStudy")] if study_name(report) else []
    coded_conclusions = _conclusions(report)
    return {
        "resourceType": "DiagnosticReport",
        "id": name,
        "text": {"status": "generated", "div": _narrative(lines)},
        "identifier": [identifier(URI, f"urn:uuid:{name}")],
        **({"basedOn": orders} if (orders := ordered(report.study.accession)) else {}),
        "status": "preliminary",
        "category": [_CATEGORY],
        "code": _CODE,
        **subject_and_time(report),
        **({"result": [reference(item["id"], "Observation") for item in observed]} if observed else {}),
        **({"imagingStudy" if version == "r4" else "study": study} if study else {}),
        "conclusion": marked(lines, version),
        **({"conclusionCode": coded_conclusions} if coded_conclusions else {}),
        **({"presentedForm": shown} if shown else {}),
    }


def _conclusions(report: Report) -> list[Json]:
    """The codes of what was called abnormal; a bare volume, or what is not sure, concludes nothing."""
    abnormal = {
        (finding.code.scheme, finding.code.value): coded(finding.code, finding.title)
        for finding in report.findings
        if finding.assessment == "abnormal" and finding.structure is None
    }
    return list(abnormal.values())


def _lines(report: Report) -> list[str]:
    """The report's conclusion whole, for people; no other place of the bundle tells what was refused or not seen."""
    lines = [report.disclaimer, *map(str, conclusion_of(report, whole=True))]
    refused = len(report.refused) + sum(len(entry.refusals) for entry in report.series)
    if refused:
        lines.append(f"Refused, and not reported on: {refused} (files, series or volumes).")
    return lines


def _narrative(lines: list[str]) -> str:
    """The lines as XHTML, with everything in them escaped."""
    paragraphs = Markup().join(Markup("<p>{}</p>").format(shown) for line in lines if (shown := plain(line)))
    return str(Markup('<div xmlns="http://www.w3.org/1999/xhtml">{}</div>').format(paragraphs))


def _provenance(report: Report, digest: str, observed: list[Json]) -> Json:
    """Who said it, from what: the checkpoints as authors, the software that put it together, study and texts."""
    name = name_of("Provenance", digest)
    targets = [reference(name_of("DiagnosticReport", digest), "DiagnosticReport")]
    targets += [reference(item["id"], "Observation") for item in observed]
    authors = {model_name(entry): ("author", "Author") for entry in report.models}
    agents = {**authors, software_name(report): ("assembler", "Assembler")}
    sources = [reference(study_name(report), "ImagingStudy")] if study_name(report) else []
    sources += [of_bytes(entry.sha256, "DocumentReference", f"{entry.role}: {entry.source}") for entry in report.texts]
    entities = [{"role": "source", "what": source} for source in sources]
    if report.replaces is not None:
        earlier = of_bytes(report.replaces.report_sha256, "DiagnosticReport", f"version {report.replaces.version}")
        entities.append({"role": "revision", "what": earlier})
    return {
        "resourceType": "Provenance",
        "id": name,
        "target": targets,
        "occurredDateTime": instant(report.created),
        "recorded": instant(report.created),
        "agent": [
            {"type": concept(coding(_PARTICIPANT, *kind)), "who": reference(who, "Device")}
            for who, kind in agents.items()
        ],
        **({"entity": entities} if entities else {}),
    }
