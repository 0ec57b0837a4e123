"""The watcher's durable state: the instances it has taken, the jobs they became, and what came of them.

Invariant: an instance is acknowledged only when its bytes, its name and its row are on disk; what a crash at any moment
leaves of one that was not is swept at the next start (`taking.py`). A job moves only along the arrows
of `moves.py`, which the database itself enforces, and every move is an event. One watcher works on a store. Order is by
numbers that only grow, and time by a clock that only runs forward, so a wall clock that is set back disturbs nothing.
"""

from __future__ import annotations

from pipelines.store.intake import Intake, Received
from pipelines.store.store import Store

__all__ = ["Intake", "Received", "Store"]
