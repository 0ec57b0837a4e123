"""Measure a text model by the code that serves it: on the held-out cases of its training, or on any others.

Invariant: as in `pipelines.measure_classifier`; mentions are counted strictly, and no page shows a word of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import NetworkCheckpoint, TextCheckpoint
from imaging.classifier import Classifier
from imaging.config import NetworkConfig, TextConfig
from imaging.dataset_check import OnCase
from imaging.errors import TooFewCases
from imaging.report.span_page import render_spans
from imaging.scores import bootstrap_scores
from imaging.text.cases import TextCase
from imaging.text.reading import Marked, TextModel
from imaging.text.spans import Counts
from imaging.text.words import Mention
from pipelines.calibration import Asked, apply_calibration, calibrated
from pipelines.measure_classifier import ask, class_page, figures, results_of, unknowable
from pipelines.predictions import class_rows, span_rows
from pipelines.result import Measured, Result, of_side, provenance

# How many texts are asked at a time, so that somebody who waits is told.
_ASKED = 128


def measure_texts(model: TextModel, sides: dict[str, list[TextCase]], *, data: str) -> Measured:
    """Calibrate on the validation texts, and measure each side with that calibration and by its marked mentions.

    Parameters
    ----------
    model
        Of a checkpoint without metrics.
    sides
        The cases for ``validation`` and, where there are any, ``test``.
    data
        What the pages call the data set.

    Returns
    -------
    Measured
        ``calibration`` (see `pipelines.calibration.calibrated`), what `figures` gives for the texts of each
        side, and under ``spans`` what `span_figures` gives for its marked sentences; a page a side.
    """
    metrics: dict[str, Any] = {}
    pages = {}
    for side, cases in sides.items():
        about = of_side(model.checkpoint, data, side, [case.name for case in cases])
        told: dict[str, Any] = {"cases": len(cases)}
        texts, sentences = judged(cases), marked(cases)
        if texts:
            asked = ask_texts(model, texts)
            metrics.setdefault("calibration", calibrated(model.config, asked))
            applied = apply_calibration(model.config, asked, metrics["calibration"])
            told |= figures(model.config, asked, applied)
            page = {**about, "calibration": metrics["calibration"], **told}
            pages[side] = class_page(page, model.config, asked, applied)
        if sentences:
            told = {**span_figures(model, sentences), **told}
            pages.setdefault(side, render_spans({**about, **told}, model.config))
        metrics[side] = told
    return Measured(metrics, pages)


def evaluate_texts(model: TextModel, cases: Sequence[TextCase], *, data: str, on_case: OnCase | None = None) -> Result:
    """Measure a checkpoint by its own calibration, on texts with classes or on sentences with marked mentions."""
    own = model.checkpoint.metrics.get("calibration") or {}
    about = {**provenance(model.checkpoint, data, [case.name for case in cases]), "refused": []}
    if marked(cases):
        found = [mentions for part in _parts(cases, on_case) for mentions in model.mark([case.text for case in part])]
        metrics = {**about, "cases": len(cases), **_span_figures(model, cases, found)}
        return Result(metrics, span_rows(cases, found), render_spans(metrics, model.config), ())
    asked = ask_texts(model, cases, on_case=on_case)
    applied = apply_calibration(model.config, asked, own)
    metrics = {**about, "calibration": dict(own), **figures(model.config, asked, applied)}
    metrics["notes"] = unknowable(model.config, metrics)
    rows = class_rows(results_of(model.config, asked, applied), model.config)
    return Result(metrics, rows, class_page(metrics, model.config, asked, applied), ())


def judged(cases: Sequence[TextCase]) -> list[TextCase]:
    """Those whose class is known."""
    return [case for case in cases if case.classes]


def marked(cases: Sequence[TextCase]) -> list[TextCase]:
    """Those that somebody looked over for mentions."""
    return [case for case in cases if case.mentions is not None]


def _parts(cases: Sequence[TextCase], on_case: OnCase | None) -> list[Sequence[TextCase]]:
    parts = []
    for at in range(0, len(cases), _ASKED):
        if on_case:
            on_case(cases[at].name, at, len(cases))
        parts.append(cases[at : at + _ASKED])
    return parts


def ask_texts(model: TextModel, cases: Sequence[TextCase], *, on_case: OnCase | None = None) -> Asked:
    """What a model says of some texts before any calibration.

    Raises
    ------
    TooFewCases
        If there is none.
    """
    if not cases:
        raise TooFewCases("cases", seen="none", expected="at least one was expected", remedy="Add cases")
    classes = [item.name for item in model.config.classes]
    answers = [model.ask([case.text for case in part]) for part in _parts(cases, on_case)]
    novelty = [reasons for part in answers for reasons in part.novelty]
    truth_NK = np.array([[name in case.classes for name in classes] for case in cases], dtype=np.bool_)
    logits_NK = np.concatenate([part.logits_NK for part in answers])
    strange = frozenset(number for number, reasons in enumerate(novelty) if reasons)
    # A text has no looks.
    return Asked(cases, truth_NK, logits_NK, np.zeros((len(cases), 0)), strange)


def ask_checkpoint(checkpoint: NetworkCheckpoint, config: NetworkConfig, cases: Sequence[Any]) -> Asked:
    """What a checkpoint that judges cases by their classes says of some, be they pictures or texts.

    `config` is what trained it: it knows where an encoder lies.
    """
    if isinstance(checkpoint, TextCheckpoint):
        assert isinstance(config, TextConfig)
        return ask_texts(TextModel(checkpoint, encoder=config.encoder), cases)
    return ask(Classifier(checkpoint), cases)


def span_figures(model: TextModel, cases: Sequence[TextCase]) -> dict[str, Any]:
    """``spans``: of each kind precision, recall and F1 with 95 % bootstrap intervals over sentences, and how many."""
    found = [mentions for part in _parts(cases, None) for mentions in model.mark([case.text for case in part])]
    return _span_figures(model, cases, found)


def _span_figures(model: TextModel, cases: Sequence[TextCase], found: Sequence[Sequence[Marked]]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for number, kind in enumerate(model.config.kinds):
        counts_N3 = np.array(
            [
                _counts(case.mentions or (), [one.mention for one in marks], number)
                for case, marks in zip(cases, found, strict=True)
            ]
        )

        def measure(drawn: NDArray[np.int64], counts_N3: NDArray[np.int64] = counts_N3) -> dict[str, float]:
            right, wrong, missed = (int(count) for count in counts_N3[drawn].sum(axis=0))
            counts = Counts((right,), (wrong,), (missed,))
            return {"precision": counts.precision, "recall": counts.recall, "f1": counts.f1}

        measured = bootstrap_scores(measure, [case.patient for case in cases])
        told[kind.name] = {
            "mentions": int(counts_N3[:, [0, 2]].sum()),
            **{name: value.as_dict() for name, value in measured.items()},
        }
    return {"patients": len(cases), "sentences": len(cases), "spans": told}


def _counts(truth: Sequence[Mention], said: Sequence[Mention], kind: int) -> tuple[int, int, int]:
    marked_, found = ({mention for mention in part if mention.kind == kind} for part in (truth, said))
    return len(marked_ & found), len(found - marked_), len(marked_ - found)
