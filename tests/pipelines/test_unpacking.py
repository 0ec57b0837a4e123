"""An archive in the inbox: its files are in the store once, whatever comes in between, and what is wrong is told."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from arriving import instance, study_uid, told
from pydicom import dcmread

from imaging.dicom.archives import sink
from imaging.dicom.deidentify import Pseudonyms, make_key, read_key
from imaging.errors import ArchiveRefused, NotDicom, StoreBusy
from pipelines import unpacking
from pipelines.inbox import Inbox
from pipelines.incoming import Hidden
from pipelines.routing import Incoming
from pipelines.store import Store
from pipelines.unpacking import Unpacking

TESTS = Path(__file__).parents[1]
Members = Sequence[tuple[str, bytes]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    (tmp_path / "in").mkdir()
    with Store(tmp_path / "store", watching=True) as opened:
        yield opened


def zipped(members: Members) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(members: Members, mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))
    return stream.getvalue()


def images(study: int, count: int) -> list[tuple[str, bytes]]:
    return [(f"../Doe^John/{study}.{number}", instance(study, number)) for number in range(count)]


def put(store: Store, data: bytes, name: str = "Doe^John.zip") -> Path:
    path = store.root.parent / "in" / name
    path.write_bytes(data)
    return path


def kept(store: Store, study: int) -> list[bytes]:
    """The images of the one job of a study, in order."""
    [job] = [job for job in store.jobs.all() if job.study_uid == study_uid(study)]
    return sorted(file.read_bytes() for file in store.files(job))


def refusals(store: Store) -> list[tuple[str, str]]:
    """Code and what was seen of each file that was refused; nothing in it is of a patient."""
    found = [event.detail or {} for event in store.jobs.events() if event.code == "file_refused"]
    assert "Doe" not in repr(found)
    return [(str(detail["code"]), str(detail["seen"])) for detail in found]


@pytest.mark.parametrize("packed", [zipped, tarred], ids=["zip", "tar.gz"])
def test_each_image_of_an_archive_is_in_the_store_once(store: Store, packed: type) -> None:
    first, second = images(1, 3), images(2, 2)
    folder = store.root.parent / "in"
    put(store, packed([*first, *second, ("DICOMDIR", b"an index"), ("._1", b"")]))
    put(store, packed(first), "again.zip")
    put(store, first[0][1], "loose")
    assert Inbox(folder, store, settle_s=0, archives=Unpacking(store, folder)).look() == 3
    assert kept(store, 1) == sorted(data for _, data in first)
    assert kept(store, 2) == sorted(data for _, data in second)
    assert list(folder.iterdir()) == []
    assert refusals(store) == []
    assert {str(row["source"]) for row in store.database.read("SELECT source FROM instances")} == {"inbox"}


def test_what_is_damaged_is_kept_for_a_person_and_the_rest_is_taken(store: Store) -> None:
    tar = tarred(images(1, 3), "w:")
    cut = tar[: 1024 + 2 * len(images(1, 1)[0][1])]
    whole_zip = zipped([*images(2, 2), ("setup.exe", b"MZ"), ("inner.zip", zipped(images(3, 1)))])
    short_zip = zipped(images(4, 2))[:-30]
    for name, data, error in (("1", cut, ArchiveRefused), ("2", whole_zip, NotDicom), ("3", short_zip, ArchiveRefused)):
        with pytest.raises(error, match=r"file [0-9a-f]{16}"):
            Unpacking(store, store.root.parent / "in").take(put(store, data, name), source="inbox")
    assert [job.study_uid for job in store.jobs.all()] == [study_uid(1), study_uid(2)]
    assert len(kept(store, 1)) < 3
    assert len(kept(store, 2)) == 2
    assert sorted(file.read_bytes() for file in store.contents.refused.iterdir()) == sorted([cut, whole_zip, short_zip])
    assert list((store.root.parent / "in").iterdir()) == []
    codes = [code for code, _ in refusals(store)]
    assert codes == ["archive_refused", "not_dicom", "archive_refused"]
    assert "files kept from before the damage" in refusals(store)[0][1]
    assert "2 members (3, 4) are not DICOM" in refusals(store)[1][1]


def test_an_archive_without_an_image_and_one_whose_image_has_no_study_are_told(store: Store) -> None:
    nameless = instance(1, 1).replace(told(1, 1)["study_uid"].encode() + b"\0", b" " * 30, 1)
    assert len(nameless) == len(instance(1, 1))
    taker = Unpacking(store, store.root.parent / "in")
    with pytest.raises(NotDicom):
        taker.take(put(store, zipped([("DICOMDIR", b"")])), source="inbox")
    taker.take(put(store, zipped([("1", nameless), *images(2, 1)])), source="inbox")
    assert [job.study_uid for job in store.jobs.all()] == [study_uid(2)]
    assert [code for code, _ in refusals(store)] == ["not_dicom", "missing_attribute"]
    assert nameless in [file.read_bytes() for file in store.contents.refused.iterdir()]


def test_without_room_an_archive_waits_and_is_not_unpacked_again_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, looked = put(store, zipped(images(1, 2))), 0

    def full(_: object) -> SimpleNamespace:
        nonlocal looked
        looked += 1
        return SimpleNamespace(free=0)

    monkeypatch.setattr(sink, "shutil", SimpleNamespace(disk_usage=full))
    inbox = Inbox(path.parent, store, settle_s=0, archives=Unpacking(store, path.parent))
    assert [inbox.look() for _ in range(3)] == [0, 0, 0]
    assert looked == 1
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert store.jobs.all() == []
    monkeypatch.undo()
    later = time.monotonic() + 61
    monkeypatch.setattr(unpacking, "time", SimpleNamespace(monotonic=lambda: later))
    assert inbox.look() == 1
    assert len(kept(store, 1)) == 2


def test_a_watcher_that_ends_leaves_the_archive_and_the_next_one_takes_the_rest(store: Store) -> None:
    path = put(store, zipped(images(1, 5)))

    def ends() -> None:
        if len(list((store.root / "instances").rglob("*.dcm"))) == 2:
            raise StoreBusy(store.root, seen="the watcher ends")

    with pytest.raises(StoreBusy):
        Unpacking(store, path.parent, ends).take(path, source="inbox")
    assert len(kept(store, 1)) == 2
    assert path.exists()
    Unpacking(store, path.parent).take(path, source="inbox")
    assert len(kept(store, 1)) == 5
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("further", [[], [("notes.txt", b"Doe^John")]], ids=["whole", "with what is refused"])
def test_an_archive_put_in_the_place_of_one_that_is_unpacked_is_taken_too(store: Store, further: Members) -> None:
    path = put(store, zipped([*images(1, 2), *further]))
    later = path.with_name(".later")
    later.write_bytes(zipped(images(2, 3)))

    def replace() -> None:
        if later.exists():
            later.replace(path)

    inbox = Inbox(path.parent, store, settle_s=0, archives=Unpacking(store, path.parent, replace))
    inbox.look()
    inbox.look()
    assert len(kept(store, 1)) == 2
    assert len(kept(store, 2)) == 3
    assert list(path.parent.iterdir()) == []


class Watched:
    """Takes loose files, and says when it has."""

    def __init__(self, store: Store) -> None:
        self._store, self.taken = store, threading.Event()

    def take(self, path: Path, *, source: str) -> object:
        received = self._store.take(path, source=source)
        self.taken.set()
        return received


def test_a_loose_file_is_taken_while_an_archive_is_still_unpacked_and_archives_one_by_one(store: Store) -> None:
    folder, loose, stop = store.root.parent / "in", Watched(store), threading.Event()
    in_time: list[bool] = []
    folders: list[int] = []

    def check() -> None:
        folders.append(len(list((folder / unpacking.FOLDER).iterdir())))
        if not in_time:
            (folder / "stat.dcm").write_bytes(instance(3, 1))
            in_time.append(loose.taken.wait(60))

    for study in (1, 2):
        put(store, zipped(images(study, 3)), f"{study}.zip")
    inbox = Inbox(folder, loose, settle_s=0, poll_s=0.01, archives=Unpacking(store, folder, check))
    thread = threading.Thread(target=inbox.run, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 60
    while any(folder.glob("[0-9s]*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()
    assert in_time == [True]
    assert set(folders) == {1}
    assert [len(kept(store, study)) for study in (1, 2, 3)] == [3, 3, 1]
    assert list(folder.iterdir()) == []


def test_told_to_end_it_ends_in_the_midst_of_a_file_of_an_archive_and_the_next_one_takes_it(store: Store) -> None:
    path = put(store, tarred([*images(1, 2), ("large", b"\0" * (8 << 20))]))
    stop = threading.Event()

    def check() -> None:
        if any((path.parent / unpacking.FOLDER).rglob("000003")):  # its last member is begun
            stop.set()
            raise StoreBusy(store.root, seen="the watcher ends")

    archives = Unpacking(store, path.parent, check)
    Inbox(path.parent, store, settle_s=0, poll_s=0.01, archives=archives).run(stop)
    assert stop.is_set()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert store.jobs.all() == []
    with pytest.raises(NotDicom):
        Unpacking(store, path.parent).take(path, source="inbox")
    assert len(kept(store, 1)) == 2


def test_a_fault_while_an_archive_is_unpacked_ends_the_inbox(store: Store) -> None:
    path = put(store, zipped(images(1, 1)))

    def fails() -> None:
        raise ZeroDivisionError

    inbox = Inbox(path.parent, store, settle_s=0, poll_s=0.01, archives=Unpacking(store, path.parent, fails))
    with pytest.raises(ZeroDivisionError):
        inbox.run(threading.Event())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# Stands still where the ninth file is about to get its place in the store.
KILLED = """
import sys, time
from pathlib import Path
from pipelines.store import Store
from pipelines.unpacking import Unpacking
root = Path(sys.argv[1])
placed = []
def stand_still(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith(".dcm"):
        placed.append(arguments[1])
        if len(placed) == 9:
            print("here", flush=True)
            time.sleep(600)
sys.addaudithook(stand_still)
with Store(root / "store", watching=True) as store:
    Unpacking(store, root / "in").take(root / "in" / "study.zip", source="inbox")
"""


def test_killed_while_it_unpacks_nothing_is_lost_and_nothing_there_twice(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = images(1, 60)
    (tmp_path / "in" / "study.zip").write_bytes(zipped(members))
    environment = os.environ | {"PYTHONPATH": str(TESTS.parent)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGKILL)
    assert len(list((tmp_path / "store").rglob("*.dcm"))) >= 8
    assert (tmp_path / "in" / "study.zip").exists()
    assert any((tmp_path / "in" / unpacking.FOLDER).rglob("000*"))
    with Store(tmp_path / "store", watching=True) as store:
        rows = "SELECT count(*) AS n FROM instances"
        assert 0 < store.database.read(rows)[0]["n"] < 60
        archives = Unpacking(store, tmp_path / "in")
        Inbox(tmp_path / "in", store, settle_s=0, archives=archives).look()
        assert kept(store, 1) == sorted(data for _, data in members)
        assert store.database.read(rows)[0]["n"] == 60
        assert list((store.root / "incoming").iterdir()) == []
    assert list((tmp_path / "in").iterdir()) == []


def test_files_of_an_archive_are_hidden_and_one_that_cannot_be_keeps_the_archive_where_it_is(
    store: Store, tmp_path: Path
) -> None:
    make_key(tmp_path / "key")
    rule = Incoming.model_validate({"deidentify": {"key": tmp_path / "key"}})
    hidden, folder = Hidden(store, lambda: [rule]), store.root.parent / "in"
    put(store, zipped(images(1, 2)))
    burnt = dcmread(io.BytesIO(instance(2, 1)))
    burnt.BurnedInAnnotation = "YES"
    stream = io.BytesIO()
    burnt.save_as(stream)
    put(store, zipped([("1", stream.getvalue()), *images(3, 1), ("notes.txt", b"Doe^John")]), "two.zip")
    inbox = Inbox(folder, hidden, settle_s=0, archives=Unpacking(hidden, folder))
    assert inbox.look() == 1
    assert inbox.look() == 0
    names = Pseudonyms(read_key(tmp_path / "key"))
    assert {job.study_uid for job in store.jobs.all()} == {names.uid(study_uid(1)), names.uid(study_uid(3))}
    assert [path.name for path in folder.iterdir()] == ["two.zip"]
    assert {code for code, _ in refusals(store)} == {"burned_in", "not_dicom"}
    everything = b"".join(file.read_bytes() for file in store.root.rglob("*") if file.is_file())
    assert b"Test^Arriving" not in everything
    assert b"Doe^John" not in everything


def test_an_archive_with_a_damaged_file_that_stays_where_it_is_is_unpacked_once(store: Store, tmp_path: Path) -> None:
    make_key(tmp_path / "key")
    rule = Incoming.model_validate({"deidentify": {"key": tmp_path / "key"}})
    path = put(store, zipped([("1", instance(1, 1)[:-200]), *images(2, 1)]))
    hidden = Hidden(store, lambda: [rule])
    inbox = Inbox(path.parent, hidden, settle_s=0, archives=Unpacking(hidden, path.parent))
    assert [inbox.look() for _ in range(3)] == [0, 0, 0]
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert [code for code, _ in refusals(store)] == ["unreadable_dicom"]
    [job] = store.jobs.all()
    assert job.study_uid == Pseudonyms(read_key(tmp_path / "key")).uid(study_uid(2))
