"""Who contradicts whom is told with both sides; what is open, strange or written before is no contradiction."""

from __future__ import annotations

from dataclasses import replace

import pytest

from imaging.codes import code_of
from imaging.config import Code
from imaging.report.disagreement import Words, disagreements, score_of
from imaging.report.report import Assessment, ClassProbability, Explanation, Finding
from imaging.text.document import Assertion, Document, Role, Span
from imaging.text.mentions import find_mentions

TEXT = "FINDINGS: The heart is normal. No pneumonia is seen. There is a pneumothorax."
PNEUMONIA = Code(value="233604007", meaning="Pneumonia")
WHOLE = {"chest": "pneumonia"}


def finding(assessment: Assessment, *, name: str = "pneumonia", code: Code = PNEUMONIA) -> Finding:
    probability = {"abnormal": 0.9, "normal": 0.1, "indeterminate": 0.5}[assessment]
    explanation = Explanation(
        method="grad_cam_pp", layer="l", cells=(7, 7), seen=1.0, greatest_at=(3, 4, 0), sop_instance_uid="1.2.3",
        completeness_gap=None, steps=None,
    )  # fmt: skip
    return Finding(
        name=name, title=name.title(), category=code, code=code, modifier=None, assessment=assessment,
        assessment_reason="r", model="chest", series_uid="1.2", explanation=explanation,
        classification=ClassProbability(
            probability=probability, temperature=1.0, threshold=0.5, sensitivity_goal=0.95, classes={}
        ),
    )  # fmt: skip


def mention(word: str, assertion: Assertion, *, score: float = 0.8, code: Code | None = None) -> Span:
    start = TEXT.index(word)
    before = TEXT.rfind(".", 0, start) + 2 if "." in TEXT[:start] else 0
    return Span(start, start + len(word), "finding", assertion, score, code, (before, TEXT.index(".", start) + 1))


def words(
    *spans: Span, role: Role = "report", probability: float | None = None, assessment: Assessment | None = None
) -> Words:
    return Words(Document.of(TEXT, role=role, source="file"), spans, probability, assessment)


def test_a_denial_is_shown_with_its_sentence_and_the_place() -> None:
    (found,) = disagreements([finding("abnormal")], words(mention("pneumonia", "absent")), whole={})
    assert found.kind == "image_abnormal_report_denies"
    assert found.sentence is not None
    assert found.sentence.text == "No pneumonia is seen."
    assert found.sentence.text == TEXT[found.sentence.start : found.sentence.end]
    assert (found.series_uid, found.sop_instance_uid, found.greatest_at) == ("1.2", "1.2.3", (3, 4, 0))
    assert found.score == pytest.approx(0.9 * 0.8 + 0.1 * 0.2)


def test_silence_is_told_without_a_sentence() -> None:
    (found,) = disagreements([finding("abnormal")], words(mention("pneumothorax", "present")), whole={})
    assert (found.kind, found.sentence) == ("image_abnormal_report_silent", None)
    assert found.score == pytest.approx(0.9)


@pytest.mark.parametrize(("assertion", "told"), [("present", []), ("absent", ["image_abnormal_report_denies"])])
def test_a_mass_of_no_place_may_be_that_of_the_lung(assertion: Assertion, told: list[str]) -> None:
    text = "CT CHEST AND ABDOMEN\nFINDINGS: Two masses."
    (span,) = find_mentions(document := Document.of(text, role="report", source="file"), region="elsewhere")
    assert span.code == code_of("any_mass")
    mass = finding("abnormal", name="mass", code=code_of("lung_mass"))
    said = disagreements([mass], Words(document, [replace(span, assertion=assertion)]), whole={})
    assert [one.kind for one in said] == told


def test_a_report_that_says_it_of_a_normal_picture() -> None:
    spans = [mention("pneumonia", "absent"), mention("pneumothorax", "present")]
    collapsed = finding("normal", name="pneumothorax", code=Code(value="36118008", meaning="Pneumothorax"))
    (found,) = disagreements([finding("normal"), collapsed], words(*spans), whole={})
    assert (found.kind, found.name) == ("image_normal_report_abnormal", "pneumothorax")
    assert found.sentence is not None
    assert found.sentence.text == "There is a pneumothorax."


@pytest.mark.parametrize(
    ("assessment", "spans", "by_report"),
    [
        ("abnormal", [("pneumonia", "present")], None),
        ("abnormal", [("pneumonia", "uncertain")], None),
        ("abnormal", [], "abnormal"),  # it says something else, in other words
        ("abnormal", [], "indeterminate"),
        ("normal", [("pneumonia", "absent")], "normal"),
        ("normal", [("pneumonia", "uncertain")], "normal"),
        ("normal", [], None),
        ("indeterminate", [("pneumonia", "absent")], "normal"),
        ("indeterminate", [("pneumonia", "present")], "abnormal"),
    ],
)
def test_who_agrees_or_leaves_it_open_raises_no_flag(
    assessment: Assessment, spans: list[tuple[str, Assertion]], by_report: Assessment | None
) -> None:
    said = words(*(mention(word, assertion) for word, assertion in spans), assessment=by_report, probability=0.5)
    assert disagreements([finding(assessment)], said, whole=WHOLE) == ()


def test_the_report_as_a_whole_is_held_against_the_whole_picture_only() -> None:
    said = words(mention("pneumothorax", "present"), probability=0.95, assessment="abnormal")
    (found,) = disagreements([finding("normal")], said, whole=WHOLE)
    assert found.kind == "image_normal_report_abnormal"
    assert found.sentence is not None
    assert found.sentence.text == "There is a pneumothorax."
    assert found.note == "The picture is judged normal, and the report as a whole abnormal."  # it names no pneumonia
    assert found.score == pytest.approx(0.9 * 0.95 + 0.1 * 0.05)
    assert disagreements([finding("normal")], said, whole={}) == ()


def test_a_request_contradicts_nothing() -> None:
    said = words(mention("pneumonia", "absent"), role="request")
    assert disagreements([finding("abnormal")], said, whole=WHOLE) == ()


def test_a_mention_is_known_by_its_code_before_its_word() -> None:
    other = mention("pneumonia", "absent", code=Code(value="46621007", meaning="Atelectasis"))
    (found,) = disagreements([finding("abnormal")], words(other), whole={})
    assert found.kind == "image_abnormal_report_silent"


def test_score_orders_from_agreement_to_contradiction() -> None:
    assert [score_of(1, 1), score_of(0, 0), score_of(0.5, 0.9), score_of(1, 0)] == [0, 0, 0.5, 1]


SAID: tuple[tuple[str, Assertion], ...] = (("pneumonia", "uncertain"), ("pneumothorax", "present"))


@pytest.mark.parametrize("heading", ["INDICATION", "HISTORY", "COMPARISON", "TECHNIQUE"])
def test_what_was_asked_or_seen_before_is_nothing_that_the_report_says_of_the_picture(heading: str) -> None:
    text = f"{heading}: rule out pneumonia, known pneumothorax.\nFINDINGS: The heart is normal."
    document = Document.of(text, role="report", source="file")
    spans = [
        Span(text.index(word), text.index(word) + len(word), "finding", kind, 1.0, None, (0, 10)) for word, kind in SAID
    ]
    collapsed = finding("normal", name="pneumothorax", code=Code(value="36118008", meaning="Pneumothorax"))
    (found,) = disagreements([finding("abnormal"), collapsed], Words(document, spans), whole={})
    assert (found.kind, found.name) == ("image_abnormal_report_silent", "pneumonia")


def test_a_view_that_shows_nothing_does_not_contradict_a_report_that_another_view_bears_out() -> None:
    said = words(mention("pneumothorax", "present"))
    code = Code(value="36118008", meaning="Pneumothorax")
    lateral = finding("normal", name="pneumothorax", code=code)
    for frontal in (finding("abnormal", name="pneumothorax", code=code),
                    finding("indeterminate", name="pneumothorax", code=code)):  # fmt: skip
        assert disagreements([frontal, lateral], said, whole={}) == ()
    assert len(disagreements([lateral, lateral], said, whole={})) == 2


@pytest.mark.parametrize("by_report", ["abnormal", "indeterminate"])
def test_a_denial_stays_one_in_a_report_that_finds_something_else(by_report: Assessment) -> None:
    spans = [mention("pneumonia", "absent"), mention("pneumothorax", "present")]
    (found,) = disagreements([finding("abnormal")], words(*spans, assessment=by_report, probability=0.97), whole=WHOLE)
    assert found.kind == "image_abnormal_report_denies"
    assert found.score == pytest.approx(0.9 * 0.8 + 0.1 * 0.2)
