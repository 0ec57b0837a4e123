"""What a search may vary: a range or some choices for each of a config's keys."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from imaging.config.section import Section

Number = Annotated[int | float, Field(allow_inf_nan=False)]


class Searched(Section):
    """What one key may be: a number from `low` to `high`, both included, or one of some `choices`.

    `log` draws from the logarithm of a range, `step` in steps from its lower end.
    """

    low: Number | None = None
    high: Number | None = None
    log: bool = False
    step: Annotated[Number, Field(gt=0)] | None = None
    choices: tuple[Any, ...] = ()

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("choices have no range beside them")
            return self
        if self.low is None or self.high is None:
            raise ValueError("low and high are needed, or choices")
        if self.low >= self.high:
            raise ValueError("a range goes from the lower number to the greater")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("by the logarithm a range is above 0 and has no steps")
        if self.step is not None and self.step > self.high - self.low:
            raise ValueError("a step is at most as long as its range")
        return self

    @property
    def limits(self) -> tuple[float, float]:
        """Both ends of a range.

        Raises
        ------
        ValueError
            If there are choices instead.
        """
        if self.low is None or self.high is None:
            raise ValueError("choices have no limits")
        return self.low, self.high

    @property
    def tried(self) -> tuple[Any, ...]:
        """Values that show whether the key takes such values at all: every choice, or both ends."""
        return self.choices or self.limits
