"""How soon somebody should look at a report: the order of the worklist.

Invariant: the order rests on what the report itself says and on nothing of the patient. A number is compared with
others of the same assessment only: each checkpoint has its own threshold, so what was judged comes before how probable
it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imaging.report.conclusion import kind_of
from imaging.report.report import Assessment, Finding, FusionEntry, Report, Score
from pipelines.store.view import Triage

_RANKS: dict[Assessment | None, int] = {"abnormal": 0, "indeterminate": 1, "normal": 2, None: 3}


@dataclass(frozen=True, slots=True)
class _Judged:
    """One thing that a report judges; the fields are those of `Triage`."""

    assessment: Assessment
    score: float | None
    source: str
    title: str

    def urgency(self) -> tuple[int, float]:
        """The smaller, the sooner."""
        return _RANKS[self.assessment], -(self.score if self.score is not None else -1.0)


def triage_of(report: Report) -> Triage:
    """The place of a report: that of its most urgent statement.

    Where picture and words were fused, the fused probability counts and not that of the picture. A text that was
    written of the picture is no second witness, so there the picture's own does. A disagreement is looked at no later
    than what is indeterminate.
    """
    most = min(_judged(report), key=_Judged.urgency, default=None)
    disputed = len(report.disagreements)
    if most is None:
        rank = _RANKS["indeterminate"] if disputed else _RANKS[None]
        return Triage(rank, None, None, "", "", disputed)
    rank = min(_RANKS[most.assessment], _RANKS["indeterminate"]) if disputed else _RANKS[most.assessment]
    return Triage(rank, most.assessment, most.score, most.source, most.title, disputed)


def _judged(report: Report) -> Iterator[_Judged]:
    fused = {entry.name for entry in report.fusion}
    for entry in report.fusion:
        score = _score_of(entry)
        yield _Judged(entry.assessment, score.probability if score else None, score.source if score else "",
                      entry.title or entry.name)  # fmt: skip
    for finding in report.findings:
        if kind_of(finding) != "measured" and finding.name not in fused:
            yield _Judged(finding.assessment, _probability(finding), f"image {finding.model}", finding.title)
    for text in report.texts:
        if text.probability is not None and not fused:
            yield _Judged(text.assessment, text.probability, f"text {text.model}", f"words of the {text.role}")


def _score_of(entry: FusionEntry) -> Score | None:
    if entry.text_role == "report":
        return entry.image
    return entry.fused or entry.image or entry.text


def _probability(finding: Finding) -> float | None:
    return finding.classification.probability if finding.classification is not None else None
