"""Checkpoints are in memory once, and within a budget those used last."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pipelines.shelf import Shelf, size_of


@dataclass
class Config:
    name: str

    def digest(self) -> str:
        return f"config of {self.name}"


@dataclass
class Fake:
    folder: Path
    config: Config
    weights_sha256: str = "a"

    @property
    def name(self) -> str:
        return self.config.name


@dataclass
class Opener:
    opened: list[str] = field(default_factory=list)

    def __call__(self, checkpoint: Any) -> Any:
        self.opened.append(checkpoint.name)
        return object()


def checkpoint(tmp_path: Path, name: str, size: int) -> Any:
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / "weights.safetensors").write_bytes(bytes(size))
    return Fake(tmp_path / name, Config(name))


def test_it_is_opened_once_whoever_asks_and_anew_when_its_weights_are_others(tmp_path: Path) -> None:
    opener = Opener()
    shelf = Shelf(opener)
    first = shelf(checkpoint(tmp_path, "a", 10))
    assert shelf(checkpoint(tmp_path, "a", 10)) is first
    other = checkpoint(tmp_path, "a", 10)
    other.weights_sha256 = "b"
    assert shelf(other) is not first
    assert opener.opened == ["a", "a"]


def test_what_was_used_longest_ago_leaves_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opener = Opener()
    shelf = Shelf(opener, most_bytes=3 << 20)
    a, b, c, d = (checkpoint(tmp_path, name, 1 << 20) for name in "abcd")
    assert size_of(a) == 1 << 20
    for one in (a, b, c, a):
        shelf(one)
    assert (shelf.has_room(d), caplog.text) == (False, "")
    with caplog.at_level(logging.WARNING):
        shelf(d)
    assert shelf.names() == ["c", "a", "d"]
    assert "checkpoint b leaves memory for d: there is room for 3 MiB" in caplog.text
    shelf(a)
    assert opener.opened == ["a", "b", "c", "d"]
    shelf(b)
    assert opener.opened == ["a", "b", "c", "d", "b"]
    assert shelf.names() == ["d", "a", "b"]


def test_one_that_is_larger_than_the_budget_is_given_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(Opener(), most_bytes=2 << 20)
    shelf(checkpoint(tmp_path, "a", 1 << 20))
    shelf(checkpoint(tmp_path, "huge", 5 << 20))
    assert shelf.names() == ["huge"]
    assert "takes 5 MiB, and there is room for 2" in caplog.text
