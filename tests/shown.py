"""A store with reported studies as somebody who looks finds it, without a watcher."""

from __future__ import annotations

from typing import Any

from arriving import instance, study_uid, told

from imaging.errors import ImagingError
from imaging.files import sha256_of, write_whole
from imaging.report.report import OutputEntry, Report, StudyEntry
from pipelines.store import Store
from pipelines.store.rules import Completeness, Retries
from pipelines.store.view import Job, Route
from pipelines.triage import triage_of

NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=0)


def report_of(uid: str, **parts: Any) -> Report:
    study = parts.pop("study", StudyEntry(name=uid, uid=uid))
    values = {"findings": (), "series": (), **parts}
    return Report(created="2026-01-01T00:00:00+00:00", software="imgpipe", software_version="0", study=study, **values)


def claimed(store: Store, study: int, *, priority: int = 0, source: str = "scp CT1@192.0.2.7") -> Job:
    """A job that runs."""
    store.put(instance(study, 1), source=source, **told(study, 1))
    store.jobs.settle(NOW)
    for job in store.routes.undecided():
        store.routes.decide(job, Route("all", {}, (), job.study_uid), priority)
    job = store.jobs.claim("w", "s")
    assert job is not None
    assert job.study_uid == study_uid(study)
    return job


def reported(store: Store, number: int, *, page: str = "<!doctype html><p>a report", priority: int = 0,
             destination: str = "outbox /out", **parts: Any) -> Job:  # fmt: skip
    """A study that is done."""
    job = claimed(store, number, priority=priority)
    folder = store.result_of(job) / job.study_uid
    folder.mkdir(parents=True)
    write_whole(folder / "report.html", page)
    outputs = (OutputEntry(file="report.html", sha256=sha256_of(folder / "report.html")),)
    report = report_of(job.study_uid, outputs=outputs, **parts)
    write_whole(folder / "report.json", report.to_json())
    assert store.jobs.ran(job)
    job = store.jobs.find(str(job.id))
    store.jobs.verified(job, sha256_of(folder / "report.json"), [destination], triage=triage_of(report))
    store.jobs.delivered(job.id, destination)
    return store.jobs.find(str(job.id))


def held(store: Store, study: int, error: ImagingError) -> Job:
    """A study in quarantine."""
    job = claimed(store, study)
    store.jobs.give_up(job, error, Retries(most=1))
    return store.jobs.find(str(job.id))
