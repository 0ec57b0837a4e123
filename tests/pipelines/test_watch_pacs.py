"""The watcher between the two ends of a real PACS: what comes from it goes back to it, once."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pytest
from arriving import instance, study_uid, told
from certified import certificates
from pacs import DICOMWEB_PLUGIN, Orthanc, data_set, free_port, orthanc, required, storescu
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, RLELossless, SegmentationStorage
from watching import Stub, read_report

from pipelines.association import Peer
from pipelines.dicomweb import Client, Web
from pipelines.receive import Listening, Receiver
from pipelines.send import Confirm, send
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.watch import In, Out, watch
from pipelines.watcher import Rules
from pipelines.worker import Reading, Reporting

ROOT = Path(__file__).parents[2]
RULES = Rules(
    complete=Completeness(series_quiet_s=0.2, study_quiet_s=1),
    retries=Retries(first_s=0.2),
    redeliveries=Retries(most=50, first_s=0.2, longest_s=0.5),
    settle_s=0.1,
)


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def pacs(tmp_path: Path, port: int) -> Iterator[Orthanc]:
    with orthanc(tmp_path / "orthanc", modalities={"imgpipe": ["IMGPIPE", "127.0.0.1", port]}) as server:
        yield server


class Watching:
    """A watcher in a thread, and a look into its store from outside."""

    def __init__(self, root: Path, come_from: In, go_to: Out, reading: Reading | None = None) -> None:
        self._root, self._stop = root, threading.Event()
        self._reading = reading or Stub(dicom=True, log=root / "log")
        self._error: BaseException | None = None
        self._arguments = (come_from, go_to)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        come_from, go_to = self._arguments
        try:
            watch(come_from=come_from, go_to=go_to, store=self._root / "store", rules=RULES, stop=self._stop,
                  reading=self._reading)  # fmt: skip
        except BaseException as error:
            self._error = error

    def states(self) -> list[State]:
        with Store(self._root / "store") as store:
            return [job.state for job in store.jobs.all()]

    def until(self, condition: Callable[[], object], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._thread.is_alive(), self._error
            assert time.monotonic() < deadline, self.states()
            time.sleep(0.1)

    def end(self) -> None:
        self._stop.set()
        self._thread.join(60)
        assert self._error is None


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_sent_by_orthanc_and_storescu_the_results_come_back_by_c_store(
    pacs: Orthanc, port: int, tmp_path: Path
) -> None:
    peer = Peer("ORTHANC", "127.0.0.1", pacs.dicom_port)
    listening = Listening("IMGPIPE", port, host="127.0.0.1")
    watching = Watching(tmp_path, In(listening=listening), Out(outbox=tmp_path / "out", peers=(peer,)))
    try:
        watching.until(lambda: listens(port))
        for number in (1, 2, 3):
            (tmp_path / f"IM{number}").write_bytes(instance(1, number))
            assert storescu(tmp_path / f"IM{number}", port=port).returncode == 0
            name = pacs.post("/instances", instance(2, number))["ID"]
            pacs.post("/modalities/imgpipe/store", [name])
        watching.until(lambda: watching.states() == [State.DONE] * 2)
    finally:
        watching.end()
    kept = pacs.instances()
    for study in (1, 2):
        assert read_report(tmp_path / "out" / study_uid(study)).version == 1
        assert told(study, 1001, 99)["sop_instance_uid"] in kept
    assert len((tmp_path / "log").read_text().splitlines()) == 2


@pytest.mark.long
def test_results_of_real_studies_are_in_the_pacs_as_they_were_written(
    pacs: Orthanc, port: int, tmp_path: Path, study1: Path, study2: Path
) -> None:
    """One study by Orthanc and one, compressed, by dcmtk; SEG and SR to one PACS by C-STORE, to another by STOW-RS."""
    peer = Peer("ORTHANC", "127.0.0.1", pacs.dicom_port)
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in study2.glob("*.dcm"):
        image = dcmread(file)
        image.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)
        image.save_as(packed / file.name)
    with orthanc(tmp_path / "other") as other:
        watching = Watching(tmp_path, In(listening=Listening("IMGPIPE", port, host="127.0.0.1")),
                            Out(peers=(peer,), webs=(Web(other.web),)), Reporting(("hippocampus_mr",)))  # fmt: skip
        try:
            watching.until(lambda: listens(port))
            names = [pacs.post("/instances", file.read_bytes())["ID"] for file in study1.glob("*.dcm")]
            pacs.post("/modalities/imgpipe/store", names)
            assert storescu("-R", "-xr", "+sd", packed, port=port).returncode == 0
            watching.until(lambda: watching.states() == [State.DONE] * 2, 300)
        finally:
            watching.end()
        results = sorted((tmp_path / "store" / "results").rglob("*.dcm"))
        assert Counter(file.name for file in results) == {"seg_hippocampus_mr.dcm": 2, "sr.dcm": 2}
        by_store, by_stow = pacs.instances(), other.instances()
        with Client(Web(other.web)) as client, Client(Web(pacs.web)) as first:
            for file in results:
                written = dcmread(file, stop_before_pixels=True)
                names_of = written.StudyInstanceUID, written.SeriesInstanceUID, written.SOPInstanceUID
                # Preamble and meta header do not travel by C-STORE.
                kept = pacs.raw(f"/instances/{by_store[names_of[2]]}/file")
                assert data_set(kept) == data_set(file.read_bytes()), file
                assert other.raw(f"/instances/{by_stow[names_of[2]]}/file") == file.read_bytes(), file
                assert client.instance(*names_of) == file.read_bytes()
                assert names_of[1:] in set(client.instances(names_of[0])) & set(first.instances(names_of[0]))


def test_over_tls_in_both_directions_and_what_was_sent_is_committed_to(port: int, tmp_path: Path) -> None:
    """A PACS that speaks TLS alone: a receiver of ours, which commits to what it holds."""
    tls = certificates(tmp_path)
    (tmp_path / "IM1").write_bytes(instance(1, 1))
    with (
        Store(tmp_path / "pacs", watching=True) as store,
        Receiver(Listening("PACS", 0, host="127.0.0.1", tls=tls), store, folder=store.root, holds=store.holds) as pacs,
    ):
        come_from = In(listening=Listening("IMGPIPE", port, host="127.0.0.1", tls=tls))
        peer = Peer("PACS", "127.0.0.1", pacs.port)
        watching = Watching(tmp_path, come_from, Out(peers=(peer,), tls=tls))
        try:
            watching.until(lambda: listens(port))
            to = Peer("IMGPIPE", "127.0.0.1", port)
            [sent] = send([tmp_path / "IM1"], to, tls=tls, confirm=Confirm.COMMITMENT).files
            assert sent.confirmed_by == "commitment", sent.error
            watching.until(lambda: watching.states() == [State.DONE])
        finally:
            watching.end()
        assert store.holds(told(1, 1001, 99)["sop_instance_uid"]) is not None


def test_fetched_over_dicomweb_and_stored_back_our_own_outputs_begin_nothing(pacs: Orthanc, tmp_path: Path) -> None:
    for number in (1, 2):
        pacs.post("/instances", instance(1, number))
    web = Web(pacs.web)
    watching = Watching(tmp_path, In(web=web, poll_s=0.3, days=0), Out(webs=(web,)))
    try:
        watching.until(lambda: (tmp_path / "store" / "store.sqlite").exists() and State.DONE in watching.states())
        ours = told(1, 1001, 99)["sop_instance_uid"]
        sent = (tmp_path / "store" / "results" / "1.1" / study_uid(1) / "seg_stub.dcm").read_bytes()
        assert pacs.raw(f"/instances/{pacs.instances()[ours]}/file") == sent

        def came_back() -> bool:
            with Store(tmp_path / "store") as store:
                return "own_output_returned" in [event.code for event in store.jobs.events()]

        watching.until(came_back)
        pacs.post("/instances", instance(1, 3))
        watching.until(lambda: watching.states() == [State.DONE] * 2)
        time.sleep(2)
        assert watching.states() == [State.DONE] * 2
    finally:
        watching.end()
    assert (tmp_path / "log").read_text().split("\n")[:2] == [f"{study_uid(1)} 1 2", f"{study_uid(1)} 2 3"]


@pytest.mark.long
def test_five_minutes_of_the_page_are_as_they_are_written_there(tmp_path: Path) -> None:
    """Its commands, word for word but for the ports; the result is in Orthanc and in the outbox."""
    required("/usr/sbin/Orthanc", str(DICOMWEB_PLUGIN), "/usr/bin/curl")
    ports = {old: str(free_port()) for old in ("4242", "8042", "11112")}
    page = re.sub(r"\b(4242|8042|11112)\b", lambda found: ports[found[0]], (ROOT / "docs/pacs.md").read_text())
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "orthanc.json").write_text(next(text for language, text in blocks if language == "json"))
    commands = next(text for language, text in blocks if not language)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    log = tmp_path / "log"
    with log.open("wb") as out:
        # `sleep` goes on where the page ends, so that what it has begun can be ended as one group.
        shell = subprocess.Popen(["bash", "-c", f"{commands}\nexec sleep 600"], cwd=tmp_path, env=environment,
                                 stdout=out, stderr=out, start_new_session=True)  # fmt: skip
    server = Orthanc(tmp_path, int(ports["4242"]), int(ports["8042"]))
    try:
        deadline = time.monotonic() + 400
        classes: set[str] = set()
        while not (
            {SegmentationStorage, Comprehensive3DSRStorage} <= classes and [*tmp_path.glob("out/*/report.json")]
        ):
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(1)
            with suppress(OSError):
                kept = [server.raw(f"/instances/{name}/file") for name in server.get("/instances")]
                classes = {dcmread(BytesIO(file)).SOPClassUID for file in kept}
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.wait(60)
    (report,) = tmp_path.glob("out/*/report.json")
    assert json.loads(report.read_text())["findings"]
    assert "  receiving " in log.read_text(errors="replace")  # what `imgpipe jobs list` said
