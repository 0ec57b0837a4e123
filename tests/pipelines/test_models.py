"""A checkpoint is listed with what it takes and how well it does, and only if it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from imaging import checkpoint as checkpoints
from imaging.checkpoint import find_checkpoint, open_network, shipped_checkpoints
from imaging.config import SegmentConfig, TextConfig
from pipelines.models import models

Invoke = Callable[..., Result]


def test_each_shipped_checkpoint_is_listed() -> None:
    found = models()
    assert [model["folder"] for model in found["models"]] == [str(folder) for folder in shipped_checkpoints()]
    assert found["refused"] == []


@pytest.mark.parametrize("folder", shipped_checkpoints(), ids=lambda folder: folder.name)
def test_listing_is_what_the_checkpoint_says(folder: Path) -> None:
    checkpoint = open_network(folder)
    (model,) = [model for model in models()["models"] if model["name"] == folder.name]
    assert model["version"] == checkpoint.config.version
    config = checkpoint.config
    items = config.labels if isinstance(config, SegmentConfig) else config.classes
    assert model["labels"] == {item.id: item.name for item in items}
    assert model["dice_on_test"] == checkpoint.metrics.get("test", {}).get("dice")
    assert model["scores_on_test"] == checkpoint.metrics.get("test", {}).get("scores")
    assert model["dice_cross_validated"] == checkpoint.metrics.get("cross_validation", {}).get("dice")
    assert model["weights_sha256"] == checkpoint.weights_sha256
    assert model["applies_to"] == config.applies_to.model_dump(mode="json")


def test_json_is_one_document(invoke: Invoke) -> None:
    result = invoke("models", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit_status"] == 0
    assert {model["name"] for model in document["models"]} == {folder.name for folder in shipped_checkpoints()}


def test_list_for_a_person_names_what_is_taken(invoke: Invoke) -> None:
    result = invoke("models")
    assert result.exit_code == 0
    for folder in shipped_checkpoints():
        config = open_network(folder).config
        rule = config.applies_to
        taken = (*(rule.roles if isinstance(config, TextConfig) else ()), *rule.modality)
        for told in (config.name, config.version, config.title, *taken, config.card.licence):
            assert told in result.stdout
    assert result.stdout.count("  cross-validated, abnormal: AUC ") == 2  # those that judge texts
    assert "  takes a report in en, beside CR or DX or RG of CHEST or THORAX or LUNG" in result.stdout
    assert "  test, mentions of disease: F1 0.834 [0.810, 0.857]" in result.stdout


def test_corrupt_reader_of_texts_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(find_checkpoint("request_text"), tmp_path / "request_text")
    (tmp_path / "request_text" / "config.yaml").write_text("task: [")
    monkeypatch.setattr(checkpoints, "shipped", lambda _kind: tmp_path)
    found = models()
    assert found["models"] == [] and [error["code"] for error in found["refused"]] == ["checkpoint_corrupt"]


def test_corrupt_checkpoint_is_told_and_the_others_are_listed(
    invoke: Invoke, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("bad", "good"):
        shutil.copytree(model, tmp_path / name)
    (tmp_path / "bad" / "metrics.json").write_text("{}")
    monkeypatch.setattr(checkpoints, "shipped", lambda _kind: tmp_path)
    result = invoke("models", "--json")
    document = json.loads(result.stdout)
    assert result.exit_code == document["exit_status"] == 3
    assert [model["folder"] for model in document["models"]] == [str(tmp_path / "good")]
    assert [error["code"] for error in document["refused"]] == ["checkpoint_corrupt"]
    assert "bad" in invoke("models").stdout
