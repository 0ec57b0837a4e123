"""Groups of cases by what the manifest says of them, so that figures can be told for each.

Invariant: a case without a fact is in no group of that fact, and a group too small to say anything is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from imaging.cases import Classed
from imaging.facts import mostly_numbers, number_of
from imaging.label_table import is_age

# Of a fact with more different values than this, groups are made of neighbouring values.
_FEW_VALUES = 10
# In a smaller group the intervals would span everything.
SMALLEST_GROUP = 20
# Years; nobody is older, and who is told to be is in no group.
_AGES = (0.0, 18.0, 40.0, 60.0, 80.0, 125.0)


def subgroups(cases: Sequence[Classed]) -> dict[str, NDArray[np.int64]]:
    """The indices of the cases of each group.

    Returns
    -------
    dict
        By ``fact=value``, in the order of facts and values. Ages with many values are told in bands, other numbers with
        many values in thirds of the cases; names with many values make no groups.
    """
    groups: dict[str, NDArray[np.int64]] = {}
    for fact in sorted({name for case in cases for name in case.facts}):
        told = [case.facts.get(fact, "").strip() for case in cases]
        values = sorted({value for value in told if value})
        bands = _bands(fact, told) if len(values) > _FEW_VALUES else {value: [value] for value in values}
        for band, members in bands.items():
            indices = np.flatnonzero(np.isin(told, members))
            if len(indices) >= SMALLEST_GROUP:
                groups[f"{fact}={band}"] = indices
    return groups


def _bands(fact: str, told: Sequence[str]) -> dict[str, list[str]]:
    """For each band of a number with many values the values in it; none where it is no number.

    A word among mostly numbers (nan, unknown) is in no band.
    """
    numbers = {value: number_of(value) for value in told if value}
    numbers = {value: number for value, number in numbers.items() if not np.isnan(number)}
    if not mostly_numbers(told):
        return {}
    if is_age(fact):
        edges: Sequence[float] = _AGES
    else:
        thirds = np.quantile([numbers[value] for value in told if value in numbers], [1 / 3, 2 / 3]).tolist()
        edges = (-np.inf, *thirds, np.inf)
    return {
        _named(low, high, last=high == edges[-1]): [value for value, number in numbers.items() if low <= number < high]
        for low, high in pairwise(edges)
    }


def _named(low: float, high: float, *, last: bool) -> str:
    if last:
        return f"{low:.4g} and over"
    return f"{low:.4g} to under {high:.4g}" if np.isfinite(low) else f"under {high:.4g}"
