"""`predictions.csv`: a row a case, of either task.

Invariant: a cell is empty where there is no number.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from imaging.config import JudgedConfig, Label
from imaging.judgement import targets_of
from imaging.manifest import SEPARATOR
from imaging.mask_scores import TITLES, CaseScore, rounded
from imaging.report.class_page import CaseResult
from imaging.text.cases import TextCase
from imaging.text.reading import Marked

_DIGITS = 5


def mask_rows(scores: Sequence[CaseScore], labels: Sequence[Label], fold_of: Mapping[str, int] | None = None) -> str:
    """``case``, then each score of each structure: ``dice_<name>``, ...; and ``fold`` where `fold_of` tells it."""
    columns = [(score, label.name) for score in TITLES for label in labels]
    rows = {}
    for case in scores:
        values = (rounded(getattr(case.structures[name], score)) for score, name in columns)
        rows[case.name] = ["" if value is None else value for value in values]
    return _written([f"{score}_{name}" for score, name in columns], rows, fold_of)


def class_rows(results: Sequence[CaseResult], config: JudgedConfig, fold_of: Mapping[str, int] | None = None) -> str:
    """``case``, ``label`` (the true classes, separated by ``|``), ``probability_<class>``, ``assessment_<target>``.

    The assessments are those of what is judged, normal or abnormal; and ``fold`` where `fold_of` tells it.
    """
    judged = [target.name for target in targets_of(config) if target.abnormal]
    heading = [*(f"probability_{item.name}" for item in config.classes), *(f"assessment_{name}" for name in judged)]
    rows = {
        result.name: [
            SEPARATOR.join(result.classes),
            *(round(result.probability[item.name], _DIGITS) for item in config.classes),
            *(result.targets[name].assessment for name in judged),
        ]
        for result in results
    }
    return _written(["label", *heading], rows, fold_of)


def span_rows(cases: Sequence[TextCase], found: Sequence[Sequence[Marked]]) -> str:
    """A row a sentence: ``marked``, ``found`` and ``right``, how many mentions of any kind; no words."""
    rows = {}
    for case, marks in zip(cases, found, strict=True):
        truth, said = set(case.mentions or ()), {one.mention for one in marks}
        rows[case.name] = [len(truth), len(said), len(truth & said)]
    return _written(["marked", "found", "right"], rows, None)


def _written(heading: Sequence[str], rows: Mapping[str, Sequence[object]], fold_of: Mapping[str, int] | None) -> str:
    """The rows by the cases' names."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", *heading, *(["fold"] if fold_of else [])])
    for name, row in rows.items():
        writer.writerow([name, *row, *([fold_of[name]] if fold_of else [])])
    return text.getvalue()
