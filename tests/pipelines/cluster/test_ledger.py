"""What lies in its place is whole, noted by the name of its job, and made by whoever holds the lock."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from clustered import Plain, source_of

from imaging import files
from imaging.errors import NoNode, OutputNotWritable, WorkerLost, told_again
from imaging.files import sha256_of
from pipelines.cluster.ledger import JOBS, Ledger, Mark, finished
from pipelines.outputs import OURS, REPORT


@pytest.fixture
def kept(ledger: Ledger, out: Path, tmp_path: Path) -> Path:
    """The folder of a study ``one`` that was kept and noted as the job ``abc``."""
    attempt = ledger.attempt()
    Plain().report(source_of(tmp_path / "one.txt", "content"), attempt)
    folder = ledger.keep("one", attempt)
    ledger.note("one", "abc", (WorkerLost("study one", seen="something"),))
    return folder


def test_kept_result_is_found_by_its_job(kept: Path, out: Path) -> None:
    result = finished(out, "one", "abc")
    assert result is not None and result.report is not None
    assert (result.folder, result.report.study.name) == (kept, "one")
    (problem,) = result.problems
    assert (type(problem), problem.seen) == (WorkerLost, "something")


@pytest.mark.parametrize("spoilt", ["job", "report", "gone", "record", "code"])
def test_result_of_another_job_or_that_was_changed_is_not_taken(kept: Path, out: Path, spoilt: str) -> None:
    (record,) = (out / JOBS / "done").rglob("*.json")
    if spoilt == "report":
        (kept / REPORT).write_text((kept / REPORT).read_text() + " ")
    elif spoilt == "gone":
        (kept / REPORT).unlink()
    elif spoilt == "record":
        record.write_text(record.read_text()[:20])
    elif spoilt == "code":
        record.write_text(record.read_text().replace("worker_lost", "of_another_version"))
    assert finished(out, "one", "other" if spoilt == "job" else "abc") is None


def test_keeping_again_replaces_ours_and_leaves_what_is_the_users(kept: Path, ledger: Ledger, tmp_path: Path) -> None:
    (kept / "notes.txt").write_text("mine")
    (kept / "mask_old.nii.gz").write_text("of an earlier result")
    before = sha256_of(kept / REPORT)
    attempt = ledger.attempt()
    Plain().report(source_of(tmp_path / "one.txt", "content"), attempt)
    (attempt / "one" / "report.html").write_text("page")
    ledger.keep("one", attempt)
    assert {file.name for file in kept.iterdir()} == {"notes.txt", REPORT, "report.html"}
    assert sha256_of(kept / REPORT) == before
    assert not attempt.exists()


def test_second_call_on_the_same_folder_is_refused(ledger: Ledger, out: Path) -> None:
    with pytest.raises(OutputNotWritable, match="another call"), Ledger(out, replaces=OURS, last=REPORT):
        pass


def test_what_a_killed_call_has_left_is_swept(out: Path) -> None:
    left = out / JOBS / "work" / "0123" / "4" / "study"
    left.mkdir(parents=True)
    (left / "half.json").write_text("{")
    with Ledger(out, replaces=OURS, last=REPORT) as ledger:
        assert not left.exists()
        assert ledger.mark.is_seen()
    assert list((out / JOBS).iterdir()) == [out / JOBS / "lock"]
    assert not ledger.mark.is_seen()


def test_call_that_is_killed_while_it_keeps_leaves_nothing(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_move_into", lambda *_: os._exit(7))  # all files are there, and none in its place
    child = os.fork()
    if child == 0:
        try:
            with Ledger(out, replaces=OURS, last=REPORT) as ledger:
                attempt = ledger.attempt()
                Plain().report(source_of(tmp_path / "one.txt", "content"), attempt)
                ledger.keep("one", attempt)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert [path.name for path in out.iterdir()] == [JOBS]
    with Ledger(out, replaces=OURS, last=REPORT):
        assert list(out.rglob("*.json")) == []


def test_mark_of_another_folder_is_not_taken_for_this_one(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("other")
    assert not Mark(tmp_path / "mark", "this").is_seen()


def test_told_error_is_told_again() -> None:
    error = NoNode("study 1", seen="none")
    again = told_again(error.as_dict())
    assert type(again) is NoNode
    assert str(again) == str(error)
    with pytest.raises(KeyError):
        told_again({**error.as_dict(), "code": "unheard_of"})
