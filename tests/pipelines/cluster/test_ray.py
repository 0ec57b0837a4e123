"""On real Ray nodes: a study has one result, whatever is killed, and a node that is not fit is told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import psutil
import pytest
from clustered import Plain
from rays import AUTHENTICATION, ROOT, RayNode, until_there

from imaging.checkpoint import METRICS, SUMS
from imaging.errors import CheckpointNotOnNode, ClusterUnreachable, NoNode
from imaging.files import PARTIAL, sha256_of, shipped
from imaging.report.report import Report
from pipelines.asking import Source
from pipelines.cli.verb import status_of
from pipelines.cluster.driver import Driver
from pipelines.cluster.ledger import JOBS, Ledger
from pipelines.cluster.nodes import Cluster, connected, node_of
from pipelines.infer import infer
from pipelines.outputs import REPORT
from pipelines.reporting import StudyResult

PORT = 6399
CONSOLE_SCRIPT = Path(sys.executable).parent / "imgpipe"


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


@dataclass(frozen=True)
class Witness(Plain):
    """Writes down which GPU each study was read with."""

    marks: Path

    def open(self) -> Plain:
        return self

    def report(self, source: Source, out: Path) -> StudyResult:
        (self.marks / source.entry.name).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
        return super().report(source, out)


def noted(out: Path) -> dict[str, int]:
    """The studies of which it is written down that they are done, and when their reports were written (ns)."""
    names = {path.name for path in out.glob("[!.]*") if (path / REPORT).is_file()}
    reports = {sha256_of(out / name / REPORT): name for name in names}
    digests = [json.loads(record.read_text())["report_sha256"] for record in (out / JOBS / "done").rglob("[!.]*.json")]
    found = [reports[digest] for digest in digests]
    assert len(set(found)) == len(found)
    return {name: (out / name / REPORT).stat().st_mtime_ns for name in found}


def assert_whole(out: Path) -> None:
    """What lies in the place of a result is one, with all its files; what was under way lies below `.jobs` alone."""
    for folder in out.iterdir():
        if folder.name == JOBS:
            continue
        assert not folder.name.startswith(".") and not list(folder.rglob(f"*{PARTIAL}"))
        report = Report.model_validate_json((folder / REPORT).read_text())
        assert report.study.name == folder.name
        assert {path.name for path in folder.iterdir()} == {REPORT, *(output.file for output in report.outputs)}
        assert all(sha256_of(folder / output.file) == output.sha256 for output in report.outputs)


def stopped_in_the_middle(command: Sequence[str], number: signal.Signals, out: Path, *, group: bool) -> int:
    """Start a call, send it a signal when some studies are done, and wait for its end; gives its exit status.

    With `group` its children get it, too, as from a terminal; they have all ended when this returns.
    """
    with (out.parent / "log").open("w") as log:
        call = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    ends = time.monotonic() + 300
    while len(list((out / JOBS / "done").rglob("[!.]*.json"))) < 3:
        assert call.poll() is None and time.monotonic() < ends, (out.parent / "log").read_text()
        time.sleep(0.02)
    children = psutil.Process(call.pid).children(recursive=True)
    (os.killpg if group else os.kill)(call.pid, number)
    status = call.wait(60)
    _, left = psutil.wait_procs(children, timeout=120)  # those of Ray look now and then whether it is still there
    assert left == []
    return status


@pytest.fixture
def many(data: Path, tmp_path: Path) -> Path:
    """A folder of so many studies that a call is not through before it is stopped."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for image in sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz")):
        for copy in "abc":
            shutil.copyfile(image, folder / f"{image.name.removesuffix('.nii.gz')}_{copy}.nii.gz")
    return folder


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RayNode]]:
    """A cluster with a head; what a test adds is ended, too."""
    with ray_cluster(monkeypatch) as started:
        yield started


@contextmanager
def ray_cluster(monkeypatch: pytest.MonkeyPatch, **head: Any) -> Iterator[list[RayNode]]:
    """See `nodes`; `head` is what its head has."""
    for name, value in AUTHENTICATION.items():
        monkeypatch.setenv(name, value)
    # Ray's sockets lie below, and their paths have at most 107 characters.
    home = Path(mkdtemp(prefix="imgpipe_ray"))
    started = [RayNode(PORT, home / "ray", **head)]
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


# ------------------------------------------------------------------------------------------------- this machine alone


def test_devices_of_this_machine_read_studies_and_nothing_is_left_behind(data: Path, tmp_path: Path) -> None:
    """By the command line, in a folder in which a file lies that Ray would have its processes import."""
    home, work, out = tmp_path / "home", tmp_path / "work", tmp_path / "out"
    home.mkdir()
    work.mkdir()
    (work / "numpy.py").write_text("raise SystemExit('a file of the working folder was run')\n")
    names = ["hippocampus_001", "hippocampus_003"]
    images = [data / "hippocampus" / "imagesTr" / f"{name}.nii.gz" for name in names]
    command = [str(CONSOLE_SCRIPT), "infer", *map(str, images), "--model", "hippocampus_mr", "--formats", "json",
               "--engine-cluster", "ray", "--cluster-address", "local", "--cluster-cpus", "64", "--out", str(out),
               "--json"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    # An empty entry would be the folder of the call.
    path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    ran = subprocess.run(command, cwd=work, env={**environment, "HOME": str(home), "PYTHONPATH": path},
                         capture_output=True, text=True, check=False, timeout=240)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert [study["name"] for study in told["studies"]] == names
    assert told["refused"] == [] and all(study["problems"] == [] for study in told["studies"])
    for study in told["studies"]:
        report = json.loads((out / study["name"] / REPORT).read_text())
        assert report == study["report"] and len(report["findings"]) == 2
    assert set(noted(out)) == set(names)
    assert sorted(path.name for path in out.iterdir()) == [JOBS, *names]
    assert not (home / ".ray").exists(), "a token that the user did not ask for"


# ------------------------------------------------------------------------------------------------------ several nodes


@pytest.mark.long
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_call_that_is_stopped_goes_on(number: signal.Signals, status: int, many: Path, tmp_path: Path) -> None:
    """Ctrl-C of a terminal, and kill -9: on a cluster of this machine, which ends with the call."""
    out = tmp_path / "out"
    command = [str(CONSOLE_SCRIPT), "infer", str(many), "--model", "hippocampus_mr", "--out", str(out), "--json",
               "--engine-cluster", "ray", "--cluster-address", "local", "--cluster-cpus", "1"]  # fmt: skip
    assert stopped_in_the_middle(command, number, out, group=number == signal.SIGINT) == status
    assert_goes_on(command, out, studies=24)


@pytest.mark.long
def test_call_that_is_killed_leaves_its_cluster_to_the_next(nodes: list[RayNode], many: Path, tmp_path: Path) -> None:
    """The nodes of a cluster outlive who calls; what it had them do ends with it."""
    out = tmp_path / "out"
    command = [str(CONSOLE_SCRIPT), "infer", str(many), "--model", "hippocampus_mr", "--out", str(out), "--json",
               "--engine-cluster", "ray", "--cluster-address", f"127.0.0.1:{PORT}"]  # fmt: skip
    assert stopped_in_the_middle(command, signal.SIGKILL, out, group=False) == -signal.SIGKILL
    assert_goes_on(command, out, studies=24)


def assert_goes_on(command: Sequence[str], out: Path, *, studies: int) -> None:
    """The same command does what is left, and that alone."""
    assert_whole(out)
    before = noted(out)
    assert 3 <= len(before) < studies
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert len({study["name"] for study in told["studies"]}) == len(told["studies"]) == studies
    assert told["refused"] == [] and all(study["problems"] == [] for study in told["studies"])
    assert_whole(out)
    after = noted(out)
    assert len(after) == studies
    assert {name: after[name] for name in before} == before
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [JOBS]
    assert list((out / JOBS / "work").glob("*")) == []


def other_imgpipe(folder: Path) -> Path:
    """A copy of this imgpipe without its checkpoints, as another machine has it; gives where these belong."""
    ours = shutil.ignore_patterns("__pycache__")
    for room in ("imaging", "pipelines", "configs"):
        shutil.copytree(ROOT / room, folder / room, ignore=ours)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "checkpoints").mkdir()
    return folder / "checkpoints"


@pytest.mark.long
def test_node_without_the_checkpoint_or_with_another_one_is_told(data: Path, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    other_imgpipe(tmp_path / "without")
    differing = other_imgpipe(tmp_path / "differing") / "hippocampus_mr"
    shutil.copytree(shipped("checkpoints") / "hippocampus_mr", differing)
    metrics, before = differing / METRICS, sha256_of(differing / METRICS)
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "of": "another training"}))
    (differing / SUMS).write_text((differing / SUMS).read_text().replace(before, sha256_of(metrics)))
    images = sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))[:3]
    options = {"paths": images, "models": ["hippocampus_mr"], "out": tmp_path / "out",
               "cluster": Cluster(f"127.0.0.1:{PORT}", cpus=1)}  # fmt: skip

    with ray_cluster(monkeypatch, root=tmp_path / "without") as started:
        started.append(RayNode(PORT, tmp_path / "second", number=1, root=tmp_path / "differing"))
        until_there(PORT, 2)
        begun = time.monotonic()
        nobody = infer(**options)
        assert time.monotonic() - begun < 300, "half of what a node may take to open its checkpoints"
        assert all(isinstance(study.problems[-1], NoNode) and study.report is None for study in nobody.studies)
        assert told_of_nodes(nobody.refused) == ["hippocampus_mr:", "unknown_checkpoint:"]

        started.append(RayNode(PORT, tmp_path / "third", number=2))
        until_there(PORT, 3)
        done = infer(**options)
    assert [study.problems for study in done.studies] == [(), (), ()]
    assert all(study.folder is not None and (study.folder / REPORT).is_file() for study in done.studies)
    assert told_of_nodes(done.refused) == ["hippocampus_mr:", "unknown_checkpoint:"]
    assert status_of(done.refused) == 2


def told_of_nodes(refused: Sequence[Any]) -> list[str]:
    """How what is told of each node begins; each names the node, and what to do."""
    assert all(type(error) is CheckpointNotOnNode and error.subject.startswith("node ") for error in refused)
    assert len({error.subject for error in refused}) == len(refused)
    assert all("Copy the checkpoint to the node" in str(error) for error in refused)
    return sorted(error.seen.split()[0] for error in refused)


@pytest.mark.long
def test_each_gpu_of_a_node_has_a_seat_of_its_own(ledger: Ledger, sources: list[Source], out: Path, tmp_path: Path,
                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """On a node that says it has two: what a seat is given, not what it does with it."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with ray_cluster(monkeypatch, cpus=2, gpus=2), connected(Cluster(f"127.0.0.1:{PORT}")) as ray_nodes:
        (node,) = ray_nodes.alive()
        assert (node.places, node.gpus) == (2, 1)
        results = Driver(ray_nodes, Witness(marks), ledger, out).run(sources)
    assert all(result.problems == () for result in results)
    seen = [mark.read_text() for mark in marks.iterdir()]
    assert len(seen) == len(sources) and set(seen) <= {"0", "1"}


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
