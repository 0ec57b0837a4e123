"""Whether something that is known without looking at a picture's content already predicts its class.

Invariant: a suspicion, told with its figure and the interval of that, never a verdict: age and sex may rightly go with
a disease, the size of a file may not. Imports no torch.

A network finds such a shortcut more easily than the disease: Zech et al., *Variable generalization performance of a
deep learning model to detect pneumonia in chest radiographs*, PLOS Medicine 15:e1002683 (2018).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase
from imaging.dataset_check.telling import Note, some
from imaging.scores import auc, auc_within, bootstrap_scores

SUSPICIOUS = 0.7
# Of a trait with more different words than this hardly two cases have one in common.
_MOST_WORDS = 20
_LEAST_CASES = 10
_RESAMPLES = 200
# Of the patients, where what some have is to be predicted from what others have.
_PARTS = 5


def shortcuts(cases: Sequence[tuple[ClassifiedCase, Mapping[str, str]]], classes: Sequence[str]) -> Iterator[Note]:
    """A note for each trait that alone predicts a class with an AUC of 0.7 or more.

    Parameters
    ----------
    cases
        Each with what is known of it besides its picture's content, by name; empty where it is not known.
    classes
        Names of all classes. Of two that exclude each other only the second is asked about.
    """
    exclusive = len(classes) == 2 and all(len(case.classes) == 1 for case, _ in cases)
    patients = np.array([case.patient for case, _ in cases])
    for trait in dict.fromkeys(name for _, traits in cases for name in traits):
        told = [traits.get(trait, "").strip() for _, traits in cases]
        found = []
        for name in classes[1:] if exclusive else classes:
            truth = np.array([name in case.classes for case, _ in cases], dtype=np.bool_)
            figure = _alone(told, truth, patients)
            if figure:
                found.append(f"{name!r} with an AUC of {figure}")
        if found:
            yield Note("shortcut", f"{trait} alone predicts {some(found)}: can a network see it?")


def _alone(told: Sequence[str], truth: NDArray[np.bool_], patients: NDArray[np.str_]) -> str:
    """How well a trait predicts who has something, where that is suspicious; else empty."""
    known = np.array([bool(value) for value in told], dtype=np.bool_)
    if min(truth[known].sum(), (~truth[known]).sum()) < _LEAST_CASES:
        return ""
    truth, patients = truth[known], patients[known]
    found = _as_numbers([value for value in told if value], truth, patients)
    if found is None:
        return ""
    values, part = found
    if auc_within(truth, values, part) < SUSPICIOUS:
        return ""
    figure = bootstrap_scores(
        lambda drawn: {"auc": auc_within(truth[drawn], values[drawn], part[drawn])},
        patients.tolist(),
        trials={"auc": min(len(set(patients[side].tolist())) for side in (truth, ~truth))},
        resamples=_RESAMPLES,
    )["auc"]
    # A resample may turn round what is there by chance.
    return str(figure) if figure.low is None or figure.low > 0.5 else ""


def _as_numbers(
    values: Sequence[str], truth: NDArray[np.bool_], patients: NDArray[np.str_]
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """What an AUC can be asked of, and within which parts; None where there is nothing to ask.

    Numbers are all in one part. For a word it is how often the patients of the other parts with that word have it: a
    word that few have cannot predict itself.
    """
    words = set(values)
    if len(words) < 2:
        return None
    one = np.zeros(len(values), dtype=np.int64)
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        numbers = np.array([np.nan])
    if len(words) > 2 and np.isfinite(numbers).all():
        return numbers if auc(truth, numbers) >= 0.5 else -numbers, one
    if len(words) > _MOST_WORDS:
        return None
    part = np.unique(patients, return_inverse=True)[1] % _PARTS
    shares = np.full(len(values), truth.mean())
    for word in words:
        there = np.array([value == word for value in values], dtype=np.bool_)
        for number in range(_PARTS):
            others = truth[there & (part != number)]
            if len(others):
                shares[there & (part == number)] = others.mean()
    return shares, part
