"""Findings -> DICOM Comprehensive 3D SR (TID 1500), read back and compared before anybody gets it.

Invariant: what `write_report` puts on disk says, read back, exactly what was meant, of the patient and the study of its
source; else nothing is written. It is UNVERIFIED, and its observer is a device. UIDs are functions of the content; with
the same moment the bytes are the same.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
from pydicom.sr.coding import Code as DicomCode
from pydicom.uid import ExplicitVRLittleEndian
from pydicom.valuerep import DT

from imaging.config import Code
from imaging.dicom.frames import quietly
from imaging.dicom.source import MANUFACTURER, OF_THE_PATIENT, read_source, to_unicode, uid_of
from imaging.dicom.sr_content import COMMENT, LOWER, UPPER, Group, Maker, Measured, read_content
from imaging.errors import OutputMismatch, OutputNotBuilt
from imaging.files import write_whole

_IDENTITY = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"]
_ENGLISH = hd.sr.CodedConcept("en", "RFC5646", "English")
_PROCEDURE = DicomCode("363679005", "SCT", "Imaging procedure")
_INTELLIGENCE = DicomCode("123110", "DCM", "Artificial Intelligence")
_CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
_PROPERTY = hd.sr.RelationshipTypeValues.HAS_PROPERTIES


@dataclass(frozen=True, slots=True)
class Statement:
    """What a report says, who says it, and when.

    Attributes
    ----------
    groups
        At least one.
    software_version
        Version of imgpipe, which is the observer.
    moment
        ContentDate and ContentTime, and when the instance was made; the only part that two reports of the same content
        may differ by.
    """

    groups: tuple[Group, ...]
    software_version: str
    moment: datetime


def write_report(
    path: Path, statement: Statement, instances: Sequence[Path], *, predecessors: Sequence[Path] = ()
) -> None:
    """Write a Comprehensive 3D SR (PS3.3 A.35.13) with the content of TID 1500.

    Parameters
    ----------
    path
        Where it goes.
    statement
        What it says.
    instances
        Files of the study: every image and segmentation that the groups refer to is among them. The first one says
        whose study it is.
    predecessors
        Earlier reports on the study that this one replaces (Predecessor Documents Sequence).

    Raises
    ------
    OutputNotBuilt
        If highdicom cannot make a report of the source.
    OutputMismatch
        If the bytes, read back, do not say what was meant, or of whom; nothing is written.
    """
    try:
        source, evidence = _evidence(statement.groups, instances)
        earlier = [pydicom.dcmread(file, specific_tags=_IDENTITY) for file in predecessors]
        with quietly():
            report = _build(statement, source, evidence, earlier)
        stream = io.BytesIO()
        with quietly():
            report.save_as(stream)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom raises for what it cannot take
        raise OutputNotBuilt(path.name, seen=f"highdicom refuses the source ({type(error).__name__})") from error
    check_report(stream.getvalue(), statement, source, earlier)
    write_whole(path, stream.getvalue())


def _evidence(groups: Sequence[Group], instances: Sequence[Path]) -> tuple[pydicom.Dataset, list[pydicom.Dataset]]:
    """The header that says whose study it is, and of what the groups refer to, which instance of which series."""
    source = read_source(instances[0])
    _in_unicode_if_needed(source, groups)
    images = {uid for group in groups for uid in group.images}
    segments = {group.segment.sop_instance_uid for group in groups if group.segment is not None}
    wanted, found = images | segments, dict[str, tuple[int, pydicom.Dataset]]()
    # Segmentations come last: where a report refers to nothing else, no image is looked at.
    places, last = range(len(instances)), max(len(instances) - len(segments), 0)
    for place in (*places[last:], *places[:last]):
        if len(found) == len(wanted):
            break
        with quietly():
            header = pydicom.dcmread(instances[place], specific_tags=_IDENTITY, stop_before_pixels=True, force=True)
        if header.SOPInstanceUID in wanted:
            found.setdefault(header.SOPInstanceUID, (place, header))
    lost = wanted - set(found)
    if lost:
        raise ValueError(f"{len(lost)} instances are not among the files")
    return source, [header for _, header in sorted(found.values(), key=itemgetter(0))]


def _in_unicode_if_needed(source: pydicom.Dataset, groups: Sequence[Group]) -> None:
    """Keep the source's own character set, so that names stay as they are byte for byte, unless our words need more."""
    words = [word for group in groups for word in (group.tracking_id, *group.comments, *_meanings(group))]
    if not all(word.isascii() for word in words):
        to_unicode(source)


def _meanings(group: Group) -> list[str]:
    named = [code for item in group.evaluations for code in (item.question, item.answer)]
    codes = [group.finding, group.category, group.site, group.site_modifier, *named]
    return [code.meaning for code in codes if code is not None]


def _build(
    statement: Statement,
    source: pydicom.Dataset,
    evidence: Sequence[pydicom.Dataset],
    earlier: Sequence[pydicom.Dataset],
) -> hd.sr.Comprehensive3DSR:
    classes = {header.SOPInstanceUID: header.SOPClassUID for header in evidence}
    # A corrected PatientID is another object: an archive keeps the first of two with one UID.
    identity = [source.StudyInstanceUID, str(source.PatientID), statement.software_version, repr(statement.groups)]
    identity += [header.SOPInstanceUID for header in earlier]
    content = hd.sr.MeasurementReport(
        observation_context=_observer(statement.software_version),
        procedure_reported=_PROCEDURE,
        imaging_measurements=[_group(group, classes) for group in statement.groups],
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(_ENGLISH),
    )
    # Highdicom copies what is given, reads the copy and looks for references in it, which takes longer than all else.
    # Whether each reference is among the evidence has been seen to, so it is given the head of the report alone.
    measurements = content[0].ContentSequence.pop()
    report = hd.sr.Comprehensive3DSR(
        evidence=[source, *evidence],
        content=content[0],
        series_instance_uid=uid_of("sr series", *identity),
        series_number=9002,
        sop_instance_uid=uid_of("sr instance", *identity),
        instance_number=1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MANUFACTURER,
        software_versions=statement.software_version,
        series_description="imgpipe findings (research)",
        is_complete=True,
        previous_versions=earlier or None,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        content_date=statement.moment.date(),
        content_time=statement.moment.time(),
    )
    report.ContentSequence.append(measurements)
    report.InstanceCreationDate, report.InstanceCreationTime = report.ContentDate, report.ContentTime
    for equipment in report.ContributingEquipmentSequence:
        equipment.ContributionDateTime = DT(statement.moment)
    if source.SOPInstanceUID not in classes:
        _drop_evidence(report, source.SOPInstanceUID)
    return report


def _drop_evidence(report: pydicom.Dataset, uid: str) -> None:
    """Take out the instance that only said whose study it is: the report refers to no part of it."""
    kept = []
    for study in report.CurrentRequestedProcedureEvidenceSequence:
        for series in study.ReferencedSeriesSequence:
            series.ReferencedSOPSequence = [
                item for item in series.ReferencedSOPSequence if item.ReferencedSOPInstanceUID != uid
            ]
        study.ReferencedSeriesSequence = [item for item in study.ReferencedSeriesSequence if item.ReferencedSOPSequence]
        kept += [study] if study.ReferencedSeriesSequence else []
    if kept:
        report.CurrentRequestedProcedureEvidenceSequence = kept
    else:
        del report.CurrentRequestedProcedureEvidenceSequence


def _observer(software_version: str) -> hd.sr.ObservationContext:
    """TID 1004: the observer is the software, and no person."""
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=hd.sr.CodedConcept("121007", "DCM", "Device"),
            observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
                uid=uid_of("device", MANUFACTURER, software_version),
                name=MANUFACTURER,
                manufacturer_name=MANUFACTURER,
                model_name=f"{MANUFACTURER} {software_version}",
            ),
        )
    )


def _group(
    group: Group, classes: dict[str, str]
) -> hd.sr.MeasurementsAndQualitativeEvaluations | hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    site = group.site and hd.sr.FindingSite(
        anatomic_location=_coded(group.site),
        topographical_modifier=None if group.site_modifier is None else _coded(group.site_modifier),
    )
    common: dict[str, Any] = {
        "tracking_identifier": hd.sr.TrackingIdentifier(uid=group.tracking_uid, identifier=group.tracking_id),
        "finding_type": group.finding and _coded(group.finding),
        "finding_category": group.category and _coded(group.category),
        "finding_sites": [site] if site else None,
        "algorithm_id": group.maker and _maker(group.maker),
        "measurements": [_measurement(item) for item in group.measured] or None,
        "qualitative_evaluations": [
            hd.sr.QualitativeEvaluation(_coded(item.question), _coded(item.answer)) for item in group.evaluations
        ]
        or None,
    }
    made: hd.sr.MeasurementsAndQualitativeEvaluations | hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations
    if group.segment is None:
        images = [hd.sr.SourceImageForMeasurementGroup(classes[uid], uid) for uid in group.images]
        made = hd.sr.MeasurementsAndQualitativeEvaluations(**common, source_images=images or None)
    else:
        segment = hd.sr.ReferencedSegment(
            sop_class_uid=classes[group.segment.sop_instance_uid],
            sop_instance_uid=group.segment.sop_instance_uid,
            segment_number=group.segment.number,
            source_series=hd.sr.SourceSeriesForSegmentation(group.segment.series_uid),
        )
        made = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(**common, referenced_segment=segment)
    for comment in group.comments:
        made[0].ContentSequence.append(hd.sr.TextContentItem(_coded(COMMENT), comment, _CONTAINS))
    return made


def _measurement(item: Measured) -> hd.sr.Measurement:
    made = hd.sr.Measurement(
        name=_coded(item.name),
        value=item.value,
        unit=_coded(item.unit),
        algorithm_id=None if item.maker is None else _maker(item.maker),
    )
    # highdicom gives an uncertainty no unit; it is that of the number.
    upper = [] if item.high is None else [(UPPER, item.high - item.value)]
    lower = [] if item.low is None else [(LOWER, item.value - item.low)]
    for name, distance in (*upper, *lower):
        if "ContentSequence" not in made[0]:
            made[0].ContentSequence = hd.sr.ContentSequence()
        made[0].ContentSequence.append(
            hd.sr.NumContentItem(_coded(name), float(distance), _coded(item.unit), relationship_type=_PROPERTY)
        )
    return made


def _maker(maker: Maker) -> hd.sr.AlgorithmIdentification:
    return hd.sr.AlgorithmIdentification(
        name=maker.name, version=maker.version, parameters=maker.parameters or None, family=_INTELLIGENCE
    )


def _coded(code: Code) -> hd.sr.CodedConcept:
    return hd.sr.CodedConcept(code.value, code.scheme, code.meaning)


def check_report(
    content: bytes, statement: Statement, source: pydicom.Dataset, earlier: Sequence[pydicom.Dataset] = ()
) -> None:
    """Read a report back from its own bytes and compare it with what was meant, and of whom.

    Parameters
    ----------
    content
        The report as it will be written.
    statement
        What was meant.
    source
        The header that says whose study it is.
    earlier
        The reports that it replaces.

    Raises
    ------
    OutputMismatch
        If it says something else or of somebody else, or claims to be verified.
    """
    report = pydicom.dcmread(io.BytesIO(content))
    others = [keyword for keyword in OF_THE_PATIENT if str(report.get(keyword, "")) != str(source.get(keyword, ""))]
    if others:
        raise OutputMismatch("sr", seen=f"{others[0]} is not that of the source")
    if report.VerificationFlag != "UNVERIFIED" or report.PreliminaryFlag != "PRELIMINARY":
        raise OutputMismatch("sr", seen=f"{report.VerificationFlag}, {report.PreliminaryFlag}")
    replaced = {
        str(item.ReferencedSOPInstanceUID)
        for study in report.get("PredecessorDocumentsSequence", ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    if replaced != {str(header.SOPInstanceUID) for header in earlier}:
        raise OutputMismatch("sr", seen="it replaces other reports than were meant")
    found = read_content(report)
    if len(found) != len(statement.groups):
        raise OutputMismatch("sr", seen=f"{len(found)} groups", expected=f"{len(statement.groups)} were expected")
    for here, meant in zip(found, statement.groups, strict=True):
        if not same(here, meant):
            raise OutputMismatch("sr", seen=f"what is said of {meant.tracking_id!r} differs")


def same(here: Group, meant: Group) -> bool:
    """Whether two groups say the same; bounds of a number may differ in its last binary digits."""
    close = len(here.measured) == len(meant.measured) and all(
        (one.name, one.value, one.unit, one.maker) == (other.name, other.value, other.unit, other.maker)
        and _close(one.low, other.low)
        and _close(one.high, other.high)
        for one, other in zip(here.measured, meant.measured, strict=True)
    )
    return close and _without_numbers(here) == _without_numbers(meant)


def _without_numbers(group: Group) -> Group:
    return replace(group, measured=())


def _close(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= 1e-9 * max(abs(one), abs(other), 1.0)
