"""The folder that the members of an archive go to, and the bounds on what may.

Invariant: a file there is whole and named by its number; no bound is passed by what comes out, whatever was declared.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 1024 * 1024

SPECIAL = "no regular file but a link, a device or the like, or sparse"


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive.

    Attributes
    ----------
    path
        Where it was written.
    number
        Its place in the archive, folders and links counted, from 1; `path` is named by it.
    name
        The last part of its name in the archive, printable characters only: to tell a DICOMDIR from an image, never
        to be shown or used as a path, for it may be a patient's name.
    """

    path: Path
    number: int
    name: str = field(repr=False)


class Damaged(Exception):
    """The archive cannot be read further; what was unpacked before is whole. The text says where."""


class Unusable(Exception):
    """Nothing of the archive may be kept; the text says why."""


class NoRoom(Unusable):
    """Nothing of the archive may be kept now; there may be room later."""


class BadMember(Exception):
    """One member is not kept, the next can be read. The text is the reason."""


class Sink:
    """Where the members go, and the bounds on what may.

    Parameters
    ----------
    into, most_bytes, most_members, reserve, check
        As `unpack` takes them.
    """

    def __init__(self, into: Path, most_bytes: int, most_members: int, reserve: int, check: Callable[[], None]) -> None:
        self._check = check
        self._into, self._most_bytes, self._reserve = into, most_bytes, reserve
        self._left = most_bytes
        self._number = 0
        self.most_members = most_members
        self.files: list[Member] = []
        self.refused: dict[str, list[int]] = {}

    def next_number(self) -> int:
        """The number of the member that is met now."""
        self._check()
        self._number += 1
        self.check_members(self._number)
        return self._number

    def check_members(self, count: int) -> None:
        """Whether so many members are allowed."""
        if count > self.most_members:
            raise Unusable(f"it has more than {self.most_members} members")

    def expect(self, count: int) -> None:
        """Whether `count` bytes that are declared still fit, before any of them is written."""
        if count > self._left:
            raise Unusable(f"it unpacks to more than {self._most_bytes} bytes")
        if count > shutil.disk_usage(self._into).free - self._reserve:
            raise NoRoom(f"what it unpacks to would leave less than {self._reserve} bytes free on the disk")

    def spend(self, count: int) -> None:
        """Count bytes that really came out; what is declared is never believed."""
        self._check()
        self._left -= count
        if self._left < 0:
            raise Unusable(f"it unpacks to more than {self._most_bytes} bytes")

    def refuse(self, number: int, reason: str) -> None:
        """Leave a member out and tell it."""
        self.refused.setdefault(reason, []).append(number)

    def keep(self, number: int, name: str, chunks: Iterator[bytes]) -> None:
        """Write one member; a part of one never stays."""
        path = self._into / f"{number:06d}"
        with path.open("xb") as stream:  # never over a file that is there, nor through a link
            try:
                for chunk in chunks:
                    # Each time, for others write to this disk meanwhile.
                    self.expect(0)
                    stream.write(chunk)
                stream.flush()
            except BaseException as error:
                path.unlink()
                if not isinstance(error, BadMember):
                    raise
                self.refuse(number, str(error))
                return
        self.files.append(Member(path, number, _base_name(name)))

    def discard(self) -> None:
        """Take back what was written."""
        for member in self.files:
            with suppress(OSError):
                member.path.unlink()
        self.files.clear()


def _base_name(name: str) -> str:
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    return "".join(character for character in last[:1024] if character.isprintable())[:255]
