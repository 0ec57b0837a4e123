"""A disk that fills and empties."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from imaging.errors import DiskMarkReached
from pipelines import disk
from pipelines.disk import Gate, Marks


def fill(monkeypatch: pytest.MonkeyPatch, percent: int) -> None:
    usage = type(disk.shutil.disk_usage("/"))
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(100, percent, 100 - percent))


def test_shut_at_the_high_mark_and_open_again_only_below_the_low_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(tmp_path, Marks(high=0.9, low=0.7))
    opened = []
    for percent in (50, 89, 90, 89, 71, 70, 69, 89, 95):
        fill(monkeypatch, percent)
        opened.append(gate.is_open())
    assert opened == [True, True, False, False, False, False, True, True, False]
    with pytest.raises(DiskMarkReached, match=r"95\.0%"):
        gate.check()
    gate.marks = Marks(high=0.99, low=0.98)
    gate.check()


def test_marks_are_in_order() -> None:
    with pytest.raises(ValidationError, match="low is above high"):
        Marks(high=0.5, low=0.6)
