"""Studies while the watcher is killed at random moments: at the end each has exactly one current result, and nothing is
left over. The short form runs by default, the whole one by `make soak`."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from arriving import instance, study_uid
from pacs import free_port
from pynetdicom import AE
from watching import read_report

TESTS = Path(__file__).parents[1]
SERIES = 2


def images(study: int) -> int:
    """How many images each of a study's series has."""
    return 2 + study % 3


class Feeder(threading.Thread):
    """Puts the files of all studies into the inbox or sends them, interleaved, some twice, some slowly, some late.

    Some come in archives, beside a file that has come before.

    What is sent is sent until it is acknowledged, and not once more.
    """

    def __init__(self, inbox: Path, port: int, studies: int, seed: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._inbox, self._port, self._random, self._seconds = inbox, port, random.Random(seed), seconds
        self.sent = 0
        self._ended = threading.Event()
        self._files = [(study, series, number) for study in range(studies) for series in range(1, SERIES + 1)
                       for number in range(images(study))]  # fmt: skip
        # Each study within a window of its own, so that they are received and run all the time; some images come when
        # their study is being run, and some long after.
        late = [0.0] * 7 + [3.0, 6.0, 15.0]
        self._files.sort(key=lambda file: file[0] + self._random.uniform(0, 3) + self._random.choice(late))
        self._files += self._random.sample(self._files, len(self._files) // 10)

    def run(self) -> None:
        for place, (study, series, number) in enumerate(self._files):
            if self._ended.is_set():
                return
            content = instance(study, number, series)
            if place % 2:
                self._send(content)
                continue
            if place % 5 == 0:
                before, its_series, its_number = self._files[place // 2]
                content = _archive([content, instance(before, its_number, its_series)])
            path = self._inbox / f"CD{study % 7}" / f"{study}_{series}_{number}_{place}"
            while True:
                # The watcher removes folders that have been empty for a while.
                with suppress(FileNotFoundError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self._write(path, content)
                    break
            time.sleep(self._seconds / len(self._files))

    def end(self) -> None:
        self._ended.set()

    def _send(self, content: bytes) -> None:
        dataset = pydicom.dcmread(BytesIO(content))
        while not self._ended.is_set():
            entity = AE("FEEDER")
            entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = 5
            entity.add_requested_context(dataset.SOPClassUID, dataset.file_meta.TransferSyntaxUID)
            association = entity.associate("127.0.0.1", self._port, ae_title="IMGPIPE")
            if association.is_established:
                with suppress(RuntimeError, ValueError):  # it ended meanwhile
                    status = association.send_c_store(dataset)
                    if status and status.Status == 0:
                        association.release()
                        self.sent += 1
                        return
                association.abort()
            time.sleep(0.05)

    def _write(self, path: Path, content: bytes) -> None:
        with path.open("wb", buffering=0) as stream:
            cut = self._random.randrange(len(content)) if self._random.random() < 0.1 else 0
            stream.write(content[:cut])
            if cut:
                time.sleep(0.15)
            stream.write(content[cut:])


def _archive(files: list[bytes]) -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for number, content in enumerate(files):
            archive.writestr(f"IM{number}", content)
    return stream.getvalue()


def progress(store: Path, of: str) -> int:
    """How many instances, or events, there are so far."""
    with closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True, timeout=5)) as db:
        [(seen,)] = db.execute(f"SELECT coalesce(max(seq), 0) FROM {of}").fetchall()
    return int(seen)


class Victim:
    """A watcher that is started again whenever it is killed."""

    def __init__(self, root: Path, seconds: float, port: int) -> None:
        self._root, self._seconds, self._port = root, seconds, port
        self.start()

    def start(self) -> None:
        arguments = [sys.executable, str(TESTS / "watched.py"), str(self._root), str(self._seconds), str(self._port)]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
        with (self._root / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(arguments, env=environment, stderr=stderr, start_new_session=True)

    def children(self) -> list[int]:
        with suppress(OSError):
            path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
            return [int(child) for child in path.read_text().split()]
        return []

    def kill(self, chance: random.Random) -> str:
        """Kill the watcher, it and all its workers at once, or one worker alone."""
        kind = chance.choice(["watcher", "watcher", "all", "worker"])
        children = self.children()
        with suppress(ProcessLookupError):
            if kind == "worker" and children:
                os.kill(chance.choice(children), signal.SIGKILL)
                return kind
            os.kill(self.process.pid, signal.SIGKILL) if kind == "watcher" else os.killpg(self.process.pid, 9)
        self.process.wait()
        self.start()
        return kind


def soak(root: Path, *, studies: int, kills: int, seed: int, feeding_s: float, limit_s: float) -> Counter[str]:
    """Feed, kill, let it end; gives what was killed how often."""
    chance, database = random.Random(seed), root / "store" / "store.sqlite"
    (root / "in").mkdir()
    port = free_port()
    feeder = Feeder(root / "in", port, studies, seed, feeding_s)
    feeder.start()
    victim, killed = Victim(root, 0.3, port), Counter[str]()
    deadline = time.monotonic() + limit_s
    try:
        while killed.total() < kills:
            assert time.monotonic() < deadline, (killed, (root / "stderr").read_text()[-2000:])
            of, much = chance.choice([("instances", 30), ("events", 30), ("events", 8)])
            _wait_for_news(victim, database, of, chance.randint(1, much), seconds=15)
            time.sleep(chance.uniform(0, 0.02))
            killed[victim.kill(chance)] += 1
        feeder.join(limit_s)
        assert feeder.sent > studies
        while not _is_through(root, database, studies):
            assert victim.process.poll() is None, (root / "stderr").read_text()[-2000:]
            assert time.monotonic() < deadline, _states(database)
            time.sleep(0.1)
        victim.process.send_signal(signal.SIGTERM)
        assert victim.process.wait(30) == 0
    finally:
        feeder.end()
        with suppress(ProcessLookupError):
            os.killpg(victim.process.pid, signal.SIGKILL)
        victim.process.wait()
    return killed


def _wait_for_news(victim: Victim, database: Path, of: str, much: int, *, seconds: float) -> None:
    """Until so much has happened, or for a while."""
    deadline, first = time.monotonic() + seconds, None
    while time.monotonic() < deadline and victim.process.poll() is None:
        with suppress(sqlite3.OperationalError):
            seen = progress(database, of)
            first = seen if first is None else first
            if seen >= first + much:
                return
        time.sleep(0.004)


def _states(database: Path) -> dict[str, int]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        return dict(db.execute("SELECT state, count(*) FROM jobs GROUP BY state").fetchall())


def _is_through(root: Path, database: Path, studies: int) -> bool:
    if any(path.is_file() for path in (root / "in").rglob("*")):
        return False
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        [(known,)] = db.execute("SELECT count(*) FROM studies").fetchall()
    return known == studies and set(_states(database)) == {"done"}


def check(root: Path, studies: int) -> None:
    """Every study has exactly one current result, of all of its images; nothing else is left."""
    assert sorted(path.name for path in (root / "out").iterdir()) == sorted(map(study_uid, range(studies)))
    with closing(sqlite3.connect(root / "store" / "store.sqlite")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        current = dict(db.execute("SELECT study_uid, report_sha256 FROM results WHERE current").fetchall())
        versions = dict(db.execute("SELECT study_uid, max(number) FROM versions GROUP BY study_uid").fetchall())
        jobs = db.execute("SELECT id, starts, state FROM jobs").fetchall()
        delivered = Counter(job for (job,) in db.execute("SELECT job FROM events WHERE code = 'delivered'"))
        names = db.execute("SELECT count(name), count(DISTINCT name) FROM jobs").fetchone()
        rows = {digest for (digest,) in db.execute("SELECT digest FROM instances")}
    assert len(current) == studies
    for study in range(studies):
        folder, whole = root / "out" / study_uid(study), SERIES * images(study)
        report = read_report(folder)
        assert (folder / "count.txt").read_text().startswith(f"{whole} files,")
        assert report.version == versions[study_uid(study)]
        assert (report.replaces is None) == (report.version == 1)
    assert {state for _, _, state in jobs} == {"done"}
    assert delivered == {job: 1 for job, _, _ in jobs}
    assert names[0] == names[1] == len(jobs)
    _nothing_is_left(root, {f"{job}.{starts}" for job, starts, _ in jobs}, rows)


def _nothing_is_left(root: Path, results: set[str], digests: set[str]) -> None:
    assert list(root.rglob("*.partial")) == []
    assert list((root / "store" / "incoming").iterdir()) == []
    assert list((root / "store" / "refused").iterdir()) == []
    assert {path.name for path in (root / "store" / "results").iterdir()} == results
    assert {path.stem for path in (root / "store" / "instances").rglob("*.dcm")} == digests
    assert not any(path.is_file() for path in (root / "in").rglob("*"))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path


def test_killed_a_few_times_each_study_has_one_current_result(root: Path) -> None:
    killed = soak(root, studies=12, kills=6, seed=1, feeding_s=6, limit_s=120)
    assert killed.total() == 6
    check(root, 12)


@pytest.mark.long
def test_killed_fifty_times_each_of_two_hundred_studies_has_one_current_result(
    root: Path, record_property: Any
) -> None:
    seed = int(os.environ.get("SEED", "2"))
    killed = soak(root, studies=200, kills=60, seed=seed, feeding_s=100, limit_s=1500)
    record_property("killed", dict(killed))
    assert killed.total() >= 50
    check(root, 200)
