"""What is done and what is under way, in a folder `.jobs` of --out: so a call that was killed can be run again.

Invariant: a result is put into its place by whoever holds the lock, whole, and is noted after that with the name of its
job; what a lost node has left lies under `work` and never comes into place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from imaging.errors import ImagingError, OutputNotWritable, told_again
from imaging.files import sha256_of, staged_folder, write_whole

if TYPE_CHECKING:
    from pipelines.reporting import StudyResult

JOBS = ".jobs"


@dataclass(frozen=True, slots=True)
class Mark:
    """A file that whoever sees the same folder finds with the same content.

    Attributes
    ----------
    path, content
        Of the file.
    """

    path: Path
    content: str

    def is_seen(self) -> bool:
        """Whether it is there for this machine."""
        try:
            return self.path.read_text(encoding="utf-8") == self.content
        except (OSError, UnicodeDecodeError):
            return False


class Ledger:
    """The results of one call on their way; a context manager that holds the lock of `out`.

    Parameters
    ----------
    out
        The folder of the results.
    replaces, last
        As `imaging.files.staged_folder` takes them.

    Attributes
    ----------
    mark
        By which a node shows that it sees `out`.

    Raises
    ------
    OutputNotWritable
        If it cannot be written, or another call holds it.
    """

    def __init__(self, out: Path, *, replaces: Sequence[str], last: str) -> None:
        self._out, self._replaces, self._last = out, replaces, last
        self._work = out / JOBS / "work"
        run = secrets.token_hex(8)
        self._run, self.mark = self._work / run, Mark(self._work / run / "mark", run)
        self._numbers = count()
        self._lock: TextIOWrapper | None = None

    def __enter__(self) -> Ledger:
        try:
            (self._out / JOBS).mkdir(parents=True, exist_ok=True)
            self._lock = (self._out / JOBS / "lock").open("w")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputNotWritable(self._out, seen="another call on a cluster writes here",
                                    remedy="Wait for its end, or give another --out") from error  # fmt: skip
        except OSError as error:
            raise OutputNotWritable(self._out, seen=error.strerror or "cannot be written") from error
        shutil.rmtree(self._work, ignore_errors=True)  # of calls that were killed
        try:
            self._run.mkdir(parents=True)
        except OSError as error:
            raise OutputNotWritable(self._out, seen=error.strerror or "cannot be written") from error
        write_whole(self.mark.path, self.mark.content)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def attempt(self) -> Path:
        """A folder for one try of one study; whoever tries makes it."""
        return self._run / str(next(self._numbers))

    def discard(self, attempt: Path) -> None:
        """Remove what a try has left."""
        shutil.rmtree(attempt, ignore_errors=True)

    def keep(self, name: str, attempt: Path) -> Path:
        """Put the study's folder of a try into its place, whole.

        Raises
        ------
        OutputNotWritable
            If that fails.
        """
        # Of a call that is killed here nothing is left but in a folder that the next one sweeps.
        whole = staged_folder(self._out / name, replaces=self._replaces, last=self._last, stage_in=self._run)
        with whole as place:
            try:
                for file in (attempt / name).iterdir():
                    file.rename(place / file.name)
            except OSError as error:
                raise OutputNotWritable(self._out / name, seen=error.strerror or "cannot be moved") from error
        self.discard(attempt)
        return self._out / name

    def note(self, name: str, job: str, problems: Sequence[ImagingError]) -> None:
        """Write down that a result lies in its place.

        Parameters
        ----------
        name, job
            The study, and the digest of all that decides its result.
        problems
            What is told with it.

        Raises
        ------
        OutputNotWritable
            If that fails.
        """
        report_sha256 = sha256_of(self._out / name / self._last)
        told = {"job": job, "report_sha256": report_sha256, "problems": [problem.as_dict() for problem in problems]}
        place = _record(self._out, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, json.dumps(told, indent=1) + "\n")


def finished(out: Path, name: str, job: str) -> StudyResult | None:
    """The result of an earlier call, where it is of this very job and nothing of it has changed.

    Parameters
    ----------
    out
        Of the call.
    name, job
        As they were noted.
    """
    from imaging.report.report import Report
    from pipelines.outputs import REPORT
    from pipelines.reporting import StudyResult

    folder = out / name
    try:
        told = json.loads(_record(out, name).read_text(encoding="utf-8"))
        if told["job"] != job or sha256_of(folder / REPORT) != told["report_sha256"]:
            return None
        report = Report.model_validate_json((folder / REPORT).read_text(encoding="utf-8"))
        if any(sha256_of(folder / output.file) != output.sha256 for output in report.outputs):
            return None
        return StudyResult(name, folder, report, tuple(told_again(parts) for parts in told["problems"]))
    except (OSError, ValueError, KeyError, TypeError):  # damaged, or of another version: made again
        return None


def _record(out: Path, name: str) -> Path:
    # A folder of ten million files is slow on most file systems.
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()
    return out / JOBS / "done" / digest[:2] / digest[2:4] / f"{digest}.json"
