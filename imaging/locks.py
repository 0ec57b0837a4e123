"""One process at a time makes what others wait for: a lock that the kernel lets go of when its holder ends.

Invariant: a lock saves work and guards nothing. Whoever holds it still writes whole or not at all (`imaging.files`),
for a file system may have no locks; there everybody may go on, which costs the same work done twice. Only what is
removed because nobody holds it (`unheld`) stays where there are no locks.
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


def hold(folder: Path) -> int | None:
    """Hold a folder that was just made, so that others see that its process lives.

    Parameters
    ----------
    folder
        The folder; it may be renamed while it is held.

    Returns
    -------
    int or None
        A descriptor, which holds it until it is closed or the process ends; None where the folder is not there any
        more, for somebody took it for abandoned. Where there are no locks nothing is held.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        log.debug("the folder %s has no locks (%s)", folder.parent, error.strerror)
    if _lies_at(descriptor, folder):
        return descriptor
    os.close(descriptor)
    return None


@contextmanager
def unheld(folder: Path) -> Iterator[bool]:
    """Whether nobody holds a folder (`hold`), and nobody will for the length of the block.

    Yields
    ------
    bool
        False where somebody holds it, where it is no folder, and where it cannot be told.
    """
    descriptor, is_unheld = -1, False
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_unheld = _lies_at(descriptor, folder)
    except OSError as error:
        log.debug("%s is left alone (%s)", folder, error.strerror)
    try:
        yield is_unheld
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _lies_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to what was opened there."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
