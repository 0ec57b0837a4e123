"""The shipped classifier is what its config says, and says of the pictures that ship what its card was measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imaging.cases import read_cases
from imaging.checkpoint import WEIGHTS, Checkpoint, find_checkpoint, open_checkpoint
from imaging.classifier import Classifier
from imaging.config import find_config, load_config
from imaging.errors import AnswerNotNumbers
from imaging.png import read_png


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return open_checkpoint(find_checkpoint("chest_xray"))


@pytest.fixture(scope="module")
def classifier(checkpoint: Checkpoint) -> Classifier:
    return Classifier(checkpoint)


def test_checkpoint_was_trained_by_the_config_that_ships(checkpoint: Checkpoint) -> None:
    config = load_config(find_config("chest_xray"))
    # It was trained before it had an error rate, which decides no weight.
    assert checkpoint.config.digest() == config.digest() == checkpoint.metrics["calibrated"]["config_sha256"]
    plain = config.model_copy(
        update={"calibrate": config.calibrate.model_copy(update={"error_rate": None, "novelty": None})}
    )
    assert plain.digest() == checkpoint.metrics["training"]["config_sha256"]


def test_its_error_rate_holds_on_its_test_cases(checkpoint: Checkpoint) -> None:
    rate = checkpoint.metrics["calibration"]["conformal"]["pneumonia"]["error_rate"]
    for side in ("validation", "test"):
        wrong = checkpoint.metrics[side]["wrong"]["pneumonia"]
        assert max(wrong[kind]["mean"] for kind in ("normal", "abnormal")) <= rate == 0.05


def test_weights_are_under_20_mb(checkpoint: Checkpoint) -> None:
    assert (checkpoint.folder / WEIGHTS).stat().st_size < 20_000_000


def test_no_picture_is_on_two_sides_or_twice_on_one(checkpoint: Checkpoint) -> None:
    metrics = checkpoint.metrics
    sides = [set(metrics["training"]["names"]), set(metrics["validation"]["each"]), set(metrics["test"]["each"])]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 4708 + 524 - metrics["training"]["copies_left_out"]
    assert all(name.startswith("val_") for name in sides[1])
    assert all(name.startswith("train_") for name in sides[0] | sides[2])


def test_it_says_of_the_pictures_that_ship_what_was_measured(classifier: Classifier, data: Path) -> None:
    measured = classifier.checkpoint.metrics["test"]["each"]
    cases = read_cases(data / "pneumoniamnist" / "cases.csv", classifier.checkpoint.classifier())
    assert len(cases) == 8
    for case in cases:
        said = classifier(read_png(case.image))
        assert case.classes == tuple(measured[case.name]["classes"])
        assert list(said.probability.values()) == pytest.approx(measured[case.name]["probability"], abs=1e-3)


def test_what_is_no_film_is_not_judged(classifier: Classifier, data: Path, tmp_path: Path) -> None:
    film = np.asarray(Image.open(data / "pneumoniamnist" / "images" / "normal_1.png"))
    checks = (np.indices((200, 200)).sum(axis=0) // 25 % 2 * 200 + np.arange(200)[:, None] % 50).astype(np.uint8)
    for name, image in {"upside_down": film[::-1], "checks": checks}.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        (said,) = classifier(read_png(tmp_path / f"{name}.png")).judgements
        assert said.assessment == "indeterminate", name


def test_it_knows_pictures_that_are_unlike_those_that_trained_it(
    classifier: Classifier, data: Path, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (28, 28)).astype(np.uint8)
    negative = 255 - np.asarray(Image.open(data / "pneumoniamnist" / "images" / "normal_1.png"))
    for name, image in {"noise": noise, "negative": negative}.items():
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        said = classifier(read_png(tmp_path / f"{name}.png"))
        assert any(reason.startswith("embedding") for reason in said.novelty or ()), name
    usual = [classifier(read_png(path)).novelty for path in sorted((data / "pneumoniamnist" / "images").glob("*.png"))]
    assert len(usual) == 8
    assert not any(usual)


def test_network_that_answers_with_no_number_is_refused(
    classifier: Classifier, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = classifier._engines

    def broken(image_1CXY: np.ndarray) -> np.ndarray:
        return np.full_like(whole[0](image_1CXY), np.nan)

    monkeypatch.setattr(classifier, "_engines", (broken, *whole[1:]))
    with pytest.raises(AnswerNotNumbers, match="answered with NaN"):
        classifier(read_png(data / "pneumoniamnist" / "images" / "normal_1.png"))
