"""The audit log: what happened, in the standard's words, each event once, nothing of a patient."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from pydicom.sr.codedict import codes
from shown import claimed, held, reported

from imaging.errors import StoreFull, WorkerLost
from pipelines import audit
from pipelines.audit import AuditLog, Kind, Outcome
from pipelines.metrics import Metrics
from pipelines.refusals import Refusals
from pipelines.store import Store
from pipelines.store.seen import Seen


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]


def told(line: dict[str, Any]) -> tuple[str, str, int]:
    event = line["EventIdentification"]
    return event["EventID"]["originalText"], event["EventActionCode"], event["EventOutcomeIndicator"]


KINDS = [kind for kind in vars(audit).values() if isinstance(kind, Kind)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.code}{kind.type_code}")
def test_codes_mean_in_dicom_what_they_are_said_to_mean(kind: Kind) -> None:
    named = {(entry.value): entry.meaning for name in codes.DCM.dir() for entry in [getattr(codes.DCM, name)]}
    assert named[kind.code] == kind.meaning
    assert not kind.type_code or named[kind.type_code] == kind.type_meaning


def test_the_way_of_a_study_is_told_in_the_standards_words(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", source="here")
    with Store(tmp_path / "store") as store:
        job = reported(store, 1)
        held(store, 2, WorkerLost("study x", seen="Doe^John"))
        store.jobs.ask_purge(job)
        assert log.follow(store.jobs) > 0
    written = lines(log.path)
    assert [told(line) for line in written] == [
        ("DICOM Instances Transferred", "C", 0),
        ("Procedure Record", "U", 0),
        ("DICOM Instances Accessed", "R", 0),
        ("DICOM Instances Accessed", "C", 0),
        ("Export", "R", 0),
        ("DICOM Instances Transferred", "C", 0),
        ("Procedure Record", "U", 0),
        ("DICOM Instances Accessed", "R", 0),
        ("DICOM Instances Accessed", "R", 8),
    ]
    assert written[0]["ParticipantObjectIdentification"][0]["ParticipantObjectID"] == job.study_uid
    assert written[0]["detail"]["sources"] == ["scp CT1@192.0.2.7"]
    assert written[1]["detail"]["rule"] == "all"
    assert written[4]["detail"]["destination"] == "outbox /out"
    assert written[-1]["detail"]["code"] == "worker_lost"
    assert "Doe" not in log.path.read_text()
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_who_was_refused_and_what_became_of_the_rules_is_told(tmp_path: Path) -> None:
    log, refusals = AuditLog(tmp_path / "audit.jsonl"), Refusals()
    with Store(tmp_path / "store") as store:
        for number in range(50):
            refusals.tell("association_rejected", f"scp SCANNER@192.0.2.{number % 2}")
        refusals.tell("instance_mismatch", "scp CT1@192.0.2.9")
        refusals.write(store)
        refusals.write(store)
        for number in range(100):
            refusals.tell("association_rejected", f"scp MANY{number}@192.0.2.1")
        refusals.write(store)
        store.routes.told("rules_taken", {"rules": "one, two"})
        store.routes.told("rules_refused", {"code": "unknown_key", "seen": "x"})
        log.follow(store.jobs)
        metrics = Metrics(Seen(tmp_path / "store")).text().decode()
    written = lines(log.path)
    assert [told(line) for line in written[:3]] == [("Security Alert", "E", 4)] * 2 + [
        ("DICOM Instances Transferred", "C", 4)
    ]
    assert written[0]["detail"] == {"event": "association_refused", "code": "association_rejected",
                                    "source": "scp SCANNER@192.0.2.0", "times": 25}  # fmt: skip
    assert [told(line) for line in written[-2:]] == [("Security Alert", "E", 0), ("Security Alert", "E", 4)]
    assert written[-2]["detail"]["rules"] == "one, two"
    many = [line["detail"] for line in written[3:-2]]
    assert len(many) == 21
    assert many[-1]["times"] == 80
    assert 'imgpipe_refused_total{what="association"} 150.0' in metrics
    assert 'imgpipe_refused_total{what="instance"} 1.0' in metrics


@pytest.mark.parametrize(("source", "kind"), [("inbox", "Import"), ("dicomweb x", "DICOM Instances Transferred")])
def test_what_comes_by_a_folder_is_imported(tmp_path: Path, source: str, kind: str) -> None:
    with Store(tmp_path / "store") as store:
        claimed(store, 1, source=source)
        AuditLog(tmp_path / "log").follow(store.jobs)
    assert told(lines(tmp_path / "log")[0])[0] == kind


def test_each_event_is_written_once_whenever_it_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Store(tmp_path / "store") as store:
        reported(store, 1)
        first = AuditLog(path)
        first.follow(store.jobs)
        assert first.follow(store.jobs) == 0
        before = lines(path)
        assert AuditLog(path).follow(store.jobs) == 0
        path.with_name("log.place").unlink()  # as if it had ended between the two
        assert AuditLog(path).follow(store.jobs) == 0
        reported(store, 2)
        AuditLog(path).follow(store.jobs)
    after = lines(path)
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    assert [line["seq"] for line in after] == sorted({line["seq"] for line in after})


def test_a_log_that_was_moved_away_is_followed_by_a_new_one_without_gap_or_double(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Store(tmp_path / "store") as store:
        log = AuditLog(path)
        reported(store, 1)
        log.follow(store.jobs)
        path.rename(tmp_path / "log.1")
        reported(store, 2)
        log.follow(store.jobs)
        path.rename(tmp_path / "log.2")
        assert AuditLog(path).follow(store.jobs) == 0
        assert not path.exists()
    assert {line["job"] for line in lines(tmp_path / "log.1")} == {1}
    assert {line["job"] for line in lines(tmp_path / "log.2")} == {2}


def test_a_line_that_a_crash_has_cut_off_spoils_no_other(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    (tmp_path / "log").write_text('{"seq": 12, "EventId')
    log.tell(audit.SIGNED_IN, outcome=Outcome.MINOR_FAILURE, user="web", address="192.0.2.1")
    broken, whole = (tmp_path / "log").read_text().splitlines()
    assert broken == '{"seq": 12, "EventId'
    line = json.loads(whole)
    assert told(line) == ("User Authentication", "E", 4)
    assert line["ActiveParticipant"][0]["NetworkAccessPointID"] == "192.0.2.1"


def _write(path: Path, number: int) -> None:
    log = AuditLog(path)
    for _ in range(50):
        log.tell(audit.READ, user=f"user {number}", detail={"padding": "x" * 5000})


def test_lines_of_several_processes_are_never_mixed(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=_write, args=(tmp_path / "log", number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert len(lines(tmp_path / "log")) == 150


def test_what_cannot_be_written_is_told_and_written_later(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "away" / "log")
    with Store(tmp_path / "store") as store:
        reported(store, 1)
        with pytest.raises(StoreFull):
            log.follow(store.jobs)
        log.path.parent.mkdir()
        assert log.follow(store.jobs) == 5


def test_hostile_names_stay_within_their_line(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log")
    log.tell(audit.READ, user='a"}\n{"seq": 99', detail={"source": "\u2028\x00é"})
    [line] = lines(log.path)
    assert line["ActiveParticipant"][0]["UserID"] == 'a"}\n{"seq": 99'
