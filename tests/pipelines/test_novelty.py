"""A checkpoint knows what its training cases are like, and what is strange to it is not judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from classified import FALSE_FLAGS, picture, strange_picture, write_config
from PIL import Image

from imaging.classifier import Classifier
from imaging.errors import ConfigInvalid
from imaging.novelty import FILE
from imaging.png import read_png
from imaging.report.findings import findings_of
from pipelines.folds import cross_validate
from pipelines.train import Run


def test_training_keeps_it_and_tells_it(knowing: Run) -> None:
    checkpoint = knowing.checkpoint
    assert FILE in checkpoint.sums
    told = checkpoint.metrics["novelty"]
    assert told["false_flags"] == FALSE_FLAGS
    assert {"intensity", "embedding"} <= set(told["aspects"])
    assert "geometry" not in told["aspects"]  # all of them have one size
    assert told["flagged"]["validation"]["mean"] <= FALSE_FLAGS
    assert "Knows pictures that are unlike its" in (checkpoint.folder / "README.md").read_text()


def test_strange_pictures_are_indeterminate_with_the_reason(knowing: Run, unknowing: Run, tmp_path: Path) -> None:
    said = Classifier(knowing.checkpoint)(read_png(strange_picture(tmp_path)))
    (judgement,) = said.judgements
    assert (judgement.assessment, judgement.strange) == ("indeterminate", True)
    assert said.novelty
    assert said.novelty[0] in judgement.reason
    (finding,) = findings_of(said)
    assert (finding.novelty, finding.assessment) == (said.novelty, "indeterminate")
    assert finding.classification is None, "a number that means nothing"
    (known,) = findings_of(Classifier(unknowing.checkpoint)(read_png(tmp_path / "checks.png")))
    assert known.novelty == ()
    assert "is not known" in known.assessment_reason


def test_usual_pictures_are_judged(knowing: Run, tmp_path: Path) -> None:
    classifier, generator, told = Classifier(knowing.checkpoint), np.random.default_rng(7), []
    for number in range(20):
        Image.fromarray(picture(generator, odd=number % 2 == 1)).save(tmp_path / "film.png")
        told.append(classifier(read_png(tmp_path / "film.png")).novelty)
    assert sum(bool(reasons) for reasons in told) <= 12
    assert () in told


def test_figures_count_strange_cases_as_indeterminate(knowing: Run) -> None:
    metrics = knowing.checkpoint.metrics
    assert metrics["test"]["indeterminate"]["odd"]["mean"] >= metrics["novelty"]["flagged"]["test"]["mean"] > 0


def test_an_ensemble_of_folds_has_none(many_films: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "toy.yaml", f"data.root={many_films}", "calibrate.novelty={}")
    with pytest.raises(ConfigInvalid, match="every case trains one"):
        cross_validate(config=config, folds=2, out=tmp_path / "run")
