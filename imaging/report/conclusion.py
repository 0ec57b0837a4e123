"""What a report says first: its conclusion in a few lines, and its findings in the order of urgency.

Invariant: no line says more than the report's own entries, and every entry that was judged is in one. Where picture and
words disagree, that comes before all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from imaging.report.report import Assessment, Disagreement, Finding, FusionEntry, Report, TextEntry

Kind = Literal["disagreement", "abnormal", "indeterminate", "normal", "measured", "nothing", "not_looked_at"]

_ORDER: tuple[Kind, ...] = ("abnormal", "indeterminate", "normal", "measured")
_HEADS: dict[Assessment, str] = {"abnormal": "Abnormal", "indeterminate": "Indeterminate", "normal": "Normal"}
# How many findings a line names before it counts the rest: a film may have fourteen that are normal.
_NAMED = 6
# How many reasons why something was not looked at: they are long.
_REASONS = 2


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a conclusion: its kind, what it is about, and what it says."""

    kind: Kind
    head: str
    text: str

    def __str__(self) -> str:
        return f"{self.head}: {self.text}"


def conclusion_of(report: Report, *, whole: bool = False) -> tuple[Line, ...]:
    """The conclusion: disagreements, then what is abnormal, indeterminate, normal and measured, then what is missing.

    It is made of the report alone, so that every rendering says the same.

    Parameters
    ----------
    report
        What was found.
    whole
        Name everything, where the rendering has no other place that does; by default a line names a few and counts
        the rest.
    """
    most, reasons = (None, None) if whole else (_NAMED, _REASONS)
    lines = [Line("disagreement", "Picture and report disagree", _disputed(item)) for item in report.disagreements]
    for assessment, head in _HEADS.items():
        lines += [Line(assessment, head, _fused(entry)) for entry in report.fusion if entry.assessment == assessment]
        found = [item for item in report.findings if kind_of(item) == assessment]
        if found:
            lines.append(Line(assessment, head, _listed([_judged(item) for item in _surest(found)], most)))
        # One that is strange to the checkpoint that read it has no number, and was read all the same.
        judged = [text for text in report.texts if text.model and text.assessment == assessment]
        lines += [Line(assessment, head, _worded(text)) for text in judged]
    measured = [item for item in report.findings if kind_of(item) == "measured"]
    if measured:
        lines.append(Line("measured", "Measured, not judged", _listed([_amount(item) for item in measured], most)))
    if not lines:
        lines.append(Line("nothing", "Nothing was measured", "see what was not looked at, and why"))
    if report.not_looked_at:
        told = [item.rstrip(".") for item in report.not_looked_at]
        lines.append(Line("not_looked_at", "Not looked at", _listed(told, reasons, between="; ")))
    return tuple(lines)


def by_urgency(report: Report) -> tuple[Finding, ...]:
    """The findings: first those that the words contradict, then by assessment, and the surest of the abnormal first."""
    disputed = {(item.name, item.series_uid) for item in report.disagreements}

    def urgency(finding: Finding) -> tuple[bool, int, float]:
        kind = _ORDER.index(kind_of(finding))
        return (finding.name, finding.series_uid) not in disputed, kind, -_probability(finding)

    return tuple(sorted(report.findings, key=urgency))


def kind_of(finding: Finding) -> Kind:
    """Its assessment; ``measured`` for a size that no rule judges: `indeterminate`, and yet no doubtful case."""
    if finding.structure is not None and finding.assessment == "indeterminate" and not finding.novelty:
        return "measured"
    return finding.assessment


def _probability(finding: Finding) -> float:
    return finding.classification.probability if finding.classification is not None else 0.0


def _surest(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: -_probability(finding))


def _listed(said: Sequence[str], most: int | None, *, between: str = ", ") -> str:
    rest = len(said[most:]) if most is not None else 0
    return between.join(said[:most]) + (f" and {rest} more" if rest > 0 else "")


def _judged(finding: Finding) -> str:
    title = f"{finding.title} {finding.volume}".strip()
    return f"{title} ({_probability(finding):.3f})" if finding.classification is not None else title


def _amount(finding: Finding) -> str:
    assert finding.structure is not None
    title = f"{finding.title} {finding.volume}".strip()
    return f"{title} {finding.structure.volume_ml:.3f} mL" if finding.structure.voxels else f"{title} not found"


def _disputed(item: Disagreement) -> str:
    return f"{item.title or item.name}. {item.note}"


def _fused(entry: FusionEntry) -> str:
    scores = (("picture", entry.image), ("words", entry.text), ("together", entry.fused))
    said = [f"{name} {score.probability:.3f}" if score else f"{name} none" for name, score in scores]
    return f"{entry.title or entry.name} ({', '.join(said)})"


def _worded(text: TextEntry) -> str:
    number = "no probability" if text.probability is None else f"{text.probability:.3f}"
    return f"by the words of the {text.role} alone ({number})"
