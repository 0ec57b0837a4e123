"""A checkpoint's entry has its hashes and its own figures, told as what they are of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fused import fuse_config
from reported import full_report

from imaging.checkpoint import Checkpoint, FusionCheckpoint, find_checkpoint, open_text
from imaging.config import load_config
from imaging.files import shipped
from imaging.report.html import render_html
from imaging.report.models import model_entry
from imaging.report.report import Figure, MeanDice

CONFIG = load_config(shipped("configs") / "hippocampus_mr.yaml")
DICE = {"mean": 0.9, "low": 0.88, "high": 0.92}


def segmenter(metrics: dict[str, Any]) -> Checkpoint:
    return Checkpoint(Path("checkpoint"), CONFIG, metrics, "f" * 64)


def page_of(checkpoint: Any) -> str:
    report = full_report().model_copy(update={"models": (model_entry(checkpoint),)})
    return " ".join(render_html(report, ()).split())


def test_entry_tells_version_hashes_and_dice() -> None:
    checkpoint = segmenter({"test": {"cases": 43, "dice": {"hippocampus_anterior": DICE}}})
    entry = model_entry(checkpoint)
    assert (entry.name, entry.version) == (CONFIG.name, CONFIG.version)
    assert (entry.weights_sha256, entry.config_sha256) == ("f" * 64, CONFIG.digest())
    assert (entry.test_cases, entry.measured_on) == (43, "cases")
    assert entry.dice_on_test == {"hippocampus_anterior": MeanDice(mean=0.9, low=0.88, high=0.92)}
    assert "On 43 test cases that took no part in its training" in page_of(checkpoint)


def test_checkpoint_without_figures_says_so() -> None:
    entry = model_entry(segmenter({}))
    assert not (entry.dice_on_test or entry.dice_on_validation or entry.dice_cross_validated)
    assert "It has no figures on test cases. </p>" in page_of(segmenter({}))


def test_dice_of_validation_is_told_as_such() -> None:
    page = page_of(segmenter({"validation": {"cases": 7, "dice": {"hippocampus_anterior": DICE}}}))
    assert "On 7 validation cases, which did not train it but chose its calibration, its Dice overlap" in page
    assert "0.900 [0.880, 0.920]" in page


@pytest.mark.parametrize(("name", "texts"), [("report_text", "reports"), ("request_text", "requests")])
def test_figures_of_a_text_model_are_of_texts(name: str, texts: str) -> None:
    checkpoint = open_text(find_checkpoint(name))
    entry, own = model_entry(checkpoint), checkpoint.metrics["cross_validation"]
    assert (entry.measured_on, entry.cross_validated_cases, entry.test_cases) == (texts, own["cases"], 0)
    auc = own["scores"]["abnormal"]["auc"]
    assert entry.scores_cross_validated["abnormal"]["auc"] == Figure(**auc)
    page, asked = page_of(checkpoint), "each asked of one network that had not seen it"
    assert f"In cross-validation ({own['cases']} {texts}, {asked}) for abnormal: AUC" in page
    assert f"AUC {auc['mean']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in page


def test_fusion_has_figures_for_each_set_of_parts(tmp_path: Path) -> None:
    figure = {"mean": 0.7, "low": 0.6, "high": 0.8}
    metrics = {"test": {"cases": 9, "patterns": {"toy": {"cases": 9, "scores": {"auc": figure}}}}}
    checkpoint = FusionCheckpoint(tmp_path, fuse_config(tmp_path), metrics, "f" * 64)
    entry = model_entry(checkpoint)
    assert entry.scores_on_test == {"toy": {"auc": Figure(**figure)}}
    page = page_of(checkpoint)
    assert "On 9 test studies that took no part in its training, for toy: AUC 0.700 [0.600, 0.800]" in page


def test_figures_of_mentions_are_of_sentences() -> None:
    checkpoint = open_text(find_checkpoint("disease_spans"))
    own = checkpoint.metrics["test"]
    entry = model_entry(checkpoint)
    assert (entry.measured_on, entry.test_cases, entry.scores_on_test) == ("sentences", own["sentences"], {})
    f1 = own["spans"]["disease"]["f1"]
    assert entry.spans_on_test["disease"]["f1"] == Figure(**f1)
    page = page_of(checkpoint)
    assert f"On {own['sentences']} test sentences that took no part in its training, both ends right" in page
    assert f"for mentions of disease: F1 {f1['mean']:.3f} [{f1['low']:.3f}, {f1['high']:.3f}], precision" in page
    assert "It has no figures" not in page
