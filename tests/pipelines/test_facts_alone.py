"""What the facts alone say is measured on the classifier's own cases, and the gain is the difference of the two."""

from __future__ import annotations

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


@pytest.fixture
def sides() -> dict[str, list[ClassifiedCase]]:
    return {"train": side(80, 0), "validation": side(40, 1), "test": []}


def said(cases: list[ClassifiedCase], *, right: bool) -> dict[str, object]:
    """A classifier that is always right, or always says the same."""
    each = {}
    for case in cases:
        odd = 0.5 if not right else 0.9 if "odd" in case.classes else 0.1
        each[case.name] = {"classes": list(case.classes), "probability": [1 - odd, odd]}
    return {"validation": {"each": each}}


def test_gain_is_what_the_classifier_adds(sides: dict[str, list[ClassifiedCase]], tmp_path: Path) -> None:
    found = facts_alone(toy_config(tmp_path), sides, said(sides["validation"], right=True))
    assert found is not None and set(found) == {"facts", "validation"} and found["facts"] == ["sex"]
    odd = found["validation"]["odd"]
    agree = np.array([("odd" in case.classes) == (case.facts["sex"] == "F") for case in sides["validation"]])
    assert 0.6 < odd["auc"]["mean"] == pytest.approx(agree.mean(), abs=0.03)
    assert odd["gain"]["mean"] == pytest.approx(1 - odd["auc"]["mean"], abs=1e-4)
    assert odd["gain"]["low"] > 0


def test_classifier_that_knows_nothing_has_no_gain(sides: dict[str, list[ClassifiedCase]], tmp_path: Path) -> None:
    found = facts_alone(toy_config(tmp_path), sides, said(sides["validation"], right=False))
    assert found is not None and found["validation"]["odd"]["gain"]["mean"] < -0.1


def test_without_facts_there_is_nothing_to_compare(tmp_path: Path) -> None:
    bare = [ClassifiedCase(n, Path(n), ("odd",), n) for n in "ab"]
    assert facts_alone(toy_config(tmp_path), {"train": bare, "validation": bare}, said(bare, right=True)) is None
