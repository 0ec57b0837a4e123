"""File, name and row are waited for at once; whatever a power cut or a failing disk leaves of the three, nothing that
was acknowledged is lost and nothing that was not is kept."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from arriving import instance, study_uid, told

from imaging.errors import InstancesPurged, StoreBusy, StoreFull
from pipelines.store import Received, Store
from pipelines.store import content as content_module
from pipelines.store import taking as taking_module
from pipelines.store.database import Database
from pipelines.store.rules import Completeness
from pipelines.store.schema import STEPS

AT_ONCE = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0.001)


def put(store: Store, study: int, number: int, **changed: Any) -> Received:
    return store.put(instance(study, number, **changed), source="tests", **told(study, number))


def rows(store: Store, query: str) -> list[tuple[Any, ...]]:
    return [tuple(row) for row in store.database.read(query)]


def images(root: Path) -> list[Path]:
    return sorted((root / "instances").rglob("*.dcm"))


def soon(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class Disk:
    """A disk that keeps who syncs a file waiting, and then does it or fails."""

    def __init__(self) -> None:
        self.may, self.fails, self.asked = threading.Event(), False, 0

    def sync(self, path: Path) -> None:
        self.asked += 1
        assert self.may.wait(60)
        if self.fails:
            raise OSError(5, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    slow = Disk()
    monkeypatch.setattr(content_module, "sync_file", slow.sync)
    yield slow
    slow.may.set()


@contextmanager
def under_way(store: Store, disk: Disk, study: int, number: int, **changed: Any) -> Iterator[Any]:
    """An instance whose row is written and whose file is not on disk yet."""
    before = len(rows(store, "SELECT 1 FROM instances"))
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(put, store, study, number, **changed)
        soon(lambda: len(rows(store, "SELECT 1 FROM instances")) == before + 1)
        try:
            yield waiting
        finally:
            disk.may.set()


def test_file_folder_and_row_are_waited_for_at_once_and_all_three_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    # Each of them goes on only when all have begun: one after the other they would never end.
    all_begun = threading.Barrier(4)

    def met(what: str) -> None:
        all_begun.wait(60)
        done.append(what)

    record = taking_module.record
    with Store(tmp_path) as store:
        monkeypatch.setattr(content_module, "sync_file", lambda path: met(path.suffix))
        monkeypatch.setattr(content_module, "sync_folder", lambda path: met(path.parent.name[:9]))
        monkeypatch.setattr(taking_module, "record", lambda *about: (met("row"), record(*about))[1])
        put(store, 1, 1)
        # The name of a new study's folder is in the shard.
        shard = store.contents.folder_of(study_uid(1)).parent.name
        assert sorted(done) == sorted([".dcm", "instances", "row", shard])


@pytest.mark.parametrize("left", ["whole", "missing", "short", "zeros"])
def test_a_power_cut_between_row_and_file_loses_nothing_and_keeps_nothing_broken(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    with Store(tmp_path / "store", watching=True) as store:
        disk.may.set()
        put(store, 1, 1)
        disk.may.clear()
        with under_way(store, disk, 1, 2), under_way(store, disk, 2, 1):
            # What the disk holds when the power fails: the rows, and of the files what it got to.
            shutil.copytree(tmp_path / "store", tmp_path / "after")
        monkeypatch.undo()
        [(digest,)] = rows(store, "SELECT digest FROM instances WHERE seq = 1")
    after = tmp_path / "after"
    acknowledged = after / store.contents.file_of(study_uid(1), digest).relative_to(tmp_path / "store")
    for file in set(images(after)) - {acknowledged}:
        whole = file.read_bytes()
        file.unlink() if left == "missing" else file.write_bytes(
            {"whole": whole, "short": whole[:-30], "zeros": bytes(len(whole))}[left]
        )
    with Store(after, watching=True) as found:
        kept = rows(found, "SELECT study_uid FROM instances ORDER BY seq")
        first, second = (study_uid(1),), (study_uid(2),)
        assert kept == ([first, first, second] if left == "whole" else [first])
        assert len(images(after)) == len(kept)
        assert rows(found, "SELECT study_uid FROM jobs") == ([first, second] if left == "whole" else [first])
        # What was not acknowledged is sent again, and makes the study what it should be.
        again = Received.SAME if left == "whole" else Received.NEW
        assert [put(found, 1, 2), put(found, 2, 1), put(found, 1, 1)] == [again, again, Received.SAME]
        assert len(found.jobs.settle(AT_ONCE)) == 2
        assert [len(found.jobs.members(job)) for job in found.jobs.all()] == [2, 1]
        assert all(file.is_file() for job in found.jobs.all() for file in found.files(job))


def test_only_what_lies_behind_the_mark_is_looked_at_and_a_start_moves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[str] = []
    is_whole = content_module.Contents.is_whole

    def look(self: content_module.Contents, *about: str) -> bool:
        looked_at.append(about[1])
        return is_whole(self, *about)

    with Store(tmp_path, watching=True) as store:
        for number in range(6):
            put(store, 1, number)
    monkeypatch.setattr(content_module.Contents, "is_whole", look)
    Store(tmp_path, watching=True).close()
    assert looked_at == [told(1, 5)["sop_instance_uid"]]
    Store(tmp_path, watching=True).close()
    assert len(looked_at) == 1


def test_the_mark_waits_for_the_slowest_file(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store, ThreadPoolExecutor(3) as threads:
        disk.may.set()
        put(store, 1, 1)
        disk.may.clear()
        with under_way(store, disk, 1, 2):
            others = [threads.submit(put, store, 1, number) for number in (3, 4, 5)]
            soon(lambda: len(rows(store, "SELECT 1 FROM instances")) == 5)
            assert rows(store, "SELECT through FROM sure") == [(1,)]
        assert [other.result() for other in others] == [Received.NEW] * 3
        put(store, 1, 6)
        assert rows(store, "SELECT through FROM sure") == [(5,)]


def test_a_store_of_an_earlier_version_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.store import database as database_module

    with monkeypatch.context() as earlier:
        earlier.setattr(database_module, "STEPS", STEPS[:3])
        Database(tmp_path / "store.sqlite").close()
    with Store(tmp_path, watching=True) as store:
        assert rows(store, "SELECT through FROM sure") == [(0,)]
        assert put(store, 1, 1) is Received.NEW


def test_nobody_acts_on_an_instance_before_its_file_is_on_disk(tmp_path: Path, disk: Disk) -> None:
    uid = told(1, 1)["sop_instance_uid"]
    with Store(tmp_path, watching=True) as store:
        with under_way(store, disk, 1, 1) as waiting:
            time.sleep(0.01)
            assert store.jobs.settle(AT_ONCE) == []
            assert store.holds(uid) is None
            assert not waiting.done()
        assert waiting.result() is Received.NEW
        assert store.holds(uid) == told(1, 1)["sop_class_uid"]
        assert [job.study_uid for job in store.jobs.settle(AT_ONCE)] == [study_uid(1)]


def test_a_disk_that_fails_after_the_row_was_written_takes_it_back(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store:
        with under_way(store, disk, 1, 1) as waiting:
            disk.fails = True
        with pytest.raises(StoreFull, match="Input/output"):
            waiting.result()
        assert images(tmp_path) == []
        for table in ("instances", "jobs", "versions", "studies"):
            assert rows(store, f"SELECT * FROM {table}") == []
        assert rows(store, "SELECT code FROM events WHERE code <> 'receiving'") == [("instance_withdrawn",)]
        disk.fails = False
        assert put(store, 1, 1) is Received.NEW


def test_of_a_late_image_that_fails_the_study_stays_as_it_was(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store:
        disk.may.set()
        put(store, 1, 1)
        [job] = store.jobs.settle(AT_ONCE)
        disk.may.clear()
        with under_way(store, disk, 1, 2) as waiting:
            assert store.jobs.find(str(job.id)).through_seq is None
            disk.fails = True
        assert isinstance(waiting.exception(), StoreFull)
        [again] = store.jobs.settle(AT_ONCE)
        assert (again.id, again.version, len(store.jobs.members(again))) == (job.id, 1, 1)
        claimed = store.jobs.claim("w", "setup")
        assert claimed is not None
        disk.fails = False
        disk.may.clear()
        with under_way(store, disk, 1, 3) as waiting:  # it runs: this one would be of a new version
            assert len(store.jobs.all()) == 2
            disk.fails = True
        assert isinstance(waiting.exception(), StoreFull)
        assert [job.version for job in store.jobs.all()] == [1]


def test_the_same_at_the_same_time_is_answered_as_the_first_is(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store, ThreadPoolExecutor(1) as thread:
        with under_way(store, disk, 1, 1) as first:
            second = thread.submit(put, store, 1, 1)
            soon(lambda: disk.asked == 2)
            disk.fails = True
        assert isinstance(first.exception(), StoreFull)
        assert isinstance(second.exception(), StoreFull | StoreBusy)
        assert (images(tmp_path), rows(store, "SELECT * FROM instances")) == ([], [])


def test_what_came_under_the_same_uid_takes_the_place_of_what_failed(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store:
        with under_way(store, disk, 1, 1) as first:
            content_module.sync_file = lambda _: None  # type: ignore[assignment]  the second one's disk is well
            assert put(store, 1, 1, value=7) is Received.CONFLICT
            disk.fails = True
        assert isinstance(first.exception(), StoreFull)
        assert rows(store, "SELECT stands FROM instances") == [(1,)]
        [job] = store.jobs.settle(AT_ONCE)
        assert len(store.files(job)) == 1


def test_a_row_that_cannot_be_taken_back_now_is_taken_back_later(
    tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw = taking_module.withdraw

    def full(*_: object) -> None:
        raise StoreFull(tmp_path, seen="full")

    with Store(tmp_path, watching=True) as store:
        monkeypatch.setattr(taking_module, "withdraw", full)
        with under_way(store, disk, 1, 1) as waiting:
            disk.fails = True
        assert isinstance(waiting.exception(), StoreFull)
        with pytest.raises(StoreFull):
            store.purge()
        assert store.jobs.settle(AT_ONCE) == []
        monkeypatch.setattr(taking_module, "withdraw", withdraw)
        store.purge()
        assert (images(tmp_path), rows(store, "SELECT * FROM jobs")) == ([], [])


def test_one_that_a_person_let_go_meanwhile_is_refused_and_not_reported_on_in_part(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store:
        with under_way(store, disk, 1, 1) as waiting:
            job = store.jobs.release(store.jobs.find(study_uid(1)))
            disk.fails = True
        assert isinstance(waiting.exception(), StoreFull)
        with pytest.raises(InstancesPurged):
            store.files(job)


def test_bytes_that_come_again_after_a_purge_are_on_disk_before_their_row_says_so(tmp_path: Path, disk: Disk) -> None:
    with Store(tmp_path, watching=True) as store, ThreadPoolExecutor(1) as thread:
        disk.may.set()
        put(store, 1, 1)
        [job] = store.jobs.settle(AT_ONCE)
        claimed = store.jobs.claim("w", "setup")
        assert claimed is not None
        store.jobs.refuse(claimed, StoreBusy(tmp_path, seen="for the test"))
        store.jobs.ask_purge(job)
        store.purge()
        assert (images(tmp_path), store.holds(told(1, 1)["sop_instance_uid"])) == ([], None)
        disk.may.clear()
        again = thread.submit(put, store, 1, 1)
        soon(lambda: disk.asked == 2)
        assert rows(store, "SELECT kept FROM instances") == [(0,)]
        disk.fails = True
        disk.may.set()
        assert isinstance(again.exception(), StoreFull)
        assert (images(tmp_path), rows(store, "SELECT kept FROM instances")) == ([], [(0,)])
        disk.fails = False
        assert put(store, 1, 1) is Received.SAME
        assert rows(store, "SELECT kept FROM instances") == [(1,)]
