"""Another calibration is chosen on the cases that validated a checkpoint, and its weights stay as they are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from classified import FALSE_FLAGS, strange_picture

from imaging.checkpoint import WEIGHTS, Checkpoint, open_checkpoint, with_extras
from imaging.classifier import Classifier
from imaging.errors import ConfigInvalid, ManifestInvalid, OutputNotWritable, TooFewCases
from imaging.png import read_png
from pipelines.calibrate import calibrate
from pipelines.train import Run


def test_command_adds_it_and_leaves_the_weights(
    unknowing: Run, knowing: Run, many_films: Path, tmp_path: Path, invoke: Any
) -> None:
    before, out = unknowing.checkpoint, tmp_path / "copy"
    asked = f"calibrate.novelty={{false_flags: {FALSE_FLAGS}}}"
    result = invoke("calibrate", before.folder, asked, "--data", many_films, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    after = open_checkpoint(out)
    assert (out / WEIGHTS).read_bytes() == (before.folder / WEIGHTS).read_bytes()
    assert after.config.digest() == knowing.checkpoint.config.digest() != before.config.digest()
    # The weights are those of the other run, so that all that is found is the same.
    assert {**after.metrics, "training": 0, "calibrated": 0} == {
        **knowing.checkpoint.metrics, "training": 0, "calibrated": 0
    }  # fmt: skip
    assert after.metrics["training"] == before.metrics["training"]
    assert json.loads(result.stdout)["novelty"] == after.metrics["novelty"]
    assert Classifier(after)(read_png(strange_picture(tmp_path))).judgements[0].assessment == "indeterminate"


def test_an_error_rate_can_be_chosen_anew(unknowing: Run, many_films: Path, tmp_path: Path) -> None:
    assert isinstance(unknowing.checkpoint, Checkpoint)
    before = with_extras(
        tmp_path / "before", unknowing.checkpoint, unknowing.checkpoint.metrics, {"notes.txt": b"of the weights"}
    )
    after = calibrate(
        checkpoint=str(before.folder), data=many_films, out=tmp_path / "rate", overrides=["calibrate.error_rate=0.2"]
    )
    assert (after.folder / "notes.txt").read_bytes() == b"of the weights"
    assert set(after.sums) == set(before.sums)
    bounds = after.metrics["calibration"]["conformal"]["odd"]
    assert (bounds["error_rate"], bounds["cases"]) == (0.2, after.metrics["validation"]["cases"])
    wrong = after.metrics["validation"]["wrong"]["odd"]
    assert wrong["normal"]["mean"] <= 0.2 + 1e-9
    assert wrong["abnormal"]["mean"] <= 0.2 + 1e-9
    assert "called what they are not" in (after.folder / "README.md").read_text()


def test_engines_stay_accepted_only_where_the_probabilities_stay(
    unknowing: Run, many_films: Path, tmp_path: Path
) -> None:
    assert isinstance(unknowing.checkpoint, Checkpoint)
    before = with_extras(
        tmp_path / "before", unknowing.checkpoint, unknowing.checkpoint.metrics, {"engines.json": b'{"trials": []}'}
    )
    folder = str(before.folder)
    for asked, stays in (("error_rate=0.2", True), ("temperature=one", False)):
        after = calibrate(checkpoint=folder, data=many_films, out=tmp_path / asked, overrides=[f"calibrate.{asked}"])
        assert ("engines.json" in after.sums) is stays


def test_what_cannot_be_chosen_anew_is_refused(unknowing: Run, many_films: Path, tmp_path: Path) -> None:
    folder, given = str(unknowing.checkpoint.folder), [f"calibrate.novelty={{false_flags: {FALSE_FLAGS}}}"]
    with pytest.raises(OutputNotWritable, match="there already"):
        calibrate(checkpoint=folder, data=many_films, out=tmp_path)
    with pytest.raises(TooFewCases, match="validation cases"):
        calibrate(checkpoint=folder, data=many_films, out=tmp_path / "few",
                  overrides=["calibrate.novelty={false_flags: 0.001}"])  # fmt: skip
    with pytest.raises(ConfigInvalid, match=r"train\.epochs"):
        calibrate(checkpoint=folder, data=many_films, out=tmp_path / "other", overrides=["train.epochs=3"])
    lines = many_films.read_text().splitlines()
    fewer = tmp_path / "fewer.csv"
    shutil.copytree(many_films.parent, tmp_path, dirs_exist_ok=True)
    fewer.write_text("\n".join(lines[:40]) + "\n")
    with pytest.raises(ManifestInvalid, match="cases for train are not there"):
        calibrate(checkpoint=folder, data=fewer, out=tmp_path / "less", overrides=given)
    assert not any((tmp_path / name).exists() for name in ("few", "other", "less"))
    assert not list(tmp_path.glob(".*"))
