"""A lock has one holder, ends with its process, and where there are none everybody goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from imaging.locks import locked

HOLD = "import sys, time; from imaging.locks import locked; from pathlib import Path\n\
with locked(Path(sys.argv[1]), wait=True) as mine: print(mine, flush=True); time.sleep(60)"


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait=True) as mine, locked(tmp_path / "lock", wait=False) as also:
        assert (mine, also) == (True, False)
    with locked(tmp_path / "lock", wait=False) as free:
        assert free


def test_a_lock_ends_with_the_process_that_holds_it(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        with locked(tmp_path / "lock", wait=False) as mine:
            assert not mine
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path / "lock", wait=False) as mine:
        assert mine


def test_who_may_hold_it_is_chosen(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait=True, mode=0o600):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == 0o600


def test_where_there_are_no_locks_everybody_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("imaging.locks.fcntl.flock", no_locks)
    with locked(tmp_path / "lock", wait=False) as first, locked(tmp_path / "lock", wait=True) as second:
        assert first and second
