"""Names for people, objects and days that a key makes and only its holder can make again.

Invariant: with one key the same original has the same pseudonym in every run, so that studies stay together; without
it nothing leads back, for each is an HMAC-SHA-256 (RFC 2104) of what it stands for. What stands for what is kept in a
crosswalk, apart from the images, for its owner's eyes.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import hmac
import io
import os
import secrets
import threading
import uuid
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path

from pydicom.uid import UID_dictionary

from imaging.errors import KeyInvalid, OutputNotWritable
from imaging.files import write_whole

_LEAST = 32
# At least this far, so that a moved date is none of the days about the study; at most some ten years more.
_NEAREST_DAYS, _SPREAD_DAYS = 100, 3650
# So many rows are remembered.
_LATELY = 20_000
_HEADER = ("kind", "original", "pseudonym")


@dataclass(frozen=True, slots=True, repr=False)
class Key:
    """The secret that pseudonyms are made with."""

    secret: bytes


def make_key(path: Path) -> Key:
    """Make a key of 32 random bytes and write it, readable by its owner alone.

    Raises
    ------
    KeyInvalid
        If the file is there already: another key would part what belongs together.
    OutputNotWritable
        If it cannot be written.
    """
    secret = secrets.token_hex(_LEAST)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise KeyInvalid(path, seen="the file is there already", expected="a new file was expected") from error
    except OSError as error:
        raise OutputNotWritable(path, seen=error.strerror or "cannot be made") from error
    with os.fdopen(descriptor, "w") as stream:
        stream.write(f"{secret}\n")
        stream.flush()
        os.fsync(stream.fileno())
    return Key(bytes.fromhex(secret))


def read_key(path: Path) -> Key:
    """Read a key: 64 or more hexadecimal digits.

    Raises
    ------
    KeyInvalid
        If the file is none, is too short, or others may read it.
    """
    try:
        others, text = path.stat().st_mode & 0o077, path.read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise KeyInvalid(path, seen="there is no such file") from error
    except (OSError, UnicodeError) as error:
        raise KeyInvalid(path, seen="it cannot be read as text") from error
    if others:
        raise KeyInvalid(path, seen="others than its owner may use the file", remedy=f"chmod 600 {path}")
    try:
        secret = bytes.fromhex(text)
    except ValueError as error:
        raise KeyInvalid(path, seen="something else than hexadecimal digits") from error
    if len(secret) < _LEAST:
        raise KeyInvalid(path, seen=f"{len(secret)} bytes")
    return Key(secret)


@dataclass(slots=True)
class Pseudonyms:
    """Pseudonyms by one key, and what they have stood for so far.

    Attributes
    ----------
    key
        The secret.
    known
        (kind, original) -> pseudonym, of what was asked.
    """

    key: Key
    known: dict[tuple[str, str], str] = field(default_factory=dict)

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.new(
            self.key.secret, f"{kind}\0{original}".encode(errors="surrogateescape"), hashlib.sha256
        ).digest()

    def _keep(self, kind: str, original: str, pseudonym: str) -> str:
        self.known[kind, original] = pseudonym
        return pseudonym

    def patient(self, owner: str) -> str:
        """Name and id of a patient: P and 15 letters or digits."""
        return self._keep("patient", owner, "P" + _letters(self._digest("patient", owner)))

    def accession(self, number: str) -> str:
        """Accession number: A and 15 letters or digits (SH has room for 16)."""
        return self._keep("accession", number, "A" + _letters(self._digest("accession", number)))

    def uid(self, original: str) -> str:
        """A UID under 2.25 (PS3.5 section B.2); what PS3.6 registers names nobody and stays."""
        if original in UID_dictionary or not original:
            return original
        number = uuid.UUID(bytes=self._digest("uid", original)[:16], version=5).int
        return self._keep("uid", original, f"2.25.{number}")

    def days(self, owner: str) -> int:
        """By how many days the dates of a patient go back."""
        number = int.from_bytes(self._digest("days", owner)[:8], "big")
        days = _NEAREST_DAYS + number % _SPREAD_DAYS
        self._keep("days", owner, str(-days))
        return days

    def moved(self, day: str, owner: str) -> str:
        """A date (YYYYMMDD) so many days earlier; empty where it is none."""
        if len(day) != 8 or not (day.isascii() and day.isdigit()):
            return ""
        try:
            earlier = date(int(day[:4]), int(day[4:6]), int(day[6:])) - timedelta(days=self.days(owner))
        except (ValueError, OverflowError):
            return ""
        return f"{earlier.year:04d}{earlier.month:02d}{earlier.day:02d}"

    def crosswalk(self, path: Path) -> None:
        """Write what stands for what, together with what the file has from earlier runs, readable by its owner alone.

        Raises
        ------
        KeyInvalid
            If the file is no crosswalk, or of another key.
        OutputNotWritable
            If it cannot be written.
        """
        rows = {**_read(path), **self.known}
        for entry, pseudonym in _read(path).items():
            if rows[entry] != pseudonym:
                raise KeyInvalid(path, seen="a crosswalk of another key", remedy="Give each key a file of its own")
        stream = io.StringIO()
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(_HEADER)
        table.writerows((*entry, rows[entry]) for entry in sorted(rows))
        write_whole(path, stream.getvalue().encode(errors="surrogateescape"), mode=0o600)


class Crosswalk:
    """A crosswalk that grows while instances come: each is on disk before its copy goes on.

    Parameters
    ----------
    path
        The file; made, readable by its owner alone, with its first row.
    key
        What all of its pseudonyms are made with.

    Raises
    ------
    KeyInvalid
        If the file is no crosswalk, or of another key.
    """

    def __init__(self, path: Path, key: Key) -> None:
        self._path, self._writing = path, threading.Lock()
        # What was written lately: a row that is there twice says nothing else, and memory stays bounded.
        self._lately: dict[tuple[str, str], str] = {}
        self._mend()
        names = Pseudonyms(key)
        for (kind, original), pseudonym in _read(path).items():
            if kind == "uid" and names.uid(original) != pseudonym:
                raise KeyInvalid(path, seen="a crosswalk of another key", remedy="Give each key a file of its own")

    def _mend(self) -> None:
        """Take away a row that a crash has cut off."""
        if self._path.exists():
            content = self._path.read_bytes()
            if content and not content.endswith(b"\n"):
                os.truncate(self._path, content.rfind(b"\n") + 1)

    def note(self, names: Pseudonyms) -> None:
        """Write down what pseudonyms have stood for.

        Raises
        ------
        OutputNotWritable
            If that fails; then their copy may not go on.
        """
        with self._writing:
            new = {entry: name for entry, name in names.known.items() if self._lately.get(entry) != name}
            if not new:
                return
            stream = io.StringIO()
            table = csv.writer(stream, lineterminator="\n")
            try:
                descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
                with os.fdopen(descriptor, "ab") as file:
                    if not os.fstat(descriptor).st_size:
                        table.writerow(_HEADER)
                    table.writerows((*entry, name) for entry, name in new.items())
                    file.write(stream.getvalue().encode(errors="surrogateescape"))
                    file.flush()
                    os.fsync(descriptor)
            except OSError as error:
                raise OutputNotWritable(self._path, seen=error.strerror or "cannot be written") from error
            if len(self._lately) > _LATELY:
                self._lately.clear()
            self._lately |= new


def _read(path: Path) -> dict[tuple[str, str], str]:
    if not path.exists():
        return {}
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8", errors="surrogateescape"))))
    except (OSError, csv.Error) as error:
        raise KeyInvalid(path, seen="a crosswalk that cannot be read") from error
    if not rows or tuple(rows[0]) != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise KeyInvalid(path, seen="a file that is no crosswalk", remedy="Give the crosswalk a file of its own")
    return {(kind, original): pseudonym for kind, original, pseudonym in rows[1:]}


def _letters(digest: bytes) -> str:
    """75 bits as 15 of the letters and digits of base 32."""
    return base64.b32encode(digest).decode()[:15]
