"""One SQLite file: opened, brought to this version, checked; then written by one transaction at a time.

Invariant: a transaction that has returned is on disk (WAL with `synchronous=FULL`), and one that has raised has changed
nothing. The watcher uses the file only after `integrity_check` and `foreign_key_check` have passed.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imaging.errors import StoreBusy, StoreDamaged, StoreFull
from pipelines.store.schema import STEPS

# Seconds that another program's transaction is waited for.
PATIENCE_S = 20.0


class Database:
    """A connection to write with and one to read with; both may be used from any thread.

    Parameters
    ----------
    path
        The file; made if it is not there.
    checked
        Whether the whole file is checked, which takes the longer the larger it is.
    patience_s
        How long another program's transaction is waited for.

    Raises
    ------
    StoreDamaged
        If the file is no database, fails its checks or is of a newer version.
    StoreFull, StoreBusy
        If it cannot be written.
    """

    def __init__(self, path: Path, *, checked: bool = True, patience_s: float = PATIENCE_S) -> None:
        self._path, self._checked, self._patience_s = path, checked, patience_s
        self._writing, self._reading = threading.RLock(), threading.Lock()
        self._closed = False
        with self._telling():
            self._writer = self._connect()
            try:
                self._prepare()
                self._reader = self._connect()
            except BaseException:
                self._writer.close()
                raise
            self._reader.execute("PRAGMA query_only = ON")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._patience_s, isolation_level=None, check_same_thread=False
        )
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def _prepare(self) -> None:
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        for check in ("integrity_check", "foreign_key_check") if self._checked else ():
            found = [tuple(row) for row in self._writer.execute(f"PRAGMA {check}")]
            if found not in ([("ok",)], []):
                raise StoreDamaged(self._path, seen=f"{check} says {str(found[0][0])[:200]!r}")
        with self._transaction():
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version > len(STEPS):
                raise StoreDamaged(self._path, seen=f"version {version}", expected=f"at most {len(STEPS)} was expected")
            for step in STEPS[version:]:
                for statement in _statements(step):
                    self._writer.execute(statement)
            self._writer.execute(f"PRAGMA user_version = {len(STEPS)}")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction, committed when the block ends well and undone when it raises; others wait for it.

        Raises
        ------
        StoreFull, StoreBusy, StoreDamaged
            By what SQLite says.
        """
        with self._writing, self._telling(), self._transaction():
            yield self._writer

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._writer.execute("COMMIT")
        finally:
            if self._writer.in_transaction:
                # A full disk may have ended it already.
                with suppress(sqlite3.OperationalError):
                    self._writer.execute("ROLLBACK")

    def read(self, query: str, values: Sequence[Any] | dict[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query, as they were committed."""
        with self._reading, self._telling():
            return self._reader.execute(query, values).fetchall()

    def close(self) -> None:
        """Close both; the last one to close a database folds its log into it."""
        with self._writing, self._reading:
            self._closed = True
            self._reader.close()
            self._writer.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.ProgrammingError as error:
            # A thread that goes on when the watcher has ended: who hands something in keeps it.
            if self._closed:
                raise StoreBusy(self._path, seen="it is closed, for its watcher has ended") from error
            raise
        except sqlite3.OperationalError as error:
            code = _code_of(error)
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise StoreBusy(self._path, seen=f"held for more than {self._patience_s:g} s") from error
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                raise StoreFull(self._path, seen=str(error)) from error
            raise
        except sqlite3.DatabaseError as error:
            if _code_of(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreDamaged(self._path, seen=str(error)) from error
            raise


def _code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 where the error is one of Python's own, which has none."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _statements(script: str) -> Iterator[str]:
    """The statements of a script; `executescript` would end the transaction that they belong to."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
