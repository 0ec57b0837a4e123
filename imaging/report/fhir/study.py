"""What was looked at, by whom: ImagingStudy, Device, ImagingSelection.

Invariant: an instance is named with its SOP class or not at all, for FHIR has no instance without one. A device is
known by the hash of its weights: another training is another device.
"""

from __future__ import annotations

from collections.abc import Sequence

from imaging.codes import code_of
from imaging.errors import OutputNotBuilt
from imaging.report.fhir.parts import (
    DICOM_UID,
    URI,
    Json,
    Version,
    coded,
    coding,
    coding_of,
    concept,
    day,
    identifier,
    is_uid,
    modality_of,
    name_of,
    of_hash,
    ordered,
    patient,
    plain,
    reference,
)
from imaging.report.report import Finding, ModelEntry, Report, SeriesEntry

MANUFACTURER = "imgpipe"


def study_name(report: Report) -> str:
    """The UUID of the study's resource; empty for what is no DICOM study."""
    return name_of("ImagingStudy", report.study.uid) if is_uid(report.study.uid) else ""


def imaging_study(report: Report, version: Version) -> Json:
    """The study with its series, and the instances that were measured.

    Raises
    ------
    OutputNotBuilt
        If a series has no UID.
    """
    by_uid: dict[str, list[SeriesEntry]] = {}
    for entry in report.series:
        if not is_uid(entry.uid):
            raise OutputNotBuilt("fhir.json", seen="a series of a DICOM study without a UID")
        by_uid.setdefault(entry.uid, []).append(entry)
    started, description = day(report.study.date), plain(report.study.description)
    modalities = list({entry.modality: modality_of(entry.modality) for entry in report.series}.values())
    known = [modality for modality in modalities if "code" in modality]
    return {
        "resourceType": "ImagingStudy",
        "id": study_name(report),
        "identifier": [
            identifier(DICOM_UID, f"urn:oid:{report.study.uid}"),
            *(order["identifier"] for order in ordered(report.study.accession)),
        ],
        "status": "available",
        **({"modality": [_modality(item, version) for item in known]} if known else {}),
        "subject": patient(report.study.patient_id),
        **({"started": started} if started else {}),
        **({"basedOn": orders} if (orders := ordered(report.study.accession)) else {}),
        "numberOfSeries": len(by_uid),
        **({"description": description} if description else {}),
        **({"series": [_series(uid, entries, version) for uid, entries in by_uid.items()]} if by_uid else {}),
    }


def _modality(found: Json, version: Version) -> Json:
    """R4 has a Coding where R5 has a CodeableConcept."""
    return found if version == "r4" or "code" not in found else concept(found)


def _series(uid: str, entries: Sequence[SeriesEntry], version: Version) -> Json:
    first = entries[0]
    description = plain(first.description)
    modality = modality_of(first.modality)
    instances: dict[str, Json] = {}
    for entry in entries:
        if is_uid(entry.sop_class_uid):
            for sop_uid in entry.source_sop_instance_uids:
                instances[sop_uid] = {"uid": sop_uid, "sopClass": coding(URI, f"urn:oid:{entry.sop_class_uid}")}
    return {
        "uid": uid,
        "modality": _modality(modality, version),
        **({"description": description} if description else {}),
        # Where several volumes, or refusals, share the series, a file may be counted with more than one.
        **({"numberOfInstances": first.instances} if len(entries) == 1 else {}),
        **({"instance": list(instances.values())} if instances else {}),
    }


def software_name(report: Report) -> str:
    """The UUID of the software that made the report."""
    return name_of("Device", report.software, report.software_version)


def model_name(model: ModelEntry) -> str:
    """The UUID of a checkpoint, by the hashes of its weights and its config."""
    return name_of("Device", model.weights_sha256, model.config_sha256)


def software(report: Report, version: Version) -> Json:
    """The software that made the report."""
    name = software_name(report)
    kind = concept(text="Software that reads images and makes the report")
    versions = [{"value": plain(report.software_version)}]
    return _device(name, [identifier(URI, f"urn:uuid:{name}")], report.software, kind, versions, version)


def model(entry: ModelEntry, version: Version) -> Json:
    """A checkpoint: the algorithm that found something."""
    kind = concept(coding_of(code_of("artificial_intelligence")), text=entry.title)
    versions = [
        {"type": concept(text="version"), "value": plain(entry.version) or "not told"},
        {"type": concept(text="SHA-256 of the weights"), "value": entry.weights_sha256},
        {"type": concept(text="SHA-256 of the config"), "value": entry.config_sha256},
    ]
    name = model_name(entry)
    # The first is what a server finds it by: one set of weights may serve under two configs.
    known_by = [identifier(URI, f"urn:uuid:{name}"), identifier(URI, of_hash(entry.weights_sha256))]
    return _device(name, known_by, entry.name, kind, versions, version)


def _device(name: str, known_by: list[Json], title: str, kind: Json, versions: list[Json], version: Version) -> Json:
    # R5 made the type a list, and has neither `deviceName` nor its kind `model-name`.
    named = {"deviceName": [{"name": plain(title), "type": "model-name"}], "type": kind}
    if version == "r5":
        named = {"name": [{"value": plain(title), "type": "user-friendly-name"}], "type": [kind]}
    return {
        "resourceType": "Device",
        "id": name,
        "identifier": known_by,
        "status": "active",
        "manufacturer": MANUFACTURER,
        **named,
        "version": versions,
    }


def selection_name(report: Report, finding: Finding, digest: str) -> str:
    """The UUID of the instances that a finding rests on."""
    return name_of("ImagingSelection", digest, finding.model, finding.name, finding.series_uid, finding.volume)


def selection(report: Report, finding: Finding, digest: str) -> Json | None:
    """The instances and frames that a finding rests on (ImagingSelection, which R4 does not have)."""
    classes = {(entry.uid, entry.volume): entry.sop_class_uid for entry in report.series if is_uid(entry.sop_class_uid)}
    sop_class = classes.get((finding.series_uid, finding.volume), "")
    frames: dict[str, list[str]] = {}
    for item in finding.structure.evidence if finding.structure else ():
        frames.setdefault(item.sop_instance_uid, []).append(str(item.frame))
    shown = finding.explanation.sop_instance_uid if finding.explanation else ""
    if shown:
        frames.setdefault(shown, [])
    if not frames or not all(map(is_uid, frames)) or not sop_class:
        return None
    return {
        "resourceType": "ImagingSelection",
        "id": selection_name(report, finding, digest),
        "status": "available",
        "subject": patient(report.study.patient_id),
        "code": coded(code_of("of_interest")),
        "derivedFrom": [reference(study_name(report), "ImagingStudy")],
        "studyUid": report.study.uid,
        "seriesUid": finding.series_uid,
        "instance": [
            {
                "uid": uid,
                "sopClass": coding(URI, f"urn:oid:{sop_class}"),
                **({"subset": numbers} if numbers else {}),
            }
            for uid, numbers in frames.items()
        ],
    }
