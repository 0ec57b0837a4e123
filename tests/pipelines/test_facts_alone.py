"""What the facts alone say is measured on the classifier's own cases, and the gain is the difference of the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import toy_config

from imaging.cases import ClassifiedCase
from imaging.scores import auc
from pipelines.facts_alone import ByFacts, by_facts, facts_alone


def side(count: int, seed: int) -> list[ClassifiedCase]:
    """Women are odd; every fourth is not."""
    generator = np.random.default_rng(seed)
    cases = []
    for number in range(count):
        woman = bool(generator.random() < 0.5)
        odd = woman ^ (number % 4 == 0)
        facts = {"sex": "F" if woman else "M"}
        name = f"{seed}_{number}"
        cases.append(ClassifiedCase(name, Path(name), ("odd",) if odd else ("plain",), f"p{name}", "", facts))
    return cases


TRAIN, HELD_OUT = side(80, 0), side(40, 1)
ODD = np.array(["odd" in case.classes for case in HELD_OUT])
RIGHT, SAME = np.where(ODD, 0.9, 0.1), np.full(len(ODD), 0.5)


def compared(folder: Path, odd_N: np.ndarray[Any, Any], said: ByFacts | None = None) -> dict[str, Any]:
    """Beside a classifier that gives these probabilities."""
    config = toy_config(folder)
    truth_NK = np.stack([~ODD, ODD], axis=1)
    found = facts_alone(
        config, HELD_OUT, truth_NK, np.stack([1 - odd_N, odd_N], axis=1), said or by_facts(config, TRAIN, HELD_OUT)
    )
    assert found is not None
    return found


def test_gain_is_what_the_classifier_adds(tmp_path: Path) -> None:
    found = compared(tmp_path, RIGHT)
    assert set(found) == {"facts", "scores"} and found["facts"] == ["sex"]
    odd = found["scores"]["odd"]
    agree = np.array([("odd" in case.classes) == (case.facts["sex"] == "F") for case in HELD_OUT])
    assert 0.6 < odd["auc"]["mean"] == pytest.approx(agree.mean(), abs=0.03)
    assert odd["gain"]["mean"] == pytest.approx(1 - odd["auc"]["mean"], abs=1e-4)
    assert odd["gain"]["low"] > 0


def test_classifier_that_knows_nothing_has_no_gain(tmp_path: Path) -> None:
    assert compared(tmp_path, SAME)["scores"]["odd"]["gain"]["mean"] < -0.1


def test_gain_that_is_the_same_in_every_resample_is_told_as_it_is(tmp_path: Path) -> None:
    """Facts that tell everything beside a classifier that tells nothing: it loses one half, not none."""
    gain = compared(tmp_path, SAME, ByFacts(("sex",), (), {"odd": RIGHT}, np.zeros(40, dtype=int)))["scores"]["odd"][
        "gain"
    ]
    assert gain == {"mean": -0.5, "low": -0.5, "high": -0.5}


@pytest.mark.parametrize("nearly", [1e-9, 1 - 1e-9])
def test_order_counts_however_sure_the_classifier_is(nearly: float, tmp_path: Path) -> None:
    """In metrics.json probabilities have five digits: those of a network that is sure are all 0 or 1 there."""
    odd = compared(tmp_path, nearly + (RIGHT - 0.5) * 1e-9)["scores"]["odd"]
    assert odd["auc"]["mean"] + odd["gain"]["mean"] == pytest.approx(1, abs=1e-4)


def test_facts_that_cannot_count_are_told(tmp_path: Path) -> None:
    named = [replace(case, facts={**case.facts, "doctor": f"Dr {case.name}"}) for case in TRAIN]
    found = compared(tmp_path, RIGHT, by_facts(toy_config(tmp_path), named, HELD_OUT))
    assert (found["facts"], found["left_out"]) == (["sex"], ["doctor"])


def test_each_part_is_said_by_its_own_regression(tmp_path: Path) -> None:
    """In the second fold's training cases the men are odd: what it says of its own part is the other way round."""
    config = toy_config(tmp_path)
    turned = [replace(case, facts={"sex": "M" if case.facts["sex"] == "F" else "F"}) for case in TRAIN]
    first, second = by_facts(config, TRAIN, HELD_OUT[:20]), by_facts(config, turned, HELD_OUT[20:])
    joined = ByFacts.joined([first, second])
    women = np.array([case.facts["sex"] == "F" for case in HELD_OUT])
    odd_N = joined.probability["odd"]
    assert odd_N.shape == (40,) and joined.names == ("sex",)
    assert odd_N[:20][women[:20]].min() > 0.5 > odd_N[:20][~women[:20]].max()
    assert odd_N[20:][women[20:]].max() < 0.5 < odd_N[20:][~women[20:]].min()


def test_facts_that_say_nothing_are_worth_a_half_over_several_folds(tmp_path: Path) -> None:
    """Of the fold that holds many odd cases few were learnt from: by that alone all folds together are turned round."""
    config = toy_config(tmp_path)
    cases = [replace(case, facts={"sex": "F"}) for case in (*TRAIN, *HELD_OUT)]
    cases.sort(key=lambda case: "odd" in case.classes)  # the folds have other shares of odd cases
    folds = [cases[10:40:2] + cases[80:90], cases[11:40:2] + cases[90:120]]
    said = ByFacts.joined([by_facts(config, folds[1 - number], fold) for number, fold in enumerate(folds)])
    together = [case for fold in folds for case in fold]
    odd_N = np.array(["odd" in case.classes for case in together])
    network_NK = np.stack([~odd_N, odd_N], axis=1).astype(float)
    found = facts_alone(config, together, np.stack([~odd_N, odd_N], axis=1), network_NK, said)
    assert found is not None and auc(odd_N, said.probability["odd"]) < 0.4
    scores = found["scores"]["odd"]
    assert [scores[name]["mean"] for name in ("network", "auc", "gain")] == [1, 0.5, 0.5]


def test_without_facts_there_is_nothing_to_compare(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    bare = [ClassifiedCase(n, Path(n), (c,), n) for n, c in (("a", "odd"), ("b", "plain"))]
    truth_NK = np.array([[False, True], [True, False]])
    assert facts_alone(config, bare, truth_NK, truth_NK.astype(float), by_facts(config, bare, bare)) is None
