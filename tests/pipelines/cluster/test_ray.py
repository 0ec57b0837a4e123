"""On real Ray nodes: a study has one result, whatever is killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import pytest
from clustered import Plain
from rays import AUTHENTICATION, RayNode, until_there

from imaging.errors import ClusterUnreachable
from imaging.files import shipped
from pipelines.asking import Source
from pipelines.cluster.driver import Driver
from pipelines.cluster.ledger import JOBS, Ledger
from pipelines.cluster.nodes import Cluster, connected, node_of
from pipelines.infer import infer
from pipelines.outputs import REPORT
from pipelines.reporting import StudyResult

PORT = 6399


@dataclass(frozen=True)
class Fragile(Plain):
    """Ends its process at the first try of `study3`, as a library's crash does it."""

    marks: Path

    def open(self) -> Plain:
        return self

    def report(self, source: Source, out: Path) -> StudyResult:
        mark = self.marks / source.entry.name
        if source.entry.name == "study3" and not mark.exists():
            mark.touch()
            os._exit(1)
        return super().report(source, out)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RayNode]]:
    """A cluster with a head; what a test adds is ended, too."""
    for name, value in AUTHENTICATION.items():
        monkeypatch.setenv(name, value)
    # Ray's sockets lie below, and their paths have at most 107 characters.
    home = Path(mkdtemp(prefix="imgpipe_ray"))
    started = [RayNode(PORT, home / "ray")]
    try:
        until_there(PORT, 1)
        yield started
    finally:
        for node in started:
            node.kill()
        shutil.rmtree(home, ignore_errors=True)


@pytest.mark.long
def test_process_that_ends_costs_one_try(nodes: list[RayNode], out: Path, ledger: Ledger, sources: list[Source],
                                         tmp_path: Path) -> None:  # fmt: skip
    with connected(Cluster(f"127.0.0.1:{PORT}", cpus=1)) as ray_nodes:
        (node,) = ray_nodes.alive()
        assert node.places == 1
        driver = Driver(ray_nodes, Fragile(tmp_path), ledger, out)
        results = driver.run(sources)
    assert (tmp_path / "study3").exists()
    assert all(result.problems == () and result.report is not None for result in results)
    assert sorted(folder.name for folder in out.iterdir()) == [JOBS, *sorted(source.entry.name for source in sources)]


@pytest.mark.long
def test_node_that_is_killed_in_the_middle_loses_no_study(nodes: list[RayNode], data: Path, tmp_path: Path) -> None:
    nodes.append(RayNode(PORT, tmp_path / "second", number=1))
    until_there(PORT, 2)
    images = sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))
    assert len(images) == 8
    told: list[str] = []

    def on_study(name: str, number: int, total: int) -> None:
        told.append(name)
        if number == 2:
            nodes[1].kill()

    out, cluster = tmp_path / "out", Cluster(f"127.0.0.1:{PORT}", cpus=1)
    options = {"paths": images, "models": ["hippocampus_mr"], "out": out}
    done = infer(**options, cluster=cluster, on_study=on_study)
    names = [image.name.removesuffix(".nii.gz") for image in images]
    assert sorted(told) == sorted(names)
    assert done.refused == ()
    assert [study.name for study in done.studies] == names
    for study in done.studies:
        assert study.problems == () and study.folder == out / study.name
        assert json.loads((study.folder / REPORT).read_text())["study"]["name"] == study.name
    assert sorted(path.name for path in out.iterdir()) == [JOBS, *sorted(names)]
    assert list((out / JOBS / "work").glob("*")) == []
    # What is done is not done again, and what is told of it is the same.
    stamps = {name: (out / name / REPORT).stat().st_mtime_ns for name in names}
    again = infer(**options, cluster=cluster)
    assert again.studies == done.studies
    assert stamps == {name: (out / name / REPORT).stat().st_mtime_ns for name in names}


@pytest.mark.long
def test_result_is_that_of_one_machine(nodes: list[RayNode], data: Path, tmp_path: Path) -> None:
    options = {"paths": [data / "hippocrop_study1"], "models": [str(shipped("checkpoints") / "hippocampus_mr")]}
    here = infer(**options, out=tmp_path / "here")
    there = infer(**options, out=tmp_path / "there", cluster=Cluster(f"127.0.0.1:{PORT}", cpus=1))
    (one,), (other,) = here.studies, there.studies
    assert one.report is not None and other.report is not None
    moments = {"created", "outputs"}
    assert one.report.model_dump(exclude=moments) == other.report.model_dump(exclude=moments)
    files = {output.file for output in one.report.outputs}
    assert files == {output.file for output in other.report.outputs}
    assert (here.refused, one.problems) == (there.refused, other.problems)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:none"])
def test_cluster_that_is_not_there_is_told(address: str) -> None:
    with pytest.raises(ClusterUnreachable, match=address), connected(Cluster(address)):
        pass


@pytest.mark.parametrize(
    ("resources", "cpus", "expected"),
    [
        ({"CPU": 8.0}, 4, (2, 4.0, 0)),
        ({"CPU": 2.0}, 4, (1, 2.0, 0)),
        ({"CPU": 32.0, "GPU": 4.0}, 4, (4, 4.0, 1)),
        ({"CPU": 4.0, "GPU": 4.0}, 4, (4, 1.0, 1)),
        ({"CPU": 2.0, "GPU": 4.0}, 4, (2, 1.0, 1)),
        ({"CPU": 0.0}, 4, None),
        ({}, 4, None),
    ],
)
def test_places_of_a_node(resources: dict[str, float], cpus: int, expected: tuple[int, float, int] | None) -> None:
    told = {"Alive": True, "Resources": resources, "NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.1",
            "NodeManagerHostname": "worker"}  # fmt: skip
    node = node_of(told, cpus)
    assert (None if node is None else (node.places, node.cpus, node.gpus)) == expected
    assert node_of({**told, "Alive": False}, cpus) is None
