"""An instance is taken whole and for good, or not at all."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from arriving import instance, study_uid, told

from imaging.errors import InvalidUid, StoreBusy, StoreDamaged, StoreFull, StoreInUse
from pipelines.store import Intake, Received, Store
from pipelines.store import clock as clock_module
from pipelines.store import content as content_module
from pipelines.store.schema import STEPS


def put(store: Intake, study: int, number: int, *, series: int = 1, **changed: Any) -> Received:
    return store.put(instance(study, number, series, **changed), source="tests", **told(study, number, series))


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in store.database.read(query)]


def files(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and "sqlite" not in path.name and path.suffix != ".lock"]


def test_an_instance_is_kept_byte_for_byte_and_its_study_gets_a_job(tmp_path: Path) -> None:
    with Store(tmp_path, watching=True) as store:
        assert put(store, 1, 1) is Received.NEW
        [(digest,)] = rows(store, "SELECT digest FROM instances")
        assert store.contents.file_of(study_uid(1), digest).read_bytes() == instance(1, 1)
        assert rows(store, "SELECT study_uid, state, name FROM jobs") == [(study_uid(1), "receiving", None)]
        assert rows(store, "SELECT code, job FROM events") == [("receiving", 1)]
    assert files(tmp_path) == [store.contents.file_of(study_uid(1), digest)]


def test_the_same_data_set_is_the_same_whatever_its_writer_puts_into_the_meta_header(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        put(store, 1, 1)
        assert put(store, 1, 1) is Received.SAME
        assert instance(1, 1, writer="OTHER") != instance(1, 1)
        assert put(store, 1, 1, writer="OTHER") is Received.SAME
        assert len(files(tmp_path)) == len(rows(store, "SELECT * FROM instances")) == 1


def test_other_bytes_under_the_same_uid_are_kept_beside_and_told(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        put(store, 1, 1)
        assert put(store, 1, 1, value=7) is Received.CONFLICT
        assert put(store, 1, 1, value=7) is Received.SAME
        assert [stands for (stands,) in rows(store, "SELECT stands FROM instances ORDER BY seq")] == [1, 0]
        assert len(files(tmp_path)) == 2
        [(code, study)] = rows(store, "SELECT code, study_uid FROM events WHERE code <> 'receiving'")
        assert (code, study) == ("instance_conflict", study_uid(1))


@pytest.mark.parametrize("bad", ["", "1.2..3", "../../etc", "1." * 40, "1.2.3\n"])
def test_what_is_no_uid_is_refused_before_anything_is_written(tmp_path: Path, bad: str) -> None:
    with Store(tmp_path) as store:
        for key in ("study_uid", "series_uid", "sop_instance_uid"):
            with pytest.raises(InvalidUid):
                store.put(instance(1, 1), source="tests", **(told(1, 1) | {key: bad}))  # type: ignore[arg-type]
    assert files(tmp_path) == []


def test_ten_studies_from_eight_threads_interleaved(tmp_path: Path) -> None:
    with Store(tmp_path) as store, ThreadPoolExecutor(8) as threads:
        wanted = [(study, number) for number in range(6) for study in range(10)]
        assert set(threads.map(lambda pair: put(store, *pair), wanted)) == {Received.NEW}
        assert rows(store, "SELECT count(*), count(DISTINCT study_uid) FROM instances") == [(60, 10)]
        assert rows(store, "SELECT count(*) FROM jobs") == [(10,)]
    assert len(files(tmp_path)) == 60


def test_one_instance_from_two_threads_at_once_is_new_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store, ThreadPoolExecutor(2) as threads:
        for number in range(20):
            both = list(threads.map(lambda _, n=number: put(store, 1, n), range(2)))
            assert sorted(both) == [Received.NEW, Received.SAME]
    assert len(files(tmp_path)) == 20


def _receive_for_ever(root: Path, acknowledged: Path) -> None:
    with Store(root, watching=True) as store, acknowledged.open("a") as told_of:
        first = len(acknowledged.read_text().splitlines())
        for number in range(first, 10_000):
            put(store, number // 5, number % 5)
            told_of.write(f"{number}\n")
            told_of.flush()


def test_killed_at_any_moment_all_that_was_acknowledged_is_there_and_nothing_else(tmp_path: Path) -> None:
    root, acknowledged = tmp_path / "store", tmp_path / "acknowledged"
    acknowledged.touch()
    spawn = multiprocessing.get_context("spawn")
    for kill in range(4):
        process = spawn.Process(target=_receive_for_ever, args=(root, acknowledged))
        process.start()
        before = len(acknowledged.read_text().splitlines())
        deadline = time.monotonic() + 60
        while len(acknowledged.read_text().splitlines()) < before + 3 + kill and time.monotonic() < deadline:
            time.sleep(0.003)
        assert process.pid
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    numbers = [int(line) for line in acknowledged.read_text().splitlines()]
    assert len(numbers) >= 3 + 4 + 5 + 6
    with Store(root, watching=True) as store:
        kept = dict(rows(store, "SELECT sop_instance_uid, digest FROM instances"))
        assert {told(number // 5, number % 5)["sop_instance_uid"] for number in numbers} <= set(kept)
        # The one that was under way when it was killed may be there, unacknowledged; nothing beyond it.
        assert len(kept) <= len(numbers) + 4
        for number in numbers:
            about = told(number // 5, number % 5)
            path = store.contents.file_of(about["study_uid"], kept[about["sop_instance_uid"]])
            assert path.read_bytes() == instance(number // 5, number % 5)
        assert {path.stem for path in files(root)} == set(kept.values())
        assert rows(store, "PRAGMA integrity_check") == [("ok",)]


def test_what_a_crash_left_is_swept_at_the_next_start_and_only_by_the_watcher(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        put(store, 1, 1)
        [kept] = files(tmp_path)
        orphan = kept.with_name("0" * 64 + ".dcm")
        of_no_study = tmp_path / "instances" / "aa" / ("a" * 40) / "b.dcm"
        of_no_study.parent.mkdir()
        for path in (orphan, of_no_study, tmp_path / "incoming" / ".x.partial"):
            path.write_bytes(b"x")
    with Store(tmp_path):
        assert len(files(tmp_path)) == 4
    with Store(tmp_path, watching=True):
        assert files(tmp_path) == [kept]
        assert not of_no_study.parent.exists()


def test_there_is_one_watcher_and_a_killed_one_does_not_bar_the_next(tmp_path: Path) -> None:
    with Store(tmp_path, watching=True):
        with pytest.raises(StoreInUse):
            Store(tmp_path, watching=True)
        Store(tmp_path).close()
    Store(tmp_path, watching=True).close()


def test_a_database_that_is_held_by_another_program_is_told_and_nothing_is_kept(tmp_path: Path) -> None:
    with Store(tmp_path, patience_s=0.1) as store:
        put(store, 1, 1)
        other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreBusy, match=r"0\.1 s"):
            put(store, 1, 2)
        other.execute("ROLLBACK")
        other.close()
        assert len(files(tmp_path)) == 1
        assert put(store, 1, 2) is Received.NEW


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    root = tmp_path / "small"
    root.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m,nr_inodes=2000", "tmpfs", root], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    ballast = root / "ballast.lock"
    ballast.write_bytes(bytes(500_000))
    try:
        with Store(root, watching=True) as store:
            taken = 0
            with pytest.raises(StoreFull):
                for number in range(2_000):
                    put(store, 1, number, size=96)
                    taken += 1
            assert taken > 10
            assert rows(store, "SELECT count(*) FROM instances") == [(taken,)]
            assert len(files(root)) == taken
            ballast.unlink()
        with Store(root, watching=True) as store:
            assert rows(store, "SELECT count(*) FROM instances") == [(taken,)]
    finally:
        subprocess.run(["umount", root], check=True)


def test_the_name_of_a_new_studys_folder_is_waited_for_by_all_who_put_into_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard, folder = [], content_module.sync_folder
    both = threading.Barrier(2)

    def sync(path: Path) -> None:
        if path.parent.name == "instances":
            both.wait(60)  # the name is not on disk before both have come to wait for it
            shard.append(path)
        folder(path)

    with Store(tmp_path) as store, ThreadPoolExecutor(2) as threads:
        monkeypatch.setattr(content_module, "sync_folder", sync)
        assert list(threads.map(lambda number: put(store, 1, number), (1, 2))) == [Received.NEW] * 2
    assert len(shard) == 2


def test_a_disk_that_fails_while_the_bytes_are_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with Store(tmp_path) as store:
        monkeypatch.setattr(content_module, "sync_file", full)
        with pytest.raises(StoreFull, match="No space left"):
            put(store, 1, 1)
        monkeypatch.undo()
        assert files(tmp_path) == []
        assert rows(store, "SELECT * FROM instances") == []


def test_a_damaged_database_and_a_newer_one_are_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        for number in range(30):
            put(store, number, 1)
    path = tmp_path / "store.sqlite"
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xff" * 8192 + whole[16384:])
    with pytest.raises(StoreDamaged):
        Store(tmp_path, watching=True)
    path.write_bytes(b"this is a text file, not a database" * 100)
    with pytest.raises(StoreDamaged):
        Store(tmp_path, watching=True)
    path.write_bytes(whole)
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    newer.close()
    with pytest.raises(StoreDamaged, match=f"version {len(STEPS) + 1}"):
        Store(tmp_path)


def test_whoever_comes_to_a_store_that_is_closed_keeps_what_he_has(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        put(store, 1, 1)
    with pytest.raises(StoreBusy, match="it is closed"):
        put(store, 1, 2)
    with pytest.raises(StoreBusy, match="it is closed"):
        store.jobs.all()
    with Store(tmp_path, watching=True) as store:
        assert len(rows(store, "SELECT * FROM instances")) == len(files(tmp_path)) == 1


def test_time_runs_forward_when_the_machine_is_started_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("first")
    since = [5_000.0]
    monkeypatch.setattr(clock_module, "_BOOT", boot)
    monkeypatch.setattr(clock_module, "_since_boot", lambda: since[0])
    with Store(tmp_path / "store") as store:
        since[0] = 5_600.0
        put(store, 1, 1)
        assert store.clock.now() == pytest.approx(600)
    boot.write_text("second")
    since[0] = 10.0
    with Store(tmp_path / "store") as store:
        assert store.clock.now() == pytest.approx(600)
        since[0] = 30.0
        assert store.clock.now() == pytest.approx(620)
    with Store(tmp_path / "store") as store:  # the same boot: the time that it was down counts
        since[0] = 40.0
        assert store.clock.now() == pytest.approx(630)


def test_threads_share_transactions(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        transactions = []
        writing = store.database.writing
        store.database.writing = lambda: transactions.append(1) or writing()  # type: ignore[method-assign, func-returns-value]
        store._taking._settling.acquire()  # somebody is at it
        threads = [threading.Thread(target=put, args=(store, 1, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 60
        while len(store._taking._waiting) < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        store._taking._settling.release()
        for thread in threads:
            thread.join()
        assert len(transactions) == 1
        assert rows(store, "SELECT count(*) FROM instances") == [(8,)]


def test_the_store_needs_no_torch() -> None:
    code = "import sys, pipelines.store; assert not {'torch', 'monai', 'lightning'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
