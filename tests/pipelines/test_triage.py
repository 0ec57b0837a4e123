"""Which report is looked at first."""

from __future__ import annotations

from typing import Any

import pytest
from reported import judged
from shown import report_of

from imaging.report.report import Disagreement, FusionEntry, Report, Score
from pipelines.triage import triage_of


def score(probability: float, source: str) -> Score:
    return Score(probability=probability, logit=0.0, source=source)


def fused(**parts: Any) -> FusionEntry:
    return FusionEntry(name="pneumonia", title="Pneumonia", method="stacked", assessment_reason="", **parts)


def report(*findings: Any, **parts: Any) -> Report:
    return report_of("1.2", findings=findings, **parts)


IMAGE, TEXT, BOTH = score(0.4, "image chest"), score(0.8, "text words"), score(0.7, "fused")
DISPUTE = Disagreement(kind="image_normal_report_abnormal", name="pneumonia", score=0.9, note="They differ.")


def test_where_both_were_fused_the_fused_probability_counts() -> None:
    entry = fused(image=IMAGE, text=TEXT, fused=BOTH, text_role="request", assessment="abnormal")
    found = triage_of(report(judged("pneumonia", 0.4, "normal"), fusion=(entry,)))
    assert (found.rank, found.assessment, found.score, found.source) == (0, "abnormal", 0.7, "fused")


def test_a_text_that_was_written_of_the_picture_does_not_count() -> None:
    entry = fused(image=IMAGE, text=TEXT, fused=BOTH, text_role="report", assessment="normal")
    found = triage_of(report(fusion=(entry,)))
    assert (found.rank, found.score, found.source) == (2, 0.4, "image chest")


@pytest.mark.parametrize(("parts", "expected"), [({"image": IMAGE}, 0.4), ({"text": TEXT}, 0.8), ({}, None)])
def test_a_part_alone_counts_where_the_other_is_missing(parts: dict[str, Score], expected: float | None) -> None:
    assert triage_of(report(fusion=(fused(assessment="indeterminate", **parts),))).score == expected


def test_the_most_urgent_finding_decides_and_not_the_most_probable() -> None:
    found = triage_of(report(judged("nodule", 0.9, "normal"), judged("effusion", 0.3, "abnormal")))
    assert (found.rank, found.title, found.score) == (0, "Effusion", 0.3)


def test_a_disagreement_comes_no_later_than_what_is_indeterminate() -> None:
    assert triage_of(report(judged("nodule", 0.1, "normal"), disagreements=(DISPUTE,))).rank == 1
    assert triage_of(report(disagreements=(DISPUTE,))).rank == 1
    assert triage_of(report(judged("nodule", 0.9, "abnormal"), disagreements=(DISPUTE,))).rank == 0


def test_what_judges_nothing_comes_last() -> None:
    found = triage_of(report())
    assert (found.rank, found.assessment, found.score) == (3, None, None)
