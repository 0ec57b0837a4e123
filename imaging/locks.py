"""One process at a time makes what others wait for: a lock that the kernel lets go of when its holder ends.

Invariant: a lock saves work and guards nothing. Whoever holds it still writes whole or not at all (`imaging.files`),
for a file system may have no locks; there everybody may go on, which costs the same work done twice.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, *, wait: bool, mode: int = 0o666) -> Iterator[bool]:
    """Hold a lock for the length of the block.

    Parameters
    ----------
    path
        A file that is made if it is not there, and stays; its folder exists.
    wait
        Whether to wait for whoever holds it now.
    mode
        Who may hold it, less the umask.

    Yields
    ------
    bool
        Whether this process may go on: False where another holds the lock and `wait` is False.
    """
    mine, descriptor = True, -1
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, mode)
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        mine = False
    except OSError as error:
        log.debug("the folder %s has no locks (%s)", path.parent, error.strerror)
    try:
        yield mine
    finally:
        if descriptor >= 0:
            os.close(descriptor)
