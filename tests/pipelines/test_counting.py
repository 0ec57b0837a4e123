"""How many images a study should have: asked of a PACS, and waited for no longer than without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from arriving import instance, study_uid, told
from pacs import free_port, orthanc
from shown import reported

from imaging.errors import PeerUnreachable, QueryFailed
from pipelines.association import Peer
from pipelines.counting import ByFind, ByQido, Expecting, Pacs
from pipelines.dicomweb import Web
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness

RULE = Completeness(series_quiet_s=5, study_quiet_s=30, timeout_s=100)


class Asked:
    """A PACS that has what it is told."""

    def __init__(self, *uids: str) -> None:
        self.uids, self.times, self.fault = set(uids), 0, False

    def __str__(self) -> str:
        return "tests"

    def count(self, study_uid: str) -> int | None:
        self.times += 1
        if self.fault:
            raise PeerUnreachable(self, seen="silence")
        return len(self.uids) or None

    def instances(self, study_uid: str) -> set[str]:
        return self.uids


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path, watching=True) as opened:
        yield opened


def sop(study: int, number: int, series: int = 1) -> str:
    return told(study, number, series)["sop_instance_uid"]


def after(store: Store, expecting: Expecting, seconds: float) -> list[tuple[State, str]]:
    """Let time go by, ask, and see what is complete and why."""
    store.clock._ahead += seconds
    expecting.look()
    store.jobs.settle(RULE, expected=expecting.expected)
    why = {
        event.job: str(event.detail["why"]) for event in store.jobs.events() if event.detail and "why" in event.detail
    }
    return [(job.state, why.get(job.id, "")) for job in store.jobs.all()]


def put(store: Store, *numbers: int) -> None:
    for number in numbers:
        store.put(instance(1, number), source="tests", **told(1, number))


def test_a_study_is_complete_when_all_is_there_that_the_pacs_has(store: Store) -> None:
    pacs = Asked(*(sop(1, number) for number in (1, 2, 3)))
    expecting = Expecting(store, pacs)
    put(store, 1, 2)
    assert after(store, expecting, 6) == [(State.RECEIVING, "")]
    assert after(store, expecting, 60) == [(State.RECEIVING, "")], "silence is not enough"
    assert pacs.times == 2, "what lacks something is asked for again, and not all the time"
    put(store, 3)
    assert after(store, expecting, 6) == [(State.READY, "expected")]
    [event] = [event for event in store.jobs.events() if event.code == "study_complete"]
    assert event.detail is not None
    assert (event.detail["instances"], event.detail["expected"]) == (3, 3)


def test_what_lacks_for_good_is_complete_by_the_timeout(store: Store) -> None:
    expecting = Expecting(store, Asked(sop(1, 1), sop(1, 2)))
    put(store, 1)
    assert after(store, expecting, 40) == [(State.RECEIVING, "")]
    assert after(store, expecting, 70) == [(State.READY, "timeout")]


@pytest.mark.parametrize("silent", [True, False])
def test_a_pacs_that_does_not_answer_or_know_leaves_it_to_the_quiet_time(store: Store, silent: bool) -> None:
    pacs = Asked()
    pacs.fault = silent
    expecting = Expecting(store, pacs)
    put(store, 1)
    assert after(store, expecting, 29) == [(State.RECEIVING, "")]
    assert after(store, expecting, 2) == [(State.READY, "quiet")]


def test_an_answer_from_before_the_last_image_says_nothing(store: Store) -> None:
    pacs = Asked(sop(1, 1), sop(1, 2))
    expecting = Expecting(store, pacs)
    put(store, 1)
    assert after(store, expecting, 6) == [(State.RECEIVING, "")]
    store.clock._ahead += 1
    put(store, 2)
    pacs.fault = True
    assert after(store, expecting, 20) == [(State.RECEIVING, "")]
    assert after(store, expecting, 11) == [(State.READY, "quiet")]


def test_our_own_results_in_the_pacs_are_not_waited_for(store: Store) -> None:
    job = reported(store, 1)
    with store.database.writing() as db:
        db.execute("INSERT INTO outputs VALUES ('2.25.9', ?)", [job.id])
    expecting = Expecting(store, Asked(sop(1, 1), sop(1, 2), "2.25.9"))
    put(store, 2)
    assert after(store, expecting, 6)[-1] == (State.READY, "expected")


def test_a_real_pacs_is_asked_by_qido_and_by_find(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as server:
        for series, number in ((1, 1), (1, 2), (2, 1)):
            server.post("/instances", instance(1, number, series))
        by_find: Pacs = ByFind(Peer("ORTHANC", "127.0.0.1", server.dicom_port))
        for pacs in (by_find, ByQido(Web(server.web))):
            assert pacs.count(study_uid(1)) == 3
            assert pacs.instances(study_uid(1)) == {sop(1, 1), sop(1, 2), sop(1, 1, 2)}
            assert pacs.count(study_uid(2)) is None
    for pacs in (by_find, ByQido(Web(server.web)), ByFind(Peer("NONE", "127.0.0.1", free_port()))):
        with pytest.raises((PeerUnreachable, QueryFailed)):
            pacs.count(study_uid(1))
