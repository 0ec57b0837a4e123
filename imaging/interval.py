"""A number with its uncertainty, as it is stored and shown everywhere.

Invariant: one way to write it. Imports nothing, so that listing checkpoints stays quick.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass


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
