"""What is known of a case without its picture (age, sex, view), and how far that alone tells who is ill.

Invariant: the regression is fitted on the training cases only. A network that does not do better than this has learnt
who is filmed how, not what is on the film.

Shapes: N cases, F columns; ``design_NF`` has a first column of ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imaging.logistic import fitted, logistic

# A number with more different values than this enters as a curve, any other fact by its values; of more words than this
# those count that as many training cases have.
_FEW_VALUES = 10
_LEAST_CASES = 10
# From this share of numbers on a fact is a number, and any other word in it (nan, unknown) says that it is missing.
_MOSTLY = 0.5

Facts = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class _Number:
    """A fact that is a number: standardised, its square, and whether it is missing."""

    name: str
    mean: float
    deviation: float

    def columns(self, facts: Facts) -> list[NDArray[np.float64]]:
        told = np.array([number_of(case.get(self.name, "")) for case in facts])
        missing = np.isnan(told)
        scaled = np.where(missing, 0.0, (told - self.mean) / self.deviation)
        return [scaled, scaled**2, missing.astype(np.float64)]


@dataclass(frozen=True, slots=True)
class _Values:
    """A fact by its values: one column each; a value that training has hardly seen is none of them."""

    name: str
    values: tuple[str, ...]

    def columns(self, facts: Facts) -> list[NDArray[np.float64]]:
        told = np.array([case.get(self.name, "") for case in facts])
        return [(told == value).astype(np.float64) for value in self.values]


def number_of(told: str) -> float:
    """The number that a fact tells; NaN where it tells none."""
    try:
        number = float(told)
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


def mostly_numbers(told: Sequence[str]) -> bool:
    """Whether a fact is a number: more than half of what is told of it are numbers."""
    filled = [value for value in told if value]
    return sum(not np.isnan(number_of(value)) for value in filled) > _MOSTLY * len(filled)


class FactsAlone:
    """Logistic regressions of classes on facts; one set of columns for all classes.

    Parameters
    ----------
    facts
        Of the training cases. A fact that is no number and of which hardly two cases have the same value is left out.

    Notes
    -----
    Ridge-penalised maximum likelihood; see `imaging.logistic.fitted`.
    """

    def __init__(self, facts: Facts) -> None:
        self._columns: list[_Number | _Values] = []
        for name in sorted({name for case in facts for name in case}):
            column = _column(name, [case.get(name, "") for case in facts])
            self._columns += [column] if column is not None else []
        self._facts = facts

    @property
    def names(self) -> tuple[str, ...]:
        """The facts that count."""
        return tuple(column.name for column in self._columns)

    @property
    def left_out(self) -> tuple[str, ...]:
        """The facts that are told and do not count."""
        told = {name for case in self._facts for name, value in case.items() if value}
        return tuple(sorted(told - set(self.names)))

    def probability(self, truth: NDArray[np.bool_], facts: Facts) -> NDArray[np.float64]:
        """How probable a class is in some cases, by their facts.

        Parameters
        ----------
        truth
            Whether each training case has the class, (N,).
        facts
            Of the cases to ask for.
        """
        weights_F = fitted(self._design(self._facts), truth.astype(np.float64))
        return logistic(self._design(facts) @ weights_F)

    def _design(self, facts: Facts) -> NDArray[np.float64]:
        columns = [column for fact in self._columns for column in fact.columns(facts)]
        return np.stack([np.ones(len(facts)), *columns], axis=1)


def _column(name: str, told: Sequence[str]) -> _Number | _Values | None:
    """How a fact enters; None where there is nothing to learn from it."""
    counts = Counter(value for value in told if value)
    numbers = np.array([number_of(value) for value in told])
    known = numbers[~np.isnan(numbers)]
    if len(counts) <= _FEW_VALUES:
        return _Values(name, tuple(sorted(counts)))
    if mostly_numbers(told):
        return _Number(name, float(known.mean()), float(known.std()) or 1.0)
    usual = tuple(sorted(value for value, count in counts.items() if count >= _LEAST_CASES))
    return _Values(name, usual) if usual else None
