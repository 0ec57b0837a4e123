"""A digest is that of the bytes that are there now, and a file that has not changed is not read again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from imaging import content
from imaging.content import ContentIndex


def digest(database: Path | None, path: Path) -> str:
    with ContentIndex(database) as index:
        return index.digest_of(path)


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files count as old enough to be noted at once."""
    monkeypatch.setattr(content, "_GRAIN_NS", -(10**12))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read from now on."""
    read: list[Path] = []
    true = content.sha256_of

    def counted(path: Path) -> str:
        read.append(path)
        return true(path)

    monkeypatch.setattr(content, "sha256_of", counted)
    return read


def test_a_file_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"voxels")
    assert digest(tmp_path / "index", tmp_path / "a") == hashlib.sha256(b"voxels").hexdigest()


@pytest.mark.usefixtures("settled")
def test_an_unchanged_file_is_read_once(tmp_path: Path, unread: list[Path]) -> None:
    (tmp_path / "a").write_bytes(b"voxels")
    first = digest(tmp_path / "index", tmp_path / "a")
    assert digest(tmp_path / "index", tmp_path / "a") == first
    assert unread == [tmp_path / "a"]


@pytest.mark.usefixtures("settled")
def test_a_changed_byte_is_seen_even_when_its_time_is_set_back(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"voxels")
    before, first = file.stat(), digest(tmp_path / "index", file)
    while file.stat().st_ctime_ns == before.st_ctime_ns:  # the clock of the file system is coarse
        file.write_bytes(b"voxelS")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size and file.stat().st_mtime_ns == before.st_mtime_ns
    assert digest(tmp_path / "index", file) == hashlib.sha256(b"voxelS").hexdigest() != first


def test_a_file_changed_a_moment_ago_is_not_trusted(tmp_path: Path, unread: list[Path]) -> None:
    (tmp_path / "a").write_bytes(b"voxels")
    for _ in range(2):
        digest(tmp_path / "index", tmp_path / "a")
    assert len(unread) == 2


def test_a_folder_is_the_files_in_it_and_their_names(tmp_path: Path) -> None:
    def folder(name: str, files: dict[str, bytes]) -> str:
        for file, held in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_bytes(held)
        return digest(None, tmp_path / name)

    first = folder("one", {"a": b"1", "deep/b": b"2"})
    assert folder("two", {"deep/b": b"2", "a": b"1"}) == first
    assert folder("three", {"a": b"1", "deep/b": b"3"}) != first
    assert folder("four", {"a": b"1", "b": b"2"}) != first
    assert folder("five", {"a": b"1"}) != first


@pytest.mark.usefixtures("settled")
def test_the_index_holds_no_path(tmp_path: Path) -> None:
    (tmp_path / "doe_john.nii").write_bytes(b"voxels")
    digest(tmp_path / "index", tmp_path / "doe_john.nii")
    held = (tmp_path / "index").read_bytes()
    assert hashlib.sha256(b"voxels").hexdigest().encode() in held and b"doe_john" not in held


@pytest.mark.usefixtures("settled")
def test_a_damaged_index_is_made_anew(tmp_path: Path, unread: list[Path]) -> None:
    (tmp_path / "a").write_bytes(b"voxels")
    (tmp_path / "index").write_bytes(b"no database" * 100)
    for _ in range(2):
        assert digest(tmp_path / "index", tmp_path / "a") == hashlib.sha256(b"voxels").hexdigest()
    assert len(unread) == 1


def test_an_index_that_cannot_be_made_is_told_and_done_without(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_bytes(b"voxels")
    assert digest(tmp_path / "missing" / "index", tmp_path / "a") == hashlib.sha256(b"voxels").hexdigest()
    assert "every file is read" in caplog.text
