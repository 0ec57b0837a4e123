"""Logistic regression by Newton's method, and how far its answer could be another with other patients.

Invariant: pure functions without chance; the penalty keeps every weight finite, also where classes are told apart
without error.

Shapes: N cases, F columns; ``design_NF`` has a first column of ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Of the squares of the weights; keeps a weight finite where a value occurs in the ill only.
RIDGE = 1.0
_STEPS = 50
# The half-width of a 95 % interval in standard deviations.
_NORMAL_95 = 1.959964


def logistic(values: Floats) -> Floats:
    """Log-odds -> probabilities."""
    return np.asarray(np.exp(-np.logaddexp(0, -values)))


def log_odds(probability: float) -> float:
    """A probability above 0 and below 1 -> its log-odds."""
    return float(np.log(probability) - np.log1p(-probability))


def fitted(design_NF: Floats, truth_N: Floats) -> Floats:
    """The weights (F,) of a ridge-penalised logistic regression; the first column, of ones, is hardly penalised.

    Notes
    -----
    le Cessie and van Houwelingen, *Ridge estimators in logistic regression*, Applied Statistics 41 (1992) 191-201.
    """
    penalty_F = np.full(design_NF.shape[1], RIDGE)
    penalty_F[0] = 1e-6  # the share of the ill is not held towards one half
    weights_F = np.zeros(design_NF.shape[1])
    for _ in range(_STEPS):
        probability_N = logistic(design_NF @ weights_F)
        slope_F = design_NF.T @ (truth_N - probability_N) - penalty_F * weights_F
        spread_N = probability_N * (1 - probability_N)
        curvature_FF = design_NF.T @ (design_NF * spread_N[:, None]) + np.diag(penalty_F)
        step_F = np.linalg.solve(curvature_FF, slope_F)
        weights_F = weights_F + step_F
        if np.abs(step_F).max() < 1e-8:
            break
    return weights_F


def covariance_of_calibration(logit_N: Floats, truth_N: NDArray[np.bool_], patients: Sequence[str]) -> Floats:
    """How far calibrated log-odds could be shifted and stretched with other patients: the covariance (2, 2) of both.

    Parameters
    ----------
    logit_N
        Calibrated log-odds of cases that the model has not been fitted on.
    truth_N
        Whether each is a true case.
    patients
        Whose each is: cases of one patient are no independent witnesses.

    Notes
    -----
    The sandwich estimator around the shift 0 and the stretch 1, clustered by patients: White, *Maximum likelihood
    estimation of misspecified models*, Econometrica 50 (1982) 1-25; Liang and Zeger, Biometrika 73 (1986) 13-22. Shift
    and stretch have a prior of standard deviation 1 each (`RIDGE`), which alone is left without cases.
    """
    design_N2 = np.stack([np.ones(len(logit_N)), logit_N], axis=1)
    probability_N = logistic(logit_N)
    spread_N = probability_N * (1 - probability_N)
    prior_22 = RIDGE * np.eye(2)
    bread_22 = np.linalg.inv(design_N2.T @ (design_N2 * spread_N[:, None]) + prior_22)
    names, owner_N = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    score_P2 = np.zeros((len(names), 2))
    np.add.at(score_P2, owner_N, design_N2 * (truth_N - probability_N)[:, None])
    return np.asarray(bread_22 @ (score_P2.T @ score_P2 + prior_22) @ bread_22)


def interval_of(logit: float, covariance_22: Floats) -> tuple[float, float]:
    """The 95 % interval of a calibrated probability, from what its calibration could have been with other patients.

    It bounds the share of true cases among cases with these log-odds, and is no interval of one patient's fate.

    Parameters
    ----------
    logit
        Calibrated.
    covariance_22
        See `covariance_of_calibration`.

    Notes
    -----
    Hosmer and Lemeshow, *Applied Logistic Regression* (2000), section 2.5: normal in the log-odds.
    """
    at_2 = np.array([1.0, logit])
    reach = _NORMAL_95 * float(np.sqrt(at_2 @ covariance_22 @ at_2))
    low, high = logistic(np.array([logit - reach, logit + reach])).tolist()
    return low, high
