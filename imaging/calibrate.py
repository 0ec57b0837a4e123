"""How far a model's numbers may be trusted on new cases: intervals, probabilities and thresholds from held-out cases.

Invariant: what is calibrated here comes from cases that neither fitted the weights nor are reported as test cases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_GOLDEN = (5**0.5 - 1) / 2


def conformal_ratio(
    truth: Sequence[float], predicted: Sequence[float], *, coverage: float
) -> tuple[float, float] | None:
    """Factors on a predicted amount between which the true one lies, for new cases like the given ones.

    Split conformal prediction with the ratio truth / predicted as the score, each tail on its own: with n exchangeable
    cases, the true amount of a new one lies in ``[low * predicted, high * predicted]`` with probability at least
    `coverage`.

    Parameters
    ----------
    truth, predicted
        Amounts (here mm3) in cases that the model has not been fitted on; cases with a zero are left out.
    coverage
        In (0, 1).

    Returns
    -------
    (low, high) or None
        None where there are too few cases for this coverage: fewer than ``2 / (1 - coverage) - 1``.

    Notes
    -----
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World* (2005), section 2.2; Romano, Patterson and
    Candes, *Conformalized Quantile Regression* (2019), the asymmetric form.
    """
    ratios = np.sort([t / p for t, p in zip(truth, predicted, strict=True) if t > 0 and p > 0])
    tail = (1 - coverage) / 2
    rank = int(np.floor((len(ratios) + 1) * tail + 1e-9))
    if rank < 1:
        return None
    return float(ratios[rank - 1]), float(ratios[-rank])


def probability_of(logits_NK: NDArray[np.float64], *, softmax: bool, temperature: float) -> NDArray[np.float64]:
    """Probabilities (N, K) of logits that are divided by the temperature first."""
    scaled = logits_NK / temperature
    if not softmax:
        return np.asarray(np.exp(-np.logaddexp(0, -scaled)))
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True))


def temperature_of(logits_NK: NDArray[np.float64], truth_NK: NDArray[np.bool_], *, softmax: bool) -> float:
    """The factor by which logits are too sure: with it the likelihood of what was true is greatest.

    It changes no order, so no AUC; a classifier that is sure beyond its worth gets one above 1.

    Parameters
    ----------
    logits_NK
        Of cases that the model has not been fitted on.
    truth_NK
        Which classes each case has.
    softmax
        Whether the classes exclude each other.

    Returns
    -------
    float
        Between 0.05 and 20; at an end where the classes are told apart without error, or not at all.

    Notes
    -----
    Guo et al., *On calibration of modern neural networks*, ICML 2017, section 4.2. The likelihood has one maximum in
    1 / T, which a golden-section search over log T finds.
    """

    def surprise(log_temperature: float) -> float:
        scaled = logits_NK / np.exp(log_temperature)
        if softmax:
            shifted = scaled - scaled.max(axis=1, keepdims=True)
            return float((np.log(np.exp(shifted).sum(axis=1)) - shifted[truth_NK]).mean())
        return float(np.logaddexp(0, np.where(truth_NK, -scaled, scaled)).mean())

    return float(np.exp(_least(surprise, np.log(0.05), np.log(20.0))))


def isotonic_of(score_N: NDArray[np.float64], truth_N: NDArray[np.bool_]) -> dict[str, list[float]]:
    """The rising curve from scores to probabilities under which what was true is likeliest.

    It bends where one factor cannot, and needs more cases: some hundreds. Where it is flat, cases that had different
    scores become equal. No probability is nearer to 0 or 1 than half a case in all.

    Parameters
    ----------
    score_N
        Of cases that the model has not been fitted on; a log-odds or a probability.
    truth_N
        Which of them are true.

    Returns
    -------
    dict
        ``score`` and ``probability``: the corners of the curve, which `bent` reads.

    Notes
    -----
    Pool adjacent violators: Barlow et al., *Statistical Inference under Order Restrictions* (1972), section 1.2; for
    probabilities Zadrozny and Elkan, *Transforming classifier scores into accurate multiclass probability estimates*,
    KDD 2002.
    """
    score, inverse, counts = np.unique(score_N, return_inverse=True, return_counts=True)
    true = np.bincount(inverse, truth_N, len(score))
    blocks: list[tuple[float, float, float, float]] = []  # true cases, cases, least and greatest score
    for found, cases, at in zip(true.tolist(), counts.tolist(), score.tolist(), strict=True):
        block = (found, float(cases), at, at)
        while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
            before = blocks.pop()
            block = (before[0] + block[0], before[1] + block[1], before[2], block[3])
        blocks.append(block)
    half = 0.5 / len(score_N)
    corners = [
        (at, min(max(found / cases, half), 1 - half))
        for found, cases, low, high in blocks
        for at in dict.fromkeys((low, high))
    ]
    return {"score": [at for at, _ in corners], "probability": [value for _, value in corners]}


def bent(score_N: NDArray[np.float64], curve: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """Probabilities by a curve of `isotonic_of`: straight between its corners, level beyond them."""
    return np.asarray(np.interp(score_N, curve["score"], curve["probability"]))


def isotonic_by_class(
    logits_NK: NDArray[np.float64], truth_NK: NDArray[np.bool_], *, softmax: bool, temperature: float
) -> list[dict[str, list[float]]]:
    """A curve for each class, of it against all others; see `calibrated_probability`."""
    score_NK = _scores(probability_of(logits_NK, softmax=softmax, temperature=temperature))
    return [isotonic_of(score_NK[:, k], truth_NK[:, k]) for k in range(score_NK.shape[1])]


def calibrated_probability(
    logits_NK: NDArray[np.float64], calibration: Mapping[str, Any], *, softmax: bool
) -> NDArray[np.float64]:
    """Probabilities (N, K) as a checkpoint's `calibration` makes them of its logits.

    Parameters
    ----------
    logits_NK
        As the network gives them.
    calibration
        ``temperature`` (without it 1), and for isotonic calibration ``isotonic``, a curve for each class. Classes that
        exclude each other are brought back to the sum 1 then.
    softmax
        Whether they do.
    """
    probability_NK = probability_of(logits_NK, softmax=softmax, temperature=calibration.get("temperature", 1.0))
    curves = calibration.get("isotonic")
    if not curves:
        return probability_NK
    score_NK = _scores(probability_NK)
    curved_NK = np.stack([bent(score_NK[:, k], curve) for k, curve in enumerate(curves)], axis=1)
    return curved_NK / curved_NK.sum(axis=1, keepdims=True) if softmax else curved_NK


def _scores(probability_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds, rounded so that a case does not lie beside its own corner on another machine."""
    inside = np.clip(probability_NK, 1e-12, 1 - 1e-12)
    return np.asarray(np.round(np.log(inside) - np.log1p(-inside), 5))


def _least(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function with one minimum has it, to 1e-4 (golden-section search)."""
    while high - low > 1e-4:
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        if function(left) <= function(right):
            high = right
        else:
            low = left
    return (low + high) / 2


def threshold_for(truth: NDArray[np.bool_], probability: NDArray[np.float64], *, sensitivity: float) -> float | None:
    """Where to draw the line so that at least this share of the true cases has a probability of it or more.

    Of all such thresholds it is the one with the greatest sum of sensitivity and specificity (Youden's index), and of
    equals the greatest. The greatest threshold of all would buy a specificity that nobody asked for with cases whose
    probability is high.

    Parameters
    ----------
    truth, probability
        Of cases that the model has not been fitted on, (N,) each.
    sensitivity
        In (0, 1].

    Returns
    -------
    float or None
        None where no case is true.

    Notes
    -----
    Youden, *Index for rating diagnostic tests*, Cancer 3 (1950) 32-35.
    """
    found = np.sort(probability[truth])[::-1]
    if not len(found):
        return None
    needed = max(int(np.ceil(sensitivity * len(found) - 1e-9)), 1)
    candidates = found[needed - 1 :]
    others = np.sort(probability[~truth])
    specificity = np.searchsorted(others, candidates, side="left") / max(len(others), 1)
    reached = np.searchsorted(-found, -candidates, side="right") / len(found)
    return float(candidates[np.argmax(reached + specificity)])


def likeness(thumbnails: NDArray[np.float64], template: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much pictures look like another one: the correlation of their grey values, from -1 to 1.

    Parameters
    ----------
    thumbnails
        (N, ...) small pictures on the template's grid.
    template
        What they are compared with, such as the mean of the validation cases.
    """
    pictures = thumbnails.reshape(len(thumbnails), -1)
    pictures = pictures - pictures.mean(axis=1, keepdims=True)
    pattern = template.reshape(-1) - template.mean()
    lengths = np.linalg.norm(pictures, axis=1) * np.linalg.norm(pattern)
    return np.asarray(pictures @ pattern / np.maximum(lengths, 1e-12))
