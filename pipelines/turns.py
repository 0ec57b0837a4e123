"""Several studies in one worker: one is read, another asked of the network, a third written, and never two of a kind.

Invariant: at any moment at most one study is in each lane, so that a model's memory is that of one study, and nobody
waits for a lane while he holds another. How many studies there are at all is bounded by whoever gives them out.
Checkpoints are opened in a lane of their own: a series is read when its checkpoint is open, and need not wait until the
network has answered for another study.

The queue of studies is then as fast as its slowest lane, which is the network's as long as reading and writing take
less.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, get_args

from imaging.stages import StageName

Lane = Literal["open", "in", "network", "out"]

LANES: dict[StageName, Lane] = {
    "open": "open",
    "scan": "in", "read": "in", "prepare": "in",
    "network": "network", "restore": "network",
    "report": "out", "write": "out",
}  # fmt: skip


class Turns:
    """The lanes of one worker."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, threading.Lock] = {lane: threading.Lock() for lane in get_args(Lane)}

    def of(self, waits: Callable[[bool], None]) -> Callable[[StageName], AbstractContextManager[None]]:
        """What `imaging.stages.taking_turns` takes, for one study.

        Parameters
        ----------
        waits
            Called with True when the study begins to wait for another one, and with False when it goes on.
        """

        @contextmanager
        def turn(name: StageName) -> Iterator[None]:
            lane = self._lanes[LANES[name]]
            if not lane.acquire(blocking=False):
                waits(True)
                lane.acquire()
                waits(False)
            try:
                yield
            finally:
                lane.release()

        return turn
