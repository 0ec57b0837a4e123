"""Where the time of a study goes: seconds by stage, for whoever listens.

Invariant: a stage inside another counts for itself alone, so that the stages of a thread never add up to more than what
went by. Where nobody listens, a stage costs a look at a variable. Where several studies take turns, a stage begins when
its turn has come, the stages inside it belong to that turn, and waiting for it counts for none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal

# In the order of the way: a checkpoint is opened, files are found, one series is read, brought to the network's grid,
# asked, brought back; what was found is measured and put into words; files are written and read back.
StageName = Literal["open", "scan", "read", "prepare", "network", "restore", "report", "write"]


class Stages:
    """Seconds of wall clock by stage, in the order in which they were first met; several threads may add to it."""

    def __init__(self) -> None:
        self._seconds: dict[StageName, float] = {}
        self._lock = threading.Lock()

    def add(self, name: StageName, seconds: float) -> None:
        """Count some more for a stage."""
        with self._lock:
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def seconds(self) -> dict[StageName, float]:
        """What has been counted so far."""
        with self._lock:
            return dict(self._seconds)


_LISTENING: ContextVar[Stages | None] = ContextVar("listening", default=None)
# What a stage must be in before it begins; none inside a stage, or where nobody takes turns.
_TURN: ContextVar[Callable[[StageName], AbstractContextManager[None]] | None] = ContextVar("turn", default=None)
# What the stages inside the present one have taken, in one number that they share.
_INSIDE: ContextVar[list[float] | None] = ContextVar("inside", default=None)


@contextmanager
def listening() -> Iterator[Stages]:
    """Count the stages of what is done here; where somebody listens already, they count for him."""
    already = _LISTENING.get()
    if already is not None:
        yield already
        return
    token = _LISTENING.set(Stages())
    try:
        heard = _LISTENING.get()
        assert heard is not None
        yield heard
    finally:
        _LISTENING.reset(token)


@contextmanager
def taking_turns(turn: Callable[[StageName], AbstractContextManager[None]]) -> Iterator[None]:
    """The stages of what is done here wait for their turns; `turn` gives what each of them is to be in."""
    token = _TURN.set(turn)
    try:
        yield
    finally:
        _TURN.reset(token)


@contextmanager
def stage(name: StageName) -> Iterator[None]:
    """What is done here belongs to a stage."""
    turn = _TURN.get()
    if turn is None:
        with _counted(name):
            yield
        return
    with turn(name):
        token = _TURN.set(None)
        try:
            with _counted(name):
                yield
        finally:
            _TURN.reset(token)


@contextmanager
def _counted(name: StageName) -> Iterator[None]:
    heard = _LISTENING.get()
    if heard is None:
        yield
        return
    inside = [0.0]
    token = _INSIDE.set(inside)
    begun = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - begun
        _INSIDE.reset(token)
        around = _INSIDE.get()
        if around is not None:
            around[0] += took
        heard.add(name, took - inside[0])
