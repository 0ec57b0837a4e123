"""A fusion is trained from a manifest, keeps its promises on cases that took no part, and knows its checkpoints."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fused import CONTENT, drawn, fuse_config
from yaml import safe_dump

from imaging.checkpoint import find_checkpoint, open_checkpoint, open_fusion
from imaging.classifier import Classifier
from imaging.errors import (
    FusionMismatch,
    LearntCases,
    RunExists,
    TooFewCases,
    UnknownCode,
    UnknownName,
    WrongUsage,
)
from imaging.fusion_cases import read_fusion_cases
from imaging.png import read_png
from imaging.report.fusion import Fusion, fusion_entries
from imaging.stacking import Case, pattern_of
from pipelines.fusing import asked_cases, train_fusion

SHA = "b" * 64


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "fusion.yaml"
    images = [{"name": "chest_xray", "target": "pneumonia"}]
    path.write_text(
        safe_dump({**CONTENT, "images": images, "text": {"name": "words", "weights_sha256": SHA}, **changes})
    )
    return path


def write_cases(folder: Path, *, cases: int = 900, missing: float = 0.1, names: str = "c{}") -> Path:
    """Two cases a patient."""
    found, truth = drawn(cases, missing=missing)
    path = folder / "cases.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["case", "patient", "label", "logit_chest_xray", "logit_text", "age", "sex"])
        for number, (case, ill) in enumerate(zip(found, truth, strict=True)):
            logits = [case.logits.get("toy", ""), case.logits.get("text", "")]
            facts = [case.facts.get("age", ""), case.facts.get("sex", "")]
            writer.writerow([names.format(number), f"p{number // 2}", int(ill), *logits, *facts])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fusing")
    train_fusion(config=write_config(folder), overrides=[f"data.root={write_cases(folder)}"], out=folder / "run")
    return folder


def test_run_explains_itself(folder: Path) -> None:
    run = folder / "run"
    names = {path.name for path in run.iterdir()}
    assert names >= {"config.yaml", "split.json", "data.json", "versions.json", "predictions.csv", "checkpoint"}
    metrics = open_fusion(run / "checkpoint").metrics
    assert metrics["validation"]["cases"] + metrics["test"]["cases"] + metrics["training"]["cases"] == 900
    split = json.loads((run / "split.json").read_text())
    owner = {f"c{number}": number // 2 for number in range(900)}
    sides = [{owner[name] for name in split[side]} for side in ("train", "validation", "test")]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 450


def test_checkpoint_names_those_that_it_brings_together(folder: Path) -> None:
    config = open_fusion(folder / "run" / "checkpoint").config
    assert config.images[0].weights_sha256 == open_checkpoint(find_checkpoint("chest_xray")).weights_sha256
    assert config.text is not None
    assert config.text.weights_sha256 == SHA
    assert config.data.root is None
    card = (folder / "run" / "checkpoint" / "README.md").read_text()
    assert config.images[0].weights_sha256 in card
    assert "| chest_xray+text+facts |" in card


def test_every_set_of_parts_is_measured(folder: Path) -> None:
    test = open_fusion(folder / "run" / "checkpoint").metrics["test"]
    patterns = test["patterns"]
    assert len(patterns) == 7
    aucs = {name: found["scores"]["auc"]["mean"] for name, found in patterns.items()}
    # Phi(d / sqrt 2) for witnesses that are 2, 1 and both (sqrt 5) apart; see tests/fused.py.
    assert aucs["chest_xray"] == pytest.approx(0.921, abs=0.04)
    assert aucs["text"] == pytest.approx(0.760, abs=0.08)
    assert aucs["chest_xray+text"] == pytest.approx(0.943, abs=0.03)
    assert aucs["chest_xray"] < aucs["chest_xray+text"]
    gain = test["gain"]
    assert gain["low"] < gain["mean"] < gain["high"]
    assert (
        patterns["chest_xray"]["cases"]
        > patterns["chest_xray+text"]["cases"]
        > patterns["chest_xray+text+facts"]["cases"]
    )


def test_error_rate_is_kept_on_the_test_cases(folder: Path) -> None:
    patterns = open_fusion(folder / "run" / "checkpoint").metrics["test"]["patterns"]
    for found in patterns.values():
        assert found["wrong"]["low"] <= 0.1
        assert 0 < found["indeterminate"]["mean"] < 1
    # Who knows more leaves less open.
    assert patterns["chest_xray+text"]["indeterminate"]["mean"] < patterns["text"]["indeterminate"]["mean"]


def test_what_serves_is_what_was_measured(folder: Path) -> None:
    fusion = Fusion(open_fusion(folder / "run" / "checkpoint"))
    with (folder / "run" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    manifest = {row["case"]: row for row in csv.DictReader((folder / "cases.csv").open())}
    seen = 0
    for row in rows[:200]:
        told = manifest[row["case"]]
        facts = {"age": told["age"], "sex": told["sex"]}
        logits = {part: float(told[f"logit_{part}"]) for part in ("chest_xray", "text") if told[f"logit_{part}"]}
        case = Case(logits, facts)
        pattern = pattern_of(fusion.config, case)
        if pattern:
            probability = 1 / (1 + np.exp(-fusion.logit(case, pattern)))
            assert probability == pytest.approx(float(row[f"probability_{'+'.join(pattern)}"]), abs=1e-5)
            seen += 1
    assert seen > 150


def test_a_real_picture_with_the_shipped_checkpoint(folder: Path, data: Path) -> None:
    said = Classifier(open_checkpoint(find_checkpoint("chest_xray")))(
        read_png(data / "pneumoniamnist" / "images" / "normal_1.png")
    )
    fusion = Fusion(open_fusion(folder / "run" / "checkpoint"))
    (entry,) = fusion_entries([said], None, {"sex": "F"}, fusion=fusion)
    assert entry.image is not None
    assert entry.image.probability == pytest.approx(said.judgements[0].probability, abs=1e-4)
    assert entry.fused is not None
    assert entry.missing == ("text: none came with the study",)


@pytest.mark.parametrize("method", ["mlp", "stacked"])
def test_command_line(tmp_path: Path, invoke: Any, method: str) -> None:
    arguments = [write_config(tmp_path), f"data.root={write_cases(tmp_path, cases=500)}", f"train.method={method}"]
    arguments += ["train.epochs=30", "calibrate.isotonic=true", "--out", tmp_path / "run"]
    result = invoke("train", *arguments, "--json")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["test"]["patterns"]["chest_xray+text"]["scores"]["auc"]["mean"] > 0.85
    assert metrics["calibration"]["text"]["isotonic"]["score"]
    assert invoke("train", *arguments).exit_code == 2  # the run is there already
    assert "--resume" in invoke("train", *arguments, "--resume").stderr


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"images": [{"name": "chest_xray", "target": "pneumonia", "weights_sha256": "0" * 64}]}, FusionMismatch),
        ({"images": [{"name": "other", "target": "pneumonia", "checkpoint": "chest_xray"}]}, FusionMismatch),
        ({"judged": {**CONTENT["judged"], "code": {"value": "1", "meaning": "Nothing"}}}, UnknownCode),
        ({"text": {"name": "words"}}, WrongUsage),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], error: type[Exception]) -> None:
    path = write_cases(tmp_path, cases=40)
    path.write_text(
        path.read_text().replace(
            "logit_chest_xray", "logit_" + changes.get("images", [{"name": "chest_xray"}])[0]["name"]
        )
    )
    with pytest.raises(error):
        train_fusion(config=write_config(tmp_path, **changes), overrides=[f"data.root={path}"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_cases_that_trained_the_checkpoint_are_refused(tmp_path: Path) -> None:
    learnt = open_checkpoint(find_checkpoint("chest_xray")).metrics["training"]["names"]
    path = write_cases(tmp_path, cases=40)
    path.write_text(path.read_text().replace("c7,", f"{learnt[0]},"))
    with pytest.raises(LearntCases, match=learnt[0]):
        train_fusion(config=write_config(tmp_path), overrides=[f"data.root={path}"], out=tmp_path / "run")


def test_too_few_cases_are_refused_before_the_run_begins(tmp_path: Path) -> None:
    path = write_cases(tmp_path, cases=40)
    with pytest.raises(TooFewCases, match="of a kind"):
        train_fusion(config=write_config(tmp_path), overrides=[f"data.root={path}"], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_there_is_left_alone(folder: Path) -> None:
    with pytest.raises(RunExists):
        train_fusion(config=folder / "fusion.yaml", overrides=[f"data.root={folder / 'cases.csv'}"], out=folder / "run")


def test_pictures_are_asked_of_the_checkpoint(tmp_path: Path, data: Path) -> None:
    rows = list(csv.DictReader((data / "pneumoniamnist" / "cases.csv").open()))
    path = tmp_path / "cases.csv"
    lines = [f"{data / 'pneumoniamnist' / row['image']},{row['label']},0.5,,," for row in rows]
    path.write_text("\n".join(["image,label,logit_text,age,sex,patient", *lines]) + "\n")
    overrides = [
        "images=[{name: chest_xray, target: pneumonia}]",
        f"text.weights_sha256={SHA}",
        "data.abnormal=[pneumonia]",
    ]
    config = fuse_config(tmp_path, *overrides)
    _, cases = asked_cases(config, read_fusion_cases(path, config))
    classifier = Classifier(open_checkpoint(find_checkpoint("chest_xray")))
    assert len(cases) == 8
    for case in cases:
        assert case.image is not None
        probability = classifier(read_png(case.image)).probability["pneumonia"]
        assert case.case.logits["chest_xray"] == pytest.approx(np.log(probability / (1 - probability)), abs=1e-6)
        assert case.abnormal == case.name.startswith("pneumonia")
    other = fuse_config(tmp_path, "images=[{name: chest_xray, target: fracture}]", f"text.weights_sha256={SHA}")
    with pytest.raises(UnknownName, match="fracture"):
        asked_cases(other, read_fusion_cases(path, other))
