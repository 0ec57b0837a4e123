"""A disk that fills: above its high mark nothing more is taken, and below its low mark it is again.

Invariant: what is not taken stays with whoever has it, and is taken later; results are still written and delivered, so
that the disk may empty.
"""

from __future__ import annotations

import logging
import shutil
import threading
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from imaging.config.section import Section
from imaging.errors import DiskMarkReached

log = logging.getLogger(__name__)

_Share = Annotated[float, Field(gt=0, le=1)]


class Marks(Section):
    """Shares of the store's disk in use: at `high` nothing more is taken, until it is below `low`."""

    high: _Share = 0.9
    low: _Share = 0.85

    @model_validator(mode="after")
    def _in_order(self) -> Marks:
        if self.low > self.high:
            raise ValueError("low is above high")
        return self


class Gate:
    """Says whether more is taken; may be asked from any thread.

    Parameters
    ----------
    folder
        Whose disk.
    marks
        May be changed while it is asked.
    """

    def __init__(self, folder: Path, marks: Marks | None = None) -> None:
        self.folder, self.marks = folder, marks or Marks()
        self._open, self._asking = True, threading.Lock()

    def share(self) -> float:
        """Share of the disk in use, from 0 to 1."""
        usage = shutil.disk_usage(self.folder)
        return 1 - usage.free / usage.total

    def is_open(self) -> bool:
        """Whether more is taken."""
        share, marks = self.share(), self.marks
        with self._asking:
            before, self._open = self._open, share < (marks.high if self._open else marks.low)
            if before != self._open:
                log.warning("%.1f %% of the store's disk in use: %s", 100 * share,
                            "instances are taken again" if self._open else "nothing more is taken")  # fmt: skip
            return self._open

    def check(self) -> None:
        """Refuse what comes.

        Raises
        ------
        DiskMarkReached
            If nothing more is taken.
        """
        if not self.is_open():
            raise DiskMarkReached(self.folder, seen=f"{self.share():.1%} of its disk in use")
