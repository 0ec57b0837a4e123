"""Dice is Dice, intervals cover what they promise, and too few cases give no interval."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from imaging.calibrate import conformal_ratio
from imaging.interval import Interval
from imaging.metrics import bootstrap_means, dice

MASKS = arrays.arrays(np.uint8, (3, 4, 2), elements=st.integers(0, 2))


# ----------------------------------------------------------------------------------------------------------------- dice


@pytest.mark.parametrize(
    ("mask", "truth", "expected"),
    [
        ([1, 1, 0, 0], [1, 1, 0, 0], 1.0),
        ([1, 1, 0, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 0, 0], [0, 1, 1, 0], 0.5),
        ([1, 1, 1, 0], [1, 0, 0, 0], 0.5),
        ([2, 2, 0, 0], [1, 0, 0, 0], 0.0),
        ([0, 0, 0, 0], [1, 0, 0, 0], 0.0),
    ],
)
def test_dice_of_known_masks(mask: list[int], truth: list[int], expected: float) -> None:
    assert dice(np.array(mask), np.array(truth), 1) == expected


def test_dice_of_nothing_against_nothing_is_no_number() -> None:
    assert math.isnan(dice(np.zeros(4), np.array([2, 0, 0, 0]), 1))


@given(mask=MASKS, truth=MASKS, label=st.integers(1, 2))
def test_dice_is_symmetric_and_between_0_and_1(mask: np.ndarray, truth: np.ndarray, label: int) -> None:
    value = dice(mask, truth, label)
    assert value == dice(truth, mask, label) or math.isnan(value)
    assert math.isnan(value) or 0 <= value <= 1
    assert math.isnan(value) == (not (mask == label).any() and not (truth == label).any())


@given(mask=MASKS)
def test_dice_does_not_overflow_its_own_integer_type(mask: np.ndarray) -> None:
    large = np.tile(mask, (20, 20, 1))
    assert dice(large, large, 1) == 1.0 or not (large == 1).any()


# ------------------------------------------------------------------------------------------------------------ bootstrap


def test_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    scores = np.random.default_rng(0).random((9, 2))
    assert bootstrap_means(scores, seed=3) == bootstrap_means(scores, seed=3)
    assert bootstrap_means(scores, seed=3) != bootstrap_means(scores, seed=4)


@given(arrays.arrays(np.float64, (5, 2), elements=st.floats(0, 1)))
@settings(max_examples=30, deadline=None)
def test_interval_lies_around_the_mean_and_within_the_scores(scores: np.ndarray) -> None:
    for column, interval in zip(scores.T, bootstrap_means(scores, resamples=200), strict=True):
        assert interval.mean == pytest.approx(column.mean())
        if column.mean() in {0.0, 1.0}:
            continue
        assert interval.low is not None and interval.high is not None
        assert column.min() - 1e-12 <= interval.low <= interval.high <= column.max() + 1e-12


def test_missing_structure_is_left_out_not_counted_as_zero() -> None:
    with_gap = np.array([[0.8], [np.nan], [0.9]])
    assert bootstrap_means(with_gap) == bootstrap_means(with_gap[[0, 2]])


@pytest.mark.parametrize(
    ("scores", "mean"),
    [([[0.5]], 0.5), ([[np.nan], [0.5]], 0.5), ([[np.nan], [np.nan]], None), (np.empty((0, 1)), None)],
)
def test_fewer_than_two_scores_give_no_bounds(scores: list[list[float]], mean: float | None) -> None:
    assert bootstrap_means(np.array(scores)) == (Interval(mean, None, None),)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    draws = generator.normal(0.8, 0.05, size=(40, 300))
    covered = [i.low <= 0.8 <= i.high for i in bootstrap_means(draws, resamples=400) if i.low and i.high]
    assert len(covered) == 300
    assert 0.88 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(("patients", "limit"), [(2, 0.1581), (30, 0.8843)])  # from tables of Clopper and Pearson's
def test_scores_that_are_all_1_or_all_0_have_the_exact_interval_of_their_patients(patients: int, limit: float) -> None:
    owners = [str(number // 2) for number in range(2 * patients)]
    (ones,) = bootstrap_means(np.ones((2 * patients, 1)), patients=owners)
    (zeros,) = bootstrap_means(np.zeros((2 * patients, 1)), patients=owners)
    assert (ones.mean, ones.low, ones.high) == (1.0, pytest.approx(limit, abs=1e-4), 1.0)
    assert (zeros.mean, zeros.low, zeros.high) == (0.0, 0.0, pytest.approx(1 - limit, abs=1e-4))


@pytest.mark.parametrize("distance", [0.0, 1.0, 1.5])
def test_millimetres_are_no_share_even_where_they_are_0_or_1_in_every_case(distance: float) -> None:
    (found,) = bootstrap_means(np.full((10, 1), distance), shares=False)
    assert found == Interval(distance, distance, distance)


@pytest.mark.parametrize(
    ("interval", "text"),
    [
        (Interval(mean=0.81234567, low=0.8, high=0.9), "0.812 [0.800, 0.900]"),
        (Interval(mean=0.81234567, low=None, high=None), "0.812"),
        (Interval(mean=None, low=None, high=None), "not known"),
    ],
)
def test_interval_as_text_and_as_json(interval: Interval, text: str) -> None:
    assert str(interval) == text
    values = [interval.mean, interval.low, interval.high]
    assert list(interval.as_dict().values()) == [None if value is None else round(value, 5) for value in values]
    json.dumps(interval.as_dict(), allow_nan=False)


# ------------------------------------------------------------------------------------------------------------ conformal


@pytest.mark.parametrize(
    ("cases", "coverage", "known"), [(18, 0.9, False), (19, 0.9, True), (3, 0.5, True), (2, 0.5, False)]
)
def test_factors_need_enough_cases(cases: int, coverage: float, known: bool) -> None:
    assert (conformal_ratio([1.0] * cases, [2.0] * cases, coverage=coverage) is not None) == known


def test_factors_are_the_outermost_ratios_of_the_fewest_cases() -> None:
    truth = list(range(1, 20))
    assert conformal_ratio(truth, [10.0] * 19, coverage=0.9) == (0.1, 1.9)


def test_cases_with_a_zero_are_left_out() -> None:
    assert conformal_ratio([1.0] * 18 + [0.0, 5.0], [1.0] * 19 + [0.0], coverage=0.9) is None
    assert conformal_ratio([1.0] * 19 + [0.0, 5.0], [1.0] * 20 + [0.0], coverage=0.9) == (1.0, 1.0)


def test_factors_hold_for_new_cases_as_often_as_they_promise() -> None:
    generator = np.random.default_rng(2)
    held = []
    for _ in range(400):
        ratios = generator.lognormal(0.1, 0.2, size=40)
        factors = conformal_ratio(ratios[:-1].tolist(), [1.0] * 39, coverage=0.9)
        assert factors is not None
        held.append(factors[0] <= ratios[-1] <= factors[1])
    assert np.mean(held) >= 0.87
