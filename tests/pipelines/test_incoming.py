"""What is pseudonymised on its way in: nothing else of it comes to the disk, and what it stood for is known apart."""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from arriving import instance, study_uid, told
from pydicom import dcmread
from pydicom.uid import BasicTextSRStorage
from watching import Stub

from imaging.dicom.deidentify import Crosswalk, Pseudonyms, make_key, read_key
from imaging.errors import BurnedIn, ConfigInvalid, KeyInvalid, NotDeidentifiable, NotDicom
from pipelines.inbox import Inbox
from pipelines.incoming import Hidden, check_places
from pipelines.routing import Incoming, When
from pipelines.store import Received, Store
from pipelines.watch import In, Out, Ruled, watch
from pipelines.watcher import Rules
from pipelines.worker import Reporting
from pipelines.worklist import Kind

NAME, PATIENT = b"Test^Arriving", b"P1"


@pytest.fixture
def apart(tmp_path: Path) -> Path:
    (tmp_path / "apart").mkdir()
    make_key(tmp_path / "apart" / "key")
    return tmp_path / "apart"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as opened:
        yield opened


def rule(apart: Path, **when: object) -> Incoming:
    return Incoming.model_validate(
        {"when": When.model_validate(when), "deidentify": {"key": apart / "key"}, "crosswalk": apart / "crosswalk.csv"}
    )


def names(apart: Path) -> Pseudonyms:
    return Pseudonyms(read_key(apart / "key"))


def bytes_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_nothing_but_the_copy_is_kept_and_the_crosswalk_says_of_what(store: Store, apart: Path) -> None:
    hidden = Hidden(store, lambda: [rule(apart)])
    for number in (1, 2):
        assert hidden.put(instance(1, number), source="scp CT1@192.0.2.7", **told(1, number)) is Received.NEW
    assert hidden.put(instance(1, 1), source="scp CT1@192.0.2.7", **told(1, 1)) is Received.SAME
    [job] = store.jobs.all()
    assert job.study_uid == names(apart).uid(study_uid(1))
    kept = bytes_below(store.root)
    for secret in (NAME, study_uid(1).encode(), told(1, 1)["sop_instance_uid"].encode()):
        assert secret not in kept
    rows = list(csv.reader((apart / "crosswalk.csv").open()))
    assert rows[0] == ["kind", "original", "pseudonym"]
    assert ["uid", study_uid(1), job.study_uid] in rows
    assert [row for row in rows if row[:2] == ["patient", "P1"]]
    assert (apart / "crosswalk.csv").stat().st_mode & 0o077 == 0
    assert len(rows) == len({tuple(row) for row in rows}), "what is known is not written again"
    uid = told(1, 1)["sop_instance_uid"]
    assert hidden.holds(uid) == hidden.knows(uid) == told(1, 1)["sop_class_uid"], "for storage commitment and fetching"
    assert hidden.holds(told(1, 9)["sop_instance_uid"]) is None


def test_only_what_the_rule_takes_is_hidden(store: Store, apart: Path) -> None:
    hidden = Hidden(store, lambda: [rule(apart, aet=["RESEARCH"], modality=["MR"])])
    hidden.put(instance(1, 1), source="scp RESEARCH@192.0.2.7", **told(1, 1))
    hidden.put(instance(2, 1), source="scp WARD@192.0.2.7", **told(2, 1))
    assert [job.study_uid for job in store.jobs.all()] == [names(apart).uid(study_uid(1)), study_uid(2)]


@pytest.mark.parametrize(("keyword", "value", "error"), [
    ("BurnedInAnnotation", "YES", BurnedIn), ("SOPClassUID", BasicTextSRStorage, NotDeidentifiable),
])  # fmt: skip
def test_what_cannot_be_hidden_is_refused_and_not_kept(
    store: Store, apart: Path, keyword: str, value: str, error: type[Exception]
) -> None:
    dataset = dcmread(BytesIO(instance(1, 1)))
    setattr(dataset, keyword, value)
    if error is NotDeidentifiable:
        del dataset.PixelData
    stream = BytesIO()
    dataset.save_as(stream)
    with pytest.raises(error) as caught:
        Hidden(store, lambda: [rule(apart)]).put(stream.getvalue(), source="scp CT1@192.0.2.7", **told(1, 1))
    assert told(1, 1)["sop_instance_uid"] in str(caught.value)
    assert "/proc" not in str(caught.value)
    assert NAME not in bytes_below(store.root)
    assert store.jobs.all() == []


def test_files_of_the_inbox_are_hidden_and_what_cannot_be_stays_there_and_is_tried_once(
    store: Store, apart: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good").write_bytes(instance(1, 1))
    (folder / "Doe_John.txt").write_text("Doe^John")
    inbox = Inbox(folder, Hidden(store, lambda: [rule(apart)]), settle_s=0.0)
    assert [inbox.look() for _ in range(4)] == [1, 0, 0, 0]
    assert [path.name for path in folder.iterdir()] == ["Doe_John.txt"]
    kept = bytes_below(store.root)
    assert NAME not in kept
    assert b"Doe" not in kept
    refused = [event.detail for event in store.jobs.events() if event.code == "file_refused"]
    assert [detail["code"] for detail in refused if detail] == ["not_dicom"]
    (folder / "Doe_John.txt").write_bytes(instance(1, 2))
    os.utime(folder / "Doe_John.txt", (1, 1))
    assert inbox.look() == 1, "another file is tried"
    with pytest.raises(NotDicom):
        (folder / "x").write_text("x")
        Hidden(store, list).take(folder / "x", source="inbox")


def test_what_is_damaged_is_told_once_and_what_cannot_be_opened_ends_nothing(
    store: Store, apart: Path, tmp_path: Path
) -> None:
    folder, later = tmp_path / "in", tmp_path / "later"
    folder.mkdir()
    (folder / "Doe_John.dcm").write_bytes(instance(1, 1)[:-200])
    (folder / "Doe_Jane.dcm").symlink_to(later)
    (folder / "good").write_bytes(instance(1, 2))
    inbox = Inbox(folder, Hidden(store, lambda: [rule(apart)]), settle_s=0.0)
    assert [inbox.look() for _ in range(4)] == [1, 0, 0, 0]
    assert sorted(path.name for path in folder.iterdir()) == ["Doe_Jane.dcm", "Doe_John.dcm"]
    refused = [event.detail for event in store.jobs.events() if event.code == "file_refused"]
    assert [detail["code"] for detail in refused if detail] == ["unreadable_dicom"]
    later.write_bytes(instance(1, 3))
    assert inbox.look() == 1


def test_a_crosswalk_grows_after_a_crash_and_is_of_one_key(apart: Path, tmp_path: Path) -> None:
    path, key = apart / "crosswalk.csv", read_key(apart / "key")
    first = Pseudonyms(key)
    first.uid("1.2.3")
    Crosswalk(path, key).note(first)
    whole = path.read_bytes()
    path.write_bytes(whole + b"uid,1.2.4,2.2")
    second = Pseudonyms(key)
    second.uid("1.2.4")
    Crosswalk(path, key).note(second)
    assert path.read_bytes().startswith(whole)
    assert len(path.read_text().splitlines()) == 3
    with pytest.raises(KeyInvalid, match="another key"):
        Crosswalk(path, make_key(tmp_path / "other"))
    with pytest.raises(KeyInvalid, match="in the store"):
        check_places([rule(apart)], apart)


def test_the_watcher_hides_what_comes_by_its_rules(apart: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "one").write_bytes(instance(1, 1))
    rules = apart / "rules.yaml"
    rules.write_text(yaml.safe_dump({
        "rules": [{"name": "all"}], "incoming": [{"deidentify": {"key": "key"}, "crosswalk": "crosswalk.csv"}],
    }))  # fmt: skip
    stop, quick = threading.Event(), Rules(settle_s=0.1, drain_s=0)
    out, pseudonym = tmp_path / "out", names(apart).uid(study_uid(1))

    def end() -> None:
        deadline = time.monotonic() + 60
        while any((tmp_path / "in").iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()

    threading.Thread(target=end).start()
    ruled = Ruled(rules, Reporting(models=("chest_xray",)))
    watch(come_from=In(tmp_path / "in"), go_to=Out(out), store=tmp_path / "store", reading=Stub(), stop=stop,
          rules=quick, ruled=ruled)  # fmt: skip
    assert NAME not in bytes_below(tmp_path / "store")
    assert list((tmp_path / "in").iterdir()) == []
    with Store(tmp_path / "store") as store:
        assert [job.study_uid for job in store.jobs.all()] == [pseudonym]
    both = In(tmp_path / "in", worklist=Kind("A"))
    with pytest.raises(ConfigInvalid, match="worklist"):
        watch(come_from=both, go_to=Out(out), store=tmp_path / "store", reading=Stub(), stop=stop, ruled=ruled)
