"""What Prometheus is told: how many jobs are where, how long each step takes, how full the disk is.

Invariant: everything is read from the store, so that asking costs the receiver and the workers nothing. Counters and
histograms count from when the watcher was started, as Prometheus expects it; labels have few values, none of a patient
or a study.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import threading
from collections import Counter as Tally
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pipelines.store.moves import State
from pipelines.store.seen import Seen
from pipelines.store.store import DATABASE

# In seconds: a step takes moments, and a study that waits for its images or for a person takes hours.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
_BATCH = 5000
# States that end, by an event of the next one.
_PASSED = tuple(str(state) for state in State if state not in (State.DONE, State.FAILED, State.QUARANTINED))


class Metrics:
    """The metrics of one store.

    Parameters
    ----------
    seen
        The store.
    after_event, after_instance
        Numbers of the last event and the last instance that are not counted any more.
    """

    def __init__(self, seen: Seen, *, after_event: int = 0, after_instance: int = 0) -> None:
        self._seen, self._event, self._instance = seen, after_event, after_instance
        self._updating = threading.Lock()
        self._registry = CollectorRegistry()
        own: dict[str, Any] = {"namespace": "imgpipe", "registry": self._registry}
        build = Gauge("build_info", "The version of imgpipe.", ["version"], **own)
        build.labels(importlib.metadata.version("imgpipe")).set(1)
        self._jobs = Gauge("jobs", "Jobs by state.", ["state"], **own)
        self._held = Gauge("jobs_held", "Failed and quarantined jobs by the code of their error.", ["state", "code"],
                           **own)  # fmt: skip
        self._depth = Gauge("queue_jobs", "Studies that wait for a worker.", **own)
        self._age = Gauge("queue_oldest_seconds", "Since the oldest of these began to arrive.", **own)
        self._disk = Gauge("disk_bytes", "The disk of the store.", ["kind"], **own)
        self._database = Gauge("database_bytes", "The database of the store.", **own)
        self._instances = Counter("instances_received", "Instances that were made durable.", **own)
        self._bytes = Counter("instances_received_bytes", "Bytes of these.", **own)
        self._events = Counter("events", "Events of the store by their code.", ["code"], **own)
        self._deliveries = Counter("deliveries", "Deliveries by destination and outcome.", ["destination", "outcome"],
                                   **own)  # fmt: skip
        self._refused = Counter("refused", "Associations and instances that were refused.", ["what"], **own)
        self._stages = Histogram("stage_seconds", "How long jobs were in a state.", ["stage"], buckets=_BUCKETS, **own)
        self._studies = Histogram("study_seconds", "From a study's last image to its result's delivery.",
                                  buckets=_BUCKETS, **own)  # fmt: skip
        self._busy = Counter("worker_stage_seconds", "How long studies were in each stage of a worker.",
                             ["stage"], **own)  # fmt: skip
        self._models = Histogram("model_seconds", "How long a checkpoint took for a study.", ["model"],
                                 buckets=_BUCKETS, **own)  # fmt: skip

    def text(self) -> bytes:
        """All of it as it is now, in Prometheus' text format.

        Raises
        ------
        StoreFull, StoreBusy
            If the store cannot be read.
        """
        with self._updating:
            self._look()
            self._count_instances()
            self._count_events()
            return generate_latest(self._registry)

    def _look(self) -> None:
        for state, count in self._seen.counts().items():
            self._jobs.labels(state).set(count)
        held = self._seen.read(
            "SELECT state, json_extract(reason, '$.code') AS code, count(*) AS jobs FROM jobs"
            " WHERE state IN ('failed', 'quarantined') GROUP BY 1, 2"
        )
        self._held.clear()
        for row in held:
            self._held.labels(row["state"], row["code"] or "").set(row["jobs"])
        [queue] = self._seen.read("SELECT count(*) AS jobs, min(opened) AS oldest FROM jobs WHERE state = 'ready'")
        self._depth.set(queue["jobs"])
        self._age.set(self._seen.now() - queue["oldest"] if queue["jobs"] else 0)
        usage = shutil.disk_usage(self._seen.root)
        self._disk.labels("total").set(usage.total)
        self._disk.labels("free").set(usage.free)
        self._database.set((self._seen.root / DATABASE).stat().st_size)

    def _count_instances(self) -> None:
        [row] = self._seen.read(
            "SELECT count(*) AS count, total(size) AS bytes, max(seq) AS last FROM instances WHERE seq > ?",
            [self._instance],
        )
        self._instances.inc(row["count"])
        self._bytes.inc(row["bytes"])
        self._instance = row["last"] or self._instance

    def _count_events(self) -> None:
        while rows := self._seen.read(
            "SELECT seq, at, code, job, detail, json_extract(detail, '$.destination') AS destination FROM events"
            " WHERE seq > ? ORDER BY seq LIMIT ?",
            [self._event, _BATCH],
        ):
            for code, count in Tally(row["code"] for row in rows).items():
                self._events.labels(code).inc(count)
            for row in rows:
                self._count_event(row)
            self._event = rows[-1]["seq"]

    def _count_event(self, row: Any) -> None:
        if row["code"] in ("delivered", "delivery_failed"):
            self._deliveries.labels(row["destination"], row["code"]).inc()
        elif row["code"] in ("association_refused", "instance_refused"):
            self._refused.labels(row["code"].removesuffix("_refused")).inc(json.loads(row["detail"])["times"])
        elif row["code"] == "models_asked":
            for model, seconds in json.loads(row["detail"]).items():
                self._models.labels(model).observe(seconds)
        elif row["code"] == "stages_passed":
            for name, seconds in json.loads(row["detail"]).items():
                self._busy.labels(name).inc(seconds)
        elif row["job"] is not None and row["code"] in tuple(State):
            self._count_move(row)

    def _count_move(self, row: Any) -> None:
        """A job has come into a state, so the one before is over."""
        before = self._seen.read(
            "SELECT code, at FROM events WHERE job = ? AND seq < ? AND code IN (SELECT before FROM moves UNION SELECT"
            " after FROM moves) ORDER BY seq DESC LIMIT 1",
            [row["job"], row["seq"]],
        )
        if before and before[0]["code"] in _PASSED:
            _observe(self._stages.labels(before[0]["code"]), before[0]["at"], row["at"])
        if row["code"] == State.DONE:
            last = self._seen.read(
                "SELECT max(received_at) AS at FROM instances JOIN versions ON versions.study_uid = instances.study_uid"
                " JOIN jobs ON jobs.version = versions.id WHERE jobs.id = ? AND stands AND seq <= through_seq",
                [row["job"]],
            )
            if last[0]["at"]:
                _observe(self._studies, last[0]["at"], row["at"])


def _observe(histogram: Histogram, begun: str, ended: str) -> None:
    """A duration between two times of the wall clock; one during which the clock was set back is left out."""
    seconds = (datetime.fromisoformat(ended) - datetime.fromisoformat(begun)).total_seconds()
    if seconds >= 0:
        histogram.observe(seconds)
