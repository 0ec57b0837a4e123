"""A place for results, and studies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clustered import source_of

from pipelines.asking import Source
from pipelines.cluster.ledger import Ledger
from pipelines.outputs import OURS, REPORT


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def ledger(out: Path) -> Iterator[Ledger]:
    """Open."""
    with Ledger(out, replaces=OURS, last=REPORT) as opened:
        yield opened


@pytest.fixture
def sources(tmp_path: Path) -> list[Source]:
    """Five studies of a file each."""
    return [source_of(tmp_path / f"study{number}.txt", f"content {number}") for number in range(5)]
