"""The error rate that was asked for is kept on new cases, by good models and by bad ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from imaging.conformal import Conformal, conformal_of

RATE = 0.1


def drawn(generator: np.random.Generator, cases: int, *, worth: float) -> tuple[np.ndarray[Any, Any], ...]:
    """Truth, and probabilities of a model that is far too sure of itself."""
    truth = generator.random(cases) < 0.3
    logit = generator.normal(worth * (truth - 0.5), 1)
    return truth, 1 / (1 + np.exp(-5 * logit))


def left_out(found: Conformal, truth: np.ndarray[Any, Any], probability: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Which cases have a truth that is not among the answers."""
    answers = [found.answer(p) for p in probability.tolist()]
    right = [answer in ("both", "abnormal" if ill else "normal") for answer, ill in zip(answers, truth, strict=True)]
    return ~np.array(right)


@pytest.mark.parametrize("worth", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("by_class", [True, False])
def test_error_rate_holds_over_many_draws(worth: float, by_class: bool) -> None:
    """A simulation: 400 times 99 calibration cases and 200 new ones."""
    generator = np.random.default_rng(0)
    errors: dict[str, list[float]] = {"all": [], "normal": [], "abnormal": []}
    for _ in range(400):
        found = conformal_of(*drawn(generator, 99, worth=worth), error_rate=RATE, by_class=by_class)
        truth, probability = drawn(generator, 200, worth=worth)
        wrong = left_out(found, truth, probability)
        errors["all"].append(float(wrong.mean()))
        errors["normal"].append(float(wrong[~truth].mean()))
        errors["abnormal"].append(float(wrong[truth].mean()))
    kept = errors if by_class else {"all": errors["all"]}
    for each in kept.values():
        # Three standard errors of the mean above the rate, and no more than 1 / (n + 1) and as much below it.
        reach = 3 * float(np.std(each)) / 20
        assert RATE - 0.04 - reach < float(np.mean(each)) < RATE + reach


def test_a_better_model_leaves_less_open() -> None:
    generator = np.random.default_rng(1)
    shares = []
    for worth in (0.0, 2.0, 4.0):
        found = conformal_of(*drawn(generator, 2_000, worth=worth), error_rate=RATE)
        answers = [found.answer(p) for p in drawn(generator, 2_000, worth=worth)[1].tolist()]
        shares.append(answers.count("both") / len(answers))
    assert shares[0] > 0.7 > shares[1] > shares[2]


def test_too_few_cases_leave_everything_open() -> None:
    found = conformal_of(np.array([True, False] * 8), np.linspace(0, 1, 16), error_rate=RATE)
    assert {found.answer(p) for p in (0.0, 0.5, 1.0)} == {"both"}


def test_bounds_by_hand() -> None:
    truth = np.array([True] * 9 + [False] * 9)
    probability = np.concatenate([np.arange(0.1, 1.0, 0.1), np.arange(0.05, 0.5, 0.05)])
    found = conformal_of(truth, probability, error_rate=0.2)
    # ceil(10 * 0.8) = 8: the eighth smallest of 1 - p is that of p = 0.2, the eighth smallest of p is 0.4.
    assert found.abnormal_from == pytest.approx(0.2)
    assert found.normal_to == pytest.approx(0.4)
    assert [found.answer(p) for p in (0.19, 0.2, 0.4, 0.41)] == ["normal", "both", "both", "abnormal"]
    assert Conformal.from_dict(found.as_dict()) == found


def test_a_case_that_fits_neither_is_told() -> None:
    truth = np.array([True] * 99 + [False] * 99)
    probability = np.concatenate([np.full(99, 0.9), np.full(99, 0.1)])
    assert conformal_of(truth, probability, error_rate=0.1).answer(0.5) == "neither"
