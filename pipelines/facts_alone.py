"""What the facts of the cases alone (age, sex, view) would have said, beside what a classifier said.

Invariant: the regression on facts learns from the training cases and is measured on the very cases of the classifier.
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
    config: ClassifyConfig, sides: Mapping[str, Sequence[ClassifiedCase]], metrics: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The AUC of each target by its cases' facts alone, and how much greater the classifier's is.

    Parameters
    ----------
    config
        Of the classifier.
    sides
        The cases for ``train`` and those that were measured.
    metrics
        As `measure_classifier` gives them; what it says of each case is compared.

    Returns
    -------
    dict or None
        ``facts``, their names; and for each side that was measured and each target ``auc`` and ``gain``, with 95 %
        intervals over patients, those of the gain from the same resamples for both. None where there are no facts.
    """
    alone = FactsAlone([case.facts for case in sides["train"]])
    if not alone.names:
        return None
    names = [item.name for item in config.classes]
    truths = {side: np.array([[name in case.classes for name in names] for case in cases])
              for side, cases in sides.items() if cases}  # fmt: skip
    found: dict[str, Any] = {"facts": list(alone.names)}
    for side, truth_NK in truths.items():
        if side == "train":
            continue
        cases = sides[side]
        probability_NK = np.array([metrics[side]["each"][case.name]["probability"] for case in cases])
        found[side] = {}
        for target in targets_of(config):
            by_facts_N = alone.probability(target.truth(truths["train"]), [case.facts for case in cases])
            figures = _compared(target.truth(truth_NK), by_facts_N, target.probability(probability_NK), cases)
            found[side][target.name] = figures
    return found


def _compared(
    truth_N: Truth, by_facts_N: Probability, by_network_N: Probability, cases: Sequence[ClassifiedCase]
) -> dict[str, Any]:
    def measure(drawn: NDArray[np.int64]) -> dict[str, float]:
        facts = auc(truth_N[drawn], by_facts_N[drawn])
        return {"auc": facts, "gain": auc(truth_N[drawn], by_network_N[drawn]) - facts}

    return {
        name: value.as_dict() for name, value in bootstrap_scores(measure, [case.patient for case in cases]).items()
    }
