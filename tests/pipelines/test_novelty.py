"""Statistics of strangeness are added without a new training, and what is strange is not judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import picture, write_config, write_pictures
from PIL import Image

from imaging.checkpoint import WEIGHTS, Checkpoint, open_checkpoint, with_extras
from imaging.classifier import Classifier
from imaging.errors import ConfigInvalid, ManifestInvalid, OutputNotWritable, TooFewCases
from imaging.novelty import FILE
from imaging.png import read_png
from imaging.report.findings import findings_of
from pipelines.calibrate import calibrate
from pipelines.folds import cross_validate
from pipelines.train import Run, train

RATE = 0.3


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("films"), cases=96)


@pytest.fixture(scope="module")
def trained(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose config asks for it."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [f"data.root={films}", f"calibrate.novelty={{false_flags: {RATE}}}"]
    run = train(config=write_config(folder / "toy.yaml", *overrides), out=folder / "run", progress=False)
    assert run is not None
    return run


@pytest.fixture(scope="module")
def plain(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same without."""
    folder = tmp_path_factory.mktemp("plain")
    run = train(config=write_config(folder / "toy.yaml", f"data.root={films}"), out=folder / "run", progress=False)
    assert run is not None
    return run


def strange(folder: Path) -> Path:
    """A picture of checks, and broad."""
    checks = (np.indices((16, 60)).sum(axis=0) // 4 % 2 * 200 + np.arange(60)[None] % 50).astype(np.uint8)
    Image.fromarray(checks).save(folder / "checks.png")
    return folder / "checks.png"


def test_training_keeps_it_and_tells_it(trained: Run) -> None:
    checkpoint = trained.checkpoint
    assert FILE in checkpoint.sums
    told = checkpoint.metrics["novelty"]
    assert told["false_flags"] == RATE
    assert {"intensity", "embedding"} <= set(told["aspects"])
    assert "geometry" not in told["aspects"]  # all of them have one size
    assert told["flagged"]["validation"]["mean"] <= RATE
    assert "Knows pictures that are unlike its" in (checkpoint.folder / "README.md").read_text()


def test_strange_pictures_are_indeterminate_with_the_reason(trained: Run, plain: Run, tmp_path: Path) -> None:
    said = Classifier(trained.checkpoint)(read_png(strange(tmp_path)))
    (judgement,) = said.judgements
    assert (judgement.assessment, judgement.strange) == ("indeterminate", True)
    assert said.novelty
    assert said.novelty[0] in judgement.reason
    (finding,) = findings_of(said)
    assert (finding.novelty, finding.assessment) == (said.novelty, "indeterminate")
    assert finding.classification is None, "a number that means nothing"
    (known,) = findings_of(Classifier(plain.checkpoint)(read_png(tmp_path / "checks.png")))
    assert known.novelty == ()
    assert "is not known" in known.assessment_reason


def test_usual_pictures_are_judged(trained: Run, tmp_path: Path) -> None:
    classifier, generator, told = Classifier(trained.checkpoint), np.random.default_rng(7), []
    for number in range(20):
        Image.fromarray(picture(generator, odd=number % 2 == 1)).save(tmp_path / "film.png")
        told.append(classifier(read_png(tmp_path / "film.png")).novelty)
    assert sum(bool(reasons) for reasons in told) <= 12
    assert () in told


def test_figures_count_strange_cases_as_indeterminate(trained: Run) -> None:
    metrics = trained.checkpoint.metrics
    assert metrics["test"]["indeterminate"]["odd"]["mean"] >= metrics["novelty"]["flagged"]["test"]["mean"] > 0


def test_command_adds_it_and_leaves_the_weights(
    plain: Run, trained: Run, films: Path, tmp_path: Path, invoke: Any
) -> None:
    before, out = plain.checkpoint, tmp_path / "copy"
    asked = f"calibrate.novelty={{false_flags: {RATE}}}"
    result = invoke("calibrate", before.folder, asked, "--data", films, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    after = open_checkpoint(out)
    assert (out / WEIGHTS).read_bytes() == (before.folder / WEIGHTS).read_bytes()
    assert after.config.digest() == trained.checkpoint.config.digest() != before.config.digest()
    # The weights are those of the other run, so that all that is found is the same.
    assert {**after.metrics, "training": 0, "calibrated": 0} == {
        **trained.checkpoint.metrics, "training": 0, "calibrated": 0
    }  # fmt: skip
    assert after.metrics["training"] == before.metrics["training"]
    assert json.loads(result.stdout)["novelty"] == after.metrics["novelty"]
    assert Classifier(after)(read_png(strange(tmp_path))).judgements[0].assessment == "indeterminate"


def test_an_error_rate_can_be_chosen_anew(plain: Run, films: Path, tmp_path: Path) -> None:
    assert isinstance(plain.checkpoint, Checkpoint)
    before = with_extras(
        tmp_path / "before", plain.checkpoint, plain.checkpoint.metrics, {"notes.txt": b"of the weights"}
    )
    after = calibrate(
        checkpoint=str(before.folder), data=films, out=tmp_path / "rate", overrides=["calibrate.error_rate=0.2"]
    )
    assert (after.folder / "notes.txt").read_bytes() == b"of the weights"
    assert set(after.sums) == set(before.sums)
    bounds = after.metrics["calibration"]["conformal"]["odd"]
    assert (bounds["error_rate"], bounds["cases"]) == (0.2, after.metrics["validation"]["cases"])
    wrong = after.metrics["validation"]["wrong"]["odd"]
    assert wrong["normal"]["mean"] <= 0.2 + 1e-9
    assert wrong["abnormal"]["mean"] <= 0.2 + 1e-9
    assert "called what they are not" in (after.folder / "README.md").read_text()


def test_what_cannot_be_chosen_anew_is_refused(plain: Run, films: Path, tmp_path: Path) -> None:
    folder, given = str(plain.checkpoint.folder), [f"calibrate.novelty={{false_flags: {RATE}}}"]
    with pytest.raises(OutputNotWritable, match="there already"):
        calibrate(checkpoint=folder, data=films, out=tmp_path)
    with pytest.raises(TooFewCases, match="validation cases"):
        calibrate(checkpoint=folder, data=films, out=tmp_path / "few",
                  overrides=["calibrate.novelty={false_flags: 0.001}"])  # fmt: skip
    with pytest.raises(ConfigInvalid, match=r"train\.epochs"):
        calibrate(checkpoint=folder, data=films, out=tmp_path / "other", overrides=["train.epochs=3"])
    lines = films.read_text().splitlines()
    fewer = films.with_name("fewer.csv")
    fewer.write_text("\n".join(lines[:40]) + "\n")
    with pytest.raises(ManifestInvalid, match="cases for train are not there"):
        calibrate(checkpoint=folder, data=fewer, out=tmp_path / "fewer", overrides=given)
    assert not any((tmp_path / name).exists() for name in ("few", "other", "fewer"))
    assert not list(tmp_path.glob(".*"))


def test_an_ensemble_of_folds_has_none(films: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.yaml", f"data.root={films}", "calibrate.novelty={}")
    with pytest.raises(ConfigInvalid, match="every case trains one"):
        cross_validate(config=config, folds=2, out=tmp_path / "run")
