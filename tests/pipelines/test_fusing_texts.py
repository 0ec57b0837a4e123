"""The texts of a fusion's cases are read by its text checkpoint, which must be the right one for them."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fused import fuse_config
from texts import tiny_encoder, write_config, write_reports

from imaging.checkpoint import TextCheckpoint, open_text
from imaging.config import FuseConfig
from imaging.errors import FusionMismatch, LearntCases, ManifestInvalid
from imaging.fusion_cases import read_fusion_cases
from imaging.text.document import Document
from imaging.text.reading import TextReader
from pipelines.fusing import asked_cases
from pipelines.train import train

pytest.importorskip("peft", reason="imgpipe[text] is not installed")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> TextCheckpoint:
    folder = tmp_path_factory.mktemp("text")
    config = write_config(
        folder / "toy.yaml", tiny_encoder(folder / "tiny"), f"data.root={write_reports(folder / 'reports.csv')}",
        "train.epochs=2",
    )  # fmt: skip
    run = train(config=config, out=folder / "run", progress=False)
    assert run is not None
    return open_text(run.checkpoint.folder)


@pytest.fixture
def here(checkpoint: TextCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A published checkpoint knows its encoder's folder by the last part of its path."""
    monkeypatch.chdir(checkpoint.folder.parents[1])


def config_of(folder: Path, checkpoint: TextCheckpoint, *overrides: str, role: str = "report") -> FuseConfig:
    text = f"text={{name: toy_text, role: {role}, checkpoint: {checkpoint.folder}}}"
    return fuse_config(folder, "images=[{name: chest_xray, target: pneumonia}]", "facts=[]", text, *overrides)


def write_cases(folder: Path, words: list[str], *, first: str = "case0") -> Path:
    path = folder / "cases.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "label", "logit_chest_xray", "text"])
        for number, text in enumerate(words):
            (folder / f"{number}.txt").write_text(text)
            writer.writerow([f"case{number}" if number else first, number % 2, 0.5, f"{number}.txt"])
        writer.writerow(["silent", 0, -0.5, ""])
    return path


WORDS = ["The lungs are clear. Heart size is normal.", "A suspicious nodule is seen. The bones are intact."]


@pytest.mark.usefixtures("here")
def test_texts_are_read(checkpoint: TextCheckpoint, tmp_path: Path) -> None:
    config = config_of(tmp_path, checkpoint)
    resolved, cases = asked_cases(config, read_fusion_cases(write_cases(tmp_path, WORDS), config))
    assert resolved.text is not None
    assert resolved.text.weights_sha256 == checkpoint.weights_sha256
    reader = TextReader(checkpoint)
    for case, words in zip(cases, WORDS, strict=False):
        logit = reader(Document.of(words, role="report", source="test")).logit
        assert case.case.logits["text"] == pytest.approx(logit)
    assert "text" not in cases[-1].case.logits
    assert np.isfinite([case.case.logits["text"] for case in cases[:-1]]).all()


@pytest.mark.usefixtures("here")
def test_what_does_not_fit_is_refused(checkpoint: TextCheckpoint, tmp_path: Path) -> None:
    path = write_cases(tmp_path, WORDS)

    def refused(*overrides: str, role: str = "report") -> None:
        config = config_of(tmp_path, checkpoint, *overrides, role=role)
        asked_cases(config, read_fusion_cases(path, config))

    with pytest.raises(FusionMismatch, match="it reads reports; requests were expected"):
        refused(role="request")
    with pytest.raises(FusionMismatch, match="aaaaaaaaaaaa was expected"):
        refused("text.weights_sha256=" + "a" * 64)
    with pytest.raises(FusionMismatch, match="called toy_text"):
        refused("text.name=other")
    path = write_cases(tmp_path, ["", WORDS[1]])
    with pytest.raises(ManifestInvalid, match="case case0: its text was refused"):
        refused()
    learnt = checkpoint.metrics["training"]["names"][0]
    path = write_cases(tmp_path, WORDS, first=learnt)
    with pytest.raises(LearntCases, match=learnt):
        refused()


@pytest.mark.usefixtures("here")
def test_a_reading_is_bent_as_its_calibration_says(checkpoint: TextCheckpoint) -> None:
    curves = [{"score": [-9.0, 9.0], "probability": [0.2, 0.2]}, {"score": [-9.0, 9.0], "probability": [0.8, 0.8]}]
    calibration = {**checkpoint.metrics["calibration"], "isotonic": curves}
    level = replace(checkpoint, metrics={**checkpoint.metrics, "calibration": calibration})
    for words in WORDS:
        found = TextReader(level)(Document.of(words, role="report", source="test"))
        assert found.probability == pytest.approx(0.8)
        assert found.logit == pytest.approx(np.log(0.8 / 0.2))
