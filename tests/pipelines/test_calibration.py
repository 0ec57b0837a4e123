"""A threshold divides the cases where it was put, however rare a class is and however sure the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from classified import toy_config

from imaging.cases import ClassifiedCase
from imaging.config import ClassifyConfig
from pipelines.calibration import Asked, apply_calibration, calibrated
from pipelines.measure_classifier import figures, results_of


@pytest.fixture
def config(tmp_path: Path) -> ClassifyConfig:
    return toy_config(tmp_path, "calibrate.temperature=one")


def asked(odds: np.ndarray) -> Asked:
    """Cases whose log-odds of being odd are these; the second half of them is."""
    odd = np.arange(len(odds)) >= len(odds) // 2
    names = [f"c{number}" for number in range(len(odds))]
    cases = [ClassifiedCase(n, Path(n), ("odd",) if o else ("plain",), n) for n, o in zip(names, odd, strict=True)]
    thumbnails = np.zeros((len(odds), 2, 2))
    return Asked(cases, np.stack([~odd, odd], axis=1), np.stack([np.zeros(len(odds)), odds], axis=1), thumbnails)


@pytest.mark.parametrize("usual", [-22.0, -15.0, 0.0, 15.0, 22.0])
def test_threshold_tells_apart_what_it_was_chosen_to_tell_apart(config: ClassifyConfig, usual: float) -> None:
    answers = asked(usual + np.linspace(-2, 2, 40))
    calibration = calibrated(config, answers)
    scores = figures(config, answers, apply_calibration(config, answers, calibration))["scores"]["odd"]
    assert (scores["sensitivity"]["mean"], scores["specificity"]["mean"]) == (1, 1)


def test_case_on_the_threshold_stays_on_its_side_when_its_logit_is_rounded(config: ClassifyConfig) -> None:
    answers = asked(np.linspace(-2, 2, 40))
    calibration = calibrated(config, answers)
    rounded = Asked(answers.cases, answers.truth_NK, answers.logits_NK - 5e-6, answers.thumbnails)
    rounded.logits_NK[:, 0] = 0
    scores = figures(config, rounded, apply_calibration(config, rounded, calibration))["scores"]["odd"]
    assert scores["sensitivity"]["mean"] == 1


def test_error_rate_of_the_config_is_kept_on_other_cases(tmp_path: Path) -> None:
    """The promise is of cases like those: of new ones drawn alike, no more than it says are called wrongly."""
    config = toy_config(tmp_path, "calibrate.error_rate=0.1")
    generator = np.random.default_rng(0)
    shifts = np.repeat([-1.0, 1.0], 500)
    calibration = calibrated(config, asked(generator.normal(0, 1.5, 1000) + shifts))
    new = asked(generator.normal(0, 1.5, 1000) + shifts)
    told = [result.targets["odd"] for result in results_of(config, new, apply_calibration(config, new, calibration))]
    wrong = [found.assessment == ("normal" if found.truth else "abnormal") for found in told]
    without = {key: value for key, value in calibration.items() if key != "conformal"}
    plain = results_of(config, new, apply_calibration(config, new, without))
    bare = [result.targets["odd"].assessment == ("normal" if result.targets["odd"].truth else "abnormal")
            for result in plain]  # fmt: skip
    assert np.mean(wrong) <= 0.1 + 0.02 < np.mean(bare)
    assert any(found.assessment == "indeterminate" for found in told)
    assert any(found.assessment != "indeterminate" for found in told)


def test_isotonic_serves_what_was_fitted(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "calibrate.isotonic=true")
    generator = np.random.default_rng(1)
    answers = asked(generator.normal(0, 1, 400) + np.repeat([-0.5, 0.5], 200))
    calibration = calibrated(config, answers)
    applied = apply_calibration(config, answers, calibration)
    assert np.allclose(applied.probability_NK.sum(axis=1), 1)
    # Equal parts of the curve hold as many odd cases as they say.
    odd = applied.probability_NK[:, 1]
    for level in np.unique(odd):
        assert answers.truth_NK[odd == level, 1].mean() == pytest.approx(level, abs=0.01)
