"""Which texts a checkpoint takes, what of them it is given, and what it said of one.

Invariant: a text is refused before any network is read; what is refused is told with its source and without its words.
Imports no torch: most studies have no text, or none that a checkpoint takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imaging.checkpoint import TextCheckpoint
from imaging.config import TextConfig
from imaging.errors import NotApplicable
from imaging.judgement import Assessment
from imaging.text.document import Document, Span
from imaging.volume import SeriesFacts


@dataclass(frozen=True, slots=True, eq=False)
class TextReading:
    """What one checkpoint said of one text.

    Attributes
    ----------
    document
        Of what.
    checkpoint
        Who said it.
    logit
        Of the abnormal classes together against the others, calibrated (log-odds); None where it judges no text, or
        where this one is strange to it. Its interval is that of `imaging.report.fusion.Part.score`.
    probability
        The same as a probability.
    assessment, reason
        What follows, and why; empty where it judges no text.
    spans
        What it marks, in the order of the text.
    novelty
        Why the text is unlike those that trained the checkpoint, empty where it is like them; None where the checkpoint
        does not know what these were like.
    """

    document: Document
    checkpoint: TextCheckpoint
    logit: float | None
    probability: float | None
    assessment: Assessment | None
    reason: str
    spans: tuple[Span, ...]
    novelty: tuple[str, ...] | None = None


def check_text(config: TextConfig, document: Document) -> None:
    """Refuse a text that a checkpoint has not learnt to read.

    Raises
    ------
    NotApplicable
        With its role or its language.
    """
    rule = config.applies_to
    if document.role not in rule.roles:
        raise NotApplicable(document.source, seen=f"a {document.role}",
                            expected=f"a {' or '.join(rule.roles)} was expected")  # fmt: skip
    if document.language and document.language not in rule.languages:
        raise NotApplicable(document.source, seen=f"the language {document.language}",
                            expected=f"{' or '.join(rule.languages)} was expected")  # fmt: skip


def check_pictures(config: TextConfig, document: Document, series: Sequence[SeriesFacts]) -> None:
    """Refuse a text of pictures that a checkpoint has read no texts of: it would give a number all the same.

    Parameters
    ----------
    config, document
        Whose rule, and the text.
    series
        What its pictures say of themselves; none where nothing is known of them.

    Raises
    ------
    NotApplicable
        If none of them is of a modality and a body part that the rule names.
    """
    rule = config.applies_to
    if not series or any(
        _may_be(one.modality, rule.modality) and _may_be(one.body_part, rule.body_part) for one in series
    ):
        return
    told = sorted({" ".join(part for part in (one.modality, one.body_part) if part) for one in series})
    wanted = " of ".join(" or ".join(part) for part in (rule.modality, rule.body_part) if part)
    raise NotApplicable(document.source, seen=f"a text beside {', '.join(told)}",
                        expected=f"{wanted} was expected")  # fmt: skip


def _may_be(told: str, wanted: Sequence[str]) -> bool:
    return not told or not wanted or told in wanted


def text_for(config: TextConfig, document: Document) -> str:
    """Of a document what a checkpoint reads: the sections that it names, or all where there is none of these."""
    wanted = config.applies_to.sections
    parts = [document.words(part) for name in wanted for part in document.sections if part.name == name]
    return " ".join(parts) if parts else document.text
