"""What one device of a node does: it opens the checkpoints once, and reports on one study after another.

Invariant: it writes into the folder of the try that it is given and nowhere else, and says by name why it cannot. It
raises nothing, for an error that is raised on one machine is hard to tell on another.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imaging.errors import ImagingError, NodeUnfit, PathNotOnNode
from imaging.stages import StageName, listening
from pipelines.cluster.ledger import Mark, finished

if TYPE_CHECKING:
    from pipelines.asking import Source
    from pipelines.reporting import StudyResult

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Task:
    """One try of one study.

    Attributes
    ----------
    source
        The study.
    out
        Where its result belongs.
    attempt
        Where the study's folder is made.
    """

    source: Source
    out: Path
    attempt: Path


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a try.

    Attributes
    ----------
    result
        None where this node cannot see the study's files; its folder is below the try's, or in its place already.
    job
        The digest of all that decides the result; empty where a file cannot be read.
    made
        False where an earlier call has made the very result.
    unseen
        What the node cannot see.
    stages
        Where the time went, in s.
    """

    result: StudyResult | None
    job: str = ""
    made: bool = True
    unseen: ImagingError | None = None
    stages: Mapping[StageName, float] = field(default_factory=dict)


class Reporter(Protocol):
    """Reports on studies, with its checkpoints in memory."""

    def job_of(self, source: Source) -> str:
        """The digest of all that decides the result of a study.

        Raises
        ------
        OSError
            If a file cannot be read.
        """
        ...

    def report(self, source: Source, out: Path) -> StudyResult:
        """Report on a study into a folder of `out`; never raises for what the study holds."""
        ...


class Opening(Protocol):
    """How the checkpoints are opened; it is sent to each device."""

    def open(self) -> Reporter:
        """Open the checkpoints, and read their weights.

        Raises
        ------
        ImagingError
            If they are not there, or not those of whoever asks.
        """
        ...


class Seat:
    """A device of a node.

    Parameters
    ----------
    node
        What the node is called.
    opening
        How its checkpoints are opened.
    mark
        What the node must see.
    """

    def __init__(self, node: str, opening: Opening, mark: Mark) -> None:
        self._node, self._opening, self._mark = node, opening, mark
        self._reporter: Reporter | None = None

    def open(self) -> ImagingError | None:
        """Open the checkpoints; gives why that cannot be done."""
        try:
            if not self._mark.is_seen():
                return PathNotOnNode(self._node, seen=f"--out is not there: {self._mark.path.parents[3]}")
            self._reporter = self._opening.open()
        except NodeUnfit as error:
            return type(error)(self._node, seen=error.seen, expected=error.expected, remedy=error.remedy)
        except ImagingError as error:
            return NodeUnfit(self._node, seen=f"{error.code}: {error.subject}: {error.seen}")
        except Exception as error:  # whatever is wrong with this node must not end the call
            log.debug("traceback", exc_info=True)
            return NodeUnfit(self._node, seen=type(error).__name__)
        return None

    def report(self, task: Task) -> Answer:
        """Report on a study, unless its result lies there already."""
        assert self._reporter is not None
        unseen = _unseen((*task.source.files, *task.source.pictures))
        if unseen is not None:
            return Answer(None, unseen=PathNotOnNode(self._node, seen=f"a file is not there: {unseen}"))
        try:
            job = self._reporter.job_of(task.source)
        except OSError:  # the report says which file cannot be read
            job = ""
        earlier = finished(task.out, task.source.entry.name, job) if job else None
        if earlier is not None:
            return Answer(earlier, job, made=False)
        with listening() as stages:
            result = self._reporter.report(task.source, task.attempt)
        return Answer(result, job, stages=stages.seconds())


def _unseen(files: Sequence[Path]) -> Path | None:
    return next((file for file in files if not file.exists()), None)
