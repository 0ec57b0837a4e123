"""Archives that are put into the inbox: each is unpacked, and each of its files goes the way of any other.

Invariant: an archive is removed from the inbox only when each instance in it is durable in the store, and what was not
taken of it is told. Whatever ends the process before that, the next start takes the whole archive again; what the store
has by then is the same instance to it, so nothing is lost and nothing is there twice.

What is unpacked lies in a hidden folder of the inbox, where the archive lies too: files that are pseudonymised on their
way in come no nearer to the store than that.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from imaging.dicom.scan import open_archive
from imaging.errors import ArchiveNotUnpacked, ImagingError, InputRefused, NotDicom, StoreFull
from pipelines.inbox import version_of

log = logging.getLogger(__name__)

# Hidden, so that the inbox does not look into it.
FOLDER = ".unpacking"
# An archive whose files could not be kept is not unpacked again at once, as a file is looked at again at once.
_REST_S = 60.0


class Keeper(Protocol):
    """Keeps files; `pipelines.store.Store` is one, and `pipelines.incoming.Hidden`."""

    def take(self, path: Path, *, source: str) -> object:
        """Move a file in, as `Store.take` does."""
        ...

    def refuse(self, path: Path, errors: Sequence[InputRefused], *, source: str) -> InputRefused:
        """Tell why a file is not taken, as `Store.refuse` does."""
        ...


class Unpacking:
    """Takes archives, for a keeper of files; one at a time.

    Parameters
    ----------
    keeper
        Gets each file.
    inbox
        The folder in which archives are unpacked; what an earlier process has left of that is removed.
    check
        Raises where nothing should be taken now: there is no room, or the watcher ends. Asked at each file, and
        meanwhile at each piece of what is unpacked.
    """

    def __init__(self, keeper: Keeper, inbox: Path, check: Callable[[], None] = lambda: None) -> None:
        self._keeper, self._folder, self._check = keeper, inbox / FOLDER, check
        self._resting: dict[Path, tuple[float, ImagingError]] = {}
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self, path: Path, *, source: str) -> object:
        """Move all files of an archive in.

        Parameters
        ----------
        path
            A ZIP or TAR that nobody writes any more.
        source
            As `Store.take` takes it.

        Raises
        ------
        InputRefused
            If it is not taken as a whole; what could be taken of it is in the store.
        ImagingError
            If it cannot be kept now; it stays where it is.
        """
        until, reason = self._resting.get(path, (0.0, None))
        if reason is not None and time.monotonic() < until:
            raise reason
        self._resting.pop(path, None)
        try:
            return self._take_all(path, source)
        except InputRefused:
            raise
        except ImagingError as error:
            self._resting[path] = (time.monotonic() + _REST_S, error)
            raise

    def _take_all(self, archive: Path, source: str) -> int:
        """The files of an archive; gives how many are in the store, or were refused there as any file is."""
        through, version = 0, version_of(archive)
        with self._unpacked() as folder:
            opened = open_archive(archive, folder, self._check)
            later = [error for error in opened.refused if isinstance(error, ArchiveNotUnpacked)]
            if later:
                raise StoreFull(self._folder, seen=later[0].seen)
            refused = [error for error in opened.refused if isinstance(error, InputRefused)]
            for facts in opened.read:
                self._check()
                member = facts.instance.path
                try:
                    self._keeper.take(member, source=source)
                except InputRefused as error:
                    if member.exists():  # nobody else has it, so the archive stays
                        seen = f"its file {member.name}: {error.seen}"
                        refused.append(type(error)(archive, seen=seen, expected=error.expected, remedy=error.remedy))
                through += 1
        if version_of(archive) != version:
            # Another one lies in its place, of which nothing is taken yet: the inbox finds it as any that is new.
            codes = ", ".join(sorted({error.code for error in refused})) or "nothing"
            log.warning("inbox: an archive was replaced while it was unpacked; refused of the earlier one: %s", codes)
            return through
        if not through and not refused:
            refused = [NotDicom(archive, seen="a ZIP or TAR archive without an image")]
        if refused:
            raise self._keeper.refuse(archive, refused, source=source)
        archive.unlink(missing_ok=True)
        return through

    @contextmanager
    def _unpacked(self) -> Iterator[Path]:
        """A folder for the files of one archive."""
        folder = self._folder / secrets.token_hex(8)
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreFull(self._folder, seen=error.strerror or "cannot be made") from error
        try:
            yield folder
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)
