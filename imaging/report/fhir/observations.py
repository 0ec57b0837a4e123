"""What was found -> Observations: a volume or a probability with its interval, coded, with what it rests on.

Invariant: every number has its unit in UCUM and the device that said it; one that is missing has its reason. Codes are
those of the report's findings and the few that are named here; words that were read in a text stay words.

The codes are those of `imaging.codes`, and of HL7 Terminology for what FHIR asks of an Observation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imaging.codes import code_of
from imaging.report.conclusion import kind_of
from imaging.report.fhir.parts import (
    URI,
    Json,
    Version,
    absent,
    absent_extension,
    coded,
    coding,
    coding_of,
    component,
    concept,
    day,
    identifier,
    instant,
    measured,
    name_of,
    of_bytes,
    patient,
    quantity,
    ranged,
    reference,
    told,
)
from imaging.report.fhir.study import model_name, selection, selection_name, study_name
from imaging.report.report import ClassProbability, Disagreement, Finding, FusionEntry, Report, Score, TextEntry

_CATEGORY = concept(coding("http://terminology.hl7.org/CodeSystem/observation-category", "imaging", "Imaging"))
_INTERPRETATIONS = {
    "abnormal": ("A", "Abnormal"),
    "normal": ("N", "Normal"),
    "indeterminate": ("IND", "Indeterminate"),
}
_VOLUME, _MODIFIER, _SERIES = (
    coding_of(code_of(name)) for name in ("volume", "topographical_modifier", "series_instance_uid")
)
# What a component is, in words that a program may compare: no code system that is in wide use has these.
INTERVAL, PROBABILITY_INTERVAL = "interval of the volume", "interval of the probability"
IMAGE_ONLY, TEXT_ONLY, TOGETHER = "image only", "text only", "image and text"

__all__ = ["observations_of", "subject_and_time"]


@dataclass(frozen=True, slots=True)
class _About:
    """What every Observation of a report has in common."""

    report: Report
    digest: str
    version: Version

    def observation(self, name: str, code: Json, value: Json, **more: object) -> Json:
        """One of them; parts that are empty are left out."""
        return {
            "resourceType": "Observation",
            "id": name,
            "identifier": [identifier(URI, f"urn:uuid:{name}")],
            "status": "preliminary",
            "category": [_CATEGORY],
            "code": code,
            **subject_and_time(self.report),
            **value,
            **{key: part for key, part in more.items() if part},
        }

    def device(self, model: str) -> Json | None:
        """The checkpoint of this name, as a reference."""
        found = next((entry for entry in self.report.models if entry.name == model), None)
        return reference(model_name(found), "Device") if found else None

    def study(self) -> list[Json]:
        """The study as `derivedFrom` has it; none where it is not DICOM."""
        name = study_name(self.report)
        return [reference(name, "ImagingStudy")] if name else []

    def text(self, sha256: str) -> list[Json]:
        """A text of the study likewise."""
        entry = next((entry for entry in self.report.texts if entry.sha256 == sha256), None)
        return [of_bytes(sha256, "DocumentReference", f"{entry.role}: {entry.source}")] if entry else []


def subject_and_time(report: Report) -> Json:
    """Whose it is, of what day, and when it was told."""
    effective = day(report.study.date)
    return {
        **({"subject": patient(report.study.patient_id)} if study_name(report) or report.study.patient_id else {}),
        **(
            {"effectiveDateTime": effective}
            if effective
            else {"_effectiveDateTime": {"extension": [absent_extension("unknown")]}}
        ),
        "issued": instant(report.created),
    }


def observations_of(report: Report, digest: str, version: Version) -> list[Json]:
    """Every statement of a report as a resource, and in R5 the instances that it rests on.

    Parameters
    ----------
    report
        What was found.
    digest
        Of its content; the resources' ids are functions of it.
    version
        Of FHIR.
    """
    about = _About(report, digest, version)
    found: list[Json] = []
    for number, finding in enumerate(report.findings):
        chosen = selection(report, finding, digest) if version == "r5" and study_name(report) else None
        found += [_finding(about, finding, number, chosen), *([chosen] if chosen else [])]
    found += [_fusion(about, entry, number) for number, entry in enumerate(report.fusion)]
    found += [_text(about, entry, number) for number, entry in enumerate(report.texts) if entry.model]
    return found + [_disagreement(about, entry, number) for number, entry in enumerate(report.disagreements)]


def _finding(about: _About, finding: Finding, number: int, chosen: Json | None) -> Json:
    name = name_of("Observation", about.digest, "finding", str(number))
    derived = about.study()
    if chosen is not None:
        derived = [*derived, reference(selection_name(about.report, finding, about.digest), "ImagingSelection")]
    # A size that no rule judges has no interpretation: "indeterminate" is what a rule could not decide.
    is_judged = kind_of(finding) != "measured"
    reason = finding.assessment_reason
    common = {
        "interpretation": [_interpretation(finding.assessment, reason)] if is_judged else [],
        "note": [{"text": reason}] if reason and not is_judged else [],
        "device": about.device(finding.model),
        "derivedFrom": derived,
    }
    where = [component(concept(_SERIES), told(finding.series_uid))] if finding.series_uid else []
    where += [component(concept(text="volume of the series"), told(finding.volume))] if finding.volume else []
    novel = [component(concept(text="unlike what was learnt"), told(reason)) for reason in finding.novelty]
    if finding.structure is not None:
        value, parts = _volume(finding)
        code, site = concept(_VOLUME, text=f"Volume of {finding.title}"), coded(finding.code, finding.title)
        return about.observation(name, code, value, **common, bodySite=site, component=[*parts, *where, *novel])
    found = finding.classification
    if found is None:
        value, code = (
            {"dataAbsentReason": absent("not-performed", finding.assessment_reason)},
            coded(finding.code, finding.title),
        )
        return about.observation(name, code, value, **common, component=[*where, *novel])
    classes = [component(concept(text=f"class {key}"), measured(p, "probability")) for key, p in found.classes.items()]
    return about.observation(
        name,
        coded(finding.code, finding.title),
        measured(found.probability, "probability"),
        **common,
        method=concept(text=_calibrated(found)),
        referenceRange=_range(found),
        component=[*where, *classes, *novel],
    )


def _interpretation(assessment: str, reason: str) -> Json:
    code, display = _INTERPRETATIONS[assessment]
    system = "http://terminology.hl7.org/CodeSystem/v3-ObservationInterpretation"
    return concept(coding(system, code, display), text=reason or display)


def _volume(finding: Finding) -> tuple[Json, list[Json]]:
    """The value of a structure's Observation and its components: the interval, and which part of the site it is."""
    structure = finding.structure
    assert structure is not None
    value = measured(structure.volume_mm3, "mm\N{SUPERSCRIPT THREE}", "mm3")
    if not structure.voxels:
        value = {"dataAbsentReason": absent("unknown", finding.assessment_reason)}
    bounds = structure.interval
    if bounds is None:
        interval = {"dataAbsentReason": absent("unknown", structure.interval_note)}
    else:
        interval = ranged(bounds.low_mm3, bounds.high_mm3, "mm\N{SUPERSCRIPT THREE}", "mm3")
    parts = [component(concept(text=INTERVAL), interval)]
    if bounds is not None:
        parts.append(component(concept(text="coverage of the interval"), measured(bounds.coverage, "share")))
    if finding.modifier is not None:
        parts.append(component(concept(_MODIFIER), {"valueCodeableConcept": coded(finding.modifier)}))
    return value, parts


def _calibrated(found: ClassProbability) -> str:
    if found.temperature is None:
        return "the network's own probability, not calibrated"
    return f"probability, calibrated by temperature {found.temperature:g}"


def _range(found: ClassProbability) -> list[Json]:
    """What is normal: a probability below the threshold."""
    if found.threshold is None:
        return []
    text = "normal below the threshold"
    if found.sensitivity_goal is not None:
        text += f", which was chosen for a sensitivity of at least {found.sensitivity_goal:g}"
    return [{"high": quantity(found.threshold, "probability"), "text": text}]


def _score(score: Score | None, name: str, missing: Sequence[str]) -> list[Json]:
    """One of the three numbers, with its interval where it has one; one that there is not, with why."""
    if score is None:
        return [component(concept(text=name), {"dataAbsentReason": absent("not-performed", "; ".join(missing))})]
    parts = [component(concept(text=name), measured(score.probability, "probability"))]
    if score.low is not None and score.high is not None:
        interval = ranged(score.low, score.high, "probability")
        parts.append(component(concept(text=f"{PROBABILITY_INTERVAL}, {name}"), interval))
    return parts


def _fusion(about: _About, entry: FusionEntry, number: int) -> Json:
    # The value is what was judged by, so that number and interpretation are of one thing.
    judged = entry.judged_by
    value = {"dataAbsentReason": absent("not-performed", "; ".join(entry.missing))}
    if judged is not None:
        value = measured(judged.probability, "probability")
    title = entry.title or entry.name
    parts = [
        *_score(entry.image, IMAGE_ONLY, entry.missing),
        *_score(entry.text, TEXT_ONLY, entry.missing),
        *_score(entry.fused, TOGETHER, entry.missing),
    ]
    if entry.error_rate is not None:
        parts.append(component(concept(text="share of wrong assessments allowed"), measured(entry.error_rate, "share")))
    texts = [part for text in about.report.texts if text.role == entry.text_role for part in about.text(text.sha256)]
    circular = "; a report describes the picture, so the picture alone is judged" if entry.text_role == "report" else ""
    return about.observation(
        name_of("Observation", about.digest, "fusion", str(number)),
        coded(entry.code, title) if entry.code else concept(text=title),
        value,
        interpretation=[_interpretation(entry.assessment, entry.assessment_reason)],
        method=concept(text=f"image and text together ({entry.method}){circular}"),
        device=about.device(entry.model),
        derivedFrom=[*about.study(), *texts],
        component=parts,
    )


def _text(about: _About, entry: TextEntry, number: int) -> Json:
    value = {"dataAbsentReason": absent("not-performed", entry.assessment_reason)}
    if entry.probability is not None:
        value = measured(entry.probability, "probability")
    parts = []
    if entry.interval is not None:
        parts.append(component(concept(text=PROBABILITY_INTERVAL), ranged(*entry.interval, "probability")))
    return about.observation(
        name_of("Observation", about.digest, "text", str(number)),
        concept(text=f"Abnormal study, by the text of the {entry.role}"),
        value,
        interpretation=[_interpretation(entry.assessment, entry.assessment_reason)],
        device=about.device(entry.model),
        derivedFrom=about.text(entry.sha256),
        component=parts,
    )


def _disagreement(about: _About, entry: Disagreement, number: int) -> Json:
    parts = [
        component(concept(text="kind"), told(entry.kind)),
        component(concept(text="score"), measured(entry.score, "score")),
    ]
    if entry.series_uid:
        parts.append(component(concept(_SERIES), told(entry.series_uid)))
    texts: list[Json] = []
    if entry.sentence is not None:
        parts.append(component(concept(text="sentence"), told(entry.sentence.text)))
        texts = about.text(entry.sentence.text_sha256)
    return about.observation(
        name_of("Observation", about.digest, "disagreement", str(number)),
        concept(text=f"Picture and words disagree: {entry.title or entry.name}"),
        told(entry.note),
        derivedFrom=[*about.study(), *texts],
        component=parts,
    )
