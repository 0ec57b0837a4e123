"""Calibrate a classifier on its validation cases and measure it on those and on test, by the code that serves it.

Invariant: temperature and thresholds come from the validation cases alone; the test cases only say whether they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import likeness, probability_of, temperature_of, threshold_for
from imaging.cases import ClassifiedCase, load_picture
from imaging.classifier import Classifier, is_strange, judge, targets_of
from imaging.config import ClassifyConfig
from imaging.scores import scores_with_intervals, share_with_interval

# Of a fact with more different values than this, groups are made of neighbouring values.
_FEW_VALUES = 10
# In a smaller group the intervals would span everything.
_SMALLEST_GROUP = 20
_AGES = (0, 18, 40, 60, 80, 200)


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Some cases with their truth and what the network said; ``logits_NK``, ``truth_NK``, (N, ...)."""

    cases: Sequence[ClassifiedCase]
    truth_NK: NDArray[np.bool_]
    logits_NK: NDArray[np.float64]
    thumbnails: NDArray[np.float64]

    @classmethod
    def joined(cls, parts: Sequence[Asked]) -> Asked:
        """The cases of several parts, one after the other."""
        return cls(
            [case for part in parts for case in part.cases],
            np.concatenate([part.truth_NK for part in parts]),
            np.concatenate([part.logits_NK for part in parts]),
            np.concatenate([part.thumbnails for part in parts]),
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


def measure_classifier(classifier: Classifier, sides: dict[str, list[ClassifiedCase]]) -> dict[str, Any]:
    """Every figure of each side's cases, and the calibration that they were measured with.

    Returns
    -------
    dict
        ``calibration`` (see `calibrated`), and what `figures` gives for each side.
    """
    config = classifier.checkpoint.classifier()
    asked = {side: ask(classifier, cases) for side, cases in sides.items()}
    calibration = calibrated(config, asked["validation"])
    measured = {
        side: figures(config, answers, apply_calibration(config, answers, calibration))
        for side, answers in asked.items()
    }
    return {"calibration": calibration, **measured}


def ask(classifier: Classifier, cases: Sequence[ClassifiedCase]) -> Asked:
    """What a classifier says of some cases before any calibration.

    Raises
    ------
    InputRefused, SeveralSeries
        If a case cannot be read, or the classifier does not take it.
    """
    names = [item.name for item in classifier.checkpoint.classifier().classes]
    truth_NK = np.array([[name in case.classes for name in names] for case in cases])
    answers = [classifier.ask(load_picture(case)) for case in cases]
    return Asked(
        cases,
        truth_NK,
        np.stack([answer.logits_K for answer in answers]),
        np.stack([answer.thumbnail for answer in answers]),
    )


def _familiar(share: float | None, thumbnails: NDArray[np.float64]) -> dict[str, Any] | None:
    """The mean of the validation cases, and how little like it the most unlike ones of them may be."""
    if share is None:
        return None
    template = np.round(thumbnails.mean(axis=0), 3)
    least = float(np.quantile(likeness(thumbnails, template), 1 - share))
    return {"share": share, "least": round(least, 5), "template": template.tolist()}


def calibrated(config: ClassifyConfig, answers: Asked) -> dict[str, Any]:
    """What some cases say of the network's certainty, and where they put the thresholds.

    Returns
    -------
    dict
        ``cases``, ``temperature``, ``thresholds`` by target, ``sensitivity`` and ``margin`` as asked for, ``familiar``.
    """
    settings, softmax = config.calibrate, config.output == "softmax"
    temperature = (
        temperature_of(answers.logits_NK, answers.truth_NK, softmax=softmax)
        if settings.temperature == "fitted"
        else 1.0
    )
    temperature = round(temperature, 5)
    probability_NK = probability_of(answers.logits_NK, softmax=softmax, temperature=temperature)
    thresholds = {
        target.name: threshold_for(
            target.truth(answers.truth_NK), target.probability(probability_NK), sensitivity=settings.sensitivity
        )
        for target in targets_of(config)
    }
    return {
        "cases": len(answers.cases),
        "familiar": _familiar(settings.familiar, answers.thumbnails),
        "temperature": temperature,
        "sensitivity": settings.sensitivity,
        "margin": settings.margin,
        # Rounded down: a case that lies on the threshold stays on its side of it.
        "thresholds": {name: None if t is None else np.floor(t * 1e6) / 1e6 for name, t in thresholds.items()},
    }


def apply_calibration(config: ClassifyConfig, answers: Asked, calibration: Mapping[str, Any]) -> Applied:
    """Probabilities, thresholds and who is left undecided, by a calibration as `calibrated` gives it."""
    probability_NK = probability_of(
        answers.logits_NK, softmax=config.output == "softmax", temperature=calibration["temperature"]
    )
    strange_N = is_strange(answers.thumbnails, calibration).tolist()
    undecided = {}
    for target in targets_of(config):
        if target.abnormal:
            probability_N = target.probability(probability_NK).tolist()
            told = [judge(target, p, calibration, strange=s) for p, s in zip(probability_N, strange_N, strict=True)]
            undecided[target.name] = np.array([judgement.assessment == "indeterminate" for judgement in told])
    thresholds = {
        name: np.full(len(answers.cases), np.nan if t is None else t) for name, t in calibration["thresholds"].items()
    }
    return Applied(probability_NK, thresholds, undecided)


def figures(config: ClassifyConfig, answers: Asked, applied: Applied) -> dict[str, Any]:
    """Every figure of some cases.

    Returns
    -------
    dict
        ``cases``, ``patients``, ``scores`` (for each target its figures with 95 % bootstrap intervals over patients),
        ``indeterminate`` (the share that is called neither normal nor abnormal; the figures count them by the threshold
        alone), ``likeliest_accuracy`` (softmax: how often the likeliest class is the true one), ``subgroups`` and
        ``each`` (truth and probability of every class in every case).
    """
    shares = {name: round(float(undecided_N.mean()), 5) for name, undecided_N in applied.undecided.items()}
    each = {
        case.name: {"classes": list(case.classes), "probability": [round(float(p), 5) for p in row]}
        for case, row in zip(answers.cases, applied.probability_NK, strict=True)
    }
    groups = {name: _measured(config, answers, applied, chosen) for name, chosen in _subgroups(answers.cases).items()}
    everyone = np.arange(len(answers.cases))
    return {
        **_measured(config, answers, applied, everyone), "indeterminate": shares, "subgroups": groups, "each": each
    }  # fmt: skip


def _measured(config: ClassifyConfig, answers: Asked, applied: Applied, chosen: NDArray[np.int64]) -> dict[str, Any]:
    """All figures of some of the cases."""
    patients = [answers.cases[i].patient for i in chosen]
    truth_NK, probability_NK = answers.truth_NK[chosen], applied.probability_NK[chosen]
    measured: dict[str, Any] = {"cases": len(chosen), "patients": len(set(patients)), "scores": {}}
    for target in targets_of(config):
        truth_N = target.truth(truth_NK)
        found = scores_with_intervals(
            truth_N, target.probability(probability_NK), applied.thresholds[target.name][chosen], patients
        )
        told = {name: figure.as_dict() for name, figure in found.items()}
        measured["scores"][target.name] = {"true_cases": int(truth_N.sum()), **told}
    if config.output == "softmax":
        right_N = probability_NK.argmax(axis=1) == truth_NK.argmax(axis=1)
        measured["likeliest_accuracy"] = share_with_interval(right_N, patients).as_dict()
    return measured


def _subgroups(cases: Sequence[ClassifiedCase]) -> dict[str, NDArray[np.int64]]:
    """The cases of each value of each fact, by ``fact=value``; small groups are left out."""
    groups: dict[str, list[int]] = {}
    for fact in sorted({name for case in cases for name in case.facts}):
        told = [case.facts.get(fact, "").strip() for case in cases]
        bands = _bands(fact, told)
        for index, value in enumerate(told):
            if value:
                groups.setdefault(f"{fact}={bands.get(value, value)}", []).append(index)
        if len(set(told)) > _FEW_VALUES and not bands:
            groups = {name: found for name, found in groups.items() if not name.startswith(f"{fact}=")}
    return {name: np.array(found) for name, found in groups.items() if len(found) >= _SMALLEST_GROUP}


def _bands(fact: str, told: Sequence[str]) -> dict[str, str]:
    """For each value of a number with many values its band: ages by decades of life, others by thirds of the cases."""
    values = {value for value in told if value}
    try:
        numbers = {value: float(value) for value in values}
    except ValueError:
        return {}
    if len(values) <= _FEW_VALUES:
        return {}
    if fact.lower() == "age":
        edges: Sequence[float] = _AGES
    else:
        edges = [-np.inf, *np.quantile([numbers[value] for value in told if value], [1 / 3, 2 / 3]).tolist(), np.inf]
    places = {value: int(np.searchsorted(edges[1:-1], number, side="right")) for value, number in numbers.items()}
    return {value: f"{edges[place]:g} to under {edges[place + 1]:g}" for value, place in places.items()}
