"""A folder that studies are put into: each file is taken once it has settled, and moves into the store.

Invariant: a file that somebody still writes is left alone; one that could not be kept stays where it is and is tried
again; no file is read in its place a second time once the store has it. Events of the operating system only make it
faster: what they miss is found by looking. An archive, which may take minutes, holds up no other file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imaging.dicom.archives import is_archive
from imaging.errors import ImagingError, InputRefused, UnreadableDicom

log = logging.getLogger(__name__)

Version = tuple[int, int, int]

# File systems that do not tell of what other machines do on them (mount types of Linux).
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"})
_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(slots=True)
class _Seen:
    """How a file was found, and since when it has been like that, by the monotonic clock."""

    version: Version
    since: float
    tried: bool = False
    refused: bool = False


class Taker(Protocol):
    """Takes files; `pipelines.store.Store` is one."""

    def take(self, path: Path, *, source: str) -> object:
        """Move a file in, as `Store.take` does."""
        ...


class Inbox:
    """Takes the files of a folder into a store.

    Parameters
    ----------
    folder
        Looked through to any depth; what begins with a dot or ends with ``.partial``, ``.part`` or ``.tmp`` is left
        alone.
    store
        Takes the files.
    settle_s
        A file that has not changed for so long, and that nobody on this machine has open for writing, is whole.
    poll_s
        How often to look where no events come; None finds out whether they come.
    is_open
        Whether there is room; while there is none, files stay where they are.
    archives
        Takes ZIPs and TARs, one at a time and beside the other files; None leaves them to `store`.
    """

    def __init__(
        self,
        folder: Path,
        store: Taker,
        *,
        settle_s: float = 2.0,
        poll_s: float | None = None,
        is_open: Callable[[], bool] = lambda: True,
        archives: Taker | None = None,
    ) -> None:
        self._is_open = is_open
        self._folder, self._store, self._settle_s = folder, store, settle_s
        self._polling_s = poll_s if poll_s is not None or not is_remote(folder) else max(settle_s, 2.0)
        self._archives = archives
        self._seen: dict[Path, _Seen] = {}
        self._under_way: dict[Path, Future[bool]] = {}

    def run(self, stop: threading.Event) -> None:
        """Take files until told to stop; the archive that is under way then is waited for."""
        beside = ThreadPoolExecutor(1, thread_name_prefix="archives")
        try:
            for _ in self._occasions(stop):
                if stop.is_set():
                    break
                self.look(beside)
        finally:
            beside.shutdown(cancel_futures=True)
        self._through()

    def _occasions(self, stop: threading.Event) -> Iterator[object]:
        """Whenever something has changed, and often enough for what has settled."""
        if self._polling_s is not None:
            while not stop.is_set():
                yield None
                stop.wait(self._polling_s)
            return
        from watchfiles import watch

        yield None
        pause_ms = max(50, int(self._settle_s * 500))
        yield from watch(
            self._folder, stop_event=stop, yield_on_timeout=True, rust_timeout=pause_ms, step=50, debounce=200,
            watch_filter=None, ignore_permission_denied=True,
        )  # fmt: skip

    def look(self, beside: Executor | None = None) -> int:
        """Look through the folder once.

        Parameters
        ----------
        beside
            A thread for archives; without one they are taken at once.

        Returns
        -------
        int
            How many files were taken since the last look.
        """
        taken, there = self._through(), set()
        for path in self._files():
            there.add(path)
            if path in self._under_way or not self._has_settled(path) or not self._is_open():
                continue
            seen = self._seen[path]
            if seen.refused:
                continue
            if self._archives is None or not is_archive(path):
                taken += self._take(path, self._store, seen)
            elif beside is None:
                taken += self._take(path, self._archives, seen)
            else:
                self._under_way[path] = beside.submit(self._take, path, self._archives, seen)
        for path in set(self._seen) - there:
            del self._seen[path]
        self._remove_empty()
        return taken

    def _through(self) -> int:
        """How many archives were taken since this was asked last; a fault of ours that ended one is raised."""
        over = [path for path, future in self._under_way.items() if future.done()]
        ended = [self._under_way.pop(path) for path in over]
        return sum(future.result() for future in ended if not future.cancelled())

    def _files(self) -> Iterator[Path]:
        for folder, below, names in os.walk(self._folder):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                path = Path(folder) / name
                # A pipe would be waited for without end. A link that leads nowhere is told of when it is opened.
                is_data = path.is_file() or not path.exists()
                if is_data and not name.startswith(".") and not name.endswith((".partial", ".part", ".tmp")):
                    yield path

    def _has_settled(self, path: Path) -> bool:
        version = version_of(path)
        if version is None:
            return False
        now = time.monotonic()
        seen = self._seen.get(path)
        if seen is None or seen.version != version:
            seen = self._seen[path] = _Seen(version, now)
        return now - seen.since >= self._settle_s and not is_being_written(path)

    def _take(self, path: Path, taker: Taker, seen: _Seen) -> bool:
        if version_of(path) != seen.version:
            return False  # it has waited for its turn, and is gone or another one by now
        try:
            taker.take(path, source="inbox")
        except ImagingError as error:
            # What could not even be opened may be another time; what was read and is damaged stays as it is.
            unopened = isinstance(error, UnreadableDicom) and isinstance(error.__cause__, OSError)
            stays = not isinstance(error, InputRefused) or unopened
            if not stays or not seen.tried:
                log.warning("inbox: %s", error if not isinstance(error, UnreadableDicom) else error.code)
            seen.tried = True
            # What was refused and left where it is would be refused again, until it is another file.
            seen.refused = not stays and path.exists()
            return False
        except OSError as error:
            # Such as a folder out of which nothing may be removed: what is in the store by now is the same next time.
            if not seen.tried:
                log.warning("inbox: a file cannot be taken away: %s", error.strerror or type(error).__name__)
            seen.tried = True
            return False
        return True

    def _remove_empty(self) -> None:
        """Remove folders that held files and hold none any more, so that an inbox does not fill with them."""
        for folder, _, _ in os.walk(self._folder, topdown=False):
            path = Path(folder)
            if path == self._folder or path.name.startswith("."):
                continue
            try:
                if time.time() - path.stat().st_mtime > max(self._settle_s, 10):
                    path.rmdir()
            except OSError:  # not empty, or not ours to remove
                continue


def version_of(path: Path) -> Version | None:
    """What tells a file from another one of its name, and from itself when it is written again; None without it."""
    try:
        about = path.stat(follow_symlinks=False)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def is_being_written(path: Path) -> bool:
    """Whether a process of this machine has a file open for writing, as far as the kernel tells.

    A read lease is refused for such a file (fcntl(2), F_SETLEASE). Where leases are not to be had (other owners,
    network file systems) nothing is known, and False.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def is_remote(folder: Path, *, mounts: Callable[[], str] = _MOUNTS.read_text) -> bool:
    """Whether a folder lies on a file system that does not tell of changes made elsewhere.

    Parameters
    ----------
    folder
        An existing folder.
    mounts
        Gives the mounts as proc(5) has them in ``mountinfo``.
    """
    resolved, kind, longest = folder.resolve(), "", -1
    for line in mounts().splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].encode().decode("unicode_escape"))
        if resolved.is_relative_to(point) and len(point.parts) >= longest:
            longest, kind = len(point.parts), right.split()[0]
    return kind in _REMOTE
