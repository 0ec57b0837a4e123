"""The watcher and its jobs from the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from arriving import instance, study_uid, told
from certified import certificates
from click.testing import CliRunner

from imaging.errors import ImagingError, WorkerLost
from pipelines.association import Peer
from pipelines.cli import main
from pipelines.cli.watching import _in_hand, _ways_in, _ways_out
from pipelines.receive import Listening
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries

CONSOLE_SCRIPT = Path(sys.executable).parent / "imgpipe"
NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Three studies: one that is awaited, one that waits for a worker, one in quarantine."""
    with Store(tmp_path / "store") as store:
        store.put(instance(1, 1), source="tests", **told(1, 1))
        store.jobs.settle(NOW)
        job = store.jobs.claim("w", "s")
        assert job is not None
        store.jobs.give_up(job, WorkerLost("study x", seen="killed"), Retries(most=1))
        store.put(instance(2, 1), source="tests", **told(2, 1))
        store.jobs.settle(NOW)
        store.put(instance(3, 1), source="tests", **told(3, 1))
    return tmp_path / "store"


def jobs(*arguments: str, store: Path, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["jobs", *arguments, "--store", str(store), "--json"])
    assert result.exit_code == status, result.output
    document = json.loads(result.stdout)
    assert document["exit_status"] == status
    return document


def states(document: Any) -> list[str]:
    return [job["state"] for job in document["jobs"]]


def test_jobs_are_listed_and_chosen_by_their_state(store: Path) -> None:
    assert states(jobs("list", store=store)) == ["quarantined", "ready", "receiving"]
    assert states(jobs("list", "--state", "ready", store=store)) == ["ready"]
    plain = CliRunner().invoke(main, ["jobs", "list", "--store", str(store)])
    assert "worker_lost" in plain.output.splitlines()[0]
    assert study_uid(2) in plain.output.splitlines()[1]


def test_the_worklist_is_told_with_what_is_not_in_it(store: Path) -> None:
    assert jobs("worklist", store=store)["worklist"] == []
    assert jobs("worklist", store=store)["not_done"]["quarantined"] == 1


def test_a_job_is_shown_with_its_reason_and_its_history(store: Path) -> None:
    document = jobs("show", study_uid(1), store=store)
    assert document["job"]["reason"]["code"] == "worker_lost"
    assert len(document["instances"]) == 1
    codes = [event["code"] for event in document["events"]]
    assert codes == ["receiving", "study_complete", "ready", "running", "quarantined"]
    plain = CliRunner().invoke(main, ["jobs", "show", "1", "--store", str(store)])
    assert "killed" in plain.output
    assert "1 instances, begun 1 times, 1 faults" in plain.output


def test_jobs_are_retried_and_released(store: Path) -> None:
    assert states(jobs("retry", "1", store=store)) == ["ready"]
    assert states(jobs("release", study_uid(3), store=store)) == ["ready"]
    error = jobs("retry", "2", store=store, status=2)["error"]
    assert error["code"] == "illegal_move"


def test_a_job_that_is_not_there_stops_the_others(store: Path) -> None:
    assert jobs("retry", "1", "77", store=store, status=2)["error"]["code"] == "unknown_job"
    assert states(jobs("list", store=store))[0] == "quarantined"


def test_purged_images_are_gone_at_once_without_a_watcher_and_by_it_with_one(store: Path) -> None:
    with Store(store) as opened:
        [file] = opened.files(opened.jobs.find("1"))
    with Store(store, watching=True) as opened:
        jobs("purge", "1", store=store)
        assert file.exists()
        assert opened.purge() == [study_uid(1)]
    assert not file.exists()
    with Store(store) as opened:
        opened.put(instance(1, 1), source="tests", **told(1, 1))
    assert file.exists()
    jobs("purge", "1", store=store)
    assert not file.exists()


def test_a_folder_without_a_store_is_left_as_it_is(tmp_path: Path) -> None:
    error = jobs("list", store=tmp_path, status=3)["error"]
    assert error["code"] == "nothing_found"
    assert "--store" in error["expected"]
    assert "DICOM" not in error["expected"]
    assert list(tmp_path.iterdir()) == []


def told_of_rules(store: Path) -> list[str]:
    with Store(store) as opened:
        return [event.code for event in opened.jobs.events() if event.code.startswith("rules")]


def test_the_verb_reports_on_a_real_study_reads_its_rules_by_sighup_and_ends_by_sigterm(
    tmp_path: Path, data: Path
) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules: [{name: one, checkpoints: [hippocampus_mr]}]")
    command = [
        str(CONSOLE_SCRIPT), "watch", "--inbox", "in", "--outbox", "out", "--store", "store", "--model",
        "hippocampus_mr", "--quiet", "1", "--settle", "0.2", "--rules", "rules.yaml",
    ]  # fmt: skip
    (tmp_path / "in").mkdir()
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        for file in (data / "hippocrop_study1").rglob("*.dcm"):
            (tmp_path / "in" / file.name).write_bytes(file.read_bytes())
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("[0-9]*/report.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        for text, codes in [("rules: [{name: two}]", ["rules_taken"]), ("rules: 7", ["rules_taken", "rules_refused"])]:
            rules.write_text(text)
            process.send_signal(signal.SIGHUP)
            while told_of_rules(tmp_path / "store") != codes:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, told_of = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, told_of
    [report] = (tmp_path / "out").glob("[0-9]*/report.json")
    findings = json.loads(report.read_text())["findings"]
    assert {finding["model"] for finding in findings} == {"hippocampus_mr"}
    assert len(list(report.parent.glob("seg_*.dcm"))) == 1
    with Store(tmp_path / "store", watching=True) as store:
        assert [job.state for job in store.jobs.all()] == [State.DONE]
        outputs = len(store.database.read("SELECT * FROM outputs"))
    assert outputs == len(list(report.parent.glob("*.dcm"))) > 1
    assert [path for path in (tmp_path / "in").rglob("*") if path.is_file()] == []
    assert not [path for path in tmp_path.rglob("*.partial") if os.path.lexists(path)]


@pytest.mark.parametrize("web", [["--web", "0.0.0.0:0"], ["--web", "8080"], ["--web-token-file", "token"]])
def test_a_page_that_anybody_could_see_or_that_is_nowhere_is_refused(tmp_path: Path, web: list[str]) -> None:
    (tmp_path / "in").mkdir()
    arguments = ["watch", "--inbox", str(tmp_path / "in"), "--outbox", str(tmp_path / "out"), "--store",
                 str(tmp_path / "store"), *web]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "config_invalid" in result.output


def params(*options: str) -> dict[str, Any]:
    return main.commands["watch"].make_context("watch", list(options)).params


def test_limits_certificates_and_who_is_told_what_it_sent_come_from_the_command_line(tmp_path: Path) -> None:
    tls = certificates(tmp_path)
    said = params("--listen", "IMGPIPE:11112", "--caller", "CT1", "--associations", "3", "--pdu", "16384",
                  "--send", "PACS@10.0.0.7:104", "--tls-certificate", str(tls.certificate), "--tls-key", str(tls.key),
                  "--tls-trusted", str(tls.trusted))  # fmt: skip
    listening = _ways_in(**said).listening
    assert listening is not None
    assert (listening.callers, listening.associations, listening.pdu_bytes) == (frozenset({"CT1"}), 3, 16384)
    assert listening.peers == {"PACS": Peer("PACS", "10.0.0.7", 104)}
    assert listening.tls == _ways_out(**said).tls == tls
    plain = params("--listen", "IMGPIPE:11112")
    assert _ways_in(**plain).listening == Listening("IMGPIPE", 11112)
    assert _ways_out(**plain).tls is None


@pytest.mark.parametrize(
    "options",
    [["--tls-key", "none.pem"],
     ["--tls-certificate", "none.pem", "--tls-key", "none.pem", "--tls-trusted", "none.pem"]],
)  # fmt: skip
def test_certificates_that_are_not_all_there_are_refused_before_anything_starts(options: list[str]) -> None:
    with pytest.raises(ImagingError, match="TLS"):
        _ways_out(**params("--send", "PACS@10.0.0.7:104", *options))


def test_a_budget_is_one_study_s_at_a_time(tmp_path: Path) -> None:
    call = ["watch", "--inbox", str(tmp_path), "--outbox", str(tmp_path / "out"), "--store", str(tmp_path / "store"),
            "--memory", "4GB", "--at-once", "2"]  # fmt: skip
    result = CliRunner().invoke(main, call)
    assert result.exit_code == 2
    assert "--at-once" in result.output
    assert [_in_hand(*told) for told in ((None, None), (3, None), (None, "4GB"), (1, "4GB"))] == [2, 3, 1, 1]
