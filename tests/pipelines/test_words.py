"""What is made of the words of a study where a checkpoint does not read them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from imaging.errors import ImagingError, MissingPackage, NotApplicable, TextNotJudged
from imaging.report.fhir import bundle_of
from imaging.report.report import Report, StudyEntry
from imaging.report.sr import groups_of
from imaging.text.document import Document
from imaging.volume import SeriesFacts
from pipelines.cli.verb import status_of
from pipelines.words import say

REPORT = "FINDINGS: The heart is normal. No pleural effusion."


class Refusing:
    """A reader that never reads."""

    classes = ()

    def __init__(self, error: ImagingError) -> None:
        self._error = error

    def __call__(self, *_: object) -> Any:
        raise self._error


def heard(*readers: Any, words: str = REPORT, series: Any = ()) -> tuple[Any, list[ImagingError]]:
    problems: list[ImagingError] = []
    document = Document.of(words, role="report", source="file x", language="en")
    said = say([document], (), (), readers=readers, fusion=None, files=(), problems=problems, series=series)
    return said, problems


def test_text_that_no_checkpoint_takes_says_why_and_is_no_problem() -> None:
    said, problems = heard(Refusing(NotApplicable("file x", seen="a report", expected="a request was expected")))
    assert "a request was expected" in said.texts[0].assessment_reason
    assert problems == [] and said.texts[0].assessment == "indeterminate"


def test_missing_package_is_told_and_the_text_is_still_marked() -> None:
    missing = MissingPackage("text models", seen="transformers is not installed", remedy="pip install 'imgpipe[text]'")
    said, problems = heard(Refusing(missing))
    assert "transformers is not installed" in said.texts[0].assessment_reason
    assert [problem.as_dict() for problem in problems] == [TextNotJudged("file x", seen=missing.seen,
                                                                         remedy=missing.remedy).as_dict()]  # fmt: skip
    assert status_of(problems) == 0, "nobody's fault: the study is reported on"
    assert [span.text for sentence in said.texts[0].sentences for span in sentence.spans] == ["pleural effusion"]


@pytest.mark.parametrize(("part", "meaning"), [("BRAIN", "Mass"), ("ABDOMEN", "Mass"), ("CHEST", "Lung mass")])
def test_a_mass_is_the_lungs_only_in_the_chest_in_every_rendering(part: str, meaning: str) -> None:
    said, _ = heard(words="FINDINGS: There is a mass.", series=(SeriesFacts(modality="MR", body_part=part),))
    ((span,),) = (sentence.spans for sentence in said.texts[0].sentences)
    assert span.code is not None and span.code.meaning == meaning
    report = Report(created="2026-01-01T00:00:00+00:00", software="imgpipe", software_version="0", series=(),
                    study=StudyEntry(name="1.2", uid="1.2"), findings=(), texts=said.texts)  # fmt: skip
    told = {item.question.meaning: item.answer.meaning for item in groups_of(report, {})[0].evaluations}
    assert told == {meaning: "Present"}
    assert ("Lung mass" in report.to_json()) == (meaning == "Lung mass")
    assert "309529002" not in json.dumps(bundle_of(report)), "FHIR codes no word of a text"
