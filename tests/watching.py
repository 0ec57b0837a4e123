"""Stand-ins for the checkpoints of a watcher: they write real reports in no time, or go wrong as they are told."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from arriving import instance

from imaging.errors import MissingSlices
from imaging.files import sha256_of, staged_folder, write_whole
from imaging.report.report import OutputEntry, Replaced, Report, StudyEntry
from imaging.stages import stage
from pipelines.worker import Reader, Task


@dataclass(frozen=True)
class Stub:
    """A reading that counts files.

    Attributes
    ----------
    trouble
        By the end of a StudyInstanceUID, what happens: ``raise``, ``refuse``, ``hang``, ``die``, ``lie`` (an output
        differs from its checksum), ``elsewhere`` (nothing is written), ``block`` (it hangs while it holds the network's
        turn). ``once:`` before it lets it happen once.
    seconds
        What a study takes.
    log
        A file that gets a line for each study that is begun.
    dicom
        Whether a DICOM file is among the outputs.
    """

    trouble: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    log: Path | None = None
    setup: str = "stub"
    dicom: bool = False

    def open(self) -> Reader:
        if self.setup == "broken":
            raise MissingSlices("checkpoint", seen="it cannot be opened")
        if self.setup == "dies":
            os._exit(3)
        return StubReader(self)


class StubReader:
    def __init__(self, stub: Stub) -> None:
        self._stub, self.setup = stub, stub.setup

    def __call__(self, task: Task) -> dict[str, float]:
        if self._stub.log is not None:
            with self._stub.log.open("a") as log:
                log.write(f"{task.study_uid} {task.version} {len(task.files)}\n")
        trouble = next((what for uid, what in self._stub.trouble.items() if task.study_uid.endswith(uid)), "")
        if trouble.startswith("once:"):
            first = task.out.parent.parent / f"{task.study_uid}.met"
            trouble = "" if first.exists() else trouble.removeprefix("once:")
            first.touch()
        self._go_wrong(trouble, task)
        with stage("network"):
            time.sleep(self._stub.seconds)
        if trouble != "elsewhere":
            write_report(task, dicom=self._stub.dicom)
        if trouble == "lie":
            (task.out / task.study_uid / "count.txt").write_text("another")
        return {"stub": self._stub.seconds}

    def _go_wrong(self, trouble: str, task: Task) -> None:
        match trouble:
            case "raise":
                raise RuntimeError("Doe^John")
            case "refuse":
                raise MissingSlices(f"study {task.study_uid}", seen="3 slices are missing")
            case "hang":
                time.sleep(3600)
            case "block":
                with stage("network"):
                    time.sleep(3600)
            case "die":
                os._exit(9)


def write_report(task: Task, *, dicom: bool = False) -> None:
    """The folder of a study: a report, and a file or two that it vouches for."""
    if task.replaces is not None:
        assert task.earlier is not None
        assert sha256_of(task.earlier / "report.json") == task.replaces[1], "what is replaced is at hand"
    with staged_folder(task.out / task.study_uid, last="report.json") as stage:
        write_whole(stage / "count.txt", f"{len(task.files)} files, {sum(len(f.read_bytes()) for f in task.files)}\n")
        if dicom:
            number = int(task.study_uid.rpartition(".")[2])
            write_whole(stage / "seg_stub.dcm", instance(number, 1000 + task.version, 99, value=len(task.files)))
        report = Report(
            created="2026-01-01T00:00:00+00:00",
            software="imgpipe",
            software_version="0",
            study=StudyEntry(name=task.study_uid, uid=task.study_uid),
            findings=(),
            series=(),
            outputs=tuple(OutputEntry(file=file.name, sha256=sha256_of(file)) for file in sorted(stage.iterdir())),
            version=task.version,
            replaces=Replaced(version=task.replaces[0], report_sha256=task.replaces[1]) if task.replaces else None,
        )
        write_whole(stage / "report.json", report.to_json())


def read_report(folder: Path) -> Report:
    """The report in a study's folder, with what it vouches for checked."""
    report = Report.model_validate_json((folder / "report.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"report.json", *(output.file for output in report.outputs)}
    assert all(sha256_of(folder / output.file) == output.sha256 for output in report.outputs)
    return report
