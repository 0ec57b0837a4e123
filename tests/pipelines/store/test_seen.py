"""Looking at a store: the order of the worklist, pages, and that looking changes nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from arriving import instance, study_uid, told
from reported import judged
from shown import NOW, claimed, held, reported

from imaging.errors import StoreFull, WorkerLost
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Retries
from pipelines.store.seen import ReadOnly, Seen
from pipelines.store.store import DATABASE

WEEK = 7 * 86400.0


@pytest.fixture
def seen(tmp_path: Path) -> Seen:
    """Seven studies: a STAT, abnormal ones of two probabilities, normal, not judged, one held, one that runs."""
    with Store(tmp_path) as store:
        reported(store, 1, findings=(judged("nodule", 0.1, "normal"),))
        reported(store, 2, findings=(judged("nodule", 0.6, "abnormal"),))
        reported(store, 3, findings=(judged("nodule", 0.9, "abnormal"),))
        reported(store, 4)
        reported(store, 5, priority=1, findings=(judged("nodule", 0.2, "normal"),))
        held(store, 6, WorkerLost("study x", seen="killed"))
        claimed(store, 7)
    return Seen(tmp_path)


def studies(seen: Seen, **page: int) -> list[int]:
    return [int(entry.job.study_uid.rpartition(".")[2]) for entry in seen.worklist(within_s=WEEK, **page)]


def test_the_worklist_begins_with_stat_and_then_goes_by_assessment_and_probability(seen: Seen) -> None:
    assert studies(seen) == [5, 3, 2, 1, 4]
    assert seen.worklist_length(within_s=WEEK) == 5
    assert studies(seen, offset=1, most=2) == [3, 2]
    assert seen.worklist(within_s=WEEK)[1].received_at.startswith("20")


def test_what_was_sent_as_less_urgent_is_not_put_behind_what_is_normal(seen: Seen, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        reported(store, 8, priority=-50, findings=(judged("nodule", 0.7, "abnormal"),))
        reported(store, 9, priority=50, findings=(judged("nodule", 0.3, "normal"),))
        reported(store, 10, priority=100)
    assert studies(seen) == [10, 9, 5, 3, 8, 2, 1, 4]
    urgent = [entry.job.urgency for entry in seen.worklist(within_s=WEEK)]
    assert urgent == ["STAT", "high", "high", "", "", "", "", ""]


def test_a_late_image_brings_the_new_version_into_the_place_of_the_old_one(seen: Seen, tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put(instance(3, 2), source="tests", **told(3, 2))
        assert studies(seen) == [5, 3, 2, 1, 4]  # until it has a result
        store.jobs.settle(NOW)
        job = store.jobs.claim("w", "s")
        assert job is not None
        assert store.jobs.ran(job)
        store.jobs.verified(store.jobs.find("8"), "0" * 64, ["outbox"])
    assert studies(seen) == [5, 2, 1, 4, 3]
    assert [job.version for job in seen.jobs_of(study_uid(3))] == [2, 1]


def test_what_began_to_arrive_long_ago_is_left_out_when_that_is_asked(seen: Seen) -> None:
    assert seen.worklist(within_s=0) == []
    assert seen.worklist_length(within_s=0) == 0
    assert len(seen.worklist(within_s=float("inf"))) == 5


def test_a_job_that_is_run_again_has_no_place_until_it_is_through(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        job = claimed(store, 1)
        assert store.jobs.ran(job)
        store.jobs.verified(store.jobs.find("1"), "0" * 64, ["outbox"])
        store.jobs.undelivered(job.id, "outbox", WorkerLost("x", seen="y"), Retries(most=1))
        seen = Seen(tmp_path, store.database)
        assert studies(seen) == [1]
        store.jobs.retry(job)
        assert studies(seen) == []
        assert store.database.read("SELECT * FROM triage") == []


def test_jobs_are_counted_and_paged(seen: Seen) -> None:
    assert {state: count for state, count in seen.counts().items() if count} == {
        State.DONE: 5, State.QUARANTINED: 1, State.RUNNING: 1,
    }  # fmt: skip
    assert [job.id for job in seen.jobs(most=3)] == [7, 6, 5]
    assert [job.id for job in seen.jobs([State.QUARANTINED])] == [6]
    assert seen.job(99) is None
    job = seen.job(3)
    assert job is not None
    assert [event.code for event in seen.events(job.id)][-2:] == ["delivered", "done"]
    assert [delivery.confirmed for delivery in seen.deliveries(job.id)] == [True]
    assert seen.instances(job)[0] == 1


def test_looking_cannot_write_and_needs_a_store(seen: Seen, tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError), ReadOnly(tmp_path / DATABASE).writing():
        pass
    with pytest.raises(StoreFull):
        seen.read("DELETE FROM jobs")
    with pytest.raises(StoreFull):
        Seen(tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_ten_thousand_studies_are_paged_in_a_moment(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        now = store.clock.now()
        with store.database.writing() as db:
            for number in range(1, 10_001):
                uid = f"1.2.{number}"
                db.execute("INSERT INTO studies (study_uid, first_arrival, last_arrival) VALUES (?, 0, 0)", [uid])
                db.execute("INSERT INTO versions VALUES (?, ?, 1, NULL, 0)", [number, uid])
                db.execute("INSERT INTO jobs (id, version, study_uid, state, opened, last_arrival, name) VALUES"
                           " (?, ?, ?, 'receiving', ?, 0, ?)", [number, number, uid, now, uid])  # fmt: skip
                db.execute("INSERT INTO results VALUES (?, ?, 'x', NULL, 1)", [number, uid])
                db.execute("INSERT INTO triage VALUES (?, ?, 'normal', ?, '', '', 0)",
                           [number, number % 3, number / 10_000])  # fmt: skip
    seen = Seen(tmp_path)
    begun = time.process_time()  # others may keep the machine busy
    last = seen.worklist(within_s=WEEK, offset=9950)
    assert seen.worklist_length(within_s=WEEK) == 10_000
    assert time.process_time() - begun < 2
    assert [entry.triage.rank for entry in last] == [2] * 50
    assert last[-1].triage.score == pytest.approx(2 / 10_000)
