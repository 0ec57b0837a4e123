"""What the facts alone say is measured on the classifier's own cases, and the gain is the difference of the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from classified import toy_config

from imaging.cases import ClassifiedCase
from pipelines.facts_alone import facts_alone


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


Said = dict[str, tuple[list[ClassifiedCase], np.ndarray]]


@pytest.fixture
def trained() -> list[ClassifiedCase]:
    return side(80, 0)


@pytest.fixture
def held_out() -> list[ClassifiedCase]:
    return side(40, 1)


def said(cases: list[ClassifiedCase], *, right: bool) -> Said:
    """A classifier that is always right, or always says the same."""
    odd = np.array([0.5 if not right else 0.9 if "odd" in case.classes else 0.1 for case in cases])
    return {"validation": (cases, np.stack([1 - odd, odd], axis=1))}


def test_gain_is_what_the_classifier_adds(
    trained: list[ClassifiedCase], held_out: list[ClassifiedCase], tmp_path: Path
) -> None:
    found = facts_alone(toy_config(tmp_path), trained, said(held_out, right=True))
    assert found is not None and set(found) == {"facts", "validation"} and found["facts"] == ["sex"]
    odd = found["validation"]["odd"]
    agree = np.array([("odd" in case.classes) == (case.facts["sex"] == "F") for case in held_out])
    assert 0.6 < odd["auc"]["mean"] == pytest.approx(agree.mean(), abs=0.03)
    assert odd["gain"]["mean"] == pytest.approx(1 - odd["auc"]["mean"], abs=1e-4)
    assert odd["gain"]["low"] > 0


def test_classifier_that_knows_nothing_has_no_gain(
    trained: list[ClassifiedCase], held_out: list[ClassifiedCase], tmp_path: Path
) -> None:
    found = facts_alone(toy_config(tmp_path), trained, said(held_out, right=False))
    assert found is not None and found["validation"]["odd"]["gain"]["mean"] < -0.1


@pytest.mark.parametrize("nearly", [1e-9, 1 - 1e-9])
def test_order_counts_however_sure_the_classifier_is(
    nearly: float, trained: list[ClassifiedCase], held_out: list[ClassifiedCase], tmp_path: Path
) -> None:
    """In metrics.json probabilities have five digits: those of a network that is sure are all 0 or 1 there."""
    ((cases, probability_NK),) = said(held_out, right=True).values()
    sure = {"validation": (cases, nearly + (probability_NK - 0.5) * 1e-9)}
    found = facts_alone(toy_config(tmp_path), trained, sure)
    assert found is not None
    odd = found["validation"]["odd"]
    assert odd["auc"]["mean"] + odd["gain"]["mean"] == pytest.approx(1, abs=1e-4)


def test_facts_that_cannot_count_are_told(trained: list[ClassifiedCase], tmp_path: Path) -> None:
    named = [replace(case, facts={**case.facts, "doctor": f"Dr {case.name}"}) for case in trained]
    found = facts_alone(toy_config(tmp_path), named, said(named, right=True))
    assert found is not None and (found["facts"], found["left_out"]) == (["sex"], ["doctor"])


def test_without_facts_there_is_nothing_to_compare(tmp_path: Path) -> None:
    bare = [ClassifiedCase(n, Path(n), ("odd",), n) for n in "ab"]
    assert facts_alone(toy_config(tmp_path), bare, said(bare, right=True)) is None
