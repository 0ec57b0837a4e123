"""Workitems of a worklist: claimed once, worked on, ended when the result is where it should be; by a simulation."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arriving import instance, study_uid, told
from watching import Stub, write_report
from workitems import CODE, Archive, workitem, worklist

from imaging.errors import ConfigInvalid, MissingSlices
from pipelines.claims import Claims
from pipelines.delivery import read_back
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.store.workitems import Step
from pipelines.watch import In, Out, watch
from pipelines.watcher import Rules
from pipelines.worker import Task
from pipelines.worklist import Kind

NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0)
KIND = Kind(CODE)


@pytest.fixture(scope="module")
def server() -> Iterator[Archive]:
    with worklist() as archive:
        yield archive


@pytest.fixture
def archive(server: Archive) -> Archive:
    for kept in (server.items, server.owners, server.files, server.deaf, server.asked):
        kept.clear()
    return server


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as opened:
        yield opened


def offered(archive: Archive, study: int, images: int = 2, **more: str) -> str:
    archive.put(*(instance(study, number) for number in range(1, images + 1)))
    return archive.add(workitem(f"2.25.70{study}", study_uid(study), **more))


def step(store: Store, uid: str) -> Step | None:
    found = store.workitems.find(uid)
    return found.step if found is not None else None


def run_job(store: Store, *, places: tuple[str, ...] = ("pacs PACS@pacs:104",), deliver: bool = True) -> None:
    """What the watcher does with a study, up to its delivery."""
    store.jobs.settle(NOW)
    job = store.jobs.claim("w", "s")
    assert job is not None
    out = store.result_of(job)
    out.mkdir(parents=True)
    write_report(Task(job.study_uid, tuple(store.files(job)), out), dicom=True)
    store.jobs.ran(job)
    result = read_back(out / job.study_uid, job.study_uid, job.version)
    store.jobs.verified(store.jobs.find(str(job.id)), result.report_sha256, places, outputs=result.dicom)
    if deliver:
        for place in places:
            store.jobs.delivered(job.id, place)


def test_a_workitem_is_claimed_worked_on_and_completed_once_its_result_is_delivered(
    archive: Archive, store: Store
) -> None:
    uid, claims = offered(archive, 1), Claims(archive.web, KIND, store)
    claims.round()
    assert (archive.state(uid), step(store, uid)) == ("IN PROGRESS", Step.CLAIMED)
    assert store.waiting.instances(study_uid(1)) == 2
    run_job(store, places=("pacs PACS@pacs:104", f"stow {archive.url}"), deliver=False)
    claims.round()
    assert archive.state(uid) == "IN PROGRESS", "what is not delivered is not done"
    store.jobs.delivered(1, "pacs PACS@pacs:104")
    claims.round()
    assert archive.state(uid) == "IN PROGRESS", "at one place of two"
    store.jobs.delivered(1, f"stow {archive.url}")
    claims.round()
    assert (archive.state(uid), step(store, uid)) == ("COMPLETED", Step.COMPLETED)
    [done] = archive.told(uid).UnifiedProcedureStepPerformedProcedureSequence
    [output] = done.OutputInformationSequence
    [made] = output.ReferencedSOPSequence
    assert made.ReferencedSOPInstanceUID == told(1, 1001, 99)["sop_instance_uid"]
    assert (output.StudyInstanceUID, output.SeriesInstanceUID) == (study_uid(1), told(1, 1, 99)["series_uid"])
    assert output.DICOMRetrievalSequence[0].RetrieveAETitle == "PACS"
    assert output.WADORSRetrievalSequence[0].RetrieveURL.startswith(f"{archive.url}/studies/{study_uid(1)}/series/")
    assert done.PerformedWorkitemCodeSequence[0].CodeValue == CODE
    codes = [event.code for event in store.jobs.events() if event.code.startswith("workitem")]
    assert codes == ["workitem_claimed", "workitem_completed"]
    claims.round()
    assert len([event for event in store.jobs.events() if event.code.startswith("workitem")]) == 2


def test_only_what_is_ours_ready_and_of_one_study_is_claimed(archive: Archive, store: Store) -> None:
    others = [
        offered(archive, 1, code="SOMEBODY"),
        offered(archive, 2, ready="INCOMPLETE"),
        archive.add(workitem("2.25.703", study_uid(1), study_uid(2))),
        archive.add(workitem("2.25.704")),
    ]
    Claims(archive.web, KIND, store).round()
    Claims(archive.web, Kind(CODE, "99OTHER"), store).round()
    assert {archive.state(uid) for uid in others} == {"SCHEDULED"}
    assert store.workitems.open(archive.url) == []


def test_no_more_are_claimed_than_are_worked_on(archive: Archive, store: Store) -> None:
    uids = [offered(archive, study, 1) for study in (1, 2, 3)]
    claims = Claims(archive.web, KIND, store, most=2)
    claims.round()
    assert [archive.state(uid) for uid in uids] == ["IN PROGRESS", "IN PROGRESS", "SCHEDULED"]
    run_job(store)
    claims.round()
    assert [archive.state(uid) for uid in uids] == ["COMPLETED", "IN PROGRESS", "IN PROGRESS"]


def test_the_most_urgent_is_claimed_first_and_run_first(archive: Archive, store: Store) -> None:
    said = {1: "LOW", 2: "MEDIUM", 3: "HIGH", 4: "HIGH"}
    uids = {study: offered(archive, study, 1, priority=priority) for study, priority in said.items()}
    uids[5] = offered(archive, 5, 1)
    claims = Claims(archive.web, KIND, store, most=2)
    claims.round()
    assert [study for study, uid in uids.items() if archive.state(uid) == "IN PROGRESS"] == [3, 4]
    Claims(archive.web, KIND, store).round()
    store.put(instance(6, 1), source="inbox", **told(6, 1))
    store.jobs.settle(NOW)
    ran = [store.jobs.claim(f"w{number}", "s") for number in range(6)]
    asked = [(job.study_uid, job.priority) for job in ran if job is not None]
    assert asked[:2] == [(study_uid(3), 100), (study_uid(4), 100)]
    assert {study for study, priority in asked[2:5] if priority == 0} == {study_uid(2), study_uid(5), study_uid(6)}
    assert asked[5:] == [(study_uid(1), -50)]


def test_a_study_that_waits_already_is_hurried_by_its_workitem(archive: Archive, store: Store) -> None:
    for study in (1, 2):
        store.put(instance(study, 1), source="inbox", **told(study, 1))
    store.jobs.settle(NOW)
    archive.put(instance(2, 1))
    archive.add(workitem("2.25.702", study_uid(2), priority="HIGH"))
    Claims(archive.web, KIND, store).round()
    first = store.jobs.claim("w", "s")
    assert first is not None
    assert (first.study_uid, first.priority) == (study_uid(2), 100)


def test_who_is_first_has_it(archive: Archive, tmp_path: Path) -> None:
    uid = offered(archive, 1)
    with Store(tmp_path / "a", watching=True) as first, Store(tmp_path / "b", watching=True) as second:
        late = second.workitems.begin(uid, archive.url, study_uid(1))
        Claims(archive.web, KIND, first).round()
        Claims(archive.web, KIND, second).round()
        assert (step(first, uid), step(second, late.uid)) == (Step.CLAIMED, Step.LOST)
        assert second.waiting.instances(study_uid(1)) == 0, "nothing is fetched of what is another's"
        assert archive.owners[uid] != late.transaction_uid


@pytest.mark.parametrize("restarted", [False, True])
def test_a_claim_whose_answer_was_lost_is_ours(archive: Archive, tmp_path: Path, restarted: bool) -> None:
    uid = offered(archive, 1)
    archive.deaf.append(("PUT", "/state"))
    with Store(tmp_path, watching=True) as store:
        Claims(archive.web, KIND, store).round()
        assert (archive.state(uid), step(store, uid)) == ("IN PROGRESS", Step.CLAIMING)
        if not restarted:
            Claims(archive.web, KIND, store).round()
            assert step(store, uid) is Step.CLAIMED
    with Store(tmp_path, watching=True) as store:
        Claims(archive.web, KIND, store).round()
        assert step(store, uid) is Step.CLAIMED
        run_job(store)
    with Store(tmp_path, watching=True) as store:
        Claims(archive.web, KIND, store).round()
        assert archive.state(uid) == "COMPLETED"


@pytest.mark.parametrize("lost", [("POST", "2.25.701"), ("PUT", "/state")])
def test_an_end_whose_answer_was_lost_is_told_again(archive: Archive, store: Store, lost: tuple[str, str]) -> None:
    uid, claims = offered(archive, 1), Claims(archive.web, KIND, store)
    claims.round()
    run_job(store)
    archive.deaf.append(lost)
    claims.round()
    assert step(store, uid) is Step.COMPLETING
    Claims(archive.web, KIND, store).round()
    assert (archive.state(uid), step(store, uid)) == ("COMPLETED", Step.COMPLETED)


@pytest.mark.parametrize("when", ["before the result", "after it"])
def test_what_the_other_side_canceled_is_not_ended_again(archive: Archive, store: Store, when: str) -> None:
    uid, claims = offered(archive, 1), Claims(archive.web, KIND, store)
    claims.round()
    if when == "after it":
        run_job(store)
    archive.end_by_another(uid)
    claims.round()
    assert (archive.state(uid), step(store, uid)) == ("CANCELED", Step.CANCELED)
    [event] = [event for event in store.jobs.events() if event.code == "workitem_canceled"]
    assert event.detail is not None
    assert "CANCELED" in event.detail["why"]


def test_what_was_given_to_another_is_lost_and_can_be_claimed_anew(archive: Archive, store: Store) -> None:
    uid, claims = offered(archive, 1), Claims(archive.web, KIND, store)
    claims.round()
    first = archive.owners[uid]
    run_job(store)
    archive.claim_by_another(uid)
    claims.round()
    assert (archive.state(uid), step(store, uid)) == ("IN PROGRESS", Step.LOST)
    archive.end_by_another(uid, "SCHEDULED")
    claims.round()
    assert archive.owners[uid] != first
    assert archive.state(uid) == "COMPLETED", "the study was reported on before"
    codes = [event.code for event in store.jobs.events() if event.code.startswith("workitem")]
    assert codes == [f"workitem_{what}" for what in ("claimed", "lost", "claimed", "completed")]


def test_a_study_that_is_refused_cancels_its_workitem_with_the_code(archive: Archive, store: Store) -> None:
    uid, claims = offered(archive, 1), Claims(archive.web, KIND, store)
    claims.round()
    store.jobs.settle(NOW)
    job = store.jobs.claim("w", "s")
    assert job is not None
    store.jobs.refuse(job, MissingSlices("study", seen="3 slices"))
    claims.round()
    assert (archive.state(uid), step(store, uid)) == ("CANCELED", Step.CANCELED)
    [progress] = archive.told(uid).ProcedureStepProgressInformationSequence
    assert progress.ReasonForCancellation == "missing_slices"
    assert progress.ProcedureStepDiscontinuationReasonCodeSequence[0].CodeValue == "110513"


def test_a_code_is_read(archive: Archive) -> None:
    assert Kind.parse("A^99X") == Kind("A", "99X")
    for wrong in ("", "^99X", "A^B^C"):
        with pytest.raises(ConfigInvalid):
            Kind.parse(wrong)


def test_the_watcher_works_through_a_worklist_and_is_started_anew_in_between(archive: Archive, tmp_path: Path) -> None:
    uids = [offered(archive, study) for study in (1, 2)]
    quick = Rules(complete=Completeness(series_quiet_s=0.2, study_quiet_s=20), settle_s=0.1,
                  redeliveries=Retries(most=50, first_s=0.2, longest_s=0.5), drain_s=0.1)  # fmt: skip
    out = tmp_path / "out"
    out.write_text("in the way")

    def until(condition: Callable[[], object]) -> None:
        stop, error = threading.Event(), list[BaseException]()

        def go() -> None:
            try:
                watch(come_from=In(web=archive.web, worklist=KIND, poll_s=0.2), go_to=Out(outbox=out), rules=quick,
                      store=tmp_path / "store", reading=Stub(dicom=True, log=tmp_path / "log"), stop=stop)  # fmt: skip
            except BaseException as fault:
                error.append(fault)

        thread = threading.Thread(target=go)
        thread.start()
        deadline = time.monotonic() + 60
        while not condition() and not error and time.monotonic() < deadline:
            time.sleep(0.05)
        stop.set()
        thread.join(60)
        assert not error
        assert condition()

    def states() -> list[State]:
        if not (tmp_path / "store" / "store.sqlite").exists():
            return []
        with Store(tmp_path / "store") as store:
            return [job.state for job in store.jobs.all()]

    until(lambda: states() == [State.DELIVERING] * 2)
    assert {archive.state(uid) for uid in uids} == {"IN PROGRESS"}, "nothing is completed that is not delivered"
    out.unlink()
    until(lambda: {archive.state(uid) for uid in uids} == {"COMPLETED"})
    assert states() == [State.DONE] * 2
    assert len((tmp_path / "log").read_text().splitlines()) == 2
    with Store(tmp_path / "store") as store:
        why = [event.detail["why"] for event in store.jobs.events() if event.code == "study_complete" and event.detail]
    assert why == ["expected", "expected"], "the server was asked how much there is"
