"""Three numbers always, each its own; nothing is fused that does not belong together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import toy_config
from fused import drawn, fuse_config

from imaging.checkpoint import Checkpoint, FusionCheckpoint, open_fusion, save_fusion
from imaging.config import ClassifyConfig
from imaging.errors import FusionMismatch
from imaging.judgement import Classification, Judgement, judge, targets_of
from imaging.logistic import log_odds, logistic
from imaging.report.fusion import Fusion, Part, added, calibration_of, fusion_entries, judged_whole, text_part
from imaging.report.report import FusionEntry
from imaging.stacking import fit_stacked, name_of, patterns_of, table_of
from imaging.text.document import Document, Role
from imaging.volume import SeriesFacts, Volume

IMAGE, TEXT = "a" * 64, "b" * 64
SURE = np.diag([0.01, 0.0])


def measured(cases: int = 400, share: float = 0.3, seed: int = 0) -> dict[str, Any]:
    """Metrics of a toy whose validation cases have calibrated probabilities."""
    generator = np.random.default_rng(seed)
    odd = generator.random(cases) < share
    logit = generator.normal(4 * (odd - 0.5), 2) + log_odds(share)
    each = {
        f"c{number}": {"classes": ["odd" if ill else "plain"], "probability": [1 - p, p]}
        for number, (ill, p) in enumerate(zip(odd, logistic(logit).tolist(), strict=True))
    }
    calibration = {"temperature": 1.0, "thresholds": {"odd": 0.5}, "sensitivity": 0.9, "margin": 0.0}
    return {"calibration": calibration, "validation": {"cases": cases, "each": each}}


Say = Callable[..., Classification]


@pytest.fixture
def say(tmp_path: Path) -> Say:
    """What the toy classifier would have said, with a probability."""

    def said(probability: float, *, strange: bool = False, weights: str = IMAGE) -> Classification:
        config = toy_config(tmp_path)
        checkpoint = Checkpoint(tmp_path, config, measured(), weights)
        (target,) = targets_of(config)
        judgement: Judgement = judge(
            target, probability, checkpoint.metrics["calibration"], strange="it is upside down" if strange else ""
        )
        volume = Volume(np.zeros((1, 4, 4, 1), np.float32), np.eye(4), SeriesFacts())
        return Classification(checkpoint, volume, {"odd": probability}, (judgement,))

    return said


def text(logit: float, *, role: Role = "request", weights: str = TEXT, prior: float | None = 0.4) -> Part:
    return Part("words", weights, logit, prior, SURE, role)


@pytest.fixture
def trained(tmp_path: Path) -> Fusion:
    """A fusion that was fitted on independent calibrated witnesses, so that it should add them up."""
    config = fuse_config(tmp_path, f"images.0.weights_sha256={IMAGE}", f"text.weights_sha256={TEXT}")
    cases, truth = drawn(4_000)
    weights = fit_stacked(config, *table_of(config, cases), truth)
    calibration = {
        name_of(pattern): {
            "cases": 100, "temperature": 1.0, "threshold": 0.5, "sensitivity": 0.95, "prior": 0.5,
            "covariance": SURE.tolist(),
        }
        for pattern in patterns_of(config)
    }  # fmt: skip
    saved: FusionCheckpoint = save_fusion(tmp_path / "fusion", config, weights, {"calibration": calibration})
    return Fusion(open_fusion(saved.folder))


def only(entries: tuple[FusionEntry, ...]) -> FusionEntry:
    (entry,) = entries
    return entry


def test_added_log_odds_by_hand(say: Say) -> None:
    entry = only(fusion_entries([say(0.6)], text(1.5), {}, prior=0.2))
    assert entry.image is not None
    assert entry.fused is not None
    prior = calibration_of(measured(), ["plain", "odd"], [1])[0]
    assert prior is not None
    expected = log_odds(0.2) + (log_odds(0.6) - log_odds(prior)) + (1.5 - log_odds(0.4))
    assert entry.fused.logit == pytest.approx(expected, abs=1e-4)
    assert (entry.image.probability, entry.image.source) == (0.6, "image toy")
    assert entry.text is not None
    assert (entry.text.logit, entry.text.source, entry.prior) == (1.5, "text words", 0.2)
    assert entry.fused.low is not None
    assert entry.fused.high is not None
    assert entry.fused.low < entry.fused.probability < entry.fused.high
    # Nobody chose a threshold for added log-odds.
    assert entry.method == "log_odds"
    assert entry.assessment == "abnormal"
    assert "that of the picture" in entry.assessment_reason


def test_added_log_odds_are_right_for_independent_witnesses() -> None:
    """Of 100,000 cases with two independent calibrated witnesses those with a fused probability p are ill p times."""
    cases, truth = drawn(100_000)
    fused = np.array(
        [added([Part("a", "", c.logits["toy"], 0.5, SURE), text(c.logits["text"], prior=0.5)])[0].probability  # type: ignore[index]
         for c in cases[:20_000]]
    )  # fmt: skip
    for low in np.arange(0, 1, 0.1):
        chosen = (fused >= low) & (fused < low + 0.1)
        assert truth[:20_000][chosen].mean() == pytest.approx(fused[chosen].mean(), abs=0.03)


def test_prior_of_the_picture_is_taken_and_told(say: Say) -> None:
    entry = only(fusion_entries([say(0.6)], text(0.0), {}))
    assert entry.prior == calibration_of(measured(), ["plain", "odd"], [1])[0]


def test_interval_comes_from_the_validation_cases(say: Say) -> None:
    entry = only(fusion_entries([say(0.6)], text(0.0), {}))
    assert entry.image is not None
    assert entry.image.low is not None
    assert entry.image.high is not None
    assert 0.4 < entry.image.low < 0.6 < entry.image.high < 0.8
    assert calibration_of({}, ["plain", "odd"], [1]) == (None, None)


def test_a_text_whose_checkpoint_tells_no_prior_is_not_added(say: Say) -> None:
    entry = only(fusion_entries([say(0.6)], text(0.0, prior=None), {}))
    assert entry.fused is None
    assert any(told.startswith("fused:") for told in entry.missing)


def test_a_report_is_told_and_not_judged_by(say: Say, trained: Fusion) -> None:
    for fusion in (None, trained):
        entry = fusion_entries([say(0.1)], text(9.0, role="report"), {}, fusion=fusion)[-1]
        assert (entry.method, entry.fused is None) == ("log_odds", False)
        assert entry.text_role == "report"
        assert (entry.image and entry.text) is not None
        assert entry.assessment == "normal"
        assert "no part in the assessment" in entry.assessment_reason


def test_without_a_text_nothing_is_added(say: Say) -> None:
    assert fusion_entries([say(0.6)], None, {}) == ()


def test_what_the_assessment_was_calibrated_on_is_told_and_not_what_was_left_out_of_it(
    say: Say, trained: Fusion
) -> None:
    facts = {"age": "50", "sex": "M"}
    entry = only(fusion_entries([say(0.6)], text(1.5, role="report"), facts, fusion=trained)[:1])
    assert (entry.calibration, entry.text_role) == ("100 validation cases with toy", "report")


def test_trained_fusion_adds_what_adds_up(say: Say, trained: Fusion) -> None:
    facts = {"age": "50", "sex": "M"}
    entry = only(fusion_entries([say(0.6)], text(1.5), facts, fusion=trained))
    assert (entry.method, entry.model, entry.missing) == ("stacked", "both", ())
    assert entry.fused is not None
    assert entry.fused.logit == pytest.approx(log_odds(0.6) + 1.5 + 0.4, abs=0.4)
    assert entry.assessment == "abnormal"
    assert entry.calibration == "100 validation cases with toy and text and facts"


@pytest.mark.parametrize(
    ("parts", "facts", "missing"),
    [
        ((True, True), False, ["facts"]),
        ((True, False), False, ["text", "facts"]),
        ((True, False), True, ["text"]),
        ((False, True), False, ["image toy", "facts"]),
        ((False, True), True, ["image toy"]),
        ((False, False), True, ["image toy", "text"]),
        ((False, False), False, ["image toy", "text", "facts"]),
    ],
)
def test_any_part_may_be_missing(
    say: Say, trained: Fusion, parts: tuple[bool, bool], facts: bool, missing: list[str]
) -> None:
    said = [say(0.9)] if parts[0] else []
    entry = only(
        fusion_entries(said, text(2.0) if parts[1] else None, {"sex": "M"} if facts else {}, fusion=trained,
                       no_text="it is empty")
    )  # fmt: skip
    assert [told.split(":")[0] for told in entry.missing] == missing
    assert (entry.image is None, entry.text is None) == (not parts[0], not parts[1])
    assert (entry.fused is None) == (sum((*parts, facts)) < 2)
    assert not entry.missing or parts[1] or "text: it is empty" in entry.missing
    assert (entry.assessment == "indeterminate") == (not any((*parts, facts)))


def test_a_strange_picture_is_no_part_and_leaves_it_indeterminate(say: Say, trained: Fusion) -> None:
    for fusion in (None, trained):
        entry = fusion_entries([say(0.99, strange=True)], text(2.0), {}, fusion=fusion)[0]
        assert entry.image is None
        assert entry.assessment == "indeterminate"
        assert any("upside down" in told for told in entry.missing)


@pytest.mark.parametrize(("image", "words"), [("c" * 64, TEXT), (IMAGE, "c" * 64)])
def test_other_weights_are_refused(say: Say, trained: Fusion, image: str, words: str) -> None:
    with pytest.raises(FusionMismatch, match="cccccccccccc"):
        fusion_entries([say(0.9, weights=image)], text(1.0, weights=words), {}, fusion=trained)


def test_a_fusion_of_other_checkpoints_is_refused(trained: Fusion) -> None:
    with pytest.raises(FusionMismatch, match="only nobody"):
        trained.check([Part("nobody", IMAGE, 0.0, None, None)])


def test_a_text_of_another_role_does_not_enter_the_fusion(say: Say, trained: Fusion) -> None:
    entry, added_up = fusion_entries([say(0.9)], text(1.0, role="report"), {}, fusion=trained)
    assert (entry.method, entry.fused) == ("stacked", None)
    assert added_up.method == "log_odds"
    assert "text: the fusion was not trained with reports read by words" in entry.missing


def test_text_part_of_a_reading(tmp_path: Path) -> None:
    config = toy_config(tmp_path)

    @dataclass(frozen=True)
    class Read:
        document: Document
        checkpoint: Checkpoint
        logit: float | None

    request = Document.of("cough", role="request", source="file")
    checkpoint = Checkpoint(tmp_path, config, measured(share=0.6), TEXT)
    part = text_part(Read(request, checkpoint, 1.25), classes=config.classes)
    assert part is not None
    assert (part.model, part.logit, part.role, part.weights_sha256) == ("toy", 1.25, "request", TEXT)
    assert part.prior == pytest.approx(0.6, abs=0.05)
    assert text_part(Read(request, checkpoint, None), classes=config.classes) is None


def test_what_stands_for_an_abnormal_picture(tmp_path: Path) -> None:
    def config(*overrides: str) -> ClassifyConfig:
        return toy_config(tmp_path, *overrides)

    assert judged_whole(config()) == "odd"
    assert judged_whole(config("classes.0.abnormal=true", "output=sigmoid")) is None
    assert judged_whole(config("classes.0.abnormal=true", "output=sigmoid", "classes.0.name=abnormal")) == "abnormal"
