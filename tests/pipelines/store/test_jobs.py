"""A job moves only along the arrows, is run once at a time, and a study has one current result."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arriving import instance, study_uid, told

from imaging.errors import DeliveryFailed, IllegalMove, InstancesPurged, NotDicom, StudyOverdue, UnknownJob, WorkerLost
from pipelines.store import Received, Store
from pipelines.store.moves import MOVES, RESTING, State
from pipelines.store.rules import Completeness, Retries
from pipelines.store.view import Job, Route

NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0)
RETRIES = Retries(most=3, first_s=10, factor=2, jitter=0, most_interruptions=2)
FAULT = WorkerLost("study 1.2", seen="killed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, watching=True) as store:
        yield store


def put(store: Store, study: int, number: int, **changed: Any) -> Received:
    return store.put(instance(study, number, **changed), source="tests", **told(study, number))


def advance(store: Store, seconds: float) -> None:
    store.clock._ahead += seconds


def ready(store: Store, *studies: int) -> None:
    for study in studies:
        put(store, study, 1)
    store.jobs.settle(NOW)


def claimed(store: Store, holder: str = "w", setup: str = "s") -> Job:
    job = store.jobs.claim(holder, setup)
    assert job is not None
    return job


def delivering(store: Store, study: int, *destinations: str, sha: str = "a" * 64) -> Job:
    ready(store, study)
    job = claimed(store)
    assert store.jobs.ran(job)
    store.jobs.verified(store.jobs.find(str(job.id)), sha, destinations)
    return store.jobs.find(str(job.id))


def done(store: Store, study: int) -> Job:
    job = delivering(store, study, "out")
    store.jobs.delivered(job.id, "out")
    return store.jobs.find(str(job.id))


def test_the_whole_way_leaves_one_current_result_and_an_event_for_every_move(store: Store) -> None:
    job = done(store, 1)
    assert job.state is State.DONE
    moves = [event.code for event in store.jobs.events(job.id) if event.code in list(State)]
    assert moves == ["receiving", "ready", "running", "verifying", "delivering", "done"]
    standing = store.jobs.standing(study_uid(1))
    assert standing is not None
    assert (standing.version, standing.report_sha256) == (1, "a" * 64)


def test_every_move_that_is_no_arrow_is_refused_by_the_database_itself(store: Store) -> None:
    ready(store, 1)
    job = claimed(store)
    db = sqlite3.connect(store.root / "store.sqlite", isolation_level=None)
    refused = 0
    for before, after in itertools.product(State, State):
        db.execute("PRAGMA ignore_check_constraints = 1")
        [(trigger,)] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs_move'").fetchall()
        db.execute("DROP TRIGGER jobs_move")
        [(must,)] = db.execute("SELECT sql FROM sqlite_master WHERE name = 'jobs_done_have_a_result'").fetchall()
        db.execute("DROP TRIGGER jobs_done_have_a_result")
        db.execute("UPDATE jobs SET state = ? WHERE id = ?", (before, job.id))
        db.execute(trigger)
        try:
            db.execute("UPDATE jobs SET state = ? WHERE id = ?", (after, job.id))
            allowed = True
        except sqlite3.IntegrityError as error:
            assert "illegal_move" in str(error)
            allowed, refused = False, refused + 1
        db.execute(must)
        assert allowed == (before == after or (before, after) in MOVES), (before, after)
    db.close()
    assert refused == 8 * 8 - 8 - len(MOVES) > 30


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE jobs SET state = 'done' WHERE id = 1",
        "UPDATE jobs SET state = 'lost' WHERE id = 1",
        "UPDATE jobs SET name = 'another' WHERE id = 1",
        "UPDATE jobs SET holder = NULL WHERE id = 1",
        "INSERT INTO jobs (version, study_uid, state, opened, last_arrival) SELECT version, study_uid, 'ready', 0, 0 FROM jobs",  # noqa: E501
        "UPDATE events SET code = 'nothing'",
        "INSERT INTO results VALUES (99, '1.2.3', 'x', NULL, 1)",
    ],
)
def test_the_database_refuses_what_must_not_happen(store: Store, statement: str) -> None:
    ready(store, 1)
    claimed(store)
    with pytest.raises(sqlite3.IntegrityError), store.database.writing() as db:
        db.execute(statement)
    assert store.jobs.find("1").state is State.RUNNING


def test_done_needs_a_current_result_and_there_is_one(store: Store) -> None:
    first = done(store, 1)
    put(store, 1, 2)
    store.jobs.settle(NOW)
    job = claimed(store)
    store.jobs.ran(job)
    store.jobs.verified(store.jobs.find(str(job.id)), "b" * 64, ["out"])
    with pytest.raises(sqlite3.IntegrityError, match="without a current result"), store.database.writing() as db:
        db.execute("UPDATE jobs SET state = 'done' WHERE id = ?", [job.id])
    with pytest.raises(sqlite3.IntegrityError), store.database.writing() as db:
        db.execute("UPDATE results SET current = 1")
    store.jobs.delivered(job.id, "out")
    [(current,)] = [tuple(row) for row in store.database.read("SELECT job FROM results WHERE current")]
    assert (current, first.id) == (2, 1)


def test_every_arrow_is_a_state_away_from_rest() -> None:
    reached = {State.RECEIVING}
    while more := {after for before, after in MOVES if before in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert {before for before, _ in MOVES} == set(State) - {State.DONE}
    assert {State.DONE, State.FAILED, State.QUARANTINED} == RESTING


def test_a_late_image_before_the_job_has_begun_joins_it(store: Store) -> None:
    ready(store, 1)
    assert put(store, 1, 2) is Received.NEW
    [job] = store.jobs.all()
    assert job.state is State.RECEIVING
    store.jobs.settle(NOW)
    assert len(store.jobs.members(claimed(store))) == 2
    assert len(store.jobs.all()) == 1


def test_a_late_image_makes_a_version_that_names_its_predecessor_and_waits_for_it(store: Store) -> None:
    ready(store, 1)
    first = claimed(store)
    put(store, 1, 2)
    store.jobs.settle(NOW)
    assert [(job.version, job.state) for job in store.jobs.all()] == [(1, State.RUNNING), (2, State.READY)]
    assert store.jobs.claim("w2", "s") is None
    store.jobs.ran(first)
    store.jobs.verified(store.jobs.find("1"), "a" * 64, ["out"])
    assert store.jobs.claim("w2", "s") is None
    store.jobs.delivered(1, "out")
    second = claimed(store)
    assert [len(store.jobs.members(job)) for job in (first, second)] == [1, 2]
    assert first.name != second.name
    rows = store.database.read("SELECT number, predecessor FROM versions ORDER BY id")
    assert [tuple(row) for row in rows] == [(1, None), (2, 1)]
    assert store.jobs.standing(study_uid(1)) is not None


def test_the_same_again_and_a_conflict_make_no_job(store: Store) -> None:
    job = done(store, 1)
    assert put(store, 1, 1) is Received.SAME
    assert put(store, 1, 1, value=9) is Received.CONFLICT
    assert store.jobs.settle(NOW) == []
    assert [found.id for found in store.jobs.all()] == [job.id]
    assert len(store.jobs.members(job)) == 1


def test_our_own_output_that_a_pacs_sends_back_makes_no_job(store: Store) -> None:
    ready(store, 1)
    job = claimed(store)
    store.jobs.ran(job)
    ours = told(1, 50)["sop_instance_uid"]
    store.jobs.verified(store.jobs.find("1"), "a" * 64, ["out"], outputs=[ours])
    store.jobs.delivered(1, "out")
    assert put(store, 1, 50) is Received.NEW
    assert len(store.jobs.all()) == 1
    assert [event.job for event in store.jobs.events() if event.code == "own_output_returned"] == [1]
    put(store, 1, 51)
    store.jobs.settle(NOW)
    assert ours not in {member.sop_instance_uid for member in store.jobs.members(claimed(store))}


def test_a_job_is_named_by_its_content_and_by_what_reads_it(tmp_path: Path) -> None:
    names = []
    for folder, numbers, value, setup in [
        ("a", (1, 2), 0, "s"), ("b", (2, 1), 0, "s"), ("c", (1, 2), 0, "t"), ("d", (1, 2), 5, "s"), ("e", (1,), 0, "s"),
    ]:  # fmt: skip
        with Store(tmp_path / folder) as store:
            for number in numbers:
                put(store, 1, number, value=value)
            store.jobs.settle(NOW)
            names.append(claimed(store, setup=setup).name)
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_priority_first_then_the_order_of_arrival(store: Store) -> None:
    for study in (1, 2, 3, 4):
        put(store, study, 1)
    store.jobs.settle(NOW)
    for job in store.routes.undecided():
        store.routes.decide(job, Route("all", {}, (), job.study_uid), 5 if job.study_uid == study_uid(3) else 0)
    order = [claimed(store, holder=f"w{n}").study_uid for n in range(4)]
    assert order == [study_uid(study) for study in (3, 1, 2, 4)]


def test_faults_are_tried_again_later_and_later_then_quarantined_with_the_reason(store: Store) -> None:
    ready(store, 1)
    for delay in (10, 20):
        assert store.jobs.give_up(claimed(store), FAULT, RETRIES)
        assert store.jobs.claim("w", "s") is None
        advance(store, delay - 1)
        assert store.jobs.claim("w", "s") is None
        advance(store, 1.1)
    assert store.jobs.give_up(claimed(store), StudyOverdue("study 1.2", seen="after 3 s"), RETRIES)
    [job] = store.jobs.all()
    assert (job.state, job.faults, job.starts) == (State.QUARANTINED, 3, 3)
    assert job.reason is not None
    assert job.reason["code"] == "study_overdue"
    assert store.jobs.retry(job).faults == 0
    assert claimed(store).starts == 4


def test_what_the_study_was_refused_for_is_not_tried_again(store: Store) -> None:
    ready(store, 1)
    job = claimed(store)
    assert store.jobs.refuse(job, NotDicom("file x", seen="text"))
    assert store.jobs.find("1").state is State.FAILED
    advance(store, 1e6)
    assert store.jobs.claim("w", "s") is None
    put(store, 1, 2)  # news of it is another matter
    store.jobs.settle(NOW)
    assert claimed(store).version == 2
    with pytest.raises(IllegalMove, match="newer version"):
        store.jobs.retry(store.jobs.find("1"))


def test_a_worker_that_was_given_up_can_change_nothing_any_more(store: Store) -> None:
    ready(store, 1)
    lost = claimed(store, "w1")
    store.jobs.give_up(lost, FAULT, RETRIES)
    advance(store, 11)
    again = claimed(store, "w2")
    assert not store.jobs.ran(lost)
    assert not store.jobs.refuse(lost, FAULT)
    assert not store.jobs.give_up(lost, FAULT, RETRIES)
    store.jobs.let_go(lost)
    assert store.jobs.find("1").holder == "w2"
    assert store.jobs.ran(again)


def test_what_ran_when_the_watcher_ended_runs_again_without_a_fault_but_not_for_ever(store: Store) -> None:
    ready(store, 1)
    claimed(store)
    [job] = store.jobs.recover(RETRIES)
    assert (job.state, job.faults, job.holder) == (State.READY, 0, None)
    claimed(store)
    [job] = store.jobs.recover(RETRIES)
    assert job.state is State.QUARANTINED
    assert job.reason is not None
    assert job.reason["code"] == "interrupted_too_often"


@pytest.mark.parametrize("how", ["the watcher ended", "the worker was lost"])
def test_what_was_interrupted_while_a_newer_version_waits_runs_before_it(store: Store, how: str) -> None:
    ready(store, 1)
    first = claimed(store)
    put(store, 1, 2)
    if how == "the watcher ended":
        store.jobs.recover(RETRIES)
    else:
        assert store.jobs.give_up(first, FAULT, RETRIES)
    put(store, 1, 3)
    store.jobs.settle(NOW)
    assert [job.state for job in store.jobs.all()] == [State.READY, State.READY]
    if how == "the worker was lost":
        assert store.jobs.claim("w2", "s") is None, "the first one's time has not come, and the newer one waits for it"
        advance(store, 11)
    again = claimed(store)
    assert (again.id, again.version, len(store.jobs.members(again))) == (first.id, 1, 1)
    assert store.jobs.claim("w2", "s") is None, "the newer one waits until it is through"
    assert store.jobs.refuse(again, NotDicom("file x", seen="text"))
    newer = claimed(store)
    assert (newer.version, len(store.jobs.members(newer))) == (2, 3)


def test_beats_are_counted_for_those_who_hold_a_job(store: Store) -> None:
    ready(store, 1, 2)
    claimed(store, "w1"), claimed(store, "w2")
    store.jobs.beat(["w1"])
    store.jobs.beat(["w1", "nobody"])
    assert [tuple(row) for row in store.database.read("SELECT holder, beat FROM jobs ORDER BY id")] == [
        ("w1", 2), ("w2", 0),
    ]  # fmt: skip


def test_delivery_is_tried_again_without_the_model_and_done_when_all_have_confirmed(store: Store) -> None:
    job = delivering(store, 1, "out", "pacs")
    store.jobs.delivered(job.id, "out")
    assert store.jobs.find("1").state is State.DELIVERING
    [waiting] = store.jobs.deliveries(waiting_at="pacs")
    store.jobs.undelivered(job.id, "pacs", DeliveryFailed("pacs", seen="refused"), RETRIES)
    assert store.jobs.deliveries(waiting_at="pacs") == []
    advance(store, 11)
    [again] = store.jobs.deliveries(waiting_at="pacs")
    assert (waiting.faults, again.faults) == (0, 1)
    assert store.jobs.find("1").starts == 1
    store.jobs.delivered(job.id, "pacs")
    assert store.jobs.find("1").state is State.DONE


def test_what_could_not_be_delivered_is_quarantined_and_released_without_the_model(store: Store) -> None:
    job = delivering(store, 1, "pacs")
    for _ in range(3):
        store.jobs.undelivered(job.id, "pacs", DeliveryFailed("pacs", seen="away"), RETRIES)
    quarantined = store.jobs.find("1")
    assert quarantined.state is State.QUARANTINED
    assert store.jobs.standing(study_uid(1)) is None
    assert store.jobs.release(quarantined).state is State.DELIVERING
    assert len(store.jobs.deliveries(waiting_at="pacs")) == 1
    store.jobs.delivered(job.id, "pacs")
    assert store.jobs.find("1").starts == 1
    assert store.jobs.standing(study_uid(1)) is not None


def test_a_person_need_not_wait_for_a_study_to_be_quiet(store: Store) -> None:
    put(store, 1, 1)
    assert store.jobs.release(store.jobs.find("1")).state is State.READY
    for wrong in (store.jobs.release, store.jobs.retry):
        with pytest.raises(IllegalMove):
            wrong(store.jobs.find("1"))
    assert "released" not in [event.code for event in store.jobs.events()][2:]


def test_jobs_are_found_by_number_name_and_study(store: Store) -> None:
    ready(store, 1, 2)
    job = claimed(store)
    assert job.name is not None
    assert store.jobs.find(job.name[:8]) == store.jobs.find(study_uid(1)) == store.jobs.find("1") == job
    for name in ("99", "", job.name[:5], "zzzzzzz", "%"):
        with pytest.raises(UnknownJob):
            store.jobs.find(name)


def test_purged_bytes_are_gone_and_a_late_image_alone_does_not_pass_for_the_study(store: Store) -> None:
    job = done(store, 1)
    put(store, 2, 1)
    with pytest.raises(IllegalMove):
        store.jobs.ask_purge(store.jobs.find("2"))
    assert store.purge() == []
    store.jobs.ask_purge(job)
    [file] = store.files(job)
    assert store.purge() == [study_uid(1)]
    assert not file.exists()
    assert store.jobs.find("1").state is State.DONE
    put(store, 1, 2)
    store.jobs.settle(NOW)
    with pytest.raises(InstancesPurged, match="1 of 2"):
        store.files(store.jobs.find(study_uid(1)))
    assert put(store, 1, 1) is Received.SAME  # sent once more, it is here again
    assert len(store.files(store.jobs.find(study_uid(1)))) == 2
    assert file.exists()


def test_a_study_with_news_since_it_was_asked_is_not_purged(store: Store) -> None:
    job = done(store, 1)
    store.jobs.ask_purge(job)
    put(store, 1, 2)
    assert store.purge() == []
    assert len(store.files(store.jobs.find(study_uid(1)))) == 2
