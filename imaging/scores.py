"""How well probabilities tell cases apart, how far they can be believed, and how far the figures can be trusted.

Invariant: pure functions of their arguments and the seed. What a sample cannot show (the sensitivity where nobody is
ill) is NaN, never a made-up 0 or 1. Intervals resample patients, not images: two films of one patient are not two
independent witnesses.

Shapes: N cases; ``truth`` bool (N,), ``probability`` float64 (N,) of being true.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.interval import Interval, of_all_or_none

Truth = NDArray[np.bool_]
Probability = NDArray[np.float64]

# What a sample shows only where there is a threshold.
RESTING_ON_THRESHOLD = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1")
_BINS = 10
# Sums of shares that make 1 may end this far from it.
_NOTHING = 1e-9

# The figures by their names in metrics.json, and what they are called.
TITLES = {
    "auc": "AUC", "auprc": "AUPRC", "accuracy": "accuracy", "sensitivity": "sensitivity", "specificity": "specificity",
    "ppv": "PPV", "npv": "NPV", "f1": "F1", "brier": "Brier", "ece": "ECE",
}  # fmt: skip


def auc(truth: Truth, probability: Probability) -> float:
    """Area under the ROC curve: how often a true case has the greater probability; ties count half.

    Hanley and McNeil, *The meaning and use of the area under a ROC curve*, Radiology 143 (1982) 29-36.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(probability, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auc_within(truth: Truth, probability: Probability, part: NDArray[np.int64]) -> float:
    """The AUC within each part, weighted by its pairs of a true and another case: parts are not compared.

    For probabilities of several models, each asked about the cases that it has not seen. A model that was fitted
    without many of the true cases gives less to all others, so that compared over all parts even a model that knows
    nothing seems to know the contrary: Airola et al., *An experimental comparison of cross-validation techniques for
    estimating the area under the ROC curve*, Computational Statistics and Data Analysis 55 (2011) 1828-1844.

    Parameters
    ----------
    truth, probability
        Of all cases.
    part
        Which part each is in, (N,).
    """
    pairs = area = 0.0
    for number in np.unique(part):
        own = truth[part == number]
        count = float(own.sum() * (~own).sum())
        if count:
            pairs, area = pairs + count, area + count * auc(own, probability[part == number])
    return area / pairs if pairs else float("nan")


def average_precision(truth: Truth, probability: Probability) -> float:
    """Area under the precision-recall curve as a sum of steps, without interpolation.

    Davis and Goadrich, *The relationship between precision-recall and ROC curves*, ICML 2006, section 4: joining the
    points by lines would promise too much.
    """
    return precision_recall_curve(truth, probability)[2] if truth.any() else float("nan")


def brier(truth: Truth, probability: Probability) -> float:
    """Mean squared distance of the probability from what was true. Brier, Monthly Weather Review 78 (1950) 1-3."""
    return float(((probability - truth) ** 2).mean()) if len(truth) else float("nan")


@dataclass(frozen=True, slots=True)
class Bin:
    """The cases whose probability lies from `low` to under `high` (the last bin: to 1).

    Attributes
    ----------
    low, high
        Its edges.
    cases
        How many.
    probability, share
        The mean of what they were given, and the share of them that is true; None without a case.
    """

    low: float
    high: float
    cases: int
    probability: float | None
    share: float | None


def reliability(truth: Truth, probability: Probability) -> tuple[Bin, ...]:
    """How far probabilities can be believed, in ten equal bins.

    DeGroot and Fienberg, *The comparison and evaluation of forecasters*, The Statistician 32 (1983) 12-22.
    """
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS).tolist()
    given = np.bincount(bins, probability, _BINS).tolist()
    true = np.bincount(bins, truth, _BINS).tolist()
    return tuple(
        Bin(at / _BINS, (at + 1) / _BINS, n, p / n if n else None, t / n if n else None)
        for at, (n, p, t) in enumerate(zip(counts, given, true, strict=True))
    )


def wilson(share: float, cases: int) -> tuple[float, float]:
    """The 95 % interval of a share of some independent cases.

    Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22 (1927) 209-212.
    """
    z = 1.959964
    centre = (share + z * z / (2 * cases)) / (1 + z * z / cases)
    reach = z / (1 + z * z / cases) * np.sqrt(share * (1 - share) / cases + z * z / (4 * cases * cases))
    return max(float(centre - reach), 0.0), min(float(centre + reach), 1.0)


def expected_calibration_error(truth: Truth, probability: Probability) -> float:
    """How far, on average, the share of true cases is from the probability that was given, over ten equal bins.

    Guo et al., *On calibration of modern neural networks*, ICML 2017, equation 3, for the probability of one class.
    """
    if not len(truth):
        return float("nan")
    bins = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    gaps = np.abs(np.bincount(bins, truth, _BINS) - np.bincount(bins, probability, _BINS))
    return float(gaps.sum() / len(truth))


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many cases were called what: rightly true, wrongly true, wrongly not, rightly not."""

    true_positive: int
    false_positive: int
    false_negative: int
    true_negative: int


def confusion(truth: Truth, called: Truth) -> Confusion:
    """Count what was true against what was called true."""
    return Confusion(
        int((called & truth).sum()),
        int((called & ~truth).sum()),
        int((~called & truth).sum()),
        int((~called & ~truth).sum()),
    )


def roc_curve(truth: Truth, probability: Probability) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1 - specificity and sensitivity at every threshold that there is, from (0, 0) to (1, 1).

    Cases of equal probability are called true together, so that the area under straight lines is `auc`. Both are NaN
    throughout where a side has no case.
    """
    found, false = _counts(truth, probability)
    with np.errstate(invalid="ignore"):
        return false / false[-1], found / found[-1]


def precision_recall_curve(
    truth: Truth, probability: Probability
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Recall and precision at every threshold, and `average_precision`, which is the area under their steps."""
    found, false = (counts[1:] for counts in _counts(truth, probability))
    with np.errstate(invalid="ignore"):
        recall = found / found[-1] if len(found) else found
    precision = found / np.maximum(found + false, 1)
    return recall, precision, float((np.diff(recall, prepend=0) * precision).sum())


def _counts(truth: Truth, probability: Probability) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false cases with at least each probability that there is, the greatest first, beginning with none."""
    order = np.argsort(-probability, kind="stable")
    # Cases of equal probability are found together: only the last of them is a point of the curve.
    last = np.append(np.diff(probability[order]) != 0, True)[: len(order)]
    found, false = (np.cumsum(side[order])[last].astype(np.float64) for side in (truth, ~truth))
    return np.append(0.0, found), np.append(0.0, false)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def scores_of(truth: Truth, probability: Probability, threshold: float | NDArray[np.float64]) -> dict[str, float]:
    """All figures of one sample; what is `threshold` (one for all, or each case's own) or more is called true.

    Where a case has none (NaN) nothing is called anything, and the figures that rest on it are NaN.

    Returns
    -------
    dict
        ``auc``, ``auprc``, ``accuracy``, ``sensitivity``, ``specificity``, ``ppv``, ``npv``, ``f1``, ``brier`` and
        ``ece``; NaN where the sample cannot show it, and for what asks a threshold where that is NaN.
    """
    found = confusion(truth, probability >= threshold)
    hits, false = found.true_positive, found.false_positive
    misses, right = found.false_negative, found.true_negative
    called = {
        "accuracy": _share(hits + right, len(truth)),
        "sensitivity": _share(hits, hits + misses),
        "specificity": _share(right, right + false),
        "ppv": _share(hits, hits + false),
        "npv": _share(right, right + misses),
        "f1": _share(2 * hits, 2 * hits + false + misses),
    }
    if np.isnan(threshold).any():
        called = dict.fromkeys(RESTING_ON_THRESHOLD, float("nan"))
    return {
        "auc": auc(truth, probability),
        "auprc": average_precision(truth, probability),
        **called,
        "brier": brier(truth, probability),
        "ece": expected_calibration_error(truth, probability),
    }


def scores_with_intervals(
    truth: Truth, probability: Probability, threshold_N: NDArray[np.float64], patients: Sequence[str]
) -> dict[str, Interval]:
    """The figures of `scores_of` with their 95 % intervals over patients.

    A share that is 0 or 1 has the exact interval of its patients (see `bootstrap_scores`). An AUC of 0 or 1 has that of
    as many patients as the rarer outcome has: so many pairs of a true and another case can be made that share nobody,
    and all of them are in one order.
    """
    called = probability >= threshold_N
    everyone = np.ones(len(truth), dtype=np.bool_)
    counted = {
        "auc": (truth, ~truth), "accuracy": (everyone,), "sensitivity": (truth,), "specificity": (~truth,),
        "ppv": (called,), "npv": (~called,),
    }  # fmt: skip
    return bootstrap_scores(
        lambda drawn: scores_of(truth[drawn], probability[drawn], threshold_N[drawn]),
        patients,
        trials={name: min(_patients(patients, part) for part in parts) for name, parts in counted.items()},
    )


def share_with_interval(right_N: NDArray[np.bool_], patients: Sequence[str]) -> Interval:
    """The share of cases for which something holds, with its 95 % interval over patients."""
    return bootstrap_scores(
        lambda drawn: {"share": float(right_N[drawn].mean())}, patients, trials={"share": len(set(patients))}
    )["share"]


def _patients(patients: Sequence[str], chosen: NDArray[np.bool_]) -> int:
    """Whose the chosen cases are."""
    return len({patient for patient, there in zip(patients, chosen.tolist(), strict=True) if there})


def bootstrap_scores(
    measure: Callable[[NDArray[np.int64]], dict[str, float]],
    patients: Sequence[str],
    *,
    trials: Mapping[str, int] | None = None,
    resamples: int = 1_000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Figures with their 95 % percentile bootstrap intervals over patients.

    Parameters
    ----------
    measure
        Gives the figures of some cases by their indices (with repetitions).
    patients
        Whose each case is; all cases of a patient are drawn together.
    trials
        For each figure that is a share, the patients that it is a share of.
    resamples
        How often as many patients are drawn as there are, with replacement.
    seed
        Of the generator.

    Returns
    -------
    dict
        An interval for each figure. A figure that a resample cannot show is left out there; the bounds are None where
        there are fewer than two patients, or where fewer than half of the resamples show it. Where all resamples give
        the same 0 or 1, which says nothing of other patients, a share has the exact interval
        (`imaging.interval.of_all_or_none`), and the bounds of any other figure are None. A difference is no
        share, and keeps its value.

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 13.3; by patients as in Field and Welsh,
    *Bootstrapping clustered data*, JRSS B 69 (2007) 369-390, the cluster bootstrap.
    """
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    of_patient = np.split(np.argsort(owner, kind="stable"), np.cumsum(np.bincount(owner))[:-1])
    generator = np.random.default_rng(seed)
    values = measure(np.arange(len(patients)))
    drawn: dict[str, list[float]] = {name: [] for name in values}
    for _ in range(resamples if len(names) > 1 else 0):
        chosen = np.concatenate([of_patient[i] for i in generator.integers(len(names), size=len(names))])
        for name, value in measure(chosen).items():
            drawn[name].append(value)
    return {
        name: _interval(value, np.array(drawn[name]), (trials or {}).get(name, 0)) for name, value in values.items()
    }


def _interval(value: float, drawn: NDArray[Any], trials: int) -> Interval:
    shown = drawn[~np.isnan(drawn)]
    if np.isnan(value):
        return Interval(None, None, None)
    if 2 * len(shown) < len(drawn) or not len(shown):
        return Interval(value, None, None)
    low, high = np.percentile(shown, [2.5, 97.5])
    if high - low < _NOTHING and min(abs(value), abs(1 - value)) < _NOTHING:
        return of_all_or_none(float(round(value)), trials)
    return Interval(value, float(low), float(high))
