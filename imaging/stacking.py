"""The parts of a study as numbers, each there or not, and what a fusion makes of those that are there.

Invariant: a part that is missing enters nowhere. Whatever set of parts is there has been trained, calibrated and
measured as that set (its *pattern*); a pattern that has not been is refused rather than filled up.

Shapes: N cases, F columns of numbers, P parts; ``values_NF``, ``there_NP``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import bent
from imaging.config import FuseConfig, FusedFact
from imaging.config.fuse import FACTS, TEXT
from imaging.errors import TooFewCases
from imaging.facts import number_of
from imaging.logistic import fitted

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
# Names of the parts that are there, in the config's order.
Pattern = tuple[str, ...]

# A regression has so many cases of each kind at least.
LEAST_CASES = 10


@dataclass(frozen=True, slots=True)
class Case:
    """What is known of one case: the log-odds of each part that gave one, and the facts that are told."""

    logits: Mapping[str, float]
    facts: Mapping[str, str] = field(default_factory=dict)


def name_of(pattern: Pattern) -> str:
    """What a pattern is called in files."""
    return "+".join(pattern)


def patterns_of(config: FuseConfig) -> tuple[Pattern, ...]:
    """Every set of parts that may be there, the largest last."""
    parts = config.parts
    return tuple(pattern for size in range(1, len(parts) + 1) for pattern in combinations(parts, size))


def pattern_of(config: FuseConfig, case: Case) -> Pattern:
    """The parts that are there in a case; facts are there where one of them is told."""
    return tuple(part for part in config.parts if _is_there(config, part, case))


def _is_there(config: FuseConfig, part: str, case: Case) -> bool:
    if part == FACTS:
        return any(_told(fact, case) for fact in config.facts)
    return part in case.logits


def _told(fact: FusedFact, case: Case) -> bool:
    word = case.facts.get(fact.name, "")
    return word in fact.values if fact.values else not np.isnan(number_of(word))


def columns_of(config: FuseConfig, pattern: Pattern) -> list[int]:
    """Which columns of `table_of` belong to some parts."""
    found: list[int] = []
    at = 0
    for part in config.parts:
        width = sum(map(_width, config.facts)) if part == FACTS else 1
        found += range(at, at + width) if part in pattern else []
        at += width
    return found


def _width(fact: FusedFact) -> int:
    # A number has its square and whether it is missing beside it.
    return len(fact.values) or 3


def table_of(config: FuseConfig, cases: Sequence[Case]) -> tuple[Floats, Flags]:
    """The numbers (N, F) of some cases, 0 where they are missing, and which parts are there (N, P)."""
    values_NF = np.array([_row(config, case) for case in cases], dtype=np.float64)
    there_NP = np.array([[_is_there(config, part, case) for part in config.parts] for case in cases], dtype=np.bool_)
    return values_NF, there_NP


def _row(config: FuseConfig, case: Case) -> list[float]:
    row: list[float] = []
    for part in config.parts:
        if part == FACTS:
            row += [value for fact in config.facts for value in _fact(fact, case)]
        else:
            row.append(case.logits.get(part, 0.0))
    return row


def _fact(fact: FusedFact, case: Case) -> list[float]:
    word = case.facts.get(fact.name, "")
    if fact.values:
        return [float(word == value) for value in fact.values]
    number = number_of(word)
    if np.isnan(number):
        return [0.0, 0.0, 1.0]
    scaled = (number - fact.mean) / fact.deviation
    return [scaled, scaled**2, 0.0]


def having(config: FuseConfig, there_NP: Flags, pattern: Pattern) -> Flags:
    """Which cases have all parts of a pattern, (N,); they may have others, too."""
    chosen = [config.parts.index(part) for part in pattern]
    return np.asarray(there_NP[:, chosen].all(axis=1))


def fit_stacked(config: FuseConfig, values_NF: Floats, there_NP: Flags, truth_N: Flags) -> dict[str, Floats]:
    """A logistic regression for each pattern, on all training cases that have its parts.

    Returns
    -------
    dict
        For each pattern by its name its weights, the constant first.

    Raises
    ------
    TooFewCases
        If a pattern has too few cases of a kind.

    Notes
    -----
    Stacked generalisation: Wolpert, Neural Networks 5 (1992) 241-259. A model for each pattern rather than one with
    something in the place of what is missing: Fletcher Mercaldo and Blume, *Missing data and prediction: the pattern
    submodel*, Biostatistics 21 (2020) 236-252.
    """
    weights = {}
    for pattern in patterns_of(config):
        chosen_N = having(config, there_NP, pattern)
        least = min(int((truth_N & chosen_N).sum()), int((~truth_N & chosen_N).sum()))
        if least < LEAST_CASES:
            raise TooFewCases(f"pattern {name_of(pattern)}", seen=f"{least} training cases of a kind",
                              expected=f"at least {LEAST_CASES} normal and abnormal ones were expected",
                              remedy="Add cases that have these parts, or leave a part out of the config")  # fmt: skip
        design_NF = values_NF[chosen_N][:, columns_of(config, pattern)]
        design_NF = np.concatenate([np.ones((len(design_NF), 1)), design_NF], axis=1)
        weights[name_of(pattern)] = fitted(design_NF, truth_N[chosen_N].astype(np.float64))
    return weights


def inputs_of(config: FuseConfig, values_NF: Floats, pattern: Pattern) -> Floats:
    """What the one network of all patterns is given: the numbers of the pattern's parts, and which parts these are.

    Returns
    -------
    ndarray
        (N, F + P).
    """
    shown_F, there_P = np.zeros(values_NF.shape[1]), np.array([part in pattern for part in config.parts], dtype=float)
    shown_F[columns_of(config, pattern)] = 1.0
    return np.concatenate([values_NF * shown_F, np.broadcast_to(there_P, (len(values_NF), len(there_P)))], axis=1)


def log_odds_of(config: FuseConfig, weights: Mapping[str, Floats], values_NF: Floats, pattern: Pattern) -> Floats:
    """What a fusion says of cases by the parts of one pattern, before any calibration.

    Parameters
    ----------
    config
        Of the fusion.
    weights
        As `fit_stacked` gives them, or of `imaging.tasks.fuse.FusionNetwork`.
    values_NF
        See `table_of`; the cases have the parts of the pattern.
    pattern
        Which parts are asked.

    Returns
    -------
    ndarray
        Log-odds (N,).
    """
    if config.train.method == "stacked":
        constant, *slopes = weights[name_of(pattern)]
        return np.asarray(constant + values_NF[:, columns_of(config, pattern)] @ np.array(slopes))
    given = inputs_of(config, values_NF, pattern)
    hidden = np.tanh(given @ weights["hidden.weight"].T + weights["hidden.bias"])
    return np.asarray(hidden @ weights["last.weight"][0] + weights["last.bias"][0])


def images_in(config: FuseConfig, pattern: Pattern) -> Pattern:
    """The images among the parts of a pattern."""
    return tuple(part for part in pattern if part not in (TEXT, FACTS) and part in config.parts)


def calibrated_log_odds(logit_N: Floats, calibration: Mapping[str, Any]) -> Floats:
    """Log-odds (N,) of one pattern after its calibration.

    Parameters
    ----------
    logit_N
        As `log_odds_of` gives them.
    calibration
        Of the pattern: ``temperature``, and ``isotonic`` where the config asks for it.
    """
    scaled_N = logit_N / calibration["temperature"]
    curve = calibration.get("isotonic")
    if not curve:
        return np.asarray(scaled_N)
    probability_N = bent(scaled_N, curve)
    return np.asarray(np.log(probability_N) - np.log1p(-probability_N))
