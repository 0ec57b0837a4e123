"""A number with its uncertainty, as it is reckoned where nothing varies, stored and shown everywhere.

Invariant: one way to write it. Imports nothing, so that listing checkpoints stays quick.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

# Of each tail of a 95 % interval.
_TAIL = 0.025


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the bounds of its interval, in the unit of the values; None is what cannot be known."""

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "not known"
        bounds = f" [{self.low:.3f}, {self.high:.3f}]" if self.low is not None and self.high is not None else ""
        return f"{self.mean:.3f}{bounds}"

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, rounded to five digits after the point."""
        return {key: None if value is None else round(value, 5) for key, value in asdict(self).items()}


def of_all_or_none(value: float, trials: int) -> Interval:
    """The 95 % interval of a share that was 1, or 0, in every one of some independent trials.

    A bootstrap can draw nothing but what was seen, so it would end at [1, 1].

    Parameters
    ----------
    value
        1.0 or 0.0.
    trials
        How many there were: patients, not their images.

    Notes
    -----
    Clopper and Pearson, *The use of confidence or fiducial limits illustrated in the case of the binomial*, Biometrika
    26 (1934) 404-413: with n successes in n trials the lower limit p is where p ** n is the tail's probability. For
    the mean of any score between 0 and 1 it holds, too, if all of n scores were 1: no mean is below its share of ones.
    """
    if not trials:
        return Interval(value, None, None)
    edge = _TAIL ** (1 / trials)
    return Interval(value, edge, 1.0) if value else Interval(0.0, 0.0, 1 - edge)
