"""What was delivered may go, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arriving import instance, study_uid, told

from imaging.errors import MissingSlices, NotDicom, WorkerLost
from pipelines import disk
from pipelines.disk import Gate, Marks
from pipelines.retention import Retention, purge_by
from pipelines.store import Store
from pipelines.store.rules import Completeness, Retries

NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0)
NEVER = Retention()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as store:
        yield store


def put(store: Store, study: int, number: int = 1) -> None:
    store.put(instance(study, number), source="tests", **told(study, number))
    store.jobs.settle(NOW)


def deliver(store: Store, study: int, *, there: bool = True) -> None:
    put(store, study)
    job = store.jobs.claim("w", "s")
    assert job is not None
    store.jobs.ran(job)
    store.jobs.verified(store.jobs.find(str(job.id)), "0" * 64, ["a", "b"])
    store.jobs.delivered(job.id, "a")
    if there:
        store.jobs.delivered(job.id, "b")


def kept(store: Store) -> set[int]:
    return {study for study in range(1, 9) if any(store.contents.folder_of(study_uid(study)).glob("*.dcm"))}


def all_states(store: Store) -> None:
    """1, 2 delivered; 3 at one of two places; 4 refused; 5 quarantined; 6 running; 7 waiting; 8 delivered with news."""
    deliver(store, 1)
    deliver(store, 2)
    deliver(store, 8)
    deliver(store, 3, there=False)
    put(store, 4)
    job = store.jobs.claim("w", "s")
    assert job is not None
    store.jobs.refuse(job, MissingSlices("study", seen="3 slices"))
    put(store, 5)
    job = store.jobs.claim("w", "s")
    assert job is not None
    store.jobs.give_up(job, WorkerLost("study", seen="killed"), Retries(most=1))
    put(store, 6)
    assert store.jobs.claim("w", "s") is not None
    put(store, 7)
    put(store, 8, 2)


def test_only_what_is_at_all_its_places_goes(store: Store, tmp_path: Path) -> None:
    all_states(store)
    gate = Gate(tmp_path)
    assert purge_by(NEVER, store, gate) == []
    assert kept(store) == set(range(1, 9))
    assert sorted(purge_by(Retention(delivered_days=0), store, gate)) == [study_uid(1), study_uid(2)]
    assert kept(store) == {3, 4, 5, 6, 7, 8}
    assert purge_by(Retention(delivered_days=0, most_gib=0), store, gate) == []


def test_the_delivered_stay_for_their_days(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deliver(store, 1)
    then = store.clock.now()
    policy = Retention(delivered_days=2)
    monkeypatch.setattr(store.clock, "now", lambda: then + 1.9 * 86400)
    deliver(store, 2)
    assert purge_by(policy, store, Gate(tmp_path)) == []
    monkeypatch.setattr(store.clock, "now", lambda: then + 2.1 * 86400)
    assert purge_by(policy, store, Gate(tmp_path)) == [study_uid(1)]
    assert kept(store) == {2}


def test_of_too_much_what_was_delivered_first_goes_and_no_more_than_needed(store: Store, tmp_path: Path) -> None:
    for study in (2, 1, 3):
        deliver(store, study)
    two = store.keeping.size() * 2 / 3
    assert purge_by(Retention(most_gib=(two + 1) / 2**30), store, Gate(tmp_path)) == [study_uid(2)]
    assert kept(store) == {1, 3}


def test_a_full_disk_is_emptied_of_the_delivered_until_below_its_low_mark(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for study in (1, 2, 3):
        deliver(store, study)
    put(store, 4)
    usage = type(disk.shutil.disk_usage("/"))
    # Each study is 10 % of this disk, and something else 60 %.
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage(100, 60 + 10 * len(kept(store)), 0)._replace(
        free=40 - 10 * len(kept(store))))  # fmt: skip
    gate = Gate(tmp_path, Marks(high=0.95, low=0.85))
    assert purge_by(Retention(), store, gate) == []
    assert purge_by(Retention(when_full=True), store, gate) == [study_uid(1), study_uid(2)]
    assert kept(store) == {3, 4}
    assert gate.is_open()


def test_files_that_no_study_can_have_stay_for_their_days(store: Store, tmp_path: Path) -> None:
    for name, days in (("old", 10), ("new", 1)):
        (tmp_path / name).write_text(name)
        with pytest.raises(NotDicom):
            store.take(tmp_path / name, source="inbox")
        file = max(store.contents.refused.iterdir(), key=lambda path: path.stat().st_ctime_ns)
        os.utime(file, (time.time() - days * 86400,) * 2)
    assert purge_by(NEVER, store, Gate(tmp_path)) == []
    assert len(list(store.contents.refused.iterdir())) == 2
    purge_by(Retention(refused_days=7), store, Gate(tmp_path))
    [left] = store.contents.refused.iterdir()
    assert left.read_text() == "new"
    [event] = [event for event in store.jobs.events() if event.code == "refused_purged"]
    assert event.detail == {"files": 1}


def test_what_was_purged_is_known_when_it_comes_again(store: Store, tmp_path: Path) -> None:
    deliver(store, 1)
    purge_by(Retention(delivered_days=0), store, Gate(tmp_path))
    put(store, 1)
    assert len(store.jobs.all()) == 1
    assert store.jobs.events()[-1].code == "purged"
