"""A case is worth what its structures are worth, and a mean is over patients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from imaging.config import Label, load_config
from imaging.files import shipped
from imaging.mask_scores import TITLES, CaseScore, score_structures, summary
from imaging.metrics import bootstrap_means, dice


@pytest.fixture(scope="module")
def labels() -> tuple[Label, ...]:
    return load_config(shipped("configs") / "hippocampus_mr.yaml").labels


def masks() -> tuple[np.ndarray, np.ndarray]:
    truth = np.zeros((20, 20, 20), dtype=np.uint8)
    truth[5:15, 5:15, 5:10], truth[5:15, 5:15, 10:15] = 1, 2
    found = truth.copy()
    found[5:15, 5:15, 10:12] = 1
    return found, truth


def score(found: np.ndarray, truth: np.ndarray, labels: tuple[Label, ...], patient: str = "p") -> CaseScore:
    options = {"spacing_mm": (1.0, 1.0, 2.0), "voxel_mm3": 2.0, "tolerance_mm": 1.0}
    return CaseScore(patient, patient, score_structures(found, truth, labels, **options))


def test_each_structure_is_scored_by_itself(labels: tuple[Label, ...]) -> None:
    found, truth = masks()
    anterior, posterior = score(found, truth, labels).structures.values()
    assert (anterior.dice, posterior.dice) == (dice(found, truth, 1), dice(found, truth, 2))
    assert (anterior.truth_mm3, anterior.found_mm3) == (1000, 1400)
    assert (anterior.volume_error_percent, posterior.volume_error_percent) == (pytest.approx(40), pytest.approx(-40))
    assert anterior.hd95_mm == pytest.approx(4, abs=1e-3)
    assert score(found, truth, labels).mean_dice == pytest.approx((anterior.dice + posterior.dice) / 2)


def test_structure_that_neither_has_counts_for_nothing(labels: tuple[Label, ...]) -> None:
    truth = (masks()[1] == 1).astype(np.uint8)
    case = score(truth, truth, labels)
    absent = case.structures[labels[1].name]
    assert all(math.isnan(getattr(absent, name)) for name in TITLES)
    assert case.mean_dice == 1
    told = summary([case, case], labels, tolerance_mm=1)
    assert told["dice"][labels[1].name] == {"mean": None, "low": None, "high": None}
    assert told["each"]["p"] == [1, None]


def test_structure_that_was_missed_or_made_up_is_the_worst(labels: tuple[Label, ...]) -> None:
    truth = masks()[1]
    missed = score(np.zeros_like(truth), truth, labels).structures[labels[0].name]
    made_up = score(truth, np.zeros_like(truth), labels).structures[labels[0].name]
    assert missed.dice == made_up.dice == missed.surface_dice == made_up.surface_dice == 0
    assert missed.hd95_mm == made_up.hd95_mm == pytest.approx(math.hypot(20, 20, 40))
    assert missed.volume_error_percent == -100
    assert math.isnan(made_up.volume_error_percent)


def test_summary_counts_patients_and_has_every_score(labels: tuple[Label, ...]) -> None:
    found, truth = masks()
    cases = [score(found, truth, labels, "a"), score(truth, truth, labels, "b")]
    told = summary(cases, labels, tolerance_mm=1)
    assert (told["cases"], told["patients"], told["tolerance_mm"]) == (2, 2, 1)
    for name in TITLES:
        values = [getattr(case.structures[labels[0].name], name) for case in cases]
        assert told[name][labels[0].name]["mean"] == pytest.approx(np.mean(values), abs=1e-5)


def test_cases_of_one_patient_are_drawn_together() -> None:
    scores = np.repeat(np.random.default_rng(0).random((8, 1)), 5, axis=0)
    owners = [str(number) for number in np.repeat(np.arange(8), 5)]
    ((apart,), (together,)) = bootstrap_means(scores), bootstrap_means(scores, patients=owners)
    (once,) = bootstrap_means(scores[::5])
    assert together.mean == pytest.approx(once.mean)
    assert (together.low, together.high) == (pytest.approx(once.low), pytest.approx(once.high))
    assert together.high - together.low > 1.5 * (apart.high - apart.low)


def test_a_patient_each_is_the_same_as_no_patients_told() -> None:
    scores = np.random.default_rng(1).random((9, 2))
    scores[3, 1] = np.nan
    assert bootstrap_means(scores, patients=[f"p{n:02}" for n in range(9)]) == bootstrap_means(scores)


def test_one_patient_has_no_interval() -> None:
    (interval,) = bootstrap_means(np.array([[0.8], [0.9]]), patients=["p", "p"])
    assert (interval.mean, interval.low, interval.high) == (pytest.approx(0.85), None, None)
