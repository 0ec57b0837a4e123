"""A Report -> a DICOM SR: which of its statements become which groups of TID 1500.

Invariant: nothing is said that the report does not say. A finding is named as one only where it was assessed as
abnormal, or where the structure was found; what was looked for and judged normal is answered with "Absent", what was
left open with "Undetermined", each with its probability and the reason. What nothing judged has no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import SegmentationStorage

from imaging.codes import code_of
from imaging.config import Code
from imaging.dicom.source import tracking_uid, uid_of
from imaging.dicom.sr import Statement, write_report
from imaging.dicom.sr_content import Evaluation, Group, Maker, Measured, SegmentRef
from imaging.errors import FormatNotApplicable, OutputNotBuilt
from imaging.report.conclusion import kind_of
from imaging.report.report import (
    Assessment,
    Disagreement,
    Finding,
    FusionEntry,
    ModelEntry,
    Report,
    Score,
    SeriesEntry,
    TextEntry,
)
from imaging.text.document import NOT_SEEN, Assertion

_NORMALITY = {"normal": "normal", "abnormal": "abnormal", "indeterminate": "normality_undetermined"}
_PRESENCE = {"normal": "absent", "abnormal": "present", "indeterminate": "undetermined"}
_ASSERTED = {"present": "present", "absent": "absent", "uncertain": "undetermined"}
_SEG = ["SOPClassUID", "SOPInstanceUID", "ManufacturerModelName", "SegmentSequence"]


# A structure by its checkpoint, its series, its volume of the series, and its name.
Key = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A segment of a SEG that lies beside a report.

    Attributes
    ----------
    tracking_uid
        What it is tracked by.
    segment
        How an SR refers to it; None for one of a label map, which DCMTK and dciodvfy take for no segmentation.
    told
        The same in words, where it cannot be referred to.
    """

    tracking_uid: str
    segment: SegmentRef | None = None
    told: str = ""


def write_sr(path: Path, report: Report, instances: Sequence[Path], *, predecessors: Sequence[Path] = ()) -> None:
    """Write a report as Comprehensive 3D SR; it refers to the SEGs that lie beside it and that the report names.

    Parameters
    ----------
    path
        Where it goes: the folder of the report's outputs.
    report
        What it says; the moment it was created is the only thing that changes from run to run.
    instances
        DICOM files of the study: those that were read, or where nothing was, any.
    predecessors
        SRs of earlier versions of the result, which this one replaces.

    Raises
    ------
    FormatNotApplicable
        If the study is not DICOM.
    OutputNotBuilt, OutputMismatch
        If it cannot be made of these instances, or does not say what was meant; nothing is written.
    """
    if not instances or not report.study.uid:
        raise FormatNotApplicable(report.study.name, seen="no DICOM instance that a structured report could be about")
    drawn, files = _drawn_beside(path.parent, report)
    statement = Statement(
        groups=groups_of(report, drawn),
        software_version=report.software_version,
        moment=datetime.fromisoformat(report.created).astimezone().replace(tzinfo=None),
    )
    write_report(path, statement, [*instances, *files], predecessors=predecessors)


def _drawn_beside(folder: Path, report: Report) -> tuple[dict[Key, Drawn], list[Path]]:
    """What the SEGs that a report names hold, and their files."""
    found: dict[Key, Drawn] = {}
    entries = [item for item in report.outputs if item.file.startswith("seg_")]
    for entry in entries:
        try:
            dataset = pydicom.dcmread(folder / entry.file, stop_before_pixels=True, specific_tags=_SEG)
        except (OSError, InvalidDicomError) as error:
            raise OutputNotBuilt(entry.file, seen="the report names it and it cannot be read") from error
        for segment in dataset.SegmentSequence:
            if "TrackingID" not in segment:  # the background of a label map
                continue
            uid, number = str(dataset.SOPInstanceUID), int(segment.SegmentNumber)
            key = (str(dataset.ManufacturerModelName), entry.series_uid, entry.volume, str(segment.TrackingID))
            found[key] = (
                Drawn(str(segment.TrackingUID), segment=SegmentRef(uid, number, entry.series_uid))
                if dataset.SOPClassUID == SegmentationStorage
                else Drawn(str(segment.TrackingUID), told=f"Segment {number} of label map {uid}")
            )
    return found, [folder / entry.file for entry in entries]


def groups_of(report: Report, drawn: Mapping[Key, Drawn]) -> tuple[Group, ...]:
    """What a report says, group by group: findings, picture and words together, disagreements, texts, and the rest.

    Parameters
    ----------
    report
        The report.
    drawn
        The structures that a SEG beside it holds.
    """
    makers = {model.name: _maker(model) for model in report.models}
    groups = [_finding(item, report.series, makers, drawn) for item in report.findings]
    groups += [_fused(item, report, makers) for item in report.fusion]
    groups += [_disagreement(item, report) for item in report.disagreements]
    groups += [_text(item, report, makers) for item in report.texts]
    return (*groups, _study(report))


def _maker(model: ModelEntry) -> Maker:
    hashes = (f"weights SHA-256 {model.weights_sha256}", f"config SHA-256 {model.config_sha256}")
    return Maker(model.name, model.version, hashes)


def _finding(
    finding: Finding,
    series: Sequence[SeriesEntry],
    makers: Mapping[str, Maker],
    drawn: Mapping[Key, Drawn],
) -> Group:
    undrawn = Drawn(tracking_uid(finding.series_uid, finding.volume, finding.model, finding.name))
    own = drawn.get((finding.model, finding.series_uid, finding.volume, finding.name), undrawn)
    found = finding.assessment == "abnormal" or bool(finding.structure and finding.structure.voxels)
    is_structure = finding.structure is not None
    return Group(
        tracking_id=finding.name
        if own is not undrawn
        else " ".join(part for part in (finding.model, finding.name) if part),
        tracking_uid=own.tracking_uid,
        maker=makers.get(finding.model),
        finding=finding.code if found else None,
        category=finding.category if found else None,
        site=finding.code if is_structure else None,
        site_modifier=finding.modifier if is_structure else None,
        measured=tuple(_numbers(finding)),
        # A size that no rule judges is not undetermined: nobody asked.
        evaluations=()
        if kind_of(finding) == "measured"
        else _judged(finding.assessment, None if is_structure else finding.code),
        comments=_comments(finding.title, finding.assessment_reason, *finding.novelty, *_number(finding), own.told),
        images=() if own.segment else tuple(_images(finding, series)),
        segment=own.segment,
    )


def _images(finding: Finding, series: Sequence[SeriesEntry]) -> Iterator[str]:
    """The instances that were read: those of the finding's series, and of the other channels of its case."""
    for entry in series:
        if (entry.uid, entry.volume) == (finding.series_uid, finding.volume) or finding.model in entry.channel_of:
            yield from dict.fromkeys(entry.source_sop_instance_uids)


def _numbers(finding: Finding) -> Iterator[Measured]:
    if finding.classification is not None:
        yield _probability(finding.classification.probability)
    if finding.structure is not None and finding.structure.voxels:
        value, bounds = finding.structure.volume_mm3, finding.structure.interval
        # An interval from held-out cases need not hold the number itself; then it is told in words alone.
        inside = bounds is not None and bounds.low_mm3 <= value <= bounds.high_mm3
        low, high = (bounds.low_mm3, bounds.high_mm3) if bounds is not None and inside else (None, None)
        yield Measured(code_of("volume"), value, code_of("cubic_millimeter"), low, high)


def _number(finding: Finding) -> Iterator[str]:
    """What has to be known of a finding's number."""
    if finding.classification is not None and finding.classification.temperature is None:
        yield "The probability is the network's own and not calibrated"
    if finding.structure is None or not finding.structure.voxels:
        return
    bounds = finding.structure.interval
    if bounds is None:
        yield f"No interval of the volume: {finding.structure.interval_note}"
    else:
        share = f"{bounds.coverage:.0%}"
        yield f"Volume between {bounds.low_mm3:g} and {bounds.high_mm3:g} mm3 in {share} of cases like the validation's"


def _probability(
    value: float, low: float | None = None, high: float | None = None, maker: Maker | None = None
) -> Measured:
    inside = low is not None and high is not None and low <= value <= high
    return Measured(
        code_of("probability"), value, code_of("no_units"), low if inside else None, high if inside else None, maker
    )


def _judged(assessment: Assessment, code: Code | None) -> tuple[Evaluation, ...]:
    """Whether it is normal (CID 242); and of a finding that has a name of its own, whether it is there (CID 240)."""
    normality = Evaluation(code_of("normality"), code_of(_NORMALITY[assessment]))
    general = {code_of(name).value for name in ("normal", "abnormal", "finding")}
    if code is None or code.value in general:
        return (normality,)
    return (normality, Evaluation(code, code_of(_PRESENCE[assessment])))


def _fused(entry: FusionEntry, report: Report, makers: Mapping[str, Maker]) -> Group:
    scores = [score for score in (entry.image, entry.text, entry.fused) if score is not None]
    words = [_in_words(score) for score in scores]
    words += [f"Missing: {reason}" for reason in entry.missing]
    method = f"Fused by {entry.method.replace('_', ' ')}"
    prior = "" if entry.prior is None else f", prior {entry.prior:g}"
    rate = "" if entry.error_rate is None else f"Error rate {entry.error_rate:g}"
    title = entry.title or entry.name
    abnormal = entry.assessment == "abnormal"
    numbers = [_probability(s.probability, s.low, s.high, Maker(s.source, _version(s, report))) for s in scores]
    return Group(
        tracking_id=f"picture and words {entry.name}",
        tracking_uid=uid_of("tracking", report.study.uid, "fusion", entry.name),
        maker=makers.get(entry.model),
        finding=entry.code if abnormal else None,
        category=code_of("finding") if abnormal and entry.code is not None else None,
        measured=tuple(numbers),
        evaluations=_judged(entry.assessment, entry.code),
        comments=_comments(title, entry.assessment_reason, *words, method + prior, rate, entry.calibration),
    )


def _in_words(score: Score) -> str:
    between = "" if score.low is None or score.high is None else f", {score.low:.5g} to {score.high:.5g}"
    # All five digits that it has: 0.99984 is no certainty.
    return f"{score.source}: {score.probability:.5g}{between}"


def _version(score: Score, report: Report) -> str:
    """That of the model that a score names, or where nothing does, that of imgpipe."""
    of = score.source.partition(" ")[2]
    return next((model.version for model in report.models if model.name == of), report.software_version)


def _disagreement(entry: Disagreement, report: Report) -> Group:
    sentence = "The report does not mention it" if entry.sentence is None else f"The report says: {entry.sentence.text}"
    known = {uid for series in report.series for uid in series.source_sop_instance_uids}
    at = "" if entry.greatest_at is None else f"Raised most at voxel {', '.join(map(str, entry.greatest_at))}"
    return Group(
        tracking_id=f"disagreement {entry.name}",
        tracking_uid=uid_of("tracking", report.study.uid, "disagreement", entry.kind, entry.name, entry.series_uid),
        evaluations=(Evaluation(code_of("disagreement"), code_of("present")),),
        comments=_comments(entry.title or entry.name, entry.kind.replace("_", " "), entry.note, sentence, at),
        images=(entry.sop_instance_uid,) if entry.sop_instance_uid in known else (),
    )


def _text(entry: TextEntry, report: Report, makers: Mapping[str, Maker]) -> Group:
    low, high = entry.interval or (None, None)
    return Group(
        tracking_id=f"text {entry.role} {entry.sha256[:16]}",
        tracking_uid=uid_of("tracking", report.study.uid, "text", entry.role, entry.sha256),
        maker=makers.get(entry.model),
        measured=() if entry.probability is None else (_probability(entry.probability, low, high),),
        evaluations=(*(_judged(entry.assessment, None) if entry.model else ()), *_asserted(entry)),
        comments=_comments(f"Text of the role {entry.role}, SHA-256 {entry.sha256}", entry.assessment_reason),
    )


def _asserted(entry: TextEntry) -> Iterator[Evaluation]:
    """What a report says of this picture, one answer to each code; of two that differ neither.

    A request asks, and so does the part of a report that repeats it: nothing of it is an answer.
    """
    if entry.role != "report":
        return
    elsewhere = [(part.start, part.end) for part in entry.sections if part.name in NOT_SEEN]
    answers: dict[Code, set[Assertion]] = {}
    for span in (span for sentence in entry.sentences for span in sentence.spans):
        if span.code is not None and not any(start <= span.start < end for start, end in elsewhere):
            answers.setdefault(span.code, set()).add(span.assertion)
    for code, said in answers.items():
        yield Evaluation(code, code_of(_ASSERTED[said.pop()] if len(said) == 1 else "undetermined"))


def _study(report: Report) -> Group:
    """What holds for the whole: what it is not for, and what nobody looked at."""
    unread = [
        f"Series {entry.uid} ({entry.modality or 'no modality'}) was not measured: "
        + (", ".join(dict.fromkeys(refusal.code for refusal in entry.refusals)) or "no checkpoint takes it")
        for entry in report.series
        if not entry.models
    ]
    refused = [f"Refused: {code}" for code in dict.fromkeys(refusal.code for refusal in report.refused)]
    empty = [] if report.findings or report.texts else ["No checkpoint looked at this study"]
    unlooked = [f"Not looked at: {what}" for what in report.not_looked_at]
    later = [f"Version {report.version} of the result"] if report.version > 1 else []
    return Group(
        tracking_id="study",
        tracking_uid=uid_of("tracking", report.study.uid, "study"),
        comments=_comments(report.disclaimer, *later, *empty, *unlooked, *unread, *refused),
    )


def _comments(*words: str) -> tuple[str, ...]:
    """One line each, as a TEXT item holds it."""
    plain = ("".join(c if c.isprintable() else " " for c in word) for word in words)
    return tuple(line for line in (" ".join(word.split()) for word in plain) if line)
