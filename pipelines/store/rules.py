"""What the store is told: when a study is taken as complete, and how often what went wrong is tried again.

Invariant: every value is checked when the rule is made.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Completeness(_Rule):
    """When a study is complete, for nothing in DICOM says it. All in seconds of the store.

    `study_quiet_s`: nothing came for this long. Where it is known how many instances are expected, silence is not
    enough: the study waits for them, and is complete once all are there and no series had news for `series_quiet_s`.
    `timeout_s`: complete in any case this long after its first news, with what is there.
    """

    series_quiet_s: Seconds = 10
    study_quiet_s: Seconds = 60
    timeout_s: Seconds = 3600

    def shortest_s(self) -> float:
        """Before this nobody need ask."""
        return min(self.series_quiet_s, self.study_quiet_s)

    def why(
        self, *, waited_s: float, quiet_s: float, instances: int, expected: int | None, lacks: bool = False
    ) -> str | None:
        """Why a study is complete, or None if it is not.

        Parameters
        ----------
        waited_s
            Since its first news.
        quiet_s
            Since its last, which is the last of some series.
        instances, expected
            How many are there, and how many there should be; None where nobody knows.
        lacks
            Whether something that is required has not come.
        """
        if lacks:
            return "timeout" if waited_s >= self.timeout_s else None
        if expected is not None and instances >= expected:
            if quiet_s >= self.series_quiet_s:
                return "expected"
        elif expected is None and quiet_s >= self.study_quiet_s:
            return "quiet"
        return "timeout" if waited_s >= self.timeout_s else None


@dataclass(frozen=True, slots=True)
class Judged:
    """By which times a study is complete, and whether it lacks a series without which it is not before its timeout."""

    rule: Completeness
    lacks: bool = False


class Retries(_Rule):
    """How often and after how long something is tried again: each delay is `factor` times the one before.

    `most`: after so many faults a person has to look. `jitter`: each delay is made longer or shorter by up to this
    share, by chance, so that what failed together is not tried together. `most_interruptions`: so often the watcher
    may end while it runs a job; it may have been the job that ended it.
    """

    most: Annotated[int, Field(ge=1)] = 5
    first_s: Seconds = 30
    factor: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2
    longest_s: Seconds = 3600
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.25
    most_interruptions: Annotated[int, Field(ge=1)] = 20

    def delay_s(self, faults: int) -> float:
        """How long to wait after so many faults, from 1."""
        # The power of a large count is no number any more.
        plain = min(self.first_s * self.factor ** min(faults - 1, 64), self.longest_s)
        return plain * (1 + random.uniform(-self.jitter, self.jitter))
