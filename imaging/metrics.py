"""How well a mask fits the truth, and how far a mean over cases can be trusted.

Invariant: pure functions of their arguments and the seed; a case without a structure does not count as a failure.

Shapes: N cases, K structures. ``scores_NK`` means float64 of shape (N, K); masks are integer (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.interval import Interval, of_all_or_none


def dice(mask: NDArray[Any], truth: NDArray[Any], label: int) -> float:
    """Dice coefficient ``2 |A and B| / (|A| + |B|)`` of one label; NaN where neither has it.

    Dice, *Measures of the amount of ecologic association between species*, Ecology 26 (1945) 297-302.
    """
    a, b = mask == label, truth == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def bootstrap_means(
    scores_NK: NDArray[np.float64],
    *,
    patients: Sequence[str] | None = None,
    shares: bool = True,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Mean of each structure's score over cases, with its 95 % percentile bootstrap interval over patients.

    Parameters
    ----------
    scores_NK
        A score a case and structure; NaN where the case does not have the structure.
    patients
        Whose each case is; the cases of a patient are drawn together, for they are alike. By default each case is of
        another patient.
    shares
        Whether a score is a share, from 0 to 1.
    resamples
        How often as many patients as there are are drawn with replacement.
    seed
        Of the generator.

    Returns
    -------
    tuple of Interval
        For each structure. With fewer than two patients there is nothing to resample and the bounds are None; without
        any case the mean is None too. Where every case has the share 0 or 1 no resample differs, which says nothing of
        other patients: it then has the exact interval (`imaging.interval.of_all_or_none`). Millimetres and percent have
        no such ends: 1 mm in every case is a number like any other.

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 13.3.
    """
    owner_N = np.unique(patients, return_inverse=True)[1] if patients is not None else np.arange(len(scores_NK))
    generator = np.random.default_rng(seed)
    intervals = []
    for column in scores_NK.T:
        there = ~np.isnan(column)
        scores_N = column[there]
        _, owner = np.unique(owner_N[there], return_inverse=True)
        sums_P, counts_P = np.bincount(owner, weights=scores_N), np.bincount(owner)
        if len(sums_P) < 2:
            intervals.append(Interval(float(scores_N.mean()) if len(scores_N) else None, None, None))
            continue
        drawn_RP = generator.integers(len(sums_P), size=(resamples, len(sums_P)))
        means_R = sums_P[drawn_RP].sum(axis=1) / counts_P[drawn_RP].sum(axis=1)
        low, high = np.percentile(means_R, [2.5, 97.5])
        if shares and low == high and scores_N.mean() in {0.0, 1.0}:
            intervals.append(of_all_or_none(float(scores_N.mean()), len(sums_P)))
            continue
        intervals.append(Interval(float(scores_N.mean()), float(low), float(high)))
    return tuple(intervals)
