"""How far a model's numbers may be trusted on new cases: intervals with a stated coverage, from held-out cases.

Invariant: what is calibrated here comes from cases that neither fitted the weights nor are reported as test cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


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
