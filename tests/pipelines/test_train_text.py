"""A model that reads is trained, published, served and measured; the texts are invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from texts import ABNORMAL, NORMAL, tiny_encoder, write_config, write_reports

from imaging.checkpoint import WEIGHTS, Checkpoint, TextCheckpoint, open_checkpoints, open_text
from imaging.errors import CheckpointCorrupt, ConfigInvalid, EncoderUnusable, NotApplicable, WrongTask
from imaging.text.answer import text_for
from imaging.text.document import Document
from imaging.text.reading import Marked, TextModel, TextReader
from imaging.text.words import Mention
from pipelines.evaluate import evaluate
from pipelines.folds import cross_validate
from pipelines.models import models
from pipelines.train import Run, train

pytest.importorskip("peft", reason="imgpipe[text] is not installed")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_reports(tmp_path_factory.mktemp("reports") / "reports.csv")


@pytest.fixture(scope="module")
def config(encoder: dict[str, Any], reports: Path) -> Path:
    return write_config(reports.with_name("toy.yaml"), encoder, f"data.root={reports}")


@pytest.fixture(scope="module")
def run(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    done = train(config=config, out=tmp_path_factory.mktemp("run") / "text", progress=False)
    assert done is not None
    return done


@pytest.fixture(scope="module")
def checkpoint(run: Run) -> TextCheckpoint:
    assert isinstance(run.checkpoint, TextCheckpoint)
    return run.checkpoint


def test_it_learns_and_is_measured_on_texts_that_it_has_not_seen(checkpoint: TextCheckpoint) -> None:
    metrics = checkpoint.metrics
    assert metrics["test"]["scores"]["abnormal"]["auc"]["mean"] > 0.9
    assert metrics["validation"]["scores"]["abnormal"]["auc"]["mean"] > 0.9
    names = [set(metrics["training"]["names"]), *(set(metrics[side]["each"]) for side in ("validation", "test"))]
    assert sum(map(len, names)) == len(set.union(*names)) == 96


def test_the_checkpoint_holds_what_was_added_and_names_the_encoder(
    checkpoint: TextCheckpoint, encoder: dict[str, Any]
) -> None:
    assert all(".lora_" in name or name.startswith("classes.") for name in checkpoint.load_weights())
    assert checkpoint.config.encoder.sha256 == encoder["sha256"]
    # Where it lay is the business of the machine that trained.
    assert checkpoint.config.encoder.folder == "tiny"
    assert checkpoint.config.data.root is None


def test_no_word_of_a_text_leaves_the_training(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    told = [path for path in run.folder.rglob("*") if path.suffix in (".json", ".html", ".yaml", ".csv", ".md")]
    assert len(told) > 8
    for path in told:
        assert not any(text in path.read_text().lower() for text in (*NORMAL, *ABNORMAL)), path


def test_a_run_that_goes_on_ends_with_the_same_bits(config: Path, run: Run, tmp_path: Path) -> None:
    stopped = []

    class Stop(Exception):
        pass

    def stop(*_: object, **__: object) -> None:
        stopped.append(1)
        if len(stopped) == 20:
            raise Stop

    from imaging.tasks.text import TextTask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TextTask, "on_train_batch_end", stop)
        with pytest.raises(Stop):
            train(config=config, out=tmp_path / "run", progress=False, state_minutes=0)
    done = train(config=config, out=tmp_path / "run", progress=False, resume=True)
    assert done is not None
    whole, again = run.checkpoint.load_weights(), done.checkpoint.load_weights()
    assert whole.keys() == again.keys()
    assert all(bool((whole[name] == again[name]).all()) for name in whole)


@pytest.fixture(scope="module")
def at_home(checkpoint: TextCheckpoint, encoder: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the encoder lies where the checkpoint says."""
    home = tmp_path_factory.mktemp("home")
    (home / "tiny").symlink_to(encoder["folder"])
    return home


@pytest.fixture
def shelf(encoder: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders of this machine lie where the environment says."""
    monkeypatch.setenv("IMGPIPE_ENCODERS", str(Path(encoder["folder"]).parent))


@pytest.fixture
def reader(checkpoint: TextCheckpoint, shelf: None) -> TextReader:
    return TextReader(checkpoint)


def document(text: str, **given: Any) -> Document:
    return Document.of(text, **{"role": "report", "source": "file invented.txt", "language": "en", **given})


SICK = "FINDINGS: A suspicious effusion is seen on the left.\nIMPRESSION: A suspicious nodule is seen."
WELL = "FINDINGS: The lungs are clear. The bones are intact.\nIMPRESSION: The chest is well."


def test_a_report_is_read(reader: TextReader, checkpoint: TextCheckpoint) -> None:
    sick, well = reader(document(SICK)), reader(document(WELL))
    assert sick.probability is not None
    assert well.probability is not None
    assert sick.logit is not None
    assert sick.probability > 0.5 > well.probability
    assert 1 / (1 + np.exp(-sick.logit)) == pytest.approx(sick.probability)
    assert (sick.assessment, well.assessment) == ("abnormal", "normal")
    assert sick.checkpoint is checkpoint
    assert "effusion" not in repr(sick)


def test_only_its_own_sections_are_read(reader: TextReader, checkpoint: TextCheckpoint) -> None:
    told = "INDICATION: a suspicious opacity lies in the lower lobe\n" + WELL
    assert reader(document(told)).probability == reader(document(WELL)).probability
    assert text_for(checkpoint.config, document("The lungs are clear")) == "The lungs are clear"


@pytest.mark.parametrize(("given", "seen"), [({"role": "request"}, "a request"), ({"language": "de"}, "language de")])
def test_what_it_has_not_learnt_to_read_is_refused(reader: TextReader, given: dict[str, Any], seen: str) -> None:
    with pytest.raises(NotApplicable, match=seen) as refused:
        reader(document(SICK, **given))
    assert "effusion" not in str(refused.value)


def test_many_texts_are_told_in_their_order(reader: TextReader, checkpoint: TextCheckpoint) -> None:
    model = TextModel(checkpoint)
    texts = [*NORMAL, ". ".join(ABNORMAL * 3), *ABNORMAL]
    together = model.logits(texts)
    alone = np.concatenate([model.logits([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_checkpoint_whose_encoder_is_not_there_says_so(
    checkpoint: TextCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EncoderUnusable, match=r"no model\.safetensors"):
        TextReader(checkpoint)


def test_a_changed_byte_is_refused(checkpoint: TextCheckpoint, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(checkpoint.folder, tmp_path / "copy"))
    content = bytearray((copy / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointCorrupt):
        open_text(copy)


def test_it_is_no_checkpoint_for_images(checkpoint: TextCheckpoint) -> None:
    with pytest.raises(WrongTask, match="its task is text"):
        open_checkpoints([str(checkpoint.folder)])


def test_evaluate_measures_by_the_checkpoints_own_calibration(
    checkpoint: TextCheckpoint, shelf: None, tmp_path: Path
) -> None:
    others = write_reports(tmp_path / "others.csv", cases=24, seed=7)
    found = evaluate(checkpoint=str(checkpoint.folder), data=others, out=tmp_path / "result")
    assert found.metrics["cases"] == 24
    assert found.metrics["scores"]["abnormal"]["auc"]["mean"] > 0.8
    assert found.metrics["calibration"] == checkpoint.metrics["calibration"]
    rows = (tmp_path / "result" / "predictions.csv").read_text().splitlines()
    assert rows[0] == "case,label,probability_normal,probability_abnormal,assessment_abnormal"
    assert len(rows) == 25
    assert "lungs" not in (tmp_path / "result" / "evaluation.html").read_text().lower()
    with pytest.raises(WrongTask, match="its task is text"):
        evaluate(checkpoint=str(checkpoint.folder), data=others, tolerance_mm=1.0)


def test_folds_measure_every_text_once(config: Path, tmp_path: Path) -> None:
    found = cross_validate(
        config=config, folds=2, overrides=["train.epochs=2", "data.test_fraction=0"], form="single",
        out=tmp_path / "folds", progress=False,
    )  # fmt: skip
    assert found.metrics["cross_validation"]["cases"] == 96
    assert isinstance(found.checkpoint, TextCheckpoint)
    assert found.checkpoint.metrics["training"]["members"] == 1


def test_marked_sentences_train_the_other_head(
    encoder: dict[str, Any], shelf: None, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = data / "ner_ncbi_disease"
    kinds = "kinds=[{name: disease, title: Disease, told_as: [Disease]}]"
    config = write_config(tmp_path / "spans.yaml", encoder, "classes=[]", "data.otherwise=null", kinds,
                          f"data.spans=[{spans}]", "train.epochs=1")  # fmt: skip
    run = train(config=config, out=tmp_path / "run", progress=False)
    assert run is not None
    told = run.checkpoint.metrics["test"]["spans"]["disease"]
    assert told["mentions"] == sum("B-" in line for line in (spans / "test.tsv").read_text().splitlines())
    assert "calibration" not in run.checkpoint.metrics
    found = evaluate(checkpoint=str(run.checkpoint.folder), data=spans / "test.tsv", out=tmp_path / "result")
    assert found.metrics["spans"]["disease"] == told
    assert found.metrics["sentences"] == 3
    checkpoint = run.checkpoint
    assert isinstance(checkpoint, TextCheckpoint)
    text = "There is no effusion. Suspicious nodule."
    # Of a network that has learnt next to nothing all is a mention, or nothing; either way it lies in its sentence.
    monkeypatch.setattr(TextModel, "mark", lambda _, texts: [(Marked(Mention(0, 5, 0), 0.9),) for _ in texts])
    first, second = TextReader(checkpoint)(document(text)).spans
    assert [(span.start, span.end, span.sentence, span.assertion) for span in (first, second)] == [
        (0, 5, (0, 21), first.assertion), (22, 27, (22, 40), second.assertion),
    ]  # fmt: skip
    assert (first.kind, first.score, first.code) == ("disease", 0.9, None)
    with pytest.raises(ConfigInvalid, match="sides of their own"):
        cross_validate(config=config, folds=2, out=tmp_path / "folds", progress=False)


def test_one_network_judges_texts_and_marks_what_they_mention(
    encoder: dict[str, Any], reports: Path, shelf: None, data: Path, tmp_path: Path
) -> None:
    spans = data / "ner_ncbi_disease"
    kinds = "kinds=[{name: disease, title: Disease, told_as: [Disease]}]"
    config = write_config(tmp_path / "both.yaml", encoder, kinds, f"data.root={reports}", f"data.spans=[{spans}]",
                          "train.epochs=4", "predict.least_score=0")  # fmt: skip
    run = train(config=config, out=tmp_path / "run", progress=False)
    assert run is not None
    assert isinstance(run.checkpoint, TextCheckpoint)
    heads = {name.split(".")[0] for name in run.checkpoint.load_weights()}
    assert heads == {"encoder", "classes", "tags"}
    metrics = run.checkpoint.metrics
    assert metrics["test"]["scores"]["abnormal"]["auc"]["mean"] > 0.7
    assert metrics["test"]["spans"]["disease"]["mentions"] > 0
    # Each head is measured on what it has been told the truth of.
    assert (metrics["test"]["cases"], metrics["test"]["sentences"]) == (len(metrics["test"]["each"]), 3)
    said = TextReader(run.checkpoint)(document(SICK))
    assert said.probability is not None
    alone = TextModel(run.checkpoint).mark(["A suspicious effusion is seen on the left."])[0]
    inside = [(span.start, span.end) for span in said.spans if span.sentence[0] == 0]
    assert inside == [(one.mention.start, one.mention.end) for one in alone] or not alone


def test_a_config_without_data_is_refused(encoder: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match=r"data\.root"):
        train(config=write_config(tmp_path / "toy.yaml", encoder), out=tmp_path / "run", progress=False)


def test_the_image_task_is_not_taken_for_it(checkpoint: TextCheckpoint) -> None:
    assert not isinstance(checkpoint, Checkpoint)
    assert json.dumps(models()["models"])
