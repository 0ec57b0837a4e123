"""Studies of one worker overtake nobody in a lane, and are side by side in different ones."""

from __future__ import annotations

import threading
import time
from typing import get_args

from imaging.stages import StageName, listening, stage, taking_turns
from pipelines.turns import LANES, Turns


def test_every_stage_has_a_lane() -> None:
    assert set(LANES) == set(get_args(StageName))


def test_one_is_read_while_the_network_is_asked_of_another_and_never_two_of_a_kind() -> None:
    turns, told, most = Turns(), [], {"in": 0, "network": 0, "out": 0, "all": 0}
    now = dict.fromkeys(most, 0)
    counting = threading.Lock()

    def count(lane: str, by: int) -> None:
        with counting:
            for name in (lane, "all"):
                now[name] += by
                most[name] = max(most[name], now[name])

    def study(number: int) -> None:
        with taking_turns(turns.of(lambda waits: told.append((number, waits)))):
            for name in ("scan", "read", "prepare", "network", "report", "write"):
                with stage(name):  # type: ignore[arg-type]
                    count(LANES[name], 1)  # type: ignore[index]
                    if name == "network":
                        with stage("restore"):  # belongs to the turn that it is in
                            time.sleep(0.02)
                    time.sleep(0.01)
                    count(LANES[name], -1)  # type: ignore[index]

    threads = [threading.Thread(target=study, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (most["in"], most["network"], most["out"]) == (1, 1, 1)
    assert most["all"] > 1
    for number in range(4):
        mine = [waits for who, waits in told if who == number]
        assert mine == [True, False] * (len(mine) // 2)
    assert len(told) > 2


def test_waiting_for_a_turn_counts_for_no_stage() -> None:
    turns, begun, waiting = Turns(), threading.Event(), threading.Event()

    def first() -> None:
        with taking_turns(turns.of(lambda _: None)), stage("network"):
            begun.set()
            assert waiting.wait(60)
            time.sleep(0.5)

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(60)
    with listening() as heard, taking_turns(turns.of(lambda _: waiting.set())), stage("network"):
        pass
    thread.join()
    assert waiting.is_set()
    assert heard.seconds()["network"] < 0.5


def test_a_study_is_read_while_the_network_is_asked_of_another_whose_checkpoint_it_shares() -> None:
    turns, waited = Turns(), []
    with taking_turns(turns.of(lambda _: None)), stage("network"):

        def second() -> None:
            with taking_turns(turns.of(waited.append)):
                for name in ("scan", "open", "read"):
                    with stage(name):  # type: ignore[arg-type]
                        pass

        thread = threading.Thread(target=second)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    assert waited == []


def test_a_lane_is_free_again_when_what_was_in_it_raises() -> None:
    turns = Turns()
    for _ in range(2):
        try:
            with taking_turns(turns.of(lambda _: None)), stage("read"):
                raise RuntimeError
        except RuntimeError:
            pass
    waited: list[bool] = []
    with taking_turns(turns.of(waited.append)), stage("read"):
        assert waited == []
