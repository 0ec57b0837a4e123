"""The conclusion says what the report says, the most urgent first."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from reported import full_report, judged

from imaging.report.conclusion import by_urgency, conclusion_of, kind_of
from imaging.report.report import Finding, Report, StructureVolume, StudyEntry

ASSESSMENTS = ("abnormal", "indeterminate", "normal")


def report_of(*findings: Finding, **more: Any) -> Report:
    return Report(created="now", software="imgpipe", software_version="0", study=StudyEntry(name="x"), series=(),
                  findings=findings, **more)  # fmt: skip


def sized(name: str, voxels: int = 1000) -> Finding:
    structure = StructureVolume(voxels=voxels, volume_mm3=voxels, volume_ml=voxels / 1000, interval=None,
                                centre_ras_mm=None, interval_note="", mean_probability=None, evidence=())  # fmt: skip
    return judged(name, 0.5, "indeterminate").model_copy(update={"classification": None, "structure": structure})


def test_order_is_disputed_abnormal_indeterminate_normal_measured() -> None:
    findings = (judged("fine", 0.1, "normal"), sized("liver"), judged("weak", 0.6, "abnormal"),
                judged("unsure", 0.5, "indeterminate"), judged("strong", 0.9, "abnormal"),
                judged("pleural_effusion", 0.2, "normal"))  # fmt: skip
    report = report_of(*findings, disagreements=full_report().disagreements)
    names = [finding.name for finding in by_urgency(report)]
    assert names == ["pleural_effusion", "strong", "weak", "unsure", "fine", "liver"]


@given(st.lists(st.tuples(st.sampled_from(ASSESSMENTS), st.floats(0, 1)), max_size=8))
def test_order_loses_nothing_and_never_puts_normal_first(said: list[tuple[Any, float]]) -> None:
    findings = [judged(f"f{number}", share, assessment) for number, (assessment, share) in enumerate(said)]
    ordered = by_urgency(report_of(*findings))
    assert sorted(item.name for item in ordered) == sorted(item.name for item in findings)
    ranks = [ASSESSMENTS.index(item.assessment) for item in ordered]
    assert ranks == sorted(ranks)


def test_disagreement_is_the_first_line_and_what_was_not_looked_at_the_last() -> None:
    lines = conclusion_of(full_report())
    assert (lines[0].kind, lines[-1].kind) == ("disagreement", "not_looked_at")
    assert (
        str(lines[0])
        == "Picture and report disagree: pleural_effusion. The picture says effusion, the report denies it."
    )
    assert str(lines[-1]) == "Not looked at: series 1.2: localizer"


def test_scores_of_picture_and_words_are_told_and_a_missing_one_is_none() -> None:
    lines = [str(line) for line in conclusion_of(full_report())]
    assert "Abnormal: abnormal (picture 0.910, words none, together none)" in lines
    assert "Normal: by the words of the report alone (0.120)" in lines


def test_text_that_is_strange_to_its_checkpoint_is_indeterminate_and_one_that_nobody_read_is_no_line() -> None:
    report = full_report()
    changes = {"probability": None, "interval": None, "assessment": "indeterminate"}
    strange = report.texts[0].model_copy(update=changes)
    unread = strange.model_copy(update={"model": ""})
    lines = [str(line) for line in conclusion_of(report.model_copy(update={"texts": (strange, unread)}))]
    assert [line for line in lines if "words of the report" in line] == [
        "Indeterminate: by the words of the report alone (no probability)"
    ]


def test_each_assessment_has_a_line_with_the_surest_first() -> None:
    report = report_of(judged("a", 0.7, "abnormal"), judged("b", 0.9, "abnormal"), judged("c", 0.1, "normal"))
    assert [str(line) for line in conclusion_of(report)] == ["Abnormal: B (0.900), A (0.700)", "Normal: C (0.100)"]


def test_size_that_nothing_judges_is_measured_and_no_doubtful_case() -> None:
    (line,) = conclusion_of(report_of(sized("liver"), sized("spleen", 0)))
    assert (line.kind, line.text) == ("measured", "Liver 1.000 mL, Spleen not found")
    strange = sized("liver").model_copy(update={"novelty": ("Darker than all of the training's.",)})
    assert kind_of(strange) == "indeterminate"


def test_long_lists_are_cut_and_counted() -> None:
    report = report_of(*(judged(f"f{number}", number / 100, "normal") for number in range(9)))
    (line,) = conclusion_of(report)
    assert line.text.endswith(" and 3 more") and line.text.count("(") == 6
    unseen = tuple(f"series {number}" for number in range(4))
    told = conclusion_of(report.model_copy(update={"not_looked_at": unseen}))
    assert str(told[-1]) == "Not looked at: series 0; series 1 and 2 more"


def test_whole_conclusion_names_everything() -> None:
    findings = (*(judged(f"f{number}", 0.5, "normal") for number in range(9)), *(sized(f"s{n}") for n in range(9)))
    unseen = tuple(f"series {number}" for number in range(4))
    lines = conclusion_of(report_of(*findings, not_looked_at=unseen), whole=True)
    assert all(any(item.title in line.text for line in lines) for item in findings)
    assert all(reason in lines[-1].text for reason in unseen)
    assert not any("more" in line.text for line in lines)


@pytest.mark.parametrize("told", [(), ("series 1: localizer.",)])
def test_report_of_nothing_says_so(told: tuple[str, ...]) -> None:
    kinds = [line.kind for line in conclusion_of(report_of(not_looked_at=told))]
    assert kinds == ["nothing", *["not_looked_at" for _ in told]]
