"""How well a mask fits the truth, and how far a mean over cases can be trusted.

Invariant: pure functions of their arguments and the seed; a case without a structure does not count as a failure.

Shapes: N cases, K structures. ``scores_NK`` means float64 of shape (N, K); masks are integer (X, Y, Z).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.interval import Interval


def dice(mask: NDArray[Any], truth: NDArray[Any], label: int) -> float:
    """Dice coefficient ``2 |A and B| / (|A| + |B|)`` of one label; NaN where neither has it.

    Dice, *Measures of the amount of ecologic association between species*, Ecology 26 (1945) 297-302.
    """
    a, b = mask == label, truth == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def bootstrap_means(scores_NK: NDArray[np.float64], *, resamples: int = 2_000, seed: int = 0) -> tuple[Interval, ...]:
    """Mean of each structure's score over cases, with its 95 % percentile bootstrap interval.

    Parameters
    ----------
    scores_NK
        A score a case and structure; NaN where the case does not have the structure.
    resamples
        How often N cases are drawn with replacement.
    seed
        Of the generator.

    Returns
    -------
    tuple of Interval
        For each structure. With fewer than two cases there is nothing to resample and the bounds are None; without any
        case the mean is None too.

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 13.3.
    """
    generator = np.random.default_rng(seed)
    intervals = []
    for column in scores_NK.T:
        scores_N = column[~np.isnan(column)]
        if len(scores_N) < 2:
            intervals.append(Interval(float(scores_N.mean()) if len(scores_N) else None, None, None))
            continue
        drawn_RN = generator.integers(len(scores_N), size=(resamples, len(scores_N)))
        low, high = np.percentile(scores_N[drawn_RN].mean(axis=1), [2.5, 97.5])
        intervals.append(Interval(float(scores_N.mean()), float(low), float(high)))
    return tuple(intervals)
