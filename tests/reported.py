"""Reports as the tests have them: one with every part, and one as imgpipe wrote them before there were texts."""

from __future__ import annotations

from typing import Any

from imaging.config import Code
from imaging.report.report import (
    ClassProbability,
    Disagreement,
    Finding,
    FusionEntry,
    Replaced,
    Report,
    Score,
    SectionEntry,
    SentenceEntry,
    SentenceRef,
    SpanEntry,
    StudyEntry,
    TextEntry,
)

EFFUSION = Code(scheme="SCT", value="60046008", meaning="Pleural effusion")
# As imgpipe 0.1 wrote it before there were texts.
OLD: dict[str, Any] = {
    "schema_version": "1.0",
    "disclaimer": "For research use, not for diagnosis.",
    "created": "2026-01-01T00:00:00+00:00",
    "software": "imgpipe",
    "software_version": "0.1.0",
    "study": {"name": "film", "uid": "", "description": "", "patient_id": "", "date": "", "accession": ""},
    "findings": [
        {
            "name": "pneumonia",
            "title": "Pneumonia",
            "category": {"scheme": "SCT", "value": "64572001", "meaning": "Disease"},
            "code": {"scheme": "SCT", "value": "233604007", "meaning": "Pneumonia"},
            "modifier": None,
            "assessment": "abnormal",
            "assessment_reason": "0.91 is at least the threshold 0.6.",
            "model": "chest_xray",
            "series_uid": "",
            "classification": {
                "probability": 0.91, "temperature": 1.2, "threshold": 0.6, "sensitivity_goal": 0.95,
                "classes": {"normal": 0.09, "pneumonia": 0.91},
            },
        }
    ],
    "series": [],
}  # fmt: skip


def sentence_of(text: str, *spans: SpanEntry) -> SentenceEntry:
    return SentenceEntry(start=0, end=len(text), text=text, spans=spans)


def judged(name: str, probability: float, assessment: Any) -> Finding:
    """A finding of a classifier that was judged so."""
    return Finding(
        name=name,
        title=name.capitalize(),
        category=Code(value="64572001", meaning="Disease"),
        code=Code(value="233604007", meaning="Pneumonia"),
        modifier=None,
        assessment=assessment,
        assessment_reason="Told by a test.",
        model="chest",
        series_uid="",
        classification=ClassProbability(
            probability=probability, temperature=1.0, threshold=0.5, sensitivity_goal=0.95, classes={}
        ),
    )


def full_report() -> Report:
    """A report with every part that words add."""
    span = SpanEntry(
        start=3, end=19, text="pleural effusion", kind="finding", assertion="absent", score=0.97, code=EFFUSION
    )
    text = TextEntry(
        role="report",
        source="file report.txt",
        sha256="a" * 64,
        language="en",
        model="report_text",
        probability=0.12,
        interval=(0.05, 0.2),
        assessment="normal",
        assessment_reason="0.12 is below the threshold 0.4.",
        sentences=(sentence_of("No pleural effusion.", span),),
        sections=(SectionEntry(name="findings", start=0, end=20),),
    )
    image = Score(probability=0.91, low=0.85, high=0.95, logit=2.31, source="image chest_xray")
    fusion = FusionEntry(
        name="abnormal",
        image=image,
        text_role="report",
        method="log_odds",
        prior=0.5,
        missing=("text: no text model",),
        assessment="abnormal",
        assessment_reason="The picture alone.",
        error_rate=0.1,
    )
    disagreement = Disagreement(
        kind="image_abnormal_report_denies",
        name="pleural_effusion",
        greatest_at=(3, 4, 0),
        sentence=SentenceRef(text_sha256="a" * 64, start=0, end=20, text="No pleural effusion."),
        score=0.9,
        note="The picture says effusion, the report denies it.",
    )
    return Report(
        created="2026-01-01T00:00:00+00:00",
        software="imgpipe",
        software_version="0",
        study=StudyEntry(name="film"),
        findings=(),
        series=(),
        texts=(text,),
        fusion=(fusion,),
        disagreements=(disagreement,),
        not_looked_at=("series 1.2: localizer",),
        version=2,
        replaces=Replaced(version=1, report_sha256="b" * 64),
    )
