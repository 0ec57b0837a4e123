"""What is missing enters nowhere, and what is there is weighed as its worth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fused import drawn, fuse_config

from imaging.errors import ConfigInvalid, TooFewCases
from imaging.scores import auc
from imaging.stacking import (
    Case,
    columns_of,
    fit_stacked,
    having,
    inputs_of,
    log_odds_of,
    name_of,
    pattern_of,
    patterns_of,
    table_of,
)
from imaging.tasks.fuse import fit_network


def test_every_set_of_parts_is_a_pattern(tmp_path: Path) -> None:
    config = fuse_config(tmp_path)
    assert [name_of(pattern) for pattern in patterns_of(config)] == [
        "toy", "text", "facts", "toy+text", "toy+facts", "text+facts", "toy+text+facts",
    ]  # fmt: skip


def test_columns_by_hand(tmp_path: Path) -> None:
    config = fuse_config(tmp_path)
    cases = [Case({"toy": 2.0, "text": -1.0}, {"age": "70", "sex": "M"}), Case({"toy": 3.0}, {"sex": "other"})]
    values, there = table_of(config, cases)
    assert values.tolist() == [[2, -1, 1, 1, 0, 0, 1], [3, 0, 0, 0, 1, 0, 0]]
    assert there.tolist() == [[True, True, True], [True, False, False]]
    assert [pattern_of(config, case) for case in cases] == [("toy", "text", "facts"), ("toy",)]
    assert columns_of(config, ("text", "facts")) == [1, 2, 3, 4, 5, 6]
    assert having(config, there, ("toy",)).tolist() == [True, True]
    assert having(config, there, ("toy", "facts")).tolist() == [True, False]


@pytest.mark.parametrize("method", ["stacked", "mlp"])
def test_each_pattern_is_as_good_as_its_parts(tmp_path: Path, method: str) -> None:
    config = fuse_config(tmp_path, f"train.method={method}", "train.epochs=150")
    cases, truth = drawn(2_000, missing=0.2)
    fit = fit_stacked if method == "stacked" else fit_network
    weights = fit(config, *table_of(config, cases), truth)
    new, ill = drawn(4_000, seed=1)
    values, _ = table_of(config, new)
    found = {name_of(p): auc(ill, log_odds_of(config, weights, values, p)) for p in patterns_of(config)}
    # Of normal log-odds that are d apart in units of their deviation the AUC is Phi(d / sqrt 2).
    assert found["toy"] == pytest.approx(0.921, abs=0.015)
    assert found["text"] == pytest.approx(0.760, abs=0.02)
    assert found["toy+text"] == pytest.approx(0.943, abs=0.015)
    assert found["facts"] == pytest.approx(0.6, abs=0.04)
    assert found["toy+text+facts"] >= found["toy+text"] - 0.01
    shifted = values.copy()
    shifted[:, columns_of(config, ("text", "facts"))] += 7
    hidden = log_odds_of(config, weights, shifted, ("toy",))
    assert np.array_equal(hidden, log_odds_of(config, weights, values, ("toy",)))


def test_weights_of_calibrated_parts_are_one(tmp_path: Path) -> None:
    """Two independent witnesses whose log-odds are calibrated simply add up."""
    config = fuse_config(tmp_path)
    cases, truth = drawn(20_000)
    weights = fit_stacked(config, *table_of(config, cases), truth)
    assert weights["toy"] == pytest.approx([0, 1], abs=0.06)
    assert weights["toy+text"] == pytest.approx([0, 1, 1], abs=0.08)


def test_network_is_given_which_parts_are_there(tmp_path: Path) -> None:
    config = fuse_config(tmp_path)
    given = inputs_of(config, np.ones((1, 7)), ("text",))
    assert given.tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0]]


def test_network_is_the_same_for_a_seed(tmp_path: Path) -> None:
    config = fuse_config(tmp_path, "train.method=mlp", "train.epochs=5")
    cases, truth = drawn(100)
    first, second = (fit_network(config, *table_of(config, cases), truth) for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_too_few_cases_of_a_pattern_are_refused(tmp_path: Path) -> None:
    config = fuse_config(tmp_path)
    cases, truth = drawn(100)
    textless = [Case({"toy": case.logits["toy"]}, case.facts) for case in cases[5:]]
    with pytest.raises(TooFewCases, match="pattern text"):
        fit_stacked(config, *table_of(config, [*cases[:5], *textless]), truth)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("images.0.name=text", "called text"),
        ("facts=[{name: age}, {name: age}]", "same name"),
        ("data.fold=3", "fold 3"),
        ("train.hide=1", "train.hide"),
    ],
)
def test_configs_that_mean_nothing_are_refused(tmp_path: Path, override: str, told: str) -> None:
    with pytest.raises(ConfigInvalid, match=told):
        fuse_config(tmp_path, override)


def test_a_fusion_of_one_part_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="2 to 6 parts"):
        fuse_config(tmp_path, "text=null", "facts=[]")
