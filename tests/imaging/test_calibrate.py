"""Temperature and threshold find what was put in, and nothing where there is nothing to find."""

from __future__ import annotations

import numpy as np
import pytest

from imaging.calibrate import (
    bent,
    calibrated_probability,
    isotonic_by_class,
    isotonic_of,
    likeness,
    probability_of,
    temperature_of,
    threshold_for,
)


@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature_that_was_put_in_is_found(temperature: float, softmax: bool) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 2, (20_000, 3))
    probability = probability_of(logits, softmax=softmax, temperature=1.0)
    if softmax:
        drawn = (generator.random((len(logits), 1)) > probability.cumsum(axis=1)).sum(axis=1)
        truth = np.eye(3, dtype=bool)[np.minimum(drawn, 2)]
    else:
        truth = generator.random(logits.shape) < probability
    assert temperature_of(logits * temperature, truth, softmax=softmax) == pytest.approx(temperature, rel=0.05)


def test_classes_told_apart_without_error_end_at_the_bound() -> None:
    logits = np.array([[3.0, -3.0], [-3.0, 3.0]])
    assert temperature_of(logits, np.eye(2, dtype=bool), softmax=True) == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize("softmax", [True, False])
def test_probabilities_of_huge_logits_are_finite(softmax: bool) -> None:
    probability = probability_of(np.array([[1e4, -1e4], [0.0, 0.0]]), softmax=softmax, temperature=0.05)
    assert np.allclose(probability, [[1, 0], [0.5, 0.5]])


def test_threshold_keeps_the_sensitivity_and_weighs_it_against_specificity() -> None:
    generator = np.random.default_rng(1)
    truth = generator.random(500) < 0.4
    probability = np.clip(generator.normal(0.3 + 0.3 * truth, 0.2), 0, 1)
    for sensitivity in (0.1, 0.5, 0.9, 0.95, 1.0):
        threshold = threshold_for(truth, probability, sensitivity=sensitivity)
        assert threshold is not None
        kept = [
            (probability[truth] >= t).mean() + (probability[~truth] < t).mean()
            for t in probability[truth]
            if (probability[truth] >= t).mean() >= sensitivity
        ]
        assert (probability[truth] >= threshold).mean() >= sensitivity
        reached = (probability[truth] >= threshold).mean() + (probability[~truth] < threshold).mean()
        assert reached == pytest.approx(max(kept))


def test_threshold_does_not_give_away_cases_for_nothing() -> None:
    truth = np.array([True] * 10 + [False] * 10)
    probability = np.concatenate([np.linspace(0.8, 0.98, 10), np.linspace(0.02, 0.2, 10)])
    assert threshold_for(truth, probability, sensitivity=0.5) == pytest.approx(0.8)


def test_no_threshold_without_a_true_case() -> None:
    assert threshold_for(np.zeros(3, dtype=bool), np.random.default_rng(0).random(3), sensitivity=0.9) is None


def test_likeness_is_the_correlation_of_the_grey_values() -> None:
    generator = np.random.default_rng(2)
    template = generator.random((4, 5))
    others = generator.random((3, 4, 5))
    expected = [np.corrcoef(other.ravel(), template.ravel())[0, 1] for other in others]
    assert np.allclose(likeness(others, template), expected)
    same = np.stack([template, 3 * template + 7, -template])
    assert np.allclose(likeness(same, template), [1, 1, -1])
    assert likeness(np.ones((1, 4, 5)), template)[0] == 0, "a constant picture looks like nothing"


def test_isotonic_is_the_likeliest_rising_curve() -> None:
    score = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    curve = isotonic_of(score, np.array([False, True, False, False, True, True]))
    # By hand: 2, 3 and 4 are pooled to a third; 5 and 6 are all true, and 1 is not.
    assert bent(score, curve) == pytest.approx([1 / 12, 1 / 3, 1 / 3, 1 / 3, 11 / 12, 11 / 12])
    assert bent(np.array([-9.0, 9.0]), curve) == pytest.approx([1 / 12, 11 / 12])


def test_isotonic_finds_a_bend_that_no_temperature_has() -> None:
    generator = np.random.default_rng(2)
    logit = generator.normal(0, 2, 20_000)
    share = np.where(logit > 0, 0.9, 0.3)
    truth = generator.random(len(logit)) < share
    assert np.abs(bent(logit, isotonic_of(logit, truth)) - share).mean() < 0.02
    scaled = logit / temperature_of(logit[:, None], truth[:, None], softmax=False)
    assert np.abs(1 / (1 + np.exp(-scaled)) - share).mean() > 0.1


@pytest.mark.parametrize("softmax", [True, False])
def test_isotonic_probabilities_rise_with_the_logit_and_add_up(softmax: bool) -> None:
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 1, (400, 2))
    truth = np.eye(2, dtype=bool)[(logits[:, 1] + generator.normal(0, 1, 400) > logits[:, 0]).astype(int)]
    curves = isotonic_by_class(logits, truth, softmax=softmax, temperature=1.0)
    found = calibrated_probability(logits, {"temperature": 1.0, "isotonic": curves}, softmax=softmax)
    plain = calibrated_probability(logits, {"temperature": 1.0}, softmax=softmax)
    assert (np.diff(found[np.argsort(plain[:, 1]), 1]) >= -1e-12).all()
    assert found.min() > 0
    assert not softmax or np.allclose(found.sum(axis=1), 1)
    # On the very cases of the curve the mean probability is the share of the true ones.
    assert found.mean(axis=0) == pytest.approx(truth.mean(axis=0), abs=0.01)
