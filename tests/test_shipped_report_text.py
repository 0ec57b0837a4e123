"""What ships reads: on invented reports the checkpoint says what they say."""

from __future__ import annotations

import pytest

from imaging.checkpoint import WEIGHTS, TextCheckpoint, find_checkpoint, open_text, open_texts
from imaging.config import find_config, load_network
from imaging.errors import EncoderUnusable, MissingPackage
from imaging.text.document import Document
from imaging.text.encoder import folder_of
from imaging.text.reading import TextReader

INVENTED = {
    "normal": "FINDINGS: Heart size is normal. The lungs are clear. There is no pleural effusion or pneumothorax.\n"
    "IMPRESSION: No acute cardiopulmonary abnormality.",
    "abnormal": "FINDINGS: The heart is enlarged. There is a large left pleural effusion and an opacity below it.\n"
    "IMPRESSION: Cardiomegaly with effusion; pneumonia is possible.",
}


@pytest.fixture(scope="module")
def checkpoint() -> TextCheckpoint:
    return open_text(find_checkpoint("report_text"))


def test_the_one_for_requests_takes_requests_alone() -> None:
    checkpoint = open_text(find_checkpoint("request_text"))
    assert checkpoint.config.applies_to.roles == ("request",)
    assert checkpoint.config.digest() == load_network(find_config("request_text")).digest()


def test_checkpoint_was_trained_by_the_config_that_ships(checkpoint: TextCheckpoint) -> None:
    config = load_network(find_config("report_text"))
    assert checkpoint.config.digest() == config.digest() == checkpoint.metrics["calibrated"]["config_sha256"]
    # It was trained before it had an error rate, strange texts and the pictures it goes beside, which decide no weight.
    trained = config.model_copy(
        update={
            "calibrate": config.calibrate.model_copy(update={"error_rate": None, "novelty": None}),
            "applies_to": config.applies_to.model_copy(update={"modality": (), "body_part": ()}),
        }
    )
    assert trained.digest() == checkpoint.metrics["training"]["config_sha256"]


def test_its_error_rate_holds_on_reports_that_did_not_train_it(checkpoint: TextCheckpoint) -> None:
    rate = checkpoint.metrics["calibration"]["conformal"]["abnormal"]["error_rate"]
    wrong = checkpoint.metrics["cross_validation"]["wrong"]["abnormal"]
    assert rate == 0.05
    assert max(wrong[name]["mean"] for name in ("normal", "abnormal")) <= rate


def test_a_text_of_another_kind_gets_no_number(checkpoint: TextCheckpoint) -> None:
    try:
        folder_of(checkpoint.config.encoder)
    except (MissingPackage, EncoderUnusable) as error:
        pytest.skip(f"{error.code}: {error.seen}")
    words = "The licensee may copy and distribute the work in source form, and must keep this notice with every copy."
    said = TextReader(checkpoint)(Document.of(words, role="report", source="file invented.txt", language="en"))
    assert (said.assessment, said.probability) == ("indeterminate", None)


def test_it_is_small_and_holds_no_encoder(checkpoint: TextCheckpoint) -> None:
    assert (checkpoint.folder / WEIGHTS).stat().st_size < 5_000_000
    assert not any("embeddings" in name for name in checkpoint.load_weights())


def test_it_is_among_those_that_read_texts(checkpoint: TextCheckpoint) -> None:
    found, unusable = open_texts()
    assert checkpoint.name in {one.name for one in found}
    assert unusable == []


def test_its_card_says_whose_the_reports_are(checkpoint: TextCheckpoint) -> None:
    card = (checkpoint.folder / "README.md").read_text()
    assert "CC BY-NC-ND 4.0" in card
    assert "non-commercial research only" in card


@pytest.mark.parametrize("told", ["normal", "abnormal"])
def test_it_reads_an_invented_report(checkpoint: TextCheckpoint, told: str) -> None:
    try:
        folder_of(checkpoint.config.encoder)
    except (MissingPackage, EncoderUnusable) as error:
        pytest.skip(f"{error.code}: {error.seen}")
    said = TextReader(checkpoint)(Document.of(INVENTED[told], role="report", source="file invented.txt", language="en"))
    assert said.assessment == told
    assert said.spans == ()
