"""Weights that were put in are found, and intervals hold as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from imaging.logistic import covariance_of_calibration, fitted, interval_of, log_odds, logistic


def test_weights_that_were_put_in_are_found() -> None:
    generator = np.random.default_rng(0)
    design = np.stack([np.ones(50_000), generator.normal(0, 1, 50_000)], axis=1)
    truth = generator.random(50_000) < logistic(design @ np.array([-1.0, 2.0]))
    assert fitted(design, truth.astype(float)) == pytest.approx([-1, 2], abs=0.05)


def test_classes_told_apart_without_error_have_finite_weights() -> None:
    design = np.stack([np.ones(10), np.linspace(-1, 1, 10)], axis=1)
    assert np.isfinite(fitted(design, (design[:, 1] > 0).astype(float))).all()


def test_log_odds_and_back() -> None:
    assert logistic(np.array([log_odds(0.2)]))[0] == pytest.approx(0.2)


@pytest.mark.parametrize("films", [1, 4])
def test_interval_holds_for_calibrated_log_odds(films: int) -> None:
    """A simulation: 300 validation sets of 200 patients; with several films of each they say no more."""
    generator = np.random.default_rng(1)
    held = []
    for _ in range(300):
        logit = generator.normal(0, 1.5, 200)
        truth = generator.random(200) < logistic(logit)
        patients = [str(number) for number in range(200) for _ in range(films)]
        # What was found is a little off; where 200 patients allow it, the truth lies in the interval around it.
        covariance = covariance_of_calibration(np.repeat(logit, films), np.repeat(truth, films), patients)
        shift, stretch = fitted(np.stack([np.ones(200), logit], axis=1), truth.astype(float))
        low, high = interval_of(shift + stretch * 1.0, covariance)
        held.append(low <= logistic(np.array([1.0]))[0] <= high)
    assert 0.9 < np.mean(held) < 0.99


def test_more_cases_narrow_the_interval_and_none_leave_the_prior() -> None:
    generator = np.random.default_rng(2)
    widths = []
    for cases in (0, 50, 5_000):
        logit = generator.normal(0, 1.5, cases)
        truth = generator.random(cases) < logistic(logit)
        low, high = interval_of(0.5, covariance_of_calibration(logit, truth, [str(n) for n in range(cases)]))
        assert low < logistic(np.array([0.5]))[0] < high
        widths.append(high - low)
    assert widths[0] > 0.5 > widths[1] > 0.05 > widths[2]
