"""What is made of the words of a study where a checkpoint does not read them."""

from __future__ import annotations

from typing import Any

from imaging.errors import ImagingError, MissingPackage, NotApplicable, TextNotJudged
from imaging.text.document import Document
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


def heard(*readers: Any, words: str = REPORT) -> tuple[Any, list[ImagingError]]:
    problems: list[ImagingError] = []
    document = Document.of(words, role="report", source="file x", language="en")
    return say([document], (), (), readers=readers, fusion=None, files=(), problems=problems), problems


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
