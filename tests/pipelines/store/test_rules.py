"""When a study is complete, and how long it is waited before something is tried again."""

from __future__ import annotations

from pathlib import Path

import pytest
from arriving import instance, told
from pydantic import ValidationError

from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries

RULE = Completeness(series_quiet_s=5, study_quiet_s=30, timeout_s=100)


@pytest.mark.parametrize(
    ("waited", "quiet", "instances", "expected", "why"),
    [
        (29, 29, 3, None, None),
        (30, 30, 3, None, "quiet"),
        (6, 6, 3, 3, "expected"),
        (6, 4, 3, 3, None),  # a series may still be growing
        (6, 6, 4, 3, "expected"),
        (60, 60, 2, 3, None),  # silence is not enough where it is known that something lacks
        (100, 60, 2, 3, "timeout"),
        (100, 1, 2, None, "timeout"),
    ],
)
def test_when_a_study_is_complete(
    waited: float, quiet: float, instances: int, expected: int | None, why: str | None
) -> None:
    assert RULE.why(waited_s=waited, quiet_s=quiet, instances=instances, expected=expected) == why


def test_the_store_waits_by_the_rule_and_tells_why_it_stopped(tmp_path: Path) -> None:
    with Store(tmp_path) as store:

        def settle_after(seconds: float, expected: int | None = None) -> list[State]:
            store.clock._ahead += seconds
            store.jobs.settle(RULE, expected=lambda _: expected)
            return [job.state for job in store.jobs.all()]

        for number in (1, 2):
            store.put(instance(1, number), source="tests", **told(1, number))
            assert settle_after(20) == [State.RECEIVING]
        assert settle_after(11) == [State.READY]
        store.put(instance(1, 3, series=2), source="tests", **told(1, 3, series=2))
        assert settle_after(0) == [State.RECEIVING]
        assert settle_after(6, expected=4) == [State.RECEIVING]
        assert settle_after(0, expected=3) == [State.READY]
        told_of = [event.detail for event in store.jobs.events() if event.code == "study_complete"]
        assert told_of == [
            {"why": "quiet", "instances": 2, "expected": None, "sources": ["tests"]},
            {"why": "expected", "instances": 3, "expected": 3, "sources": ["tests"]},
        ]


def test_a_study_that_never_falls_silent_is_complete_by_the_timeout(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for number in range(12):
            store.put(instance(1, number), source="tests", **told(1, number))
            store.clock._ahead += 9
            store.jobs.settle(RULE)
        assert [job.state for job in store.jobs.all()] == [State.READY]


def test_delays_grow_to_a_bound_and_are_spread() -> None:
    retries = Retries(first_s=10, factor=3, longest_s=200, jitter=0)
    assert [retries.delay_s(faults) for faults in (1, 2, 3, 4, 1000)] == [10, 30, 90, 200, 200]
    spread = [Retries(first_s=10, jitter=0.5).delay_s(1) for _ in range(200)]
    assert 5 <= min(spread) < 7
    assert 13 < max(spread) <= 15


@pytest.mark.parametrize("wrong", [{"most": 0}, {"jitter": 1}, {"factor": 0.5}, {"first_s": -1}, {"seconds": 1}])
def test_a_rule_is_checked_when_it_is_made(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Retries.model_validate(wrong)
