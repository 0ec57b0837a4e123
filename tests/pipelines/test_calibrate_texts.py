"""A checkpoint that reads is given what it knows strange texts by, and an error rate, without a new training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from texts import tiny_encoder, write_config, write_reports

from imaging.checkpoint import WEIGHTS, TextCheckpoint, open_text
from imaging.errors import ConfigInvalid
from imaging.novelty import FILE
from imaging.text.document import Document
from imaging.text.reading import TextReader
from pipelines.calibrate import calibrate
from pipelines.folds import CrossValidation, cross_validate
from pipelines.train import train

pytest.importorskip("peft", reason="imgpipe[text] is not installed")

NOVELTY = "calibrate.novelty={false_flags: 0.2}"
RATE = "calibrate.error_rate=0.2"
KNOWN = (
    "The lungs are clear. Heart size is normal. The bones are intact. The chest is well. Nothing lies beside the lung."
)
JUNK = "lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor incididunt ut labore"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports") / "reports.csv")


@pytest.fixture(autouse=True)
def shelf(encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders of this machine lie where the environment says."""
    monkeypatch.setenv("IMGPIPE_ENCODERS", str(Path(encoder["folder"]).parent))


@pytest.fixture(scope="module")
def config(encoder: dict[str, Any], reports: Path) -> Path:
    return write_config(reports.with_name("toy.yaml"), encoder, f"data.root={reports}", "train.epochs=4")


@pytest.fixture(scope="module")
def plain(config: Path, tmp_path_factory: pytest.TempPathFactory) -> TextCheckpoint:
    run = train(config=config, out=tmp_path_factory.mktemp("run") / "text", progress=False)
    assert run is not None
    assert isinstance(run.checkpoint, TextCheckpoint)
    return run.checkpoint


@pytest.fixture(scope="module")
def folds(config: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidation:
    return cross_validate(config=config, folds=2, overrides=["data.test_fraction=0", "train.epochs=4"], form="single",
                          out=tmp_path_factory.mktemp("folds") / "run", progress=False)  # fmt: skip


def document(text: str) -> Document:
    return Document.of(text, role="report", source="file invented.txt", language="en")


def test_of_junk_no_number_is_told_and_the_reason_is(plain: TextCheckpoint, reports: Path, tmp_path: Path) -> None:
    before = TextReader(plain)(document(JUNK))
    assert before.probability is not None
    assert before.novelty is None
    calibrate(checkpoint=str(plain.folder), data=reports, out=tmp_path / "copy", overrides=[NOVELTY])
    after = open_text(tmp_path / "copy")
    said = TextReader(after)(document(JUNK))
    assert (said.logit, said.probability, said.assessment) == (None, None, "indeterminate")
    assert said.reason.startswith("The text is strange to the checkpoint: words: ")
    assert said.novelty
    assert "lorem" not in said.reason
    usual = TextReader(after)(document(KNOWN))
    assert (usual.novelty, usual.probability) == ((), TextReader(plain)(document(KNOWN)).probability)
    told = after.metrics["novelty"]
    assert told["aspects"] == ["words", "embedding"]
    assert told["flagged"]["validation"]["mean"] <= 0.2
    assert (after.folder / WEIGHTS).read_bytes() == (plain.folder / WEIGHTS).read_bytes()
    # Of the texts nothing is kept but numbers.
    assert b"lungs" not in (after.folder / FILE).read_bytes()


def test_a_training_writes_the_same(plain: TextCheckpoint, config: Path, reports: Path, tmp_path: Path) -> None:
    run = train(config=config, overrides=[NOVELTY, RATE], out=tmp_path / "run", progress=False)
    assert run is not None
    copy = calibrate(checkpoint=str(plain.folder), data=reports, out=tmp_path / "copy", overrides=[NOVELTY, RATE])
    assert copy.config.digest() == run.checkpoint.config.digest() == copy.metrics["calibrated"]["config_sha256"]
    assert {**copy.metrics, "training": 0, "calibrated": 0} == {
        **run.checkpoint.metrics, "training": 0, "calibrated": 0
    }  # fmt: skip
    assert (copy.folder / FILE).read_bytes() == (run.checkpoint.folder / FILE).read_bytes()


def test_of_folds_an_error_rate_and_novelty_are_chosen_anew(
    folds: CrossValidation, reports: Path, tmp_path: Path
) -> None:
    checkpoint = folds.checkpoint
    copy = calibrate(checkpoint=str(checkpoint.folder), data=reports, out=tmp_path / "copy", overrides=[NOVELTY, RATE])
    before, after = checkpoint.metrics["cross_validation"], copy.metrics["cross_validation"]
    assert after["scores"] == before["scores"]
    assert copy.metrics["calibration"]["conformal"]["abnormal"]["cases"] == 96
    assert after["indeterminate"]["abnormal"]["mean"] >= before["indeterminate"]["abnormal"]["mean"]
    assert after["wrong"]["abnormal"]["all"]["mean"] <= before["wrong"]["abnormal"]["all"]["mean"]
    assert copy.metrics["novelty"]["cases"] == {"train": 48, "validation": 48, "test": 0}
    assert not copy.metrics["novelty"]["counted"]
    with pytest.raises(ConfigInvalid, match=r"calibrate\.sensitivity"):
        calibrate(checkpoint=str(checkpoint.folder), data=reports, out=tmp_path / "no",
                  overrides=["calibrate.sensitivity=0.8"])  # fmt: skip


def test_folds_that_ask_for_it_publish_it(config: Path, tmp_path: Path) -> None:
    given = ["data.test_fraction=0", "train.epochs=1", NOVELTY]
    with pytest.raises(ConfigInvalid, match="--publish single"):
        cross_validate(config=config, folds=2, overrides=given, out=tmp_path / "all", progress=False)
    found = cross_validate(config=config, folds=2, overrides=given, form="single", out=tmp_path / "one", progress=False)
    assert FILE in found.checkpoint.sums
    assert found.checkpoint.metrics["novelty"]["counted"] is False
