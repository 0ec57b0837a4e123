"""Where a picture and the report that was written of it do not say the same: for a person to look.

Invariant: both sides are shown, the place on the picture and the sentence. What the picture's checkpoint left
indeterminate raises no flag, and neither does a mention that the report leaves open; a request, written before the
picture was seen, never does, nor does the part of a report that repeats it or tells of earlier pictures.

How far both sides are of opposite minds is told by ``score = p (1 - q) + (1 - p) q``: the probability that exactly one
of two independent witnesses says that it is there, p and q being theirs. It is 0 where both are sure of the same and 1
where both are sure of opposite things.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from imaging.codes import Codes, shipped_codes
from imaging.report.report import Assessment, Disagreement, Finding, SentenceRef
from imaging.text.document import NOT_SEEN, Document, Span
from imaging.text.mentions import is_general

_NOTES = {
    "image_abnormal_report_denies": "The picture is judged abnormal, and the report says that it is not there.",
    "image_abnormal_report_silent": "The picture is judged abnormal, and the report does not mention it.",
    "image_normal_report_abnormal": "The picture is judged normal, and the report says that it is there.",
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a text model made of a report.

    Attributes
    ----------
    document
        The report.
    spans
        What it mentions.
    probability, assessment
        Of an abnormal study, by the report as a whole; None where no model judges texts.
    """

    document: Document
    spans: Sequence[Span]
    probability: float | None = None
    assessment: Assessment | None = None


def score_of(picture: float, report: float) -> float:
    """How far a picture and a report are of opposite minds, by the probability that each gives."""
    return picture * (1 - report) + (1 - picture) * report


def disagreements(
    findings: Sequence[Finding], words: Words, *, whole: Mapping[str, str], codes: Codes | None = None
) -> tuple[Disagreement, ...]:
    """Every finding of a classifier that a report contradicts, or passes over.

    Parameters
    ----------
    findings
        Of the pictures; those without a classification are passed over.
    words
        The report, and what it says.
    whole
        For each checkpoint by its name the finding that stands for an abnormal picture as a whole
        (`imaging.report.fusion.judged_whole`): the report as a whole is held against it, too. Any other finding is
        compared with what the report mentions of it.
    codes
        What things are called; by default the table that ships.
    """
    if words.document.role != "report":
        return ()
    known = codes or shipped_codes()
    document = words.document
    words = replace(words, spans=[span for span in words.spans if document.section_at(span.start) not in NOT_SEEN])
    # A report speaks of all pictures of a study: one view that shows nothing does not contradict it where another does.
    unsure = {(item.model, item.name) for item in findings if item.assessment != "normal"}
    found = [
        _compared(finding, words, whole.get(finding.model) == finding.name, known)
        for finding in findings
        if finding.assessment != "normal" or (finding.model, finding.name) not in unsure
    ]
    return tuple(one for one in found if one is not None)


def _compared(finding: Finding, words: Words, is_whole: bool, codes: Codes) -> Disagreement | None:
    if finding.classification is None or finding.assessment == "indeterminate":
        return None
    mentions = [span for span in words.spans if _is_of(span, finding, words.document, codes)]
    present = next((span for span in mentions if span.assertion == "present"), None)
    absent = next((span for span in mentions if span.assertion == "absent"), None)
    open_ = any(span.assertion == "uncertain" for span in mentions)
    by_report = words.assessment if is_whole else None
    if finding.assessment == "abnormal":
        # A report that finds something else does not take its denial back.
        if present or open_ or (absent is None and by_report in {"abnormal", "indeterminate"}):
            return None
        kind = "image_abnormal_report_denies" if absent else "image_abnormal_report_silent"
        return _told(kind, finding, words, absent, is_whole, codes)
    if present is None and by_report == "abnormal":
        # It says in other words that something is there: the surest of them is shown.
        said = [span for span in words.spans if span.assertion == "present"]
        surest = max(said, key=_score, default=None)
        return _told("image_normal_report_abnormal", finding, words, surest, is_whole, codes)
    if present is None or open_:
        return None
    return _told("image_normal_report_abnormal", finding, words, present, is_whole, codes)


def _is_of(span: Span, finding: Finding, document: Document, codes: Codes) -> bool:
    """Whether a mention is of a finding: by its code, or by what the table calls it."""
    if span.code is not None and not is_general(span.code):
        return (span.code.scheme, span.code.value) == (finding.code.scheme, finding.code.value)
    # Beside a chest a report may speak of other parts, too: there a mass may be the lung's or not.
    word = span.code.meaning if span.code is not None else document.text[span.start : span.end]
    entry = codes.find(word) or codes.find(word.removesuffix("s"))
    if entry is not None:
        return (entry.code.scheme, entry.code.value) == (finding.code.scheme, finding.code.value)
    return word.strip().casefold() in {finding.name.replace("_", " ").casefold(), finding.title.casefold()}


def _score(span: Span) -> float:
    return span.score


def _told(kind: str, finding: Finding, words: Words, span: Span | None, is_whole: bool, codes: Codes) -> Disagreement:
    assert finding.classification is not None
    explanation, note = finding.explanation, _NOTES[kind]
    named = span is not None and _is_of(span, finding, words.document, codes)
    if is_whole and not named and kind == "image_normal_report_abnormal":
        note = "The picture is judged normal, and the report as a whole abnormal."
    return Disagreement.model_validate(
        {
            "kind": kind,
            "name": finding.name,
            "title": finding.title,
            "series_uid": finding.series_uid,
            "sop_instance_uid": explanation.sop_instance_uid if explanation else "",
            "greatest_at": explanation.greatest_at if explanation else None,
            "sentence": _sentence(words.document, span) if span else None,
            "score": round(score_of(finding.classification.probability, _by_words(words, span, is_whole)), 5),
            "note": note,
        }
    )


def _by_words(words: Words, span: Span | None, is_whole: bool) -> float:
    """How probable the report makes it: as a whole, or by the mention; what is not mentioned is not there."""
    denied = span is not None and span.assertion == "absent"
    if is_whole and words.probability is not None and not (denied and words.assessment != "normal"):
        return words.probability
    if span is None:
        return 0.0
    return span.score if span.assertion == "present" else 1 - span.score


def _sentence(document: Document, span: Span) -> SentenceRef:
    start, end = span.sentence
    return SentenceRef(text_sha256=document.sha256, start=start, end=end, text=document.text[start:end])
