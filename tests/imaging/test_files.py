"""A folder shows the old file or the whole new one, whatever happens in between."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from imaging.errors import OutputNotWritable
from imaging.files import sha256_of, staged_folder, sweep_folder, whole_file, write_whole
from imaging.locks import hold


class Interrupted(Exception):
    """Any fault of the caller."""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("content", ["täxt\n", b"\x00\xff"])
def test_a_file_is_written_and_replaced(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), no_room)
    with pytest.raises(OutputNotWritable) as caught:
        write_whole(path, "new")
    assert "No space left" in caught.value.seen
    assert contents(tmp_path) == {"a.json": "old"}


def test_an_interrupted_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "new")
    assert contents(tmp_path) == {"a.json": "old"}


@pytest.mark.parametrize("where", ["absent/a.json", "file/a.json", "n" * 300])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputNotWritable) as caught:
        write_whole(tmp_path / where, "new")
    assert caught.value.code == "output_not_writable"
    assert names(tmp_path) == ["file"]


def test_the_long_name_of_a_study_can_be_written(tmp_path: Path) -> None:
    write_whole(tmp_path / ("1." * 31 + "1.json"), "new")
    with staged_folder(tmp_path / ("2." * 31 + "22")) as stage:
        (stage / "a").touch()
    assert len(names(tmp_path)) == 2


def test_a_staged_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "out" / "study"
    with staged_folder(target) as stage:
        (stage / "a").write_text("1")
        (stage / "b").write_text("2")
        assert not target.exists()
        assert stage.parent == target.parent
        assert stage.name.startswith(".")
        assert stage.name.endswith(".partial")
    assert contents(target) == {"a": "1", "b": "2"}
    assert names(target.parent) == ["study"]


def test_a_staged_folder_may_lie_where_somebody_sweeps(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with staged_folder(tmp_path / "study", stage_in=tmp_path / "work") as stage:
        (stage / "a").write_text("1")
        assert stage.parent == tmp_path / "work"
    assert contents(tmp_path / "study") == {"a": "1"}
    assert names(tmp_path / "work") == []


def test_a_new_folder_is_as_open_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "study"):
            pass
    finally:
        os.umask(old)
    assert (tmp_path / "study").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize("fault", [Interrupted, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False], ids=["old", "new"])
def test_a_fault_leaves_nothing_and_the_old_folder_untouched(
    tmp_path: Path, fault: type[BaseException], exists: bool
) -> None:
    target = tmp_path / "study"
    if exists:
        target.mkdir()
        (target / "report.json").write_text("old")
    with pytest.raises(fault), staged_folder(target, replaces=["*"]) as stage:
        (stage / "report.json").write_text("new")
        raise fault
    assert names(tmp_path) == (["study"] if exists else [])
    if exists:
        assert contents(target) == {"report.json": "old"}


def test_an_existing_folder_keeps_the_users_files_and_loses_stale_ones(tmp_path: Path) -> None:
    target = tmp_path / "study"
    target.mkdir()
    for name in ("notes.txt", "report.json", "mask_old.nii.gz", "mask_new.nii.gz"):
        (target / name).write_text("old")
    with staged_folder(target, replaces=["report.json", "mask_*.nii.gz"]) as stage:
        (stage / "report.json").write_text("new")
        (stage / "mask_new.nii.gz").write_text("new")
    assert contents(target) == {"notes.txt": "old", "report.json": "new", "mask_new.nii.gz": "new"}
    assert names(tmp_path) == ["study"]


@pytest.mark.parametrize("last", ["report.json", "absent", ""])
def test_the_file_that_vouches_for_the_others_goes_first_and_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    target = tmp_path / "study"
    target.mkdir()
    for name in ("report.json", "z.dcm"):
        (target / name).write_text("old")
    moved: list[str] = []
    replace = Path.replace

    def watch(self: Path, to: Path) -> Path:
        moved.append(self.name)
        assert last != "report.json" or not (target / "report.json").exists()
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", watch)
    with staged_folder(target, last=last) as stage:
        for name in ("report.json", "z.dcm", "a.html"):
            (stage / name).write_text("new")
    assert sorted(moved) == ["a.html", "report.json", "z.dcm"]
    assert moved[-1] == "report.json" or last != "report.json"
    assert contents(target) == {"a.html": "new", "report.json": "new", "z.dcm": "new"}


def test_a_full_disk_at_the_end_leaves_no_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputNotWritable), staged_folder(tmp_path / "study") as stage:
        (stage / "a").touch()
        monkeypatch.setattr(os, "fsync", no_room)
    assert names(tmp_path) == []


@pytest.mark.parametrize("where", ["file/study", "file/a/study", "file"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputNotWritable) as caught, staged_folder(tmp_path / where) as stage:
        (stage / "a").touch()
    assert caught.value.subject == str(tmp_path / where)
    assert contents(tmp_path) == {"file": "mine"}


def test_a_refusal_from_within_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted), staged_folder(tmp_path / "study"):
        raise Interrupted


@pytest.mark.parametrize("content", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256_is_that_of_the_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_a_last_file_that_is_not_written_anew_is_removed_without_a_fault(tmp_path: Path) -> None:
    target = tmp_path / "study"
    with staged_folder(target) as stage:
        (stage / "report.json").write_text("old")
    with staged_folder(target, replaces=("report.json",), last="report.json") as stage:
        (stage / "other").write_text("new")
    assert [file.name for file in target.iterdir()] == ["other"]


def test_a_private_file_is_private_from_its_first_byte_on(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o644)
    with whole_file(path, mode=0o600) as stream:
        (temporary,) = tmp_path.glob(".secret*")
        assert temporary.stat().st_mode & 0o777 == 0o600
        stream.write(b"new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


WRITE = "import sys, time; from imaging.files import staged_folder; from pathlib import Path\n\
with staged_folder(Path(sys.argv[1])) as stage: (stage / 'a').touch(); print(stage.name, flush=True); time.sleep(600)"


def test_what_a_killed_process_left_is_swept_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    (tmp_path / ".mine.partial").mkdir()
    writer = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "dead")], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        left = writer.stdout.readline().strip()
        assert left.endswith(".partial")
        with staged_folder(tmp_path / "alive") as stage:
            (stage / "b").write_text("1")
            assert sweep_folder(tmp_path) == [], "both live"
            writer.kill()
            writer.wait()
            assert sweep_folder(tmp_path) == [tmp_path / left]
    finally:
        writer.kill()
        writer.communicate()
    assert names(tmp_path) == [".mine.partial", "alive"]
    assert contents(tmp_path / "alive") == {"b": "1"}


def test_what_another_machine_may_be_writing_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with staged_folder(tmp_path / "study") as stage:
        name = stage.name
    (tmp_path / name).mkdir()
    monkeypatch.setattr("imaging.files._kernel", lambda: "f" * 8)
    assert sweep_folder(tmp_path) == []
    monkeypatch.undo()
    assert sweep_folder(tmp_path) == [tmp_path / name]


def test_nothing_is_swept_where_there_are_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("imaging.locks.fcntl.flock", no_locks)
    with staged_folder(tmp_path / "study") as stage:
        assert sweep_folder(tmp_path) == []
        (stage / "a").write_text("1")
    assert contents(tmp_path / "study") == {"a": "1"}


def test_a_folder_that_was_swept_before_it_was_held_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def swept_once(folder: Path) -> int | None:
        made.append(folder)
        if len(made) == 1:
            assert sweep_folder(tmp_path) == [folder]
        return hold(folder)

    monkeypatch.setattr("imaging.files.hold", swept_once)
    with staged_folder(tmp_path / "study") as stage:
        (stage / "a").write_text("1")
    assert contents(tmp_path / "study") == {"a": "1"}
    assert len(made) == 2


def test_a_link_is_not_swept(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with staged_folder(tmp_path / "study") as stage:
        name = stage.name
    (tmp_path / name).symlink_to(tmp_path / "kept")
    assert sweep_folder(tmp_path) == []
    assert (tmp_path / "kept").is_dir()
