"""The report's types: what is old stays readable, what is wrong is refused, and everything comes back as it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from imaging.config import Code
from imaging.report import report as types
from imaging.report.report import (
    Disagreement,
    FusionEntry,
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
    )


def test_report_of_1_0_is_read_and_keeps_its_version() -> None:
    old = Report.model_validate_json(json.dumps(OLD))
    assert old.schema_version == "1.0"
    assert (old.texts, old.fusion, old.disagreements, old.not_looked_at, old.findings[0].novelty) == ((),) * 5
    assert Report.model_validate_json(old.to_json()) == old


def test_report_with_every_part_comes_back_as_it_was() -> None:
    report = full_report()
    assert report.schema_version == "1.1"
    assert Report.model_validate_json(report.to_json()) == report


@pytest.mark.parametrize(
    ("part", "wrong"),
    [
        ("texts", {"probability": 1.2}),
        ("texts", {"role": "letter"}),
        ("texts", {"interval": [0.1]}),
        ("fusion", {"method": "guess"}),
        ("fusion", {"image": {"probability": -0.1, "logit": 0.0, "source": "image x"}}),
        ("disagreements", {"kind": "both_unsure"}),
        ("disagreements", {"mood": "bad"}),
    ],
    ids=str,
)
def test_wrong_part_is_refused(part: str, wrong: dict[str, Any]) -> None:
    document = json.loads(full_report().to_json())
    document[part][0] |= wrong
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Report.model_validate_json(json.dumps(document))


def test_every_part_is_frozen_and_refuses_unknown_keys() -> None:
    parts = [item for item in vars(types).values() if isinstance(item, type) and issubclass(item, BaseModel)]
    assert len(parts) > 20
    for part in set(parts) - {BaseModel}:
        assert part.model_config.get("frozen") and part.model_config.get("extra") == "forbid", part
