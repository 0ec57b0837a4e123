"""How well a mask or a mean can be trusted: Dice of two masks, bootstrap intervals over patients.

The unit that is resampled is the patient, never the voxel. Everything here is a pure function of its arguments and the
seed.

Shapes: P patients, C classes. ``values_PC`` means float64 of shape (P, C); masks are integer (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.errors import TooFewCases


@dataclass(frozen=True, slots=True)
class Interval:
    """A value and the bounds of its interval, in the unit of the values."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_dict(self) -> dict[str, float]:
        """For JSON, rounded to five digits after the point."""
        return {key: round(value, 5) for key, value in asdict(self).items()}


def dice(mask: NDArray[Any], truth: NDArray[Any], label: int) -> float:
    """Dice coefficient ``2 |A and B| / (|A| + |B|)`` of one label; NaN where neither has it.

    Dice, *Measures of the amount of ecologic association between species*, Ecology 26 (1945) 297-302.
    """
    a, b = mask == label, truth == label
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else float("nan")


def bootstrap_intervals(
    values_PC: NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Percentile bootstrap of each class's mean over patients.

    Parameters
    ----------
    values_PC
        One value per patient and class, such as Dice in [0, 1]. NaN marks a class that the patient does not have; it
        is left out of that class, not counted as zero.
    confidence
        Coverage of the interval, in (0, 1).
    resamples
        Number of resamples; 2,000 keeps the bounds' own error near 0.001 for values in [0, 1].
    seed
        Seed of the generator.

    Returns
    -------
    tuple of Interval
        One for each of the C classes, in their order.

    Raises
    ------
    TooFewCases
        If a class has fewer than two patients with a value.

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap* (1993), section 13.3.
    """
    generator = np.random.default_rng(seed)
    tail = (1 - confidence) / 2
    intervals = []
    for column in values_PC.T:
        values_P = column[~np.isnan(column)]
        if len(values_P) < 2:
            raise TooFewCases("bootstrap", seen=f"{len(values_P)} patients with a value")
        means = generator.choice(values_P, size=(resamples, len(values_P))).mean(axis=1)
        low, high = np.quantile(means, [tail, 1 - tail])
        intervals.append(Interval(float(values_P.mean()), float(low), float(high)))
    return tuple(intervals)


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
