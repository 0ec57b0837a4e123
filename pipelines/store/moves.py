"""The states of a job, and the moves between them.

Invariant: these are all there are. The database is given the same table, and a trigger refuses every other move; the
picture in docs/watcher.md has the same arrows.

`failed` is what the study was refused for, which trying again would not mend; `quarantined` is what went wrong on our
side more often than it is tried. From both a person may `retry`; a quarantined job whose result stands may be released
to `delivering`.
"""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job is.

    Attributes
    ----------
    RECEIVING
        Instances are still awaited.
    READY
        The study is taken as complete, and waits for a worker.
    RUNNING
        A worker has it.
    VERIFYING
        Its outputs are read back against their checksums.
    DELIVERING
        They are brought to where they should go.
    DONE
        They are there.
    FAILED
        The study itself was refused.
    QUARANTINED
        It went wrong too often, and waits for a person.
    """

    RECEIVING = "receiving"
    READY = "ready"
    RUNNING = "running"
    VERIFYING = "verifying"
    DELIVERING = "delivering"
    DONE = "done"
    FAILED = "failed"
    QUARANTINED = "quarantined"


MOVES: frozenset[tuple[State, State]] = frozenset(
    {
        (State.RECEIVING, State.READY),
        (State.READY, State.RECEIVING),
        (State.READY, State.RUNNING),
        (State.RUNNING, State.VERIFYING),
        (State.RUNNING, State.READY),
        (State.RUNNING, State.FAILED),
        (State.RUNNING, State.QUARANTINED),
        (State.VERIFYING, State.DELIVERING),
        (State.VERIFYING, State.READY),
        (State.VERIFYING, State.QUARANTINED),
        (State.DELIVERING, State.DONE),
        (State.DELIVERING, State.QUARANTINED),
        (State.FAILED, State.READY),
        (State.QUARANTINED, State.READY),
        (State.QUARANTINED, State.DELIVERING),
    }
)

# Where nothing happens any more unless a person asks for it.
RESTING = frozenset({State.DONE, State.FAILED, State.QUARANTINED})
