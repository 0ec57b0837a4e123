"""What a file or a folder holds, by SHA-256, without reading again what has not changed.

Invariant: a digest is taken from the index only for a file whose size, inode, time of change and time of modification
are those of when it was read; the first and the last of these nobody can set back. A file that was changed less than
two seconds before it was read is not noted, since a second change within the clock's grain would leave no trace.
Imports no torch.

The index is an SQLite file. It holds no path: a file is known by the SHA-256 of its path.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from imaging.files import sha256_of

log = logging.getLogger(__name__)

# Clocks of file systems have grains of up to two seconds (FAT); those of ext4 and XFS are some milliseconds.
_GRAIN_NS = 2_000_000_000
_TABLES = """CREATE TABLE IF NOT EXISTS files (
    path TEXT PRIMARY KEY, size INTEGER, inode INTEGER, modified_ns INTEGER, changed_ns INTEGER, sha256 TEXT);
CREATE TABLE IF NOT EXISTS pixels (key TEXT PRIMARY KEY, sha256 TEXT);"""

Stamp = tuple[int, int, int, int]


def files_in(folder: Path) -> list[Path]:
    """The files of a folder as the DICOM reader finds them: at any depth, links to folders not followed; sorted."""
    return sorted(Path(place) / name for place, _, names in os.walk(folder) for name in names)


class ContentIndex:
    """Digests of files, remembered from run to run; a context manager that writes down what is new at its end.

    Parameters
    ----------
    database
        The SQLite file; None remembers nothing. An index that cannot be used is told and done without: every file is
        then read.
    """

    def __init__(self, database: Path | None) -> None:
        self._database = database
        self._connection: sqlite3.Connection | None = None
        self._new: dict[str, tuple[Stamp, str]] = {}
        self._new_pixels: dict[str, str] = {}

    def __enter__(self) -> ContentIndex:
        if self._database is not None:
            try:
                self._connection = self._opened(self._database)
            except sqlite3.Error as error:
                self._without(error)
        return self

    @staticmethod
    def _opened(database: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(database, timeout=60)
        try:
            connection.executescript(_TABLES)
        except sqlite3.DatabaseError as error:
            connection.close()
            if isinstance(error, sqlite3.OperationalError):  # locked, full, not to be written: it may be whole
                raise
            # Damaged. It says nothing that the files do not say themselves.
            database.unlink(missing_ok=True)
            connection = sqlite3.connect(database, timeout=60)
            connection.executescript(_TABLES)
        return connection

    def _without(self, error: sqlite3.Error) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        log.warning("the index of file contents cannot be used (%s): every file is read", type(error).__name__)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._connection is None:
            return
        rows = [(path, *stamp, digest) for path, (stamp, digest) in self._new.items()]
        try:
            with self._connection:
                self._connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?)", rows)
                self._connection.executemany("INSERT OR REPLACE INTO pixels VALUES (?, ?)", self._new_pixels.items())
            self._connection.close()
        except sqlite3.Error as failure:
            self._without(failure)
        self._connection = None
        self._new.clear()

    def digest_of(self, path: Path) -> str:
        """SHA-256 of a file's bytes, or of a folder's files with their names in it.

        Parameters
        ----------
        path
            A file, or a folder, whose files are taken as the DICOM reader finds them: at any depth, links to folders
            not followed.

        Raises
        ------
        OSError
            If it cannot be read.
        """
        if not path.is_dir():
            return self._digest_of_file(path)
        whole = hashlib.sha256()
        for file in files_in(path):
            name = str(file.relative_to(path))
            whole.update(f"{len(name)}:{name}:{self._digest_of_file(file)}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()

    def pixels_of(self, key: str, read: Callable[[], str]) -> str:
        """The digest of an image's pixels, remembered by a key that covers all that decides them.

        Parameters
        ----------
        key
            As `imaging.prepared.key_of` gives it.
        read
            Reads the image, where nothing is remembered.
        """
        row = None
        if self._connection is not None:
            try:
                row = self._connection.execute("SELECT sha256 FROM pixels WHERE key = ?", (key,)).fetchone()
            except sqlite3.Error as error:
                self._without(error)
        if row:
            return str(row[0])
        self._new_pixels[key] = read()
        return self._new_pixels[key]

    def _digest_of_file(self, file: Path) -> str:
        place = hashlib.sha256(os.fsencode(file.resolve())).hexdigest()
        stamp = _stamp(file)
        noted = self._noted(place, stamp)
        if noted:
            return noted
        # Taken before the file is read: what is changed meanwhile then counts as changed.
        settled = time.time_ns() - max(stamp[2:]) > _GRAIN_NS
        digest = sha256_of(file)
        if settled:
            self._new[place] = (stamp, digest)
        return digest

    def _noted(self, place: str, stamp: Stamp) -> str | None:
        if place in self._new:
            return self._new[place][1] if self._new[place][0] == stamp else None
        if self._connection is None:
            return None
        try:
            row = self._connection.execute(
                "SELECT sha256 FROM files WHERE path = ? AND size = ? AND inode = ? AND modified_ns = ? "
                "AND changed_ns = ?",
                (place, *stamp),
            ).fetchone()
        except sqlite3.Error as error:
            self._without(error)
            return None
        return str(row[0]) if row else None


def _stamp(file: Path) -> Stamp:
    """Size, inode, and the times of modification and of change in ns."""
    status = file.stat()
    return status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
