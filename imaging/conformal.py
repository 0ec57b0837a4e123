"""`normal | abnormal | indeterminate` at a stated error rate, from cases that the model was not fitted on.

Invariant: for new cases like those, in no particular order among them, an answer that leaves the truth out is at most
as frequent as the error rate says, however good or bad the model is. What a good model buys is fewer `indeterminate`.

The rate is over all cases, and not over those that got an answer; with `by_class` it holds among the normal and among
the abnormal alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Answer = Literal["normal", "abnormal", "both", "neither"]


@dataclass(frozen=True, slots=True)
class Conformal:
    """Which answers a probability leaves open.

    Attributes
    ----------
    error_rate
        At most this share of cases has a truth that is not among the answers.
    by_class
        Whether that holds for normal and abnormal cases each.
    abnormal_from
        From this probability on ``abnormal`` is left open.
    normal_to
        Up to this probability ``normal`` is left open.
    cases
        How many decided it.
    """

    error_rate: float
    by_class: bool
    abnormal_from: float
    normal_to: float
    cases: int

    def answer(self, probability: float) -> Answer:
        """What is left open for a case of a calibrated probability of being abnormal."""
        abnormal, normal = probability >= self.abnormal_from, probability <= self.normal_to
        if abnormal and normal:
            return "both"
        if abnormal:
            return "abnormal"
        return "normal" if normal else "neither"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Conformal:
        """As `as_dict` gives it."""
        return cls(**content)


def conformal_of(
    truth_N: NDArray[np.bool_], probability_N: NDArray[np.float64], *, error_rate: float, by_class: bool = True
) -> Conformal:
    """Calibrate on cases that the model was not fitted on.

    The score of an answer is the probability that the model gave to all others. An answer is left open while its score
    is at most the ``ceil((n + 1) (1 - error_rate))``-th smallest score that the truth had in n cases; with too few
    cases for the rate every answer is.

    Parameters
    ----------
    truth_N
        Which cases are abnormal.
    probability_N
        What the model gave to abnormal.
    error_rate
        In (0, 1).
    by_class
        Whether normal and abnormal cases have a bound each, from their own cases.

    Notes
    -----
    Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World* (2005), section 2.2; Angelopoulos and Bates,
    *Conformal prediction: a gentle introduction*, Foundations and Trends in Machine Learning 16 (2023) 494-591,
    sections 1 and 4.2; by class as in Vovk, *Conditional validity of inductive conformal predictors*, ACML 2012.
    """
    abnormal, normal = 1 - probability_N[truth_N], probability_N[~truth_N]
    if by_class:
        bounds = _bound(abnormal, error_rate), _bound(normal, error_rate)
    else:
        bounds = (_bound(np.concatenate([abnormal, normal]), error_rate),) * 2
    # One step towards more answers, for 1 - (1 - p) is not p in the last bit.
    abnormal_from = float(np.nextafter(1 - bounds[0], -1)) if bounds[0] < 1 else 0.0
    return Conformal(error_rate, by_class, max(abnormal_from, 0.0), bounds[1], len(truth_N))


def _bound(scores: NDArray[np.float64], error_rate: float) -> float:
    """The conformal quantile; 1, which every score is at most, where there are too few."""
    rank = int(np.ceil((len(scores) + 1) * (1 - error_rate) - 1e-9))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.0
