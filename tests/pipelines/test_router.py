"""Rules over a watcher: each study its own way, new rules while it runs, and what would be done."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from arriving import instance, study_uid, told
from click.testing import CliRunner
from watching import Stub

from imaging.errors import ConfigInvalid, UnknownCheckpoint, UnknownKey
from pipelines.cli import main
from pipelines.delivery import Outbox
from pipelines.router import Router
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Completeness
from pipelines.watch import Places
from pipelines.watcher import Rules, Watcher
from pipelines.worker import Reporting

NOW = Completeness(series_quiet_s=0, study_quiet_s=0, timeout_s=3600)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", watching=True) as store:
        yield store


def put(store: Store, study: int, *numbers: int, source: str = "inbox", series: int = 1) -> None:
    for number in numbers:
        store.put(instance(study, number, series), source=source, **told(study, number, series))


def rules(folder: Path, *written: dict[str, Any], **more: Any) -> Path:
    path = folder / "rules.yaml"
    path.write_text(yaml.safe_dump({"rules": list(written), **more}))
    return path


def router_of(path: Path) -> Router:
    return Router(path, Reporting(), Places("tests").named)


TEXTS = ["disease_spans", "report_text", "request_text"]  # ship, and read what words come with a study
ER = {"name": "er", "when": {"aet": ["ER"]}, "priority": "stat", "checkpoints": ["chest_xray"], "formats": ["html"],
      "fhir_page": "whole", "to": [{"outbox": "er"}]}  # fmt: skip
MR = {"name": "mr", "when": {"modality": ["MR"]}, "checkpoints": ["hippocampus_mr"], "to": [{"outbox": "mr"}]}


def test_each_study_gets_the_route_of_the_first_rule_that_takes_it_and_the_urgent_one_runs_first(
    store: Store, tmp_path: Path
) -> None:
    router = router_of(rules(tmp_path, ER, MR))
    put(store, 1, 1)
    put(store, 2, 1, source="scp ER@10.0.0.7")
    store.jobs.settle(NOW)
    assert store.jobs.claim("w", "s", routed=True) is None
    router.decide(store)
    first, second = store.jobs.claim("w", "s", routed=True), store.jobs.claim("v", "s", routed=True)
    assert first is not None
    assert second is not None
    assert [first.study_uid, second.study_uid] == [study_uid(2), study_uid(1)]
    assert first.route is not None
    assert second.route is not None
    assert (first.route.rule, first.route.destinations) == ("er", (f"outbox {tmp_path / 'er'}",))
    assert (second.route.rule, second.route.destinations) == ("mr", (f"outbox {tmp_path / 'mr'}",))
    asked = Reporting.of(first.route.order["reporting"])
    assert asked == replace(Reporting(), models=("chest_xray",), formats=("html",), fhir_page="whole")
    assert [name for name, *_ in first.route.order["checkpoints"]] == ["chest_xray", *TEXTS]
    assert first.name != second.name
    assert [event.detail for event in store.jobs.events() if event.code == "routed"] == [{"rule": "mr"}, {"rule": "er"}]


@pytest.mark.parametrize(
    ("rule", "asked", "priority"),
    [("routine", 100, 100), ("routine", -50, -50), ("stat", -50, 100), ("high", 100, 100), ("low", 0, 0),
     ("stat", None, 100)],
)  # fmt: skip
def test_a_workitem_says_how_urgent_a_study_is_and_a_rule_may_say_more(
    store: Store, tmp_path: Path, rule: str, asked: int | None, priority: int
) -> None:
    put(store, 1, 1)
    if asked is not None:
        store.workitems.begin("2.25.1", "http://server", study_uid(1), asked)
    store.jobs.settle(NOW)
    router_of(rules(tmp_path, {**MR, "priority": rule})).decide(store)
    [job] = store.jobs.all()
    assert job.priority == priority


def test_a_late_image_a_retry_and_new_rules_let_a_waiting_job_be_decided_anew(store: Store, tmp_path: Path) -> None:
    router = router_of(rules(tmp_path, MR))
    put(store, 1, 1)
    store.jobs.settle(NOW)
    router.decide(store)
    assert store.routes.undecided() == []
    put(store, 1, 2)
    store.jobs.settle(NOW)
    assert len(store.routes.undecided()) == 1
    router.decide(store)
    rules(tmp_path, {**MR, "name": "new"})
    assert not router.reload(store)
    router.ask_reload()
    assert router.reload(store)
    router.decide(store)
    [job] = store.jobs.all()
    assert job.route is not None
    assert job.route.rule == "new"


@pytest.mark.parametrize(
    ("broken", "error"),
    [
        ({**MR, "whem": {}}, UnknownKey),
        ({**MR, "checkpoints": ["hippocampus"]}, UnknownCheckpoint),
        ({**MR, "to": [{"send": "nobody"}]}, ConfigInvalid),
    ],
)
def test_rules_that_cannot_be_taken_are_refused_at_the_start_and_later_leave_the_old_ones(
    store: Store, tmp_path: Path, broken: dict[str, Any], error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    router = router_of(rules(tmp_path, MR))
    before = router.routing
    path = rules(tmp_path, broken)
    with pytest.raises(error):
        router_of(path)
    router.ask_reload()
    assert not router.reload(store)
    assert router.routing is before
    assert "the rules stay as they were" in caplog.text
    event = store.jobs.events()[-1]
    assert event.code == "rules_refused"
    assert event.detail is not None
    assert event.detail["code"] == error.code  # type: ignore[attr-defined]


def test_a_study_waits_for_a_required_series_until_its_timeout(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = {"series_quiet_s": 0, "study_quiet_s": 0, "timeout_s": 100}
    wanted = [{"description": "t1", "instances": 2}]
    router = router_of(rules(tmp_path, {**MR, "required": wanted, "complete": complete}))
    put(store, 1, 1)
    put(store, 2, 1, 2)
    moved = store.jobs.settle(router.soonest(NOW), judge=router.judge(store, NOW))
    assert [job.study_uid for job in moved] == [study_uid(2)]
    then = store.clock.now()
    monkeypatch.setattr(store.clock, "now", lambda: then + 101)
    moved = store.jobs.settle(router.soonest(NOW), judge=router.judge(store, NOW))
    assert [job.study_uid for job in moved] == [study_uid(1)]


def until(condition: Callable[[], object], thread: threading.Thread) -> None:
    deadline = time.monotonic() + 40
    while not condition():
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_watcher_keeps_to_the_rules_takes_new_ones_and_new_places(store: Store, tmp_path: Path) -> None:
    only_er = {**ER, "to": [{"outbox": "out"}]}
    router = router_of(rules(tmp_path, only_er))
    quick = Completeness(series_quiet_s=0.1, study_quiet_s=0.2, timeout_s=30)
    watcher = Watcher(store, Stub(), list(router.places.values()), router=router, rules=Rules(complete=quick))
    stop = threading.Event()
    thread = threading.Thread(target=watcher.run, args=(stop,))
    thread.start()
    try:
        put(store, 1, 1, source="scp ER@h")
        put(store, 2, 1)
        until(lambda: {job.state for job in store.jobs.all()} == {State.DONE, State.FAILED}, thread)
        refused = store.jobs.find(study_uid(2))
        assert refused.reason is not None
        assert refused.reason["code"] == "no_rule"
        assert [path.name for path in (tmp_path / "out").iterdir()] == [study_uid(1)]
        rules(tmp_path, only_er, {**MR, "to": [{"outbox": "second"}]}, retention={"delivered_days": 0})
        router.ask_reload()
        until(lambda: len(router.routing.rules) == 2, thread)
        store.jobs.retry(refused)
        until(lambda: {job.state for job in store.jobs.all()} == {State.DONE}, thread)
        assert [path.name for path in (tmp_path / "second").iterdir()] == [study_uid(2)]
        assert [path.name for path in (tmp_path / "out").iterdir()] == [study_uid(1)]
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive()


def test_a_dry_run_says_what_would_be_done_and_does_nothing(store: Store, tmp_path: Path) -> None:
    put(store, 1, 1)
    put(store, 2, 1, source="scp ER@h")
    inbox = tmp_path / "in"
    inbox.mkdir()
    (inbox / "a").write_bytes(instance(3, 1))
    path = rules(tmp_path, ER, {**MR, "required": [{"modality": ["MR"], "instances": 2}]})
    before = store.jobs.events()
    arguments = ["watch", "--dry-run", "--rules", str(path), "--store", str(store.root), "--inbox", str(inbox)]
    result = CliRunner().invoke(main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    told_of = {study["study_uid"]: study for study in json.loads(result.stdout)["studies"]}
    assert {uid: (one["where"], one["rule"]) for uid, one in told_of.items()} == {
        study_uid(1): ("receiving", "mr"), study_uid(2): ("receiving", "er"), study_uid(3): ("inbox", "mr"),
    }  # fmt: skip
    assert told_of[study_uid(1)]["lacks_required"]
    assert told_of[study_uid(2)]["checkpoints"] == ["chest_xray", *TEXTS]
    assert store.jobs.events() == before
    assert (inbox / "a").is_file()
    assert not (tmp_path / "mr").exists()
    plain = CliRunner().invoke(main, arguments).output
    asked = ", ".join(["chest_xray", *TEXTS])
    assert f"{study_uid(2)}  receiving: rule er (stat): {asked} -> html -> outbox {tmp_path / 'er'}" in plain
    alone = CliRunner().invoke(main, ["watch", "--dry-run", "--store", str(store.root)])
    assert alone.exit_code == 2
    assert "--rules" in alone.output


def test_places_are_swept_when_a_watcher_starts_and_not_when_rules_are_read(tmp_path: Path) -> None:
    router = router_of(rules(tmp_path, ER))
    [place] = router.places.values()
    assert isinstance(place, Outbox)
    left = tmp_path / "er" / f".1.2.{place._owner}.ab.partial"
    left.mkdir(parents=True)
    router_of(tmp_path / "rules.yaml")
    assert left.is_dir()
