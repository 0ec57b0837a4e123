"""How a look through a data set tells what it meets, whatever the data set is of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

OnCase = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person should know and need not mend."""

    code: str
    detail: str


def several_cases(patients: Iterable[str]) -> Iterator[Note]:
    """What should be known where a patient has several cases; the patient of each case."""
    cases = Counter(patients)
    several = [count for count in cases.values() if count > 1]
    if several:
        detail = f"{len(several)} of {len(cases)} patients have more than one case (at most {max(several)}); a split"
        yield Note("patient_in_several_rows", f"{detail} keeps each patient on one side")


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def range_of(values: Sequence[Sequence[float]]) -> dict[str, list[float]] | None:
    """Least, median and greatest along each axis; None where there is nothing."""
    if not values:
        return None
    low, middle, high = np.percentile(np.array(values), [0, 50, 100], axis=0).round(4).tolist()
    return {"least": low, "median": middle, "greatest": high}
