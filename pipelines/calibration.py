"""What held-out cases say of a network's certainty, and what that makes of other cases.

Invariant: a calibration comes from the cases that it is asked of and from no others; applied, it says of a case what
serving would say (`imaging.judgement`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import calibrated_probability, isotonic_by_class, likeness, temperature_of, threshold_for
from imaging.cases import Classed
from imaging.config import JudgedConfig
from imaging.conformal import conformal_of
from imaging.judgement import is_strange, judge, targets_of

# Of log-odds, between machines.
_ROUNDING = 1e-5


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Some cases with their truth and what the network said; ``logits_NK``, ``truth_NK``, (N, ...).

    `strange` has the numbers of the cases that are unlike those that trained the network, as far as that is known.
    """

    cases: Sequence[Classed]
    truth_NK: NDArray[np.bool_]
    logits_NK: NDArray[np.float64]
    thumbnails: NDArray[np.float64]
    strange: frozenset[int] = frozenset()

    @classmethod
    def joined(cls, parts: Sequence[Asked]) -> Asked:
        """The cases of several parts, one after the other."""
        begins = np.cumsum([0, *(len(part.cases) for part in parts)]).tolist()
        return cls(
            [case for part in parts for case in part.cases],
            np.concatenate([part.truth_NK for part in parts]),
            np.concatenate([part.logits_NK for part in parts]),
            np.concatenate([part.thumbnails for part in parts]),
            frozenset(begin + number for begin, part in zip(begins, parts, strict=False) for number in part.strange),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """What a calibration makes of N cases.

    Attributes
    ----------
    probability_NK
        Calibrated.
    thresholds
        For each target the threshold of each case, (N,).
    undecided
        For each target that is judged, which cases are called neither normal nor abnormal, (N,).
    """

    probability_NK: NDArray[np.float64]
    thresholds: Mapping[str, NDArray[np.float64]]
    undecided: Mapping[str, NDArray[np.bool_]]

    @classmethod
    def joined(cls, parts: Sequence[Applied]) -> Applied:
        """Cases that were calibrated apart, in the order of the parts."""
        first = parts[0]
        return cls(
            np.concatenate([part.probability_NK for part in parts]),
            {name: np.concatenate([part.thresholds[name] for part in parts]) for name in first.thresholds},
            {name: np.concatenate([part.undecided[name] for part in parts]) for name in first.undecided},
        )


def _familiar(share: float | None, thumbnails: NDArray[np.float64]) -> dict[str, Any] | None:
    """The mean of the validation cases, and how little like it the most unlike ones of them may be."""
    if share is None:
        return None
    template = np.round(thumbnails.mean(axis=0), 3)
    least = float(np.quantile(likeness(thumbnails, template), 1 - share))
    # Rounded down: a case that is as unlike as may be stays within.
    return {"share": share, "least": float(np.floor(least * 1e5) / 1e5), "template": template.tolist()}


def calibrated(config: JudgedConfig, answers: Asked) -> dict[str, Any]:
    """What some cases say of the network's certainty, and where they put the thresholds.

    Returns
    -------
    dict
        ``cases``, ``temperature``, ``thresholds`` by target, ``sensitivity`` and ``margin`` as asked for, ``familiar``;
        where it was asked for ``isotonic`` by class and ``conformal`` by target.
    """
    settings, softmax = config.calibrate, config.output == "softmax"
    temperature = (
        temperature_of(answers.logits_NK, answers.truth_NK, softmax=softmax)
        if settings.temperature == "fitted"
        else 1.0
    )
    found: dict[str, Any] = {"temperature": round(temperature, 5)}
    if settings.isotonic:
        found["isotonic"] = isotonic_by_class(answers.logits_NK, answers.truth_NK, softmax=softmax, **found)
    probability_NK = calibrated_probability(answers.logits_NK, found, softmax=softmax)
    thresholds = {
        target.name: threshold_for(
            target.truth(answers.truth_NK), target.probability(probability_NK), sensitivity=settings.sensitivity
        )
        for target in targets_of(config)
    }
    if settings.error_rate is not None:
        found["conformal"] = conformal_by_target(config, answers.truth_NK, probability_NK)
    return {
        "cases": len(answers.cases),
        "familiar": _familiar(settings.familiar, answers.thumbnails),
        **found,
        "sensitivity": settings.sensitivity,
        "margin": settings.margin,
        "thresholds": {name: None if t is None else _just_below(t) for name, t in thresholds.items()},
    }


def conformal_by_target(
    config: JudgedConfig, truth_NK: NDArray[np.bool_], probability_NK: NDArray[np.float64]
) -> dict[str, dict[str, Any]]:
    """For each target that is judged what some cases leave open at the config's error rate, for JSON."""
    settings = config.calibrate
    assert settings.error_rate is not None
    return {
        target.name: conformal_of(
            target.truth(truth_NK),
            target.probability(probability_NK),
            error_rate=settings.error_rate,
            by_class=settings.by_class,
        ).as_dict()
        for target in targets_of(config)
        if target.abnormal
    }


def _just_below(threshold: float) -> float:
    """So far below that the case which lies on the threshold stays on its side of it on another machine.

    In the log-odds, where rounding happens: a step in the probability would swallow whole classes that are rare, or of
    which the network is sure.
    """
    if not 0 < threshold < 1:
        return threshold
    return float(1 / (1 + np.exp(np.log1p(-threshold) - np.log(threshold) + _ROUNDING)))


def apply_calibration(config: JudgedConfig, answers: Asked, calibration: Mapping[str, Any]) -> Applied:
    """Probabilities, thresholds and who is left undecided, by a calibration as `calibrated` gives it.

    Of a checkpoint without one the temperature is 1 and every threshold NaN, and everybody is left undecided.
    """
    probability_NK = calibrated_probability(answers.logits_NK, calibration, softmax=config.output == "softmax")
    unlike_N = is_strange(answers.thumbnails, calibration).tolist()
    strange = answers.strange | {number for number, unlike in enumerate(unlike_N) if unlike}
    return judged_by(config, probability_NK, calibration, strange)


def judged_by(
    config: JudgedConfig,
    probability_NK: NDArray[np.float64],
    calibration: Mapping[str, Any],
    strange: frozenset[int] = frozenset(),
) -> Applied:
    """The same of calibrated probabilities; `strange` has the numbers of the cases that are strange."""
    cases = len(probability_NK)
    strange_N = ["strange" if number in strange else "" for number in range(cases)]
    undecided, thresholds = {}, {}
    for target in targets_of(config):
        threshold = (calibration.get("thresholds") or {}).get(target.name)
        thresholds[target.name] = np.full(cases, np.nan if threshold is None else threshold)
        if target.abnormal:
            probability_N = target.probability(probability_NK).tolist()
            told = [judge(target, p, calibration, strange=s) for p, s in zip(probability_N, strange_N, strict=True)]
            undecided[target.name] = np.array([judgement.assessment == "indeterminate" for judgement in told])
    return Applied(probability_NK, thresholds, undecided)
