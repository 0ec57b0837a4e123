"""Only what the report vouches for goes out, and whoever looks sees the old result or the whole new one."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
from arriving import study_uid
from watching import read_report, write_report

from imaging import files as files_module
from imaging.errors import DeliveryFailed, OutputMismatch
from imaging.files import sha256_of
from pipelines import delivery as room
from pipelines.delivery import Outbox, Result, read_back
from pipelines.worker import Task

UID = study_uid(1)


def result(folder: Path, *, version: int = 1) -> Result:
    (folder / f"{version}").mkdir(parents=True)
    source = folder / f"source{version}"
    source.write_bytes(b"x" * version)
    replaces = earlier = None
    if version > 1:
        earlier = folder / f"earlier{version}"
        earlier.mkdir()
        (earlier / "report.json").write_text("{}")
        replaces = (version - 1, sha256_of(earlier / "report.json"))
    write_report(Task(UID, (source,), folder / f"{version}", version, replaces, earlier))
    return read_back(folder / f"{version}" / UID, UID, version)


def change(folder: Path, name: str, content: str | None) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("name", "content", "seen"),
    [
        ("count.txt", "another", "not what the report vouches for"),
        ("count.txt", None, "is missing"),
        ("more.txt", "x", "not what the report vouches for"),
        ("report.json", "{}", "no report"),
        ("report.json", None, "cannot be read"),
    ],
)
def test_what_is_not_as_the_report_says_is_withheld(tmp_path: Path, name: str, content: str | None, seen: str) -> None:
    folder = result(tmp_path).folder
    change(folder, name, content)
    with pytest.raises(OutputMismatch, match=seen):
        read_back(folder, UID, 1)


def test_a_report_of_another_study_or_version_is_withheld(tmp_path: Path) -> None:
    folder = result(tmp_path).folder
    for uid, version in ((study_uid(2), 1), (UID, 2)):
        with pytest.raises(OutputMismatch, match="a report of version 1"):
            read_back(folder, uid, version)


def test_a_study_is_replaced_whole_at_every_moment(tmp_path: Path) -> None:
    outbox, target = Outbox(tmp_path / "out", owner="o"), tmp_path / "out" / UID
    results = [result(tmp_path / "results", version=version) for version in range(1, 30)]
    outbox.deliver(results[0])
    seen, stop, broken = set(), threading.Event(), []

    def look() -> None:
        import os

        while not stop.is_set():
            folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)  # the folder that has the name at this moment
            try:
                here = Path(f"/proc/self/fd/{folder}")
                names = {path.name for path in here.iterdir()}
                # It may be removed while we look, after another has taken its place; it is never there in part.
                if names and here.readlink() == target and names != {"report.json", "count.txt"}:
                    broken.append(names)
            finally:
                os.close(folder)
            seen.add(read_version(target))

    thread = threading.Thread(target=look)
    thread.start()
    for item in results[1:]:
        outbox.deliver(item)
    stop.set()
    thread.join()
    assert broken == []
    assert read_report(target).version == 29
    assert len(seen) > 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UID]


def read_version(target: Path) -> int:
    from imaging.report.report import Report

    while True:
        try:
            return Report.model_validate_json((target / "report.json").read_text()).version
        except FileNotFoundError:  # the old folder went between its name and its file
            continue


def test_once_more_is_no_harm_and_writes_nothing(tmp_path: Path) -> None:
    outbox, item = Outbox(tmp_path / "out", owner="o"), result(tmp_path)
    outbox.deliver(item)
    inode = (tmp_path / "out" / UID).stat().st_ino
    outbox.deliver(item)
    assert (tmp_path / "out" / UID).stat().st_ino == inode
    change(tmp_path / "out" / UID, "count.txt", "somebody's hand")
    outbox.deliver(item)
    read_report(tmp_path / "out" / UID)


def test_what_is_none_of_ours_stays_in_the_folder(tmp_path: Path) -> None:
    outbox, target = Outbox(tmp_path / "out", owner="o"), tmp_path / "out" / UID
    outbox.deliver(result(tmp_path))
    (target / "seen_by.txt").write_text("me")
    (target / "notes").mkdir()
    (target / "notes" / "a").write_text("b")
    outbox.deliver(result(tmp_path, version=2))
    assert (target / "seen_by.txt").read_text() == "me"
    assert (target / "notes" / "a").read_text() == "b"
    assert '"version": 2' in (target / "report.json").read_text()


def test_where_two_names_cannot_be_exchanged_the_old_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> int:
        files_module.ctypes.set_errno(errno.EINVAL)
        return -1

    class Without:
        renameat2 = staticmethod(unsupported)

    outbox = Outbox(tmp_path / "out", owner="o")
    outbox.deliver(result(tmp_path))
    monkeypatch.setattr(files_module, "_LIBC", Without())
    outbox.deliver(result(tmp_path, version=2))
    assert read_report(tmp_path / "out" / UID).version == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UID]


def test_a_disk_that_fills_while_it_is_copied_leaves_the_old_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path / "out", owner="o")
    outbox.deliver(result(tmp_path))

    def full(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "sync_file", full)
    with pytest.raises(DeliveryFailed, match="No space left"):
        outbox.deliver(result(tmp_path, version=2))
    assert read_report(tmp_path / "out" / UID).version == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == [UID]


def test_only_our_own_leavings_are_swept(tmp_path: Path) -> None:
    outbox, other = Outbox(tmp_path, owner="o"), Outbox(tmp_path, owner="another")
    for owner in (outbox, other):
        (tmp_path / f".{UID[:40]}.{owner._owner}.abcd.partial").mkdir()
    (tmp_path / ".mine.partial").mkdir()
    outbox.sweep()
    assert len(list(tmp_path.iterdir())) == 2
    other.sweep()
    assert [path.name for path in tmp_path.iterdir()] == [".mine.partial"]
