"""What ships marks diseases, in invented sentences and in real ones that took no part in its training."""

from __future__ import annotations

from pathlib import Path

import pytest

from imaging.checkpoint import WEIGHTS, TextCheckpoint, find_checkpoint, open_text
from imaging.config import find_config, load_network
from imaging.errors import EncoderUnusable, MissingPackage
from imaging.text.cases import TextCase, read_spans
from imaging.text.document import Document
from imaging.text.encoder import folder_of
from imaging.text.reading import TextReader

HELD_OUT = Path(__file__).parent / "data" / "ner_ncbi_disease" / "test.tsv"


@pytest.fixture(scope="module")
def checkpoint() -> TextCheckpoint:
    return open_text(find_checkpoint("disease_spans"))


@pytest.fixture(scope="module")
def reader(checkpoint: TextCheckpoint) -> TextReader:
    try:
        folder_of(checkpoint.config.encoder)
    except (MissingPackage, EncoderUnusable) as error:
        pytest.skip(f"{error.code}: {error.seen}")
    return TextReader(checkpoint)


def marked(reader: TextReader, text: str) -> set[tuple[int, int]]:
    told = reader(Document.of(text, role="report", source="file invented.txt", language="en"))
    return {(span.start, span.end) for span in told.spans}


def test_checkpoint_was_trained_by_the_config_that_ships(checkpoint: TextCheckpoint) -> None:
    config = load_network(find_config("disease_spans"))
    assert checkpoint.config.digest() == config.digest() == checkpoint.metrics["training"]["config_sha256"]


def test_it_is_small_and_holds_no_encoder(checkpoint: TextCheckpoint) -> None:
    assert (checkpoint.folder / WEIGHTS).stat().st_size < 6_000_000
    assert not any("embeddings" in name for name in checkpoint.load_weights())


def test_it_marks_a_disease_of_an_invented_report(reader: TextReader) -> None:
    text = "The patient has known cystic fibrosis. The lines are in place."
    at = text.index("cystic fibrosis")
    assert marked(reader, text) == {(at, at + len("cystic fibrosis"))}


def test_it_finds_most_mentions_of_sentences_that_did_not_train_it(reader: TextReader) -> None:
    cases: list[TextCase] = read_spans(HELD_OUT, reader.checkpoint.config)
    wanted = [(case.text, {(one.start, one.end) for one in case.mentions}) for case in cases]
    right = sum(len(marked(reader, text) & places) for text, places in wanted)
    assert sum(len(places) for _, places in wanted) == 3
    assert right >= 2
