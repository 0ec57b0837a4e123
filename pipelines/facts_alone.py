"""What the facts of the cases alone (age, sex, view) would have said, beside what a classifier said.

Invariant: the regression on facts learns from the cases that trained the classifier and is measured on the very cases
of the classifier; in a cross-validation it knows no more of a fold than the network that is measured there. Both are
ranked by their probabilities as they are, for rounded ones tie where a network is sure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.cases import Classed
from imaging.config import JudgedConfig
from imaging.facts import FactsAlone
from imaging.judgement import targets_of
from imaging.scores import Probability, Truth, auc_within, bootstrap_scores


@dataclass(frozen=True, slots=True, eq=False)
class ByFacts:
    """What their facts say of N cases.

    Attributes
    ----------
    names
        The facts that count; none where nothing is known of the cases.
    left_out
        Those that no regression can take.
    probability
        By the target's name, (N,).
    part_N
        Which regression was asked about each case: of several, each has its own training cases.
    """

    names: tuple[str, ...]
    left_out: tuple[str, ...]
    probability: Mapping[str, Probability]
    part_N: NDArray[np.int64]

    @classmethod
    def joined(cls, parts: Sequence[ByFacts]) -> ByFacts:
        """What was said of several parts, one after the other."""
        return cls(
            tuple(sorted({name for part in parts for name in part.names})),
            tuple(sorted({name for part in parts for name in part.left_out})),
            {name: np.concatenate([part.probability[name] for part in parts]) for name in parts[0].probability},
            np.repeat(np.arange(len(parts)), [len(part.part_N) for part in parts]),
        )


def by_facts(config: JudgedConfig, train: Sequence[Classed], cases: Sequence[Classed]) -> ByFacts:
    """Fit a regression for each target on the facts of some cases, and ask it about others."""
    alone = FactsAlone([case.facts for case in train])
    classes = [item.name for item in config.classes]
    truth_NK = np.array([[name in case.classes for name in classes] for case in train])
    facts = [case.facts for case in cases]
    return ByFacts(
        alone.names,
        alone.left_out,
        {target.name: alone.probability(target.truth(truth_NK), facts) for target in targets_of(config)},
        np.zeros(len(cases), dtype=np.int64),
    )


def facts_alone(
    config: JudgedConfig,
    cases: Sequence[Classed],
    truth_NK: NDArray[np.bool_],
    probability_NK: NDArray[np.float64],
    said: ByFacts,
) -> dict[str, Any] | None:
    """The AUC of each target by its cases' facts alone, and how much greater the classifier's is.

    Parameters
    ----------
    config
        Of the classifier.
    cases, truth_NK, probability_NK
        What was measured: who has which class, and what the classifier said, (N, K).
    said
        What the facts say of the same cases.

    Returns
    -------
    dict or None
        ``facts``, their names, and ``left_out``, those of facts that no regression can take, if there are any; and
        under ``scores`` for each target ``network``, ``auc`` (that of the facts) and ``gain``, their difference, with
        95 % intervals over patients from the same resamples. What several models said is compared within the cases of
        each (`imaging.scores.auc_within`). None where there are no facts.
    """
    if not said.names:
        return None
    patients = [case.patient for case in cases]
    scores = {
        target.name: _compared(
            target.truth(truth_NK),
            said.probability[target.name],
            target.probability(probability_NK),
            said.part_N,
            patients,
        )
        for target in targets_of(config)
    }
    left_out = {"left_out": list(said.left_out)} if said.left_out else {}
    return {"facts": list(said.names), **left_out, "scores": scores}


def _compared(
    truth_N: Truth,
    by_facts_N: Probability,
    by_network_N: Probability,
    part_N: NDArray[np.int64],
    patients: Sequence[str],
) -> dict[str, Any]:
    def measure(drawn: NDArray[np.int64]) -> dict[str, float]:
        truth, part = truth_N[drawn], part_N[drawn]
        network, facts = (auc_within(truth, said_N[drawn], part) for said_N in (by_network_N, by_facts_N))
        return {"network": network, "auc": facts, "gain": network - facts}

    owners = np.array(patients)
    rarer = min(len(set(owners[side_N].tolist())) for side_N in (truth_N, ~truth_N))
    found = bootstrap_scores(measure, patients, trials={"network": rarer, "auc": rarer})
    return {name: value.as_dict() for name, value in found.items()}
