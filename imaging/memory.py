"""How much memory may be taken, and what there is of it still.

Invariant: a budget is what the whole process may have in memory at once (its peak resident set), with the interpreter
and the libraries; what would not fit is refused, with the smallest budget that would do, before the memory is taken.
Imports no torch.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imaging.errors import MemoryInvalid, MemoryTooSmall

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{unit}i": 2 ** (10 * power) for power, unit in enumerate("KMGT", start=1)}
_TEXT = re.compile(r"(\d+(?:\.\d+)?) ?((?:[KMGT]i?)?)B", re.ASCII)
_STATM = Path("/proc/self/statm")
_PAGE = os.sysconf("SC_PAGE_SIZE")
# How often memory is looked at while a network computes, in seconds.
_EVERY_S = 0.001


@dataclass(frozen=True, slots=True)
class Budget:
    """What the process may have in memory at once, in bytes."""

    total: int

    @classmethod
    def parse(cls, text: str) -> Budget:
        """From a number and its unit: ``4GB`` are 4,000,000,000 bytes, ``512MiB`` 536,870,912.

        Raises
        ------
        MemoryInvalid
            If it is anything else, or nothing.
        """
        found = _TEXT.fullmatch(text.strip())
        total = int(float(found[1]) * _UNITS[found[2]]) if found else 0
        if total < 1:
            raise MemoryInvalid("--memory", seen=repr(text))
        return cls(total)

    def left(self) -> int:
        """What is not yet taken; below 0 where too much is."""
        return self.total - in_use()

    def check(self, needed: int, subject: str, what: str) -> None:
        """Refuse what would not fit beside what is in memory already.

        Raises
        ------
        MemoryTooSmall
            With the smallest budget that would do.
        """
        left = self.left()
        if needed > left:
            raise MemoryTooSmall(
                subject,
                seen=f"{what} needs {told(needed)} on top of the {told(self.total - left)} in memory, "
                f"and the budget is {told(self.total)}",
                expected=f"at least {told(self.total - left + needed)} was expected",
            )


@dataclass(slots=True)
class Rise:
    """By how much the memory of the process has risen at most, in bytes."""

    bytes: int = 0


def in_use() -> int:
    """What the process has in memory now, in bytes (its resident set)."""
    return int(_STATM.read_text().split()[1]) * _PAGE


@contextmanager
def rising() -> Iterator[Rise]:
    """Watch how far memory rises while something is done. The kernel's own peak is left as it is."""
    rise, done, before = Rise(), threading.Event(), in_use()

    def look() -> None:
        while not done.wait(_EVERY_S):
            rise.bytes = max(rise.bytes, in_use() - before)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield rise
    finally:
        done.set()
        watcher.join()
        rise.bytes = max(rise.bytes, in_use() - before)


def told(amount: int) -> str:
    """Bytes as people read them, rounded up to the last digit: ``3.42GB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if amount >= size:
            return f"{-(-amount * 100 // size) / 100:g}{unit}"
    return f"{-(-amount // 1000)}KB"
