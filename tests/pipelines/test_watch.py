"""From a folder to a folder: each study once, whatever the worker, the disk or the sender does."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from arriving import instance, study_uid, told
from pacs import free_port
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt
from watching import Stub, read_report

from imaging.errors import ConfigInvalid, DeliveryFailed, MissingSlices, StoreInUse, WorkerLost
from pipelines.association import at_once
from pipelines.delivery import Outbox, Result
from pipelines.disk import Gate, Marks
from pipelines.receive import Listening, Receiver
from pipelines.runner import Patience
from pipelines.store import Store
from pipelines.store import store as store_module
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.watch import In, Out, Shown, watch
from pipelines.watcher import Rules, Watcher
from pipelines.web.page import Address

QUICK = Rules(
    complete=Completeness(series_quiet_s=0.1, study_quiet_s=0.3, timeout_s=30),
    retries=Retries(most=2, first_s=0.1, jitter=0),
    redeliveries=Retries(most=2, first_s=0.1, jitter=0),
    patience=Patience(study_s=60, silence_s=60),
    settle_s=0.1,
    at_once=1,
    drain_s=20,
)


class Running:
    """A watcher in this process, its `run` in a thread."""

    def __init__(
        self,
        root: Path,
        reading: Any,
        *,
        rules: Rules = QUICK,
        destinations: Any = None,
        listen: bool = False,
        inbox: Path | None = None,
    ) -> None:
        self.store = Store(root / "store", watching=True, patience_s=store_module.PATIENCE_S)
        self.outbox = root / "out"
        self.inbox = inbox or root / "in"
        self.inbox.mkdir(exist_ok=True)
        self.said: list[str] = []
        self._ear = logging.Handler()
        self._ear.emit = lambda record: self.said.append(record.getMessage())  # type: ignore[method-assign]
        logging.getLogger("pipelines").addHandler(self._ear)
        places = destinations or [Outbox(self.outbox, owner="tests")]
        self.stop = threading.Event()
        self.error: BaseException | None = None
        receiver = None
        if listen:
            listening = Listening("IMGPIPE", 0, host="127.0.0.1")
            receiver = Receiver(listening, self.store, folder=self.store.root, holds=self.store.holds)
        gate = Gate(self.store.root, Marks(high=1, low=1))  # what a disk does that is really full
        self._watcher = Watcher(
            self.store, reading, places, inbox=self.inbox, receiver=receiver, rules=rules, gate=gate
        )
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        if receiver is not None:
            self.until(lambda: receiver._server is not None)
            self.port = receiver.port

    def _run(self) -> None:
        try:
            self._watcher.run(self.stop)
        except BaseException as error:
            self.error = error

    def states(self) -> list[State]:
        return [job.state for job in self.store.jobs.all()]

    def until(self, condition: Callable[[], object], seconds: float = 120) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self._thread.is_alive(), self.error
            assert time.monotonic() < deadline, self.store.jobs.all()
            time.sleep(0.02)

    def end(self) -> None:
        self.stop.set()
        self._thread.join(60)
        logging.getLogger("pipelines").removeHandler(self._ear)
        assert not self._thread.is_alive()
        self.store.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(reading: Any, **options: Any) -> Running:
        started.append(Running(tmp_path, reading, **options))
        return started[-1]

    yield start
    for running in started:
        running.end()


def send(store: Store, study: int, *numbers: int, **changed: Any) -> None:
    for number in numbers:
        store.put(instance(study, number, **changed), source="tests", **told(study, number))


def test_files_in_the_inbox_become_a_study_in_the_outbox_and_a_late_one_a_new_version(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    watcher = run(Stub(log=tmp_path / "log"))
    below = watcher.inbox / "CD" / "SER 1"
    below.mkdir(parents=True)
    for study in (1, 2):
        for number in (1, 2, 3):
            (below / f"{study}_{number}").write_bytes(instance(study, number))
    (below / "notes.txt").write_text("no image")
    watcher.until(lambda: watcher.states() == [State.DONE] * 2)
    watcher.until(lambda: not any(path.is_file() for path in watcher.inbox.rglob("*")))
    for study in (1, 2):
        report = read_report(watcher.outbox / study_uid(study))
        assert (report.version, report.replaces) == (1, None)
    first = watcher.store.jobs.standing(study_uid(1))
    assert first is not None
    (watcher.inbox / "late").write_bytes(instance(1, 4))
    (watcher.inbox / "again").write_bytes(instance(2, 1))
    watcher.until(lambda: watcher.states() == [State.DONE] * 3)
    report = read_report(watcher.outbox / study_uid(1))
    assert report.version == 2
    assert report.replaces is not None
    assert (report.replaces.version, report.replaces.report_sha256) == (1, first.report_sha256)
    lines = (tmp_path / "log").read_text().splitlines()
    assert sorted(lines) == [f"{study_uid(1)} 1 3", f"{study_uid(1)} 2 4", f"{study_uid(2)} 1 3"]
    assert sorted(path.name for path in watcher.outbox.iterdir()) == [study_uid(1), study_uid(2)]


def test_what_raises_hangs_dies_or_lies_is_tried_again_and_quarantined_and_stops_no_other(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    trouble = {".1": "raise", ".2": "refuse", ".3": "hang", ".4": "die", ".5": "lie", ".6": "elsewhere"}
    rules = Rules(**{**_fields(QUICK), "patience": Patience(study_s=1, per_mib_s=0)})
    watcher = run(Stub(trouble=trouble, log=tmp_path / "log"), rules=rules)
    for study in range(1, 8):
        send(watcher.store, study, 1)
    watcher.until(lambda: all(state in (State.DONE, State.FAILED, State.QUARANTINED) for state in watcher.states()))
    jobs = watcher.store.jobs.all()
    assert [job.state for job in jobs] == [
        State.QUARANTINED, State.FAILED, *[State.QUARANTINED] * 4, State.DONE,
    ]  # fmt: skip
    codes = [job.reason["code"] if job.reason else None for job in jobs]
    assert codes == ["study_failed", "missing_slices", "study_overdue", "worker_lost", "output_mismatch",
                     "output_mismatch", None]  # fmt: skip
    assert [job.starts for job in jobs] == [2, 1, 2, 2, 2, 2, 1]
    assert "Doe" not in str([event.detail for event in watcher.store.jobs.events()])
    assert [path.name for path in watcher.outbox.iterdir()] == [study_uid(7)]
    assert [path.name for path in watcher.store.contents.results.iterdir()] == ["7.1"]


def test_neighbours_of_what_hangs_or_dies_lose_no_try(run: Callable[..., Running]) -> None:
    rules = Rules(**{**_fields(QUICK), "at_once": 3, "patience": Patience(study_s=1, per_mib_s=0)})
    watcher = run(Stub(trouble={".1": "once:block", ".5": "once:die"}, seconds=0.4), rules=rules)
    for study in range(1, 8):
        send(watcher.store, study, 1)
    watcher.until(lambda: watcher.states() == [State.DONE] * 7)
    # What waited for the network beyond its time limit was not overdue; of what died with another nobody knows.
    assert [job.faults for job in watcher.store.jobs.all()] == [1, 0, 0, 0, 0, 0, 0]
    assert len(list(watcher.outbox.iterdir())) == 7
    assert sum("given back, its worker was lost" in told for told in watcher.said) >= 3


def test_a_worker_has_several_studies_in_hand_and_no_more_than_it_may(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    watcher = run(Stub(seconds=0.1), rules=Rules(**{**_fields(QUICK), "at_once": 3}))
    most = 0
    for study in range(1, 13):
        send(watcher.store, study, 1)

    def done() -> bool:
        nonlocal most
        most = max(most, watcher.states().count(State.RUNNING))
        return watcher.states() == [State.DONE] * 12

    watcher.until(done)
    assert most in (2, 3)
    passed = [event.detail for event in watcher.store.jobs.events(most=10_000) if event.code == "stages_passed"]
    assert len(passed) == 12
    assert all(detail is not None and 0.1 <= detail["network"] < 0.3 for detail in passed)


def _fields(rules: Rules) -> dict[str, Any]:
    return {name: getattr(rules, name) for name in Rules.__slots__}


def test_what_goes_wrong_once_is_done_at_the_second_try(run: Callable[..., Running]) -> None:
    watcher = run(Stub(trouble={".1": "once:die", ".2": "once:raise"}))
    for study in (1, 2):
        send(watcher.store, study, 1)
    watcher.until(lambda: watcher.states() == [State.DONE] * 2)
    assert [job.faults for job in watcher.store.jobs.all()] == [1, 1]


def test_workers_that_cannot_start_end_the_watcher_with_the_reason(run: Callable[..., Running]) -> None:
    watcher = run(Stub(setup="broken"))
    with pytest.raises(AssertionError):
        watcher.until(lambda: False)
    assert isinstance(watcher.error, MissingSlices)


def test_workers_that_die_at_the_start_end_the_watcher_after_some_tries(run: Callable[..., Running]) -> None:
    watcher = run(Stub(setup="dies"), rules=Rules(**{**_fields(QUICK), "patience": Patience(starts=2)}))
    with pytest.raises(AssertionError):
        watcher.until(lambda: False)
    assert isinstance(watcher.error, WorkerLost)


def test_told_to_end_it_finishes_what_runs_and_begins_nothing(run: Callable[..., Running], tmp_path: Path) -> None:
    watcher = run(Stub(seconds=1.0, log=tmp_path / "log"))
    for study in (1, 2):
        send(watcher.store, study, 1)
    watcher.until(lambda: State.RUNNING in watcher.states())
    watcher.stop.set()
    watcher._thread.join(30)
    assert watcher.states() == [State.DONE, State.READY]
    assert [path.name for path in watcher.outbox.iterdir()] == [study_uid(1)]
    assert len((tmp_path / "log").read_text().splitlines()) == 1


def test_what_does_not_end_in_time_is_given_back_without_a_fault(run: Callable[..., Running]) -> None:
    watcher = run(Stub(trouble={".1": "hang"}), rules=Rules(**{**_fields(QUICK), "drain_s": 0.5}))
    send(watcher.store, 1, 1)
    watcher.until(lambda: State.RUNNING in watcher.states())
    watcher.stop.set()
    watcher._thread.join(30)
    [job] = watcher.store.jobs.all()
    assert (job.state, job.faults) == (State.READY, 0)
    assert list(watcher.store.contents.results.iterdir()) == []


class Away:
    """A destination that is away for a while."""

    name = "pacs"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.got: list[str] = []

    def deliver(self, result: Result) -> None:
        if self.failures:
            self.failures -= 1
            raise DeliveryFailed(self.name, seen="away")
        self.got.append(result.study_uid)


def test_a_destination_that_is_away_holds_up_no_other_and_gets_it_later(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    away, outbox = Away(1), Outbox(tmp_path / "out", owner="tests")
    watcher = run(Stub(log=tmp_path / "log"), destinations=[away, outbox])
    send(watcher.store, 1, 1)
    watcher.until(lambda: watcher.states() == [State.DONE])
    assert away.got == [study_uid(1)]
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    delivered = [event.detail for event in watcher.store.jobs.events() if event.code == "delivered"]
    assert [detail["destination"] for detail in delivered if detail] == [outbox.name, "pacs"]


@pytest.fixture
def unwritable(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """An outbox that cannot be written, by its parameter; gives what mends it."""
    out = tmp_path / "out"
    if request.param == "a file in its place":
        out.write_text("a file")
        yield out.unlink
        return
    out.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", out], check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield lambda: subprocess.run(["mount", "-o", "remount,rw", out], check=True) and None
    subprocess.run(["umount", "-l", out], check=True)


@pytest.mark.parametrize("unwritable", ["a file in its place", "read-only"], indirect=True)
def test_an_outbox_that_cannot_be_written_keeps_the_result_and_release_delivers_it(
    unwritable: Callable[[], None], run: Callable[..., Running], tmp_path: Path
) -> None:
    watcher = run(Stub(log=tmp_path / "log"))
    send(watcher.store, 1, 1)
    watcher.until(lambda: watcher.states() == [State.QUARANTINED])
    [job] = watcher.store.jobs.all()
    assert job.reason is not None
    assert job.reason["code"] == "delivery_failed"
    unwritable()
    watcher.store.jobs.release(job)
    watcher.until(lambda: watcher.states() == [State.DONE])
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    read_report(tmp_path / "out" / study_uid(1))


def test_what_should_go_where_nobody_delivers_any_more_waits_for_a_person(tmp_path: Path) -> None:
    first = Running(tmp_path, Stub(), destinations=[Away(1000)])
    send(first.store, 1, 1)
    first.until(lambda: first.states() == [State.DELIVERING])
    first.end()
    second = Running(tmp_path, Stub())
    second.until(lambda: second.states() == [State.QUARANTINED])
    [job] = second.store.jobs.all()
    second.end()
    assert job.reason is not None
    assert job.reason["subject"] == "pacs"


def test_a_wall_clock_that_is_set_back_changes_nothing(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = run(Stub())
    send(watcher.store, 1, 1)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr("pipelines.store.arrivals.wall", lambda: "1970-01-01T00:00:00.000Z")
    send(watcher.store, 1, 2)
    send(watcher.store, 2, 1)
    watcher.until(lambda: watcher.states() == [State.DONE] * 2)
    rows = watcher.store.database.read("SELECT seq, received_at FROM instances ORDER BY seq")
    assert rows[0]["received_at"] > rows[1]["received_at"]
    assert [len(watcher.store.jobs.members(job)) for job in watcher.store.jobs.all()] == [2, 1]


def test_a_study_sent_twice_at_once_and_ten_interleaved_are_reported_once_each(
    run: Callable[..., Running], tmp_path: Path
) -> None:
    patient = Completeness(series_quiet_s=0.1, study_quiet_s=4)  # longer than the sending takes
    watcher = run(Stub(log=tmp_path / "log"), listen=True, rules=Rules(**{**_fields(QUICK), "complete": patient}))
    orders = [[(study, number) for study in range(10) for number in range(3)] for _ in range(4)]
    for seed, order in enumerate(orders):
        random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(4) as threads:
        statuses = [status for sent in threads.map(lambda order: scu(watcher.port, order), orders) for status in sent]
    assert statuses == [0] * 120
    watcher.until(lambda: watcher.states() == [State.DONE] * 10)
    assert len(watcher.store.database.read("SELECT * FROM instances")) == 30
    for study in range(10):
        folder = watcher.outbox / study_uid(study)
        assert read_report(folder).version == 1
        assert (folder / "count.txt").read_text().startswith("3 files,")
    assert len((tmp_path / "log").read_text().splitlines()) == 10


def scu(port: int, order: list[tuple[int, int]]) -> list[int]:
    """Send instances over one association; gives the statuses."""
    entity = AE("TESTS")
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    association = entity.associate("127.0.0.1", port, ae_title="IMGPIPE", evt_handlers=[(evt.EVT_CONN_OPEN, at_once)])
    assert association.is_established
    datasets = [pydicom.dcmread(BytesIO(instance(study, number))) for study, number in order]
    statuses = [int(association.send_c_store(dataset).Status) for dataset in datasets]
    association.release()
    return statuses


def test_what_comes_while_the_workers_hang_is_received_all_the_same(run: Callable[..., Running]) -> None:
    watcher = run(Stub(trouble={".1": "hang"}), listen=True, rules=Rules(**{**_fields(QUICK), "drain_s": 0}))
    send(watcher.store, 1, 1)
    watcher.until(lambda: watcher.states() == [State.RUNNING])
    assert scu(watcher.port, [(study, number) for study in (2, 3) for number in (1, 2)]) == [0] * 4
    watcher.until(lambda: watcher.states() == [State.RUNNING, State.READY, State.READY])


def test_it_needs_somewhere_for_studies_to_come_from_and_for_results_to_go_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid):
        watch(come_from=In(), go_to=Out(tmp_path / "o"), store=tmp_path / "s", reading=Stub(), stop=threading.Event())
    with pytest.raises(ConfigInvalid):
        watch(come_from=In(tmp_path), go_to=Out(), store=tmp_path / "s", reading=Stub(), stop=threading.Event())


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_holds_everything_up_and_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", disk], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    ballast, inbox = disk / "ballast", tmp_path / "in"
    inbox.mkdir()
    watcher = None
    try:
        watcher = Running(disk, Stub(), inbox=inbox)
        (inbox / "first").write_bytes(instance(1, 1))
        watcher.until(lambda: watcher.states() == [State.DONE])
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - 100_000))
        for number in range(30):
            (inbox / f"IM{number}").write_bytes(instance(2 + number % 3, number, size=96))
        watcher.until(lambda: "No space left" in str(watcher.said) or "disk is full" in str(watcher.said))
        assert [path for path in inbox.iterdir() if path.is_file()]
        ballast.unlink()
        watcher.until(lambda: len(watcher.states()) >= 4 and set(watcher.states()) == {State.DONE}
                      and not any(inbox.iterdir()))  # fmt: skip
        counts = [(disk / "out" / study_uid(study) / "count.txt").read_text() for study in (2, 3, 4)]
        assert all(count.startswith("10 files,") for count in counts)
        for study in (1, 2, 3, 4):
            read_report(disk / "out" / study_uid(study))
    finally:
        if watcher is not None:
            watcher.end()
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_database_that_is_held_holds_everything_up_and_loses_nothing(
    run: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.store.store.PATIENCE_S", 0.2)
    watcher = run(Stub(seconds=0.5))
    send(watcher.store, 1, 1)
    watcher.until(lambda: State.RUNNING in watcher.states())
    other = sqlite3.connect(watcher.store.root / "store.sqlite", isolation_level=None, timeout=30)
    other.execute("BEGIN IMMEDIATE")
    (watcher.inbox / "IM1").write_bytes(instance(2, 1))
    watcher.until(lambda: str(watcher.said).count("store_busy") > 1)
    time.sleep(1)
    assert (watcher.inbox / "IM1").exists()
    other.execute("ROLLBACK")
    other.close()
    watcher.until(lambda: watcher.states() == [State.DONE] * 2)
    assert [job.starts for job in watcher.store.jobs.all()] == [1, 1]


def test_an_inbox_that_is_not_there_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="no such folder"):
        watch(come_from=In(tmp_path / "in"), go_to=Out(tmp_path / "o"), store=tmp_path / "s", reading=Stub(),
              stop=threading.Event())  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_its_page_and_audit_log_are_there_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    address, stop = Address("127.0.0.1", free_port()), threading.Event()
    seen: list[int] = []

    def look() -> None:
        deadline = time.monotonic() + 40
        while not seen and time.monotonic() < deadline:
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{address.port}/healthz") as answer:
                seen.append(answer.status)
        stop.set()

    threading.Thread(target=look).start()
    watch(come_from=In(inbox=tmp_path / "in"), go_to=Out(outbox=tmp_path / "o"), store=tmp_path / "s", reading=Stub(),
          stop=stop, shown=Shown(address))  # fmt: skip
    assert seen == [200]
    log = (tmp_path / "s" / "audit.jsonl").read_text()
    assert [word in log for word in ("Application Start", "Application Stop")] == [True, True]


def test_a_second_watcher_of_a_store_is_refused(run: Callable[..., Running], tmp_path: Path) -> None:
    run(Stub())
    with pytest.raises(StoreInUse):
        watch(come_from=In(tmp_path), go_to=Out(tmp_path / "o"), store=tmp_path / "store", reading=Stub(),
              stop=threading.Event())  # fmt: skip


def test_workers_end_with_the_watcher_however_it_ends(tmp_path: Path) -> None:
    code = (
        "import sys, threading; sys.path[:0] = sys.argv[1:3]\n"
        "from pathlib import Path\nfrom watching import Stub\nfrom pipelines.watch import In, Out, Shown, watch\n"
        "if __name__ == '__main__':\n"
        "    root = Path(sys.argv[3])\n"
        "    watch(come_from=In(root / 'in'), go_to=Out(root / 'out'), store=root / 'store', stop=threading.Event(),\n"
        "          reading=Stub(trouble={'.1': 'hang'}, log=root / 'log'))\n"
    )
    here = Path(__file__)
    script = tmp_path / "main.py"
    script.write_text(code)
    (tmp_path / "in").mkdir()
    with Store(tmp_path / "store") as store:
        send(store, 1, 1)
        store.jobs.release(store.jobs.find("1"))
    arguments = [sys.executable, str(script), str(here.parents[2]), str(here.parents[1]), str(tmp_path)]
    process = subprocess.Popen(arguments)
    deadline = time.monotonic() + 60
    while not (tmp_path / "log").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert children
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_runs(child) for child in children)


def _runs(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except (OSError, IndexError):
        return False
