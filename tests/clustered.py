"""A cluster of make-believe: nodes that live, die and see what a test lets them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from imaging.errors import ImagingError
from imaging.files import write_whole
from imaging.report.report import Report, StudyEntry
from pipelines.asking import Source
from pipelines.cluster.ledger import Mark
from pipelines.cluster.nodes import Lost, News, Node, Opened
from pipelines.cluster.seat import Opening, Seat, Task
from pipelines.outputs import REPORT
from pipelines.reporting import StudyResult


class Plain:
    """A reporter that writes the name of the study, and opens itself."""

    def open(self) -> Plain:
        return self

    def job_of(self, source: Source) -> str:
        return "".join(file.read_text() for file in source.pictures)

    def report(self, source: Source, out: Path) -> StudyResult:
        name = source.entry.name
        (out / name).mkdir(parents=True)
        report = Report(created="2026-11-22T12:00:00+00:00", software="test", software_version="1", study=source.entry,
                        findings=(), series=())  # fmt: skip
        write_whole(out / name / REPORT, report.to_json())
        return StudyResult(name, out / name, report, ())


@dataclass
class Pretended:
    """A cluster whose seats are in this process; `before` is asked what becomes of a try, by node and study.

    `opening` is asked what a node says when it opens; a node in `gone` is not there.
    """

    names: dict[str, int]
    before: Callable[[str, str], News | None] = lambda node, study: None
    opening: Callable[[str], ImagingError | None] = lambda node: None
    gone: set[str] = field(default_factory=set)
    tried: list[tuple[str, str]] = field(default_factory=list)
    dismissed: list[str] = field(default_factory=list)
    _seats: dict[str, tuple[Node, Seat]] = field(default_factory=dict)
    _said: list[tuple[str, News]] = field(default_factory=list)

    def alive(self) -> list[Node]:
        return [
            Node(name, f"node {name}", places, 1, 0) for name, places in self.names.items() if name not in self.gone
        ]

    def hire(self, key: str, node: Node, opening: Opening, mark: Mark) -> None:
        seat = Seat(node.name, opening, mark)
        self._seats[key] = node, seat
        if node.id in self.gone:
            self._said.append((key, Lost("it is gone")))
        else:
            self._said.append((key, Opened(self.opening(node.id) or seat.open())))

    def give(self, key: str, task: Task) -> None:
        node, seat = self._seats[key]
        study = task.source.entry.name
        self.tried.append((node.id, study))
        lost = Lost("it is gone") if node.id in self.gone else self.before(node.id, study)
        self._said.append((key, lost or seat.report(task)))

    def dismiss(self, key: str) -> None:
        self._seats.pop(key, None)
        self._said = [item for item in self._said if item[0] != key]
        self.dismissed.append(key)

    def news(self, timeout_s: float) -> list[tuple[str, News]]:
        said, self._said = self._said, []
        return said


def source_of(file: Path, content: str) -> Source:
    file.write_text(content)
    return Source(StudyEntry(name=file.stem), (), pictures=(file,))
