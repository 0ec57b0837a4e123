"""Stages count what they take, a stage inside another for itself alone, and nothing where nobody listens."""

from __future__ import annotations

import threading
import time
from contextvars import copy_context

import pytest

from imaging.stages import listening, stage


def test_a_stage_inside_another_counts_for_itself_alone() -> None:
    with listening() as heard:
        begun = time.perf_counter()
        with stage("network"):
            time.sleep(0.02)
            with stage("restore"):
                time.sleep(0.08)
        took = time.perf_counter() - begun
    seconds = heard.seconds()
    assert list(seconds) == ["restore", "network"]
    assert 0.08 <= seconds["restore"] < took
    assert seconds["network"] >= 0.02
    assert sum(seconds.values()) <= took  # each second counts once


def test_a_stage_counts_where_it_fails_and_adds_up() -> None:
    with listening() as heard:
        for _ in range(2):
            with pytest.raises(ValueError, match="no"), stage("read"):
                time.sleep(0.01)
                raise ValueError("no")
    assert heard.seconds()["read"] >= 0.02


def test_who_listens_already_hears_what_is_listened_to_inside() -> None:
    with listening() as outer:
        with stage("open"):
            pass
        with listening() as inner, stage("scan"):
            pass
    assert inner is outer
    assert set(outer.seconds()) == {"open", "scan"}
    with listening() as another:
        pass
    assert another.seconds() == {}


def test_threads_that_share_the_context_add_to_one() -> None:
    def work() -> None:
        with stage("read"):
            time.sleep(0.02)

    with listening() as heard:
        threads = [threading.Thread(target=copy_context().run, args=(work,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert heard.seconds()["read"] >= 0.06


def test_nobody_listens() -> None:
    with stage("write"):
        pass
    with listening() as heard:
        pass
    assert heard.seconds() == {}
