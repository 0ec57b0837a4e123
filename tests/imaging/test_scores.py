"""Scores agree with torchmetrics and with the arithmetic by hand; intervals resample patients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional import classification as peers

from imaging.scores import (
    Confusion,
    auc,
    auc_within,
    average_precision,
    bootstrap_scores,
    confusion,
    expected_calibration_error,
    precision_recall_curve,
    reliability,
    roc_curve,
    scores_of,
    scores_with_intervals,
    wilson,
)

SEEDS = range(5)


def sample(seed: int, *, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Truth and probability of 200 cases."""
    generator = np.random.default_rng(seed)
    truth = generator.random(200) < 0.3
    probability = np.clip(generator.normal(0.4 + 0.2 * truth, 0.2), 0, 1)
    return truth, np.round(probability, 1) if ties else probability


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_scores_are_those_of_torchmetrics(seed: int, ties: bool) -> None:
    truth, probability = sample(seed, ties=ties)
    found = scores_of(truth, probability, 0.5)
    p, t = torch.from_numpy(probability), torch.from_numpy(truth).long()
    expected = {
        "auc": peers.binary_auroc(p, t),
        "auprc": peers.binary_average_precision(p, t),
        "sensitivity": peers.binary_recall((p >= 0.5).long(), t),
        "specificity": peers.binary_specificity((p >= 0.5).long(), t),
        "ppv": peers.binary_precision((p >= 0.5).long(), t),
        "npv": peers.binary_negative_predictive_value((p >= 0.5).long(), t),
        "accuracy": peers.binary_accuracy((p >= 0.5).long(), t),
        "f1": peers.binary_f1_score((p >= 0.5).long(), t),
        "brier": ((p - t) ** 2).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6), name


def test_calibration_error_by_hand() -> None:
    truth = np.array([False, True, True, True])
    probability = np.array([0.15, 0.15, 0.95, 0.95])
    assert expected_calibration_error(truth, probability) == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


def test_believable_probabilities_have_little_calibration_error() -> None:
    generator = np.random.default_rng(0)
    probability = generator.random(50_000)
    truth = generator.random(50_000) < probability
    assert expected_calibration_error(truth, probability) < 0.01
    assert expected_calibration_error(truth, probability**3) > 0.1


def test_equal_probabilities_tell_nothing() -> None:
    truth = np.array([True, False, False, True])
    assert auc(truth, np.full(4, 0.7)) == 0.5
    assert average_precision(truth, np.full(4, 0.7)) == 0.5


def test_parts_are_not_compared_with_each_other() -> None:
    truth = np.array([True, False, False, True, False, True])
    probability, part = np.array([0.9, 0.8, 0.7, 0.3, 0.1, 0.6]), np.array([0, 0, 0, 1, 1, 2])
    assert auc_within(truth, probability, part) == 1, "a part of one side has no pairs"
    assert auc_within(truth, probability, np.zeros(6, dtype=int)) == auc(truth, probability) == 5 / 9
    assert np.isnan(auc_within(truth, probability, np.arange(6)))


def test_what_a_sample_cannot_show_is_nan() -> None:
    ill = scores_of(np.ones(3, dtype=bool), np.array([0.1, 0.6, 0.9]), 0.5)
    assert [name for name, value in ill.items() if np.isnan(value)] == ["auc", "specificity"]
    well = scores_of(np.zeros(3, dtype=bool), np.array([0.1, 0.2, 0.3]), 0.5)
    assert {name for name, value in well.items() if np.isnan(value)} == {"auc", "auprc", "sensitivity", "ppv", "f1"}


def test_threshold_itself_is_called_true() -> None:
    assert scores_of(np.array([True, False]), np.array([0.5, 0.4]), 0.5)["sensitivity"] == 1


# ----------------------------------------------------------------------------------------------------------- intervals


def mean_of(values: np.ndarray) -> dict:
    return bootstrap_scores(lambda i: {"m": float(values[i].mean())}, [str(n) for n in range(len(values))])


def test_interval_of_a_mean_is_that_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)
    interval = mean_of(values)["m"]
    half = 1.96 * values.std() / 20
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)


def test_copies_of_a_patient_do_not_narrow_the_interval() -> None:
    values = np.random.default_rng(2).normal(0, 1, 60)
    alone = mean_of(values)["m"]
    owners = [str(n) for n in np.repeat(np.arange(60), 9)]
    repeated = np.repeat(values, 9)
    copied = bootstrap_scores(lambda i: {"m": float(repeated[i].mean())}, owners)["m"]
    assert copied.high - copied.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(3).random(30)
    assert mean_of(values) == mean_of(values)


def test_share_without_an_error_has_the_exact_interval_of_its_patients() -> None:
    truth = np.repeat([True, False], [12, 30])
    probability = np.where(truth, 0.9, 0.1)
    patients = [str(number // 2) for number in range(42)]
    found = scores_with_intervals(truth, probability, np.full(42, 0.5), patients)
    exact = {6: 0.5407, 15: 0.7820, 21: 0.8389}  # Clopper and Pearson's lower limits where all of n were right
    for name, n in {"sensitivity": 6, "ppv": 6, "auc": 6, "specificity": 15, "npv": 15, "accuracy": 21}.items():
        assert (found[name].mean, found[name].low, found[name].high) == (1.0, pytest.approx(exact[n], abs=1e-4), 1.0), (
            name
        )
    assert (found["f1"].mean, found["f1"].low) == (1.0, None), "no share of patients, so nothing is known"
    wrong = scores_with_intervals(truth, 1 - probability, np.full(42, 0.5), patients)
    assert (wrong["sensitivity"].low, wrong["sensitivity"].high) == (0.0, pytest.approx(1 - exact[6], abs=1e-4))


def test_difference_that_never_varies_is_no_share_of_none() -> None:
    truth = np.repeat([True, False], 20)
    facts, network = truth.astype(float), np.full(40, 0.5)

    def gain(drawn: np.ndarray) -> dict[str, float]:
        return {"gain": auc(truth[drawn], network[drawn]) - auc(truth[drawn], facts[drawn])}

    found = bootstrap_scores(gain, [str(number) for number in range(40)])["gain"]
    assert (found.mean, found.low, found.high) == (-0.5, -0.5, -0.5)


def test_share_with_an_error_has_the_interval_of_its_resamples() -> None:
    truth, probability = sample(0)
    owners = [str(number) for number in range(len(truth))]
    threshold = np.full(len(truth), 0.5)
    found = scores_with_intervals(truth, probability, threshold, owners)
    assert found == bootstrap_scores(lambda i: scores_of(truth[i], probability[i], 0.5), owners)


def test_each_case_is_called_by_its_own_threshold() -> None:
    truth, probability = np.array([True, True, False, False]), np.array([0.3, 0.6, 0.3, 0.6])
    found = scores_of(truth, probability, np.array([0.2, 0.7, 0.4, 0.7]))
    assert (found["sensitivity"], found["specificity"]) == (0.5, 1.0)


def test_one_patient_has_no_interval() -> None:
    found = bootstrap_scores(lambda i: {"m": 1.0}, ["a", "a"])["m"]
    assert (found.mean, found.low, found.high) == (1.0, None, None)


def test_what_cannot_be_known_has_no_number() -> None:
    found = bootstrap_scores(lambda i: {"m": float("nan")}, ["a", "b"])["m"]
    assert (found.mean, found.low, found.high) == (None, None, None)


def test_without_a_threshold_nothing_is_called_anything() -> None:
    truth, probability = np.array([True, False, True]), np.array([0.9, 0.2, 0.4])
    with_one = scores_of(truth, probability, 0.5)
    for threshold in (np.nan, np.array([0.5, np.nan, 0.5])):
        figures = scores_of(truth, probability, threshold)
        resting = {"accuracy", "sensitivity", "specificity", "ppv", "npv", "f1"}
        assert {name for name, value in figures.items() if np.isnan(value)} == resting
        assert all(figures[name] == with_one[name] for name in figures.keys() - resting)


# --------------------------------------------------------------------------------------------------- curves and counts


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_curves_are_those_of_torchmetrics(seed: int, ties: bool) -> None:
    truth, probability = sample(seed, ties=ties)
    p, t = torch.from_numpy(probability), torch.from_numpy(truth).long()
    false, found, _ = peers.binary_roc(p, t)
    own_false, own_found = roc_curve(truth, probability)
    assert own_false == pytest.approx(false.numpy(), abs=1e-6)
    assert own_found == pytest.approx(found.numpy(), abs=1e-6)
    precision, recall, _ = peers.binary_precision_recall_curve(p, t)
    own_recall, own_precision, _ = precision_recall_curve(truth, probability)
    # Theirs begins at the other end and adds a point at recall 0.
    assert own_recall == pytest.approx(recall.numpy()[::-1][1:], abs=1e-6)
    assert own_precision == pytest.approx(precision.numpy()[::-1][1:], abs=1e-6)


def test_bins_hold_every_case_once_and_their_gaps_are_the_calibration_error() -> None:
    truth, probability = sample(0)
    bins = reliability(truth, probability)
    assert sum(part.cases for part in bins) == len(truth)
    gaps = [part.cases * abs(part.probability - part.share) for part in bins if part.cases]
    assert sum(gaps) / len(truth) == pytest.approx(expected_calibration_error(truth, probability))
    assert [(part.probability, part.share) for part in reliability(truth[:1], np.array([1.0]))][:9] == [
        (None, None)
    ] * 9


def test_confusion_by_hand() -> None:
    truth, called = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 1, 0, 1, 0, 0], bool)
    assert confusion(truth, called) == Confusion(2, 1, 1, 2)


@pytest.mark.parametrize(
    ("share", "cases", "low", "high"), [(0.5, 10, 0.2366, 0.7634), (0.0, 5, 0.0, 0.4345), (1.0, 1, 0.2065, 1.0)]
)
def test_wilson_interval_is_that_of_the_tables(share: float, cases: int, low: float, high: float) -> None:
    assert wilson(share, cases) == pytest.approx((low, high), abs=1e-4)
