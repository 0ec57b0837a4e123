"""Seconds of the store: what quiet times, time limits and delays are counted in.

Invariant: they never go back, whatever is done to the wall clock, and go on while the watcher is down on a machine that
is up. After the machine was started anew they continue from the last second that was written.
"""

from __future__ import annotations

import sqlite3
import time
from datetime import UTC, datetime
from pathlib import Path

from pipelines.store.database import Database

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Clock:
    """The clock of one store.

    Parameters
    ----------
    database
        Where it is kept.
    """

    def __init__(self, database: Database) -> None:
        boot = _BOOT.read_text(encoding="ascii").strip()
        with database.writing() as db:
            row = db.execute("SELECT boot, ahead, last FROM clock").fetchone()
            [arrived] = db.execute("SELECT coalesce(max(last_arrival), 0) FROM studies").fetchone()
            latest = max(float(row["last"]) if row else 0.0, float(arrived))
            same_boot = row is not None and row["boot"] == boot
            # A machine that was restored from an image has the old boot's name and a smaller count.
            since = _since_boot()
            ahead = float(row["ahead"]) if same_boot else latest - since
            self._ahead = max(ahead, latest - since)
            db.execute("INSERT OR REPLACE INTO clock VALUES (1, ?, ?, ?)", (boot, self._ahead, self.now()))

    def now(self) -> float:
        """Seconds since the store was made, the machine's own downtime left out."""
        return self._ahead + _since_boot()


def seconds_of(row: sqlite3.Row) -> float:
    """Seconds of a store by the row of its `clock`, for somebody who only looks."""
    boot = _BOOT.read_text(encoding="ascii").strip()
    return float(row["ahead"]) + _since_boot() if row["boot"] == boot else float(row["last"])


def _since_boot() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> str:
    """The wall clock's time in UTC, for people; nothing is ordered or counted by it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
