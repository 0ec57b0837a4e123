"""Every study has one result or the reason why not, whatever becomes of nodes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clustered import Plain, Pretended, source_of

from imaging.errors import CheckpointNotOnNode, PathNotOnNode
from pipelines.asking import Source
from pipelines.cluster import driver as room
from pipelines.cluster.driver import Bounds, Driver
from pipelines.cluster.ledger import JOBS, Ledger
from pipelines.cluster.nodes import Lost, News
from pipelines.cluster.seat import Answer
from pipelines.outputs import REPORT

SHORT = Bounds(open_s=0.2)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for nodes at each turn."""
    monkeypatch.setattr(room, "_LOOK_S", 0.0)


def made(out: Path) -> list[str]:
    """Studies whose result lies in its place; nothing else does."""
    folders = sorted(folder.name for folder in out.iterdir() if folder.name != JOBS)
    for name in folders:
        assert [file.name for file in (out / name).iterdir()] == [REPORT]
        assert json.loads((out / name / REPORT).read_text())["study"]["name"] == name
    return folders


def test_all_studies_are_reported_on_once_in_their_order(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    told: list[tuple[str, int, int]] = []
    nodes = Pretended({"a": 1, "b": 2})
    driver = Driver(nodes, Plain(), ledger, out, on_study=lambda *words: told.append(words))
    results = driver.run(sources)
    assert [result.name for result in results] == [source.entry.name for source in sources] == made(out)
    assert [result.folder for result in results] == [out / name for name in made(out)]
    assert {node for node, _ in nodes.tried} == {"a", "b"}
    assert [number for _, number, _ in told] == list(range(5))
    assert (driver.faults, driver.done) == ((), (5, 0))


def test_no_more_seats_than_studies_are_started(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    nodes = Pretended({"a": 8, "b": 8})
    Driver(nodes, Plain(), ledger, out).run(sources[:2])
    assert len(nodes.dismissed) == 2


def test_what_is_done_is_not_done_again_unless_it_changed(
    ledger: Ledger, out: Path, sources: list[Source], tmp_path: Path
) -> None:
    Driver(Pretended({"a": 1}), Plain(), ledger, out).run(sources)
    stamps = {name: (out / name / REPORT).stat().st_ino for name in made(out)}
    source_of(tmp_path / "study2.txt", "other content")
    (out / "study3" / REPORT).write_text("{}")
    again = Driver(Pretended({"b": 1}), Plain(), ledger, out)
    results = again.run(sources)
    assert again.done == (5, 3)
    assert all(result.folder is not None and result.report is not None for result in results)
    now = {name: (out / name / REPORT).stat().st_ino for name in made(out)}
    assert {name for name in now if now[name] != stamps[name]} == {"study2", "study3"}


def test_study_of_a_lost_node_is_read_by_another(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    nodes = Pretended({"a": 1, "b": 1})

    def dies(node: str, study: str) -> News | None:
        if node == "b":
            nodes.gone.add("b")
            return Lost("it is gone")
        return None

    nodes.before = dies
    driver = Driver(nodes, Plain(), ledger, out)
    results = driver.run(sources)
    assert made(out) == [source.entry.name for source in sources]
    assert all(result.problems == () for result in results)
    assert len([node for node, _ in nodes.tried if node == "b"]) == 1
    assert len(nodes.tried) == 6
    # A node that is gone is nobody's fault once all that was on it is done.
    assert driver.faults == ()


def test_study_that_ends_each_process_is_told_and_stops_no_other(
    ledger: Ledger, out: Path, sources: list[Source]
) -> None:
    nodes = Pretended({"a": 1, "b": 1}, before=lambda node, study: Lost("boom") if study == "study1" else None)
    results = Driver(nodes, Plain(), ledger, out, bounds=Bounds(tries=3)).run(sources)
    assert made(out) == ["study0", "study2", "study3", "study4"]
    (problem,) = results[1].problems
    assert (problem.code, results[1].folder) == ("worker_lost", None)
    assert "tried 3 times" in problem.seen and "boom" in problem.seen
    assert len([study for _, study in nodes.tried if study == "study1"]) == 3


def test_node_without_the_checkpoint_is_told_and_others_go_on(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    def opening(node: str) -> CheckpointNotOnNode | None:
        return CheckpointNotOnNode(f"node {node}", seen="mine: is missing") if node == "b" else None

    nodes = Pretended({"a": 1, "b": 2}, opening=opening)
    driver = Driver(nodes, Plain(), ledger, out)
    assert all(result.report is not None for result in driver.run(sources))
    assert [(fault.code, fault.subject) for fault in driver.faults] == [("checkpoint_not_on_node", "node b")]
    assert {node for node, _ in nodes.tried} == {"a"}


def test_node_that_does_not_see_a_file_is_told_and_others_read_it(
    ledger: Ledger, out: Path, sources: list[Source]
) -> None:
    def blind(node: str, study: str) -> News | None:
        return Answer(None, unseen=PathNotOnNode(f"node {node}", seen="a file is not there")) if node == "a" else None

    driver = Driver(Pretended({"a": 1, "b": 1}, before=blind), Plain(), ledger, out)
    assert all(result.report is not None for result in driver.run(sources))
    assert [(fault.code, fault.subject) for fault in driver.faults] == [("path_not_on_node", "node a")]


def test_file_that_no_node_sees_refuses_its_study_alone(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    sources[2].pictures[0].unlink()
    results = Driver(Pretended({"a": 1, "b": 2}), Plain(), ledger, out).run(sources)
    assert made(out) == ["study0", "study1", "study3", "study4"]
    assert [problem.code for problem in results[2].problems] == ["path_not_on_node"]
    assert sources[2].pictures[0].name in results[2].problems[0].seen


def test_out_that_a_node_does_not_see_makes_it_unfit(out: Path, sources: list[Source], ledger: Ledger) -> None:
    ledger.mark.path.write_text("of another folder of that name")
    driver = Driver(Pretended({"a": 1}), Plain(), ledger, out, bounds=SHORT)
    results = driver.run(sources)
    assert [fault.code for fault in driver.faults] == ["path_not_on_node"]
    assert str(out) in driver.faults[0].seen
    assert {problem.code for result in results for problem in result.problems} == {"no_node"}


def test_cluster_without_nodes_is_told_and_not_waited_for_without_end(
    ledger: Ledger, out: Path, sources: list[Source]
) -> None:
    results = Driver(Pretended({}), Plain(), ledger, out, bounds=SHORT).run(sources)
    assert [problem.code for result in results for problem in result.problems] == ["no_node"] * 5


def test_node_whose_seats_end_at_the_start_is_left_out(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    class Dying(Pretended):
        def news(self, timeout_s: float) -> list[tuple[str, News]]:
            return [(key, Lost("no memory") if key.startswith("b") else said) for key, said in super().news(timeout_s)]

    driver = Driver(Dying({"a": 1, "b": 1}), Plain(), ledger, out, bounds=Bounds(tries=1))
    assert all(result.report is not None for result in driver.run(sources))
    assert [(fault.code, fault.subject) for fault in driver.faults] == [("node_unfit", "node b")]


def test_study_without_end_is_ended(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    class Stuck(Pretended):
        def news(self, timeout_s: float) -> list[tuple[str, News]]:
            told = super().news(timeout_s)
            return [(key, said) for key, said in told if not (isinstance(said, Answer) and "study1" in str(said))]

    bounds = Bounds(tries=2, study_s=0.05)
    results = Driver(Stuck({"a": 1, "b": 1}), Plain(), ledger, out, bounds=bounds).run(sources)
    assert made(out) == ["study0", "study2", "study3", "study4"]
    assert [problem.code for problem in results[1].problems] == ["study_overdue"]


def test_interrupt_ends_the_seats_and_what_is_done_stays(ledger: Ledger, out: Path, sources: list[Source]) -> None:
    nodes = Pretended({"a": 2})

    def told(name: str, number: int, total: int) -> None:
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Driver(nodes, Plain(), ledger, out, on_study=told).run(sources)
    assert len(nodes.dismissed) == 2
    left = Driver(nodes, Plain(), ledger, out)
    left.run(sources)
    assert left.done == (5, 3)
