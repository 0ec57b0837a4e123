"""A file is taken when it is whole, once, and is gone from its place when the store has it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
from arriving import instance, study_uid

from imaging.errors import StoreFull
from pipelines import inbox as room
from pipelines.inbox import Inbox, is_being_written, is_remote
from pipelines.store import Store


def keep_looking(inbox: Inbox, until: float) -> int:
    end, taken = time.monotonic() + until, 0
    while time.monotonic() < end:
        taken += inbox.look()
        time.sleep(0.02)
    return taken


def test_a_file_that_grows_or_is_open_for_writing_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    whole = instance(1, 1)
    with Store(tmp_path / "store") as store:
        inbox = Inbox(folder, store, settle_s=0.15)
        with (folder / "IM1").open("wb", buffering=0) as stream:
            for start in range(0, len(whole), len(whole) // 3):
                stream.write(whole[start : start + len(whole) // 3])
                assert inbox.look() == 0
                time.sleep(0.03)
            # It lies still for longer than it takes to settle, and its writer has not closed it.
            assert keep_looking(inbox, 0.4) == 0
            assert is_being_written(folder / "IM1")
        assert not is_being_written(folder / "IM1")
        assert keep_looking(inbox, 0.4) == 1
        [job] = store.jobs.all()
        assert store.files(job)[0].read_bytes() == whole
    assert list(folder.iterdir()) == []


def test_where_the_kernel_cannot_tell_a_file_settles_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "is_being_written", lambda _: False)
    (tmp_path / "in").mkdir()
    with Store(tmp_path / "store") as store:
        inbox = Inbox(tmp_path / "in", store, settle_s=0.2)
        with (tmp_path / "in" / "IM1").open("wb", buffering=0) as stream:
            for byte in range(0, 900, 100):
                stream.write(instance(1, 1)[byte : byte + 100])
                assert keep_looking(inbox, 0.06) == 0
            stream.write(instance(1, 1)[900:])
            assert keep_looking(inbox, 0.5) == 1


def test_names_of_files_under_way_are_left_alone(tmp_path: Path) -> None:
    for name in (".hidden", "a.partial", "b.part", "c.tmp", ".rsync/IM1"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(instance(1, 1))
    with Store(tmp_path / "store") as store:
        inbox = Inbox(tmp_path / "in", store, settle_s=0)
        assert keep_looking(inbox, 0.1) == 0
        (tmp_path / "in" / "a.partial").rename(tmp_path / "in" / "a.dcm")
        assert keep_looking(inbox, 0.1) == 1


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (StoreFull("store", seen="No space left on device"), "store_full"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
    ],
)
def test_a_file_that_could_not_be_kept_or_removed_is_taken_later(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "IM1").write_bytes(instance(1, 1))
    with Store(tmp_path / "store") as store:
        inbox = Inbox(tmp_path / "in", store, settle_s=0)

        def fails(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(store, "take", fails)
        assert keep_looking(inbox, 0.1) == 0
        assert len([record for record in caplog.records if told in record.message]) == 1
        monkeypatch.undo()
        assert keep_looking(inbox, 0.1) == 1


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    os.mkfifo(tmp_path / "in" / "AAA")
    (tmp_path / "in" / "IM1").write_bytes(instance(1, 1))
    with Store(tmp_path / "store") as store:
        assert keep_looking(Inbox(tmp_path / "in", store, settle_s=0), 0.1) == 1
    assert (tmp_path / "in" / "AAA").is_fifo()


@pytest.mark.parametrize("poll_s", [None, 0.1])
def test_files_are_found_by_events_and_by_polling(tmp_path: Path, poll_s: float | None) -> None:
    (tmp_path / "in").mkdir()
    with Store(tmp_path / "store") as store:
        inbox, stop = Inbox(tmp_path / "in", store, settle_s=0.1, poll_s=poll_s), threading.Event()
        thread = threading.Thread(target=inbox.run, args=(stop,))
        thread.start()
        for number in (1, 2):
            (tmp_path / "in" / "deep" / "er").mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / "deep" / "er" / f"IM{number}").write_bytes(instance(1, number))
            deadline = time.monotonic() + 60
            while list((tmp_path / "in").rglob("IM*")) and time.monotonic() < deadline:
                time.sleep(0.02)
        stop.set()
        thread.join(60)
        assert not thread.is_alive()
        [job] = store.jobs.all()
        assert job.study_uid == study_uid(1)
        assert len(store.files(job)) == 2


MOUNTS = """\
1 0 8:1 / / rw shared:1 - ext4 /dev/sda1 rw
2 1 0:40 / {mnt} rw,relatime shared:2 - {kind} server:/in rw
"""


@pytest.mark.parametrize(("kind", "remote"), [("nfs4", True), ("cifs", True), ("xfs", False)])
def test_file_systems_without_events_are_known(tmp_path: Path, kind: str, remote: bool) -> None:
    folder = tmp_path / "mounted here" / "in"
    folder.mkdir(parents=True)
    told = MOUNTS.format(mnt=str(folder.parent).replace(" ", "\\040"), kind=kind)
    assert is_remote(folder, mounts=lambda: told) is remote
    assert not is_remote(tmp_path, mounts=lambda: told)
    assert not is_remote(tmp_path)
