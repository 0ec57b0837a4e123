"""What Prometheus is told, read as Prometheus reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from arriving import instance, told
from prometheus_client.parser import text_string_to_metric_families
from shown import NOW, claimed, held, reported

from imaging.errors import WorkerLost
from pipelines.metrics import Metrics
from pipelines.store import Store
from pipelines.store.seen import Seen


def samples(metrics: Metrics) -> dict[str, float]:
    """Values by name and labels, such as ``imgpipe_jobs{state=done}``."""
    families = text_string_to_metric_families(metrics.text().decode())
    found = {}
    for sample in (sample for family in families for sample in family.samples):
        labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
        found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def test_states_reasons_queue_and_disk_are_told(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        reported(store, 1)
        held(store, 2, WorkerLost("study x", seen="killed"))
        store.put(instance(3, 1), source="tests", **told(3, 1))
        store.jobs.settle(NOW)
        found = samples(Metrics(Seen(tmp_path)))
    assert found["imgpipe_jobs{state=done}"] == 1
    assert found["imgpipe_jobs{state=running}"] == 0
    assert found["imgpipe_jobs_held{code=worker_lost,state=quarantined}"] == 1
    assert found["imgpipe_queue_jobs"] == 1
    assert 0 < found["imgpipe_queue_oldest_seconds"] < 60
    assert found["imgpipe_disk_bytes{kind=total}"] > found["imgpipe_disk_bytes{kind=free}"] > 0
    assert found["imgpipe_database_bytes"] > 0


def test_counters_and_histograms_count_each_event_once(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        metrics = Metrics(Seen(tmp_path))
        reported(store, 1)
        samples(metrics)
        reported(store, 2)
        found = samples(metrics)
        assert found == {**samples(metrics), "imgpipe_queue_oldest_seconds": found["imgpipe_queue_oldest_seconds"],
                         "imgpipe_disk_bytes{kind=free}": found["imgpipe_disk_bytes{kind=free}"]}  # fmt: skip
    assert found["imgpipe_instances_received_total"] == 2
    assert found["imgpipe_instances_received_bytes_total"] > 1000
    assert found["imgpipe_deliveries_total{destination=outbox /out,outcome=delivered}"] == 2
    assert found["imgpipe_events_total{code=done}"] == 2
    for stage in ("receiving", "ready", "running", "verifying", "delivering"):
        assert found[f"imgpipe_stage_seconds_count{{stage={stage}}}"] == 2
    assert found["imgpipe_study_seconds_count"] == 2
    assert 0 < found["imgpipe_study_seconds_sum"] < 120
    assert "imgpipe_stage_seconds_count{stage=done}" not in found


def test_what_was_before_the_watcher_began_is_not_counted(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        reported(store, 1)
        last = store.jobs.events()[-1].seq
        found = samples(Metrics(Seen(tmp_path), after_event=last, after_instance=1))
    assert found["imgpipe_instances_received_total"] == 0
    assert "imgpipe_events_total{code=done}" not in found
    assert found["imgpipe_jobs{state=done}"] == 1


def test_the_time_of_each_checkpoint_is_told(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert store.jobs.ran(claimed(store, 1), {"chest_xray": 0.5, "hippocampus_mr": 3.0})
    found = samples(Metrics(Seen(tmp_path)))
    assert found["imgpipe_model_seconds_sum{model=chest_xray}"] == pytest.approx(0.5)
    assert found["imgpipe_model_seconds_count{model=hippocampus_mr}"] == 1


def test_a_clock_that_was_set_back_gives_no_negative_duration(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        reported(store, 1)
        with store.database.writing() as db:
            db.execute("DROP TRIGGER events_stay")
            db.execute("UPDATE events SET at = '1970-01-01T00:00:00.000Z' WHERE code = 'running'")
    found = samples(Metrics(Seen(tmp_path)))
    assert found.get("imgpipe_stage_seconds_count{stage=ready}", 0) == 0
    assert found["imgpipe_study_seconds_count"] == 1
