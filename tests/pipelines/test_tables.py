"""What a person reads on the terminal says what the report says."""

from __future__ import annotations

from pathlib import Path

import pytest
from reported import full_report

from imaging.errors import ImagingError, TextNotJudged
from imaging.report.report import Report
from pipelines.cli.studies import _print_inferred
from pipelines.infer import Inferred
from pipelines.reporting import StudyResult
from pipelines.tables import unjudged_of

STRANGE = {"probability": None, "interval": None, "assessment": "indeterminate",
           "assessment_reason": "The text is strange to the checkpoint: unlike."}  # fmt: skip
UNREAD = {**STRANGE, "model": "", "assessment_reason": "No checkpoint reads it."}


def report_with(**changes: object) -> Report:
    report = full_report()
    return report.model_copy(update={"texts": (report.texts[0].model_copy(update=changes),), "fusion": ()})


def printed(report: Report, capsys: pytest.CaptureFixture[str], *problems: ImagingError) -> str:
    _print_inferred(Inferred((StudyResult("film", Path("out/film"), report, problems),), (), {}))
    return capsys.readouterr().out


def test_a_text_without_a_number_is_told_with_the_reason(capsys: pytest.CaptureFixture[str]) -> None:
    told = printed(report_with(**STRANGE), capsys)
    assert "Indeterminate: by the words of the report alone (no probability)" in told
    assert "The words of the report (file report.txt) have no probability. The text is strange" in told
    told = printed(report_with(**UNREAD), capsys)
    assert "The words of the report (file report.txt) were not judged. No checkpoint reads it." in told
    assert "by the words" not in told, "nobody read them"


def test_a_text_with_a_number_or_a_problem_of_its_own_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert unjudged_of(full_report()) == [] and "The words of" not in printed(full_report(), capsys)
    problem = TextNotJudged("file report.txt", seen="transformers is not installed")
    told = printed(report_with(**UNREAD), capsys, problem)
    assert told.count("file report.txt") == 1 and "text_not_judged" in told
