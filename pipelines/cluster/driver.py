"""Gives studies out to the seats of a cluster, until each has a result or a reason why it has none.

Invariant: a study is with one seat at a time; it has a result once. What is lost with a node is tried again elsewhere,
so many times and no more. A node that is not fit gets no study and is told by name.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imaging.errors import ImagingError, NodeUnfit, NoNode, OutputNotWritable, StudyOverdue, WorkerLost
from imaging.stages import Stages
from pipelines.asking import Source
from pipelines.cluster.ledger import Ledger
from pipelines.cluster.nodes import Lost, Node, Nodes, Opened
from pipelines.cluster.seat import Answer, Opening, Task
from pipelines.reporting import StudyResult, stale_results

log = logging.getLogger(__name__)

# How often it is asked which nodes there are, and how long news is waited for, in s.
_LOOK_S, _NEWS_S = 2.0, 1.0
_AGAIN = "Look whether memory runs out on this study, and run the same command again"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is waited for, and for how long.

    Attributes
    ----------
    tries
        Of a study that is lost with its node, and of a seat that ends while it opens.
    open_s
        For a seat to have its checkpoints open, and for a node to come where there is none.
    study_s
        For a study.
    """

    tries: int = 3
    open_s: float = 600.0
    study_s: float = 3600.0


@dataclass(slots=True)
class _Study:
    """A study that has no result yet."""

    number: int
    source: Source
    tries: int = 0
    shunned: set[str] = field(default_factory=set)
    last: ImagingError | None = None


@dataclass(slots=True)
class _Place:
    """A seat, and what it is at: it opens until `ready`."""

    node: Node
    since: float
    ready: bool = False
    study: _Study | None = None
    attempt: Path | None = None


class Driver:
    """One call on a cluster.

    Parameters
    ----------
    nodes
        The cluster.
    opening
        How each seat opens its checkpoints.
    ledger
        Where results are kept; it is open.
    out
        Where they belong.
    bounds
        What is waited for.
    stages
        Gets the time that seats have taken, by stage.
    on_study
        Called with a study's name, its number in the order of ends from 0, and the number of studies.

    Attributes
    ----------
    faults
        What is wrong with nodes.
    done
        How many studies have a result or a reason why not, and how many of these lay there already.
    """

    def __init__(
        self,
        nodes: Nodes,
        opening: Opening,
        ledger: Ledger,
        out: Path,
        *,
        stages: Stages | None = None,
        bounds: Bounds | None = None,
        on_study: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self._nodes, self._opening, self._ledger, self._out = nodes, opening, ledger, out
        self._stages, self._bounds, self._on_study = stages or Stages(), bounds or Bounds(), on_study
        self._waiting: deque[_Study] = deque()
        self._results: dict[int, StudyResult] = {}
        self._places: dict[str, _Place] = {}
        self._unfit: dict[str, ImagingError] = {}
        self._unseen: dict[str, ImagingError] = {}
        # How often a seat of a node has ended while it opened, of nodes that are there.
        self._ended: dict[str, int] = {}
        self._alive: list[Node] = []
        self._total, self._earlier, self._looked, self._seen = 0, 0, float("-inf"), time.monotonic()

    @property
    def faults(self) -> tuple[ImagingError, ...]:
        """What is wrong with nodes."""
        return (*self._unfit.values(), *self._unseen.values())

    @property
    def done(self) -> tuple[int, int]:
        """How many studies are through, and how many of these lay there already."""
        return len(self._results), self._earlier

    def run(self, sources: Sequence[Source]) -> list[StudyResult]:
        """Report on studies; gives the results in their order."""
        self._waiting = deque(_Study(number, source) for number, source in enumerate(sources))
        self._total, self._seen = len(sources), time.monotonic()
        try:
            while len(self._results) < self._total:
                self._look()
                self._give()
                for key, news in self._nodes.news(_NEWS_S):
                    self._hear(key, news)
                self._end_overdue()
                self._give_up()
        finally:
            for key in list(self._places):
                self._nodes.dismiss(key)
        return [self._results[number] for number in range(self._total)]

    # ----------------------------------------------------------------------------------------------------- giving out

    def _look(self) -> None:
        """See which nodes there are, and start seats on them as long as there are studies for these."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return
        self._looked, self._alive = now, self._nodes.alive()
        gone = set(self._ended) - {node.id for node in self._alive}
        for lost in gone:  # it ended its seats because it went itself
            if self._ended.pop(lost) >= self._bounds.tries:
                self._unfit.pop(lost, None)
        idle = [place.node.id for place in self._places.values() if place.study is None]
        for node in self._alive:
            # Of those that may be read there, as many as no idle seat is there for.
            wanted = sum(node.id not in study.shunned for study in self._waiting) - len(idle)
            for number in range(node.places):
                key = f"{node.id} {number}"
                if wanted > 0 and node.id not in self._unfit and key not in self._places:
                    self._nodes.hire(key, node, self._opening, self._ledger.mark)
                    self._places[key] = _Place(node, now)
                    idle.append(node.id)
                    wanted -= 1

    def _give(self) -> None:
        """Give each seat that has none a study that may be read there."""
        for key, place in self._places.items():
            if not place.ready or place.study is not None:
                continue
            study = next((study for study in self._waiting if place.node.id not in study.shunned), None)
            if study is None:
                continue
            self._waiting.remove(study)
            place.study, place.attempt, place.since = study, self._ledger.attempt(), time.monotonic()
            self._nodes.give(key, Task(study.source, self._out, place.attempt))

    # ----------------------------------------------------------------------------------------------------------- news

    def _hear(self, key: str, news: Opened | Answer | Lost) -> None:
        place = self._places.get(key)
        if place is None:  # ended by what another one has said before it
            return
        if isinstance(news, Lost):
            self._lose(key, WorkerLost(place.node.name, seen=news.why, remedy=_AGAIN))
        elif isinstance(news, Opened):
            if news.error is not None:
                self._leave_out(place.node, news.error)
            else:
                place.ready, place.since = True, time.monotonic()
        else:
            study, attempt = place.study, place.attempt
            assert study is not None and attempt is not None
            place.study = place.attempt = None
            if news.result is None:
                self._shun(place.node, study, news)
            else:
                self._keep(study, attempt, news, news.result)

    def _keep(self, study: _Study, attempt: Path, answer: Answer, result: StudyResult) -> None:
        """Put a result into its place, once."""
        name = study.source.entry.name
        for stage, seconds in answer.stages.items():
            self._stages.add(stage, seconds)
        if not answer.made:
            self._earlier += 1
        elif result.folder is None:
            self._ledger.discard(attempt)
            result = replace(result, problems=(*stale_results(self._out, [name]), *result.problems))
        else:
            try:
                result = replace(result, folder=self._ledger.keep(name, attempt))
                if answer.job:
                    self._ledger.note(name, answer.job, result.problems)
            except OutputNotWritable as error:
                told = (*stale_results(self._out, [name]), *result.problems, error)
                result = StudyResult(name, None, None, told)
        self._end(study, result)

    def _end(self, study: _Study, result: StudyResult) -> None:
        if self._on_study is not None:
            self._on_study(result.name, len(self._results), self._total)
        self._results[study.number] = result

    def _refuse(self, study: _Study, why: ImagingError) -> None:
        name = study.source.entry.name
        self._end(study, StudyResult(name, None, None, (*stale_results(self._out, [name]), *study.source.refused, why)))

    def _shun(self, node: Node, study: _Study, answer: Answer) -> None:
        """Give a study that a node cannot see to another one."""
        assert answer.unseen is not None
        if node.id not in self._unseen:
            log.warning("%s", answer.unseen)
            self._unseen[node.id] = answer.unseen
        study.shunned.add(node.id)
        study.last = answer.unseen
        self._waiting.appendleft(study)

    # ---------------------------------------------------------------------------------------------------------- losses

    def _lose(self, key: str, why: ImagingError) -> None:
        """Go on without a seat; what it was at is tried again, so many times."""
        place = self._places.pop(key)
        self._nodes.dismiss(key)
        log.warning("%s: a process is lost: %s", place.node.name, why.seen)
        if not place.ready:
            self._ended[place.node.id] = self._ended.get(place.node.id, 0) + 1
            if self._ended[place.node.id] >= self._bounds.tries:
                times = self._ended[place.node.id]
                self._leave_out(place.node, NodeUnfit(place.node.name, seen=f"{times} times at the start {why.seen}"))
        study = place.study
        if study is None:
            return
        if place.attempt is not None:
            self._ledger.discard(place.attempt)
        study.tries, study.last = study.tries + 1, why
        if study.tries < self._bounds.tries:
            self._waiting.appendleft(study)
        else:
            name = study.source.entry.name
            seen = f"tried {study.tries} times; at the last one on {place.node.name} {why.seen}"
            self._refuse(study, type(why)(f"study {name}", seen=seen, remedy=_AGAIN))

    def _end_overdue(self) -> None:
        """End seats that take too long."""
        now = time.monotonic()
        for key, place in list(self._places.items()):
            took = now - place.since
            if place.study is not None and took > self._bounds.study_s:
                seen = f"it had no report after {took:.0f} s"
                self._lose(key, StudyOverdue(place.node.name, seen=seen, remedy=_AGAIN))
            elif not place.ready and took > self._bounds.open_s:
                seen = f"after {took:.0f} s no device was free, or its checkpoints were not open"
                self._leave_out(place.node, NodeUnfit(place.node.name, seen=seen))

    def _leave_out(self, node: Node, why: ImagingError) -> None:
        """Give a node no study any more; those that it has come to their end."""
        if node.id not in self._unfit:
            log.warning("%s", why)
            self._unfit[node.id] = why
        for key, place in list(self._places.items()):
            if place.node.id == node.id and not place.ready:
                self._nodes.dismiss(key)
                del self._places[key]

    def _give_up(self) -> None:
        """Refuse the studies that nobody is left for."""
        now = time.monotonic()
        alive = {node.id for node in self._alive}
        left = (alive - set(self._unfit)) | {place.node.id for place in self._places.values()}
        if left:
            self._seen = now
        # A node that was lost may come back, and one that is started may not be there yet; one that is unfit stays so.
        elif not alive and now - self._seen < self._bounds.open_s:
            return
        for study in [study for study in self._waiting if left <= study.shunned]:
            self._waiting.remove(study)
            nobody = NoNode(f"study {study.source.entry.name}", seen="no node is left that could read it")
            self._refuse(study, study.last if left and study.last is not None else nobody)
