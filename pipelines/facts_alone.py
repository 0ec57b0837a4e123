"""What the facts of the cases alone (age, sex, view) would have said, beside what a classifier said.

Invariant: the regression on facts learns from the training cases and is measured on the very cases of the classifier;
both are ranked by their probabilities as they are, for rounded ones tie where a network is sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase
from imaging.classifier import targets_of
from imaging.config import ClassifyConfig
from imaging.facts import FactsAlone
from imaging.scores import Probability, Truth, auc, bootstrap_scores


def facts_alone(
    config: ClassifyConfig,
    trained: Sequence[ClassifiedCase],
    said: Mapping[str, tuple[Sequence[ClassifiedCase], NDArray[np.float64]]],
) -> dict[str, Any] | None:
    """The AUC of each target by its cases' facts alone, and how much greater the classifier's is.

    Parameters
    ----------
    config
        Of the classifier.
    trained
        The training cases.
    said
        For each side that was measured its cases, and what the classifier said of them, (N, K).

    Returns
    -------
    dict or None
        ``facts``, their names, and ``left_out``, those of facts that no regression can take, if there are any; and for
        each side and each target ``auc`` and ``gain``, with 95 % intervals over patients, those of the gain from the
        same resamples for both. None where there are no facts.
    """
    alone = FactsAlone([case.facts for case in trained])
    if not alone.names:
        return None
    found: dict[str, Any] = {"facts": list(alone.names)}
    found |= {"left_out": list(alone.left_out)} if alone.left_out else {}
    learnt_NK = _truth(config, trained)
    for side, (cases, probability_NK) in said.items():
        truth_NK, found[side] = _truth(config, cases), {}
        for target in targets_of(config):
            by_facts_N = alone.probability(target.truth(learnt_NK), [case.facts for case in cases])
            figures = _compared(target.truth(truth_NK), by_facts_N, target.probability(probability_NK), cases)
            found[side][target.name] = figures
    return found


def _truth(config: ClassifyConfig, cases: Sequence[ClassifiedCase]) -> NDArray[np.bool_]:
    return np.array([[item.name in case.classes for item in config.classes] for case in cases], dtype=np.bool_)


def _compared(
    truth_N: Truth, by_facts_N: Probability, by_network_N: Probability, cases: Sequence[ClassifiedCase]
) -> dict[str, Any]:
    def measure(drawn: NDArray[np.int64]) -> dict[str, float]:
        facts = auc(truth_N[drawn], by_facts_N[drawn])
        return {"auc": facts, "gain": auc(truth_N[drawn], by_network_N[drawn]) - facts}

    return {
        name: value.as_dict() for name, value in bootstrap_scores(measure, [case.patient for case in cases]).items()
    }
