"""A study is reported on with a trained fusion: film and request are asked, brought together, and judged by both."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import picture, write_pictures
from classified import write_config as picture_config
from fused import CONTENT, drawn
from PIL import Image
from texts import tiny_encoder, write_config, write_reports
from yaml import safe_dump

from pipelines.fusing import train_fusion
from pipelines.infer import Inferred, infer
from pipelines.train import train

pytest.importorskip("peft", reason="imgpipe[text] is not installed")

SICK = "A suspicious effusion is seen on the left. A suspicious nodule is seen."


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of films, one that reads requests, the fusion of both, and another one of films of the same name."""
    folder = tmp_path_factory.mktemp("models")
    films = write_pictures(folder)

    def film_model(name: str, seed: int) -> Path:
        given = [f"data.root={films}", f"train.epochs={8 if seed == 0 else 1}", f"train.seed={seed}"]
        run = train(config=picture_config(folder / f"{name}.yaml", *given), out=folder / name, progress=False)
        assert run is not None
        return run.checkpoint.folder

    encoder = tiny_encoder(folder / "tiny")
    reports = write_reports(folder / "requests.csv")
    asked = write_config(folder / "words.yaml", encoder, f"data.root={reports}", "train.epochs=4", "name=words",
                         "applies_to.roles=[request]", "applies_to.sections=[]")  # fmt: skip
    read = train(config=asked, out=folder / "words", progress=False)
    assert read is not None
    found = {"toy": film_model("toy", 0), "other": film_model("other", 1), "words": read.checkpoint.folder}
    found["fusion"] = fusion_of(folder, found)
    return {**found, "encoders": folder}


def fusion_of(folder: Path, models: dict[str, Path]) -> Path:
    """Trained on log-odds of 900 drawn cases, of which the film's are worth more."""
    cases, truth = drawn(900, missing=0.1)
    with (folder / "cases.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "label", "logit_toy", "logit_text"])
        for number, (case, ill) in enumerate(zip(cases, truth, strict=True)):
            writer.writerow([f"c{number}", int(ill), case.logits.get("toy", ""), case.logits.get("text", "")])
    content = {
        **CONTENT, "facts": [],
        "images": [{"name": "toy", "target": "odd", "checkpoint": str(models["toy"])}],
        "text": {"name": "words", "role": "request", "checkpoint": str(models["words"])},
    }  # fmt: skip
    (folder / "fusion.yaml").write_text(safe_dump(content))
    given = [f"data.root={folder / 'cases.csv'}"]
    return train_fusion(config=folder / "fusion.yaml", overrides=given, out=folder / "fusion").checkpoint.folder


@pytest.fixture
def run(models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ask some of the models about a film that shows something, with or without words."""
    monkeypatch.setenv("IMGPIPE_ENCODERS", str(models["encoders"]))
    Image.fromarray(picture(np.random.default_rng(99), odd=True)).save(tmp_path / "film.png")
    (tmp_path / "request.words").write_text(SICK)

    def of(*names: str, words: bool = True, role: str = "request") -> Inferred:
        text = {"text": tmp_path / "request.words", "text_role": role} if words else {}
        return infer(paths=[tmp_path / "film.png"], models=[str(models[name]) for name in names],
                     out=tmp_path / "out", **text)  # fmt: skip

    return of


def test_film_and_request_are_judged_together(run: Any, tmp_path: Path) -> None:
    (study,) = run("toy", "words", "fusion").studies
    assert study.problems == ()
    (entry,) = study.report.fusion
    assert (entry.method, entry.model, entry.missing) == ("stacked", "both", ())
    assert [score is not None for score in (entry.image, entry.text, entry.fused)] == [True] * 3
    # Both speak for it, so that together they say more than each.
    assert entry.fused.probability > max(entry.image.probability, entry.text.probability) > 0.5
    assert entry.fused.low < entry.fused.probability < entry.fused.high
    assert (entry.assessment, entry.error_rate) == ("abnormal", 0.1)
    assert {model.name for model in study.report.models} == {"toy", "words", "both"}
    assert "Picture and words" in (tmp_path / "out" / "film" / "report.html").read_text()


def test_without_words_the_film_alone_is_judged(run: Any) -> None:
    (study,) = run("toy", "words", "fusion", words=False).studies
    (entry,) = study.report.fusion
    assert (entry.text, entry.fused) == (None, None)
    assert entry.image is not None
    assert entry.missing == ("text: none came with the study",)
    assert "with toy" in entry.calibration


def test_a_report_is_told_and_not_judged_by(run: Any) -> None:
    """The checkpoint reads requests alone, so the report takes no part at all."""
    (study,) = run("toy", "words", "fusion", role="report").studies
    (entry,) = study.report.fusion
    assert entry.text is None
    assert "a request was expected" in entry.missing[0]


def test_a_fusion_of_other_models_is_refused_and_told(run: Any) -> None:
    (study,) = run("other", "words", "fusion").studies
    assert [problem.code for problem in study.problems] == ["fusion_mismatch"]
    (entry,) = study.report.fusion
    assert entry.method == "log_odds"
    assert entry.fused is not None
