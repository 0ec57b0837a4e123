"""A picture or a film in, a judged finding out: with its probability, its threshold and its reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from classified import picture, write_config, write_pictures
from jsonschema import Draft202012Validator
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

from imaging.cases import ClassifiedCase, load_picture
from imaging.checkpoint import Checkpoint
from imaging.classifier import Classifier
from imaging.errors import WrongTask
from imaging.judgement import judge, targets_of
from imaging.nifti import read_nifti
from imaging.png import read_png
from imaging.predict import Predictor
from imaging.predictors import open_predictor
from imaging.report.findings import findings_of
from imaging.report.report import Report
from imaging.report.schema import schema
from pipelines.infer import Inferred, infer
from pipelines.inspect import inspect
from pipelines.train import Run, train


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("films")).parent


@pytest.fixture(scope="module")
def trained(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run")
    overrides = [f"data.root={films / 'films.csv'}", "train.epochs=8"]
    return train(config=write_config(folder / "toy.yaml", *overrides), out=folder / "run", progress=False)


@pytest.fixture(scope="module")
def model(trained: Run) -> str:
    return str(trained.checkpoint.folder)


def write_film(path: Path, image: np.ndarray[Any, Any], *, modality: str = "DX", inverted: bool = False) -> Path:
    """A projection image as an X-ray machine sends it: no position in the patient."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID = film.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
    film.PatientID, film.Modality, film.BodyPartExamined = "nobody", modality, "CHEST"
    film.ImagerPixelSpacing = [0.2, 0.2]
    film.Rows, film.Columns = image.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1" if inverted else "MONOCHROME2"
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    grey = image.astype(np.uint16) * 8
    film.PixelData = (4095 - grey if inverted else grey).astype("<u2").tobytes()
    film.save_as(path, enforce_file_format=True)
    return path


def only(inferred: Inferred) -> Report:
    (study,) = inferred.studies
    assert study.report is not None, study.problems
    return study.report


def image_of(*, odd: bool) -> np.ndarray[Any, Any]:
    return picture(np.random.default_rng(99), odd=odd)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    Image.fromarray(image_of(odd=True)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


# --------------------------------------------------------------------------------------------------------------- PNG


def test_picture_is_a_study_of_its_own(film: Path, model: str, tmp_path: Path) -> None:
    report = only(infer(paths=[film], models=[model], out=tmp_path / "out"))
    (finding,) = report.findings
    assert (finding.name, finding.assessment) == ("odd", "abnormal")
    assert finding.classification is not None
    assert finding.classification.probability > 0.5
    assert sum(finding.classification.classes.values()) == pytest.approx(1, abs=1e-4)
    assert f"{finding.classification.threshold:.3f}" in finding.assessment_reason
    assert sorted(path.name for path in (tmp_path / "out" / "film").iterdir()) == ["report.html", "report.json"]


def test_normal_picture_is_normal(model: str, tmp_path: Path) -> None:
    Image.fromarray(image_of(odd=False)).save(tmp_path / "film.png")
    (finding,) = only(infer(paths=[tmp_path / "film.png"], models=[model], out=tmp_path / "out")).findings
    assert finding.assessment == "normal"


def test_report_is_what_the_classifier_says(film: Path, trained: Run, model: str, tmp_path: Path) -> None:
    infer(paths=[film], models=[model], out=tmp_path / "out")
    document = json.loads((tmp_path / "out" / "film" / "report.json").read_text())
    Draft202012Validator(schema()).validate(document)
    classifier = Classifier(trained.checkpoint)
    (expected,) = findings_of(classifier.explain(classifier(read_png(film))))
    assert document["findings"] == [expected.model_dump(mode="json")]
    assert (
        document["models"][0]["scores_on_test"]["odd"]["auc"]
        == trained.checkpoint.metrics["test"]["scores"]["odd"]["auc"]
    )


def test_page_tells_the_judgement_and_draws_no_directions(film: Path, model: str, tmp_path: Path) -> None:
    infer(paths=[film], models=[model], out=tmp_path / "out")
    page = (tmp_path / "out" / "film" / "report.html").read_text()
    assert '<span class="badge abnormal">' in page
    assert "AUC" in page
    assert '<span class="l"></span>' in page, "a film does not tell its sides"
    assert "data:image/png" in page
    assert " mL" not in page


def test_picture_without_a_named_checkpoint_is_not_guessed(film: Path, tmp_path: Path) -> None:
    inferred = infer(paths=[film], out=tmp_path / "out")
    assert not only(inferred).findings
    assert {problem.code for problem in inferred.studies[0].problems} == {"not_applicable"}


def test_inspect_lists_the_picture_and_who_takes_it(film: Path, model: str) -> None:
    (row,) = inspect(paths=[film], models=[model])["pictures"]
    assert row["grid"]["shape"] == (16, 20, 1)
    assert row["taken_by"] == ["toy"]


def test_broken_picture_is_refused_by_name(model: str, tmp_path: Path) -> None:
    (tmp_path / "film.png").write_bytes(b"no picture")
    inferred = infer(paths=[tmp_path / "film.png"], models=[model], out=tmp_path / "out")
    assert [problem.code for problem in inferred.studies[0].problems] == ["unreadable_png"]


# ------------------------------------------------------------------------------------------------------------- DICOM


@pytest.mark.parametrize("inverted", [False, True])
def test_film_in_dicom_is_judged_as_its_picture(model: str, film: Path, tmp_path: Path, inverted: bool) -> None:
    (tmp_path / "study").mkdir()
    write_film(tmp_path / "study" / "1.dcm", image_of(odd=True), inverted=inverted)
    report = only(infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out"))
    (finding,) = report.findings
    (as_picture,) = only(infer(paths=[film], models=[model], out=tmp_path / "other")).findings
    assert finding.classification is not None
    assert as_picture.classification is not None
    assert finding.assessment == "abnormal"
    assert finding.classification.probability == pytest.approx(as_picture.classification.probability, abs=0.02)
    assert finding.series_uid == report.series[0].uid
    assert report.series[0].source_sop_instance_uids


@pytest.mark.parametrize("as_folder", [False, True])
def test_manifest_takes_dicom(tmp_path: Path, as_folder: bool) -> None:
    (tmp_path / "study").mkdir()
    path = write_film(tmp_path / "study" / "1.dcm", image_of(odd=True))
    case = ClassifiedCase("a", path.parent if as_folder else path, ("odd",), "a")
    assert np.array_equal(load_picture(case).array[0, :, :, 0], image_of(odd=True).T * 8.0)


def test_other_modality_is_refused(model: str, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    write_film(tmp_path / "study" / "1.dcm", image_of(odd=True), modality="MG")
    inferred = infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out")
    assert [problem.code for problem in inferred.studies[0].problems] == ["not_applicable"]


def test_volume_is_no_film(model: str, image: Path, tmp_path: Path) -> None:
    inferred = infer(paths=[image], models=[model], out=tmp_path / "out")
    assert "slice" in inferred.studies[0].problems[0].seen


# ----------------------------------------------------------------------------------------------------------- heat map


def test_report_tells_and_shows_what_raised_the_probability(film: Path, model: str, tmp_path: Path) -> None:
    (finding,) = only(infer(paths=[film], models=[model], out=tmp_path / "out")).findings
    told = finding.explanation
    assert told is not None
    assert (told.method, told.layer, told.cells) == ("grad_cam_pp", "features.denseblock1", (4, 4))
    assert told.seen == 1
    page = (tmp_path / "out" / "film" / "report.html").read_text()
    assert "What raised the probability of Odd" in page
    assert "4 \u00d7 4 cells: coarse" in page
    assert page.count("<figure>") == 2, "the picture alone, and coloured"
    assert "Outside the dashed line" not in page


def test_what_the_network_did_not_see_is_marked_and_told(film: Path, films: Path, tmp_path: Path) -> None:
    overrides = [f"data.root={films / 'films.csv'}", "train.epochs=8", "preprocess.aspect=crop"]
    run = train(config=write_config(tmp_path / "toy.yaml", *overrides), out=tmp_path / "run", progress=False)
    model = str(run.checkpoint.folder)
    arguments: dict[str, Any] = {"models": [model], "out": tmp_path / "out", "explain": "all"}
    report = only(infer(paths=[film], formats=["html", "nifti"], **arguments))
    told = report.findings[0].explanation
    assert told is not None
    assert told.seen == pytest.approx(16 / 20)
    assert "Outside the dashed line the network saw nothing" in (tmp_path / "out/film/report.html").read_text()
    heat = read_nifti(tmp_path / "out/film/heatmap_toy_odd.nii.gz")
    assert heat.shape == read_png(film).shape
    assert (heat.array[0, :, :2] == -1).all()
    assert (heat.array[0, :, 18:] == -1).all()
    assert heat.array[0, :, 2:18].min() >= 0
    assert heat.array.max() == pytest.approx(1, abs=0.1)
    assert "heatmap_toy_odd.nii.gz" in {output.file for output in report.outputs}
    only(infer(paths=[film], **arguments))
    assert not (tmp_path / "out/film/heatmap_toy_odd.nii.gz").exists(), "an earlier run's map is taken away"


def test_normal_picture_is_explained_only_where_asked(model: str, tmp_path: Path, invoke: Any) -> None:
    Image.fromarray(image_of(odd=False)).save(tmp_path / "film.png")
    out = tmp_path / "out"
    for asked, shown in (("abnormal", 1), ("all", 2), ("none", 1)):
        result = invoke("infer", tmp_path / "film.png", "--model", model, "--out", out, "--explain", asked)
        assert result.exit_code == 0, result.output
        assert (out / "film" / "report.html").read_text().count("<figure>") == shown


# ------------------------------------------------------------------------------------------------------- indeterminate


def changed(checkpoint: Checkpoint, **calibration: Any) -> Checkpoint:
    """The checkpoint with another calibration."""
    metrics = {**checkpoint.metrics, "calibration": {**checkpoint.metrics["calibration"], **calibration}}
    return Checkpoint(checkpoint.folder, checkpoint.config, metrics, checkpoint.weights_sha256)


def test_too_close_to_call_is_indeterminate(trained: Run, film: Path) -> None:
    (said,) = Classifier(trained.checkpoint)(read_png(film)).judgements
    thresholds = {"odd": said.probability - 0.01}
    (close,) = Classifier(changed(trained.checkpoint, margin=0.02, thresholds=thresholds))(read_png(film)).judgements
    (clear,) = Classifier(changed(trained.checkpoint, margin=0.001, thresholds=thresholds))(read_png(film)).judgements
    assert (close.assessment, clear.assessment) == ("indeterminate", "abnormal")
    assert "too close" in close.reason


def test_picture_like_none_that_was_learnt_is_indeterminate(films: Path, tmp_path: Path) -> None:
    overrides = [f"data.root={films / 'films.csv'}", "train.epochs=1", "calibrate.familiar=1.0"]
    run = train(config=write_config(tmp_path / "toy.yaml", *overrides), out=tmp_path / "run", progress=False)
    validated = [films / f"{name}.png" for name in run.checkpoint.metrics["validation"]["each"]]
    judged = [Classifier(run.checkpoint)(read_png(path)).judgements[0] for path in validated]
    assert all(judgement.assessment != "indeterminate" for judgement in judged), "each of them was to be familiar"
    Image.fromarray(255 - image_of(odd=True)).save(tmp_path / "negative.png")
    (said,) = Classifier(run.checkpoint)(read_png(tmp_path / "negative.png")).judgements
    assert said.assessment == "indeterminate"
    assert "does not look like" in said.reason


def test_checkpoint_without_calibration_judges_nothing(trained: Run, film: Path) -> None:
    bare = Checkpoint(trained.checkpoint.folder, trained.checkpoint.config, {}, trained.checkpoint.weights_sha256)
    (said,) = Classifier(bare)(read_png(film)).judgements
    assert (said.assessment, said.threshold) == ("indeterminate", None)


@pytest.mark.parametrize("calibration", [{}, {"thresholds": {"odd": 0.5}}])
@pytest.mark.parametrize("abnormal", [True, False])
def test_what_is_strange_is_so_before_all_else(trained: Run, calibration: dict[str, Any], abnormal: bool) -> None:
    target = replace(targets_of(trained.checkpoint.classifier())[0], abnormal=abnormal)
    said = judge(target, 0.99, calibration, strange="it is upside down")
    assert (said.assessment, said.strange) == ("indeterminate", True)
    assert "upside down" in said.reason


@pytest.mark.parametrize(("settings", "calibrated"), [("fitted", True), ("one", False)])
def test_probability_that_nobody_calibrated_is_not_told_as_if(
    trained: Run, film: Path, settings: str, calibrated: bool
) -> None:
    config = trained.checkpoint.classifier()
    calibrate = config.calibrate.model_copy(update={"temperature": settings})
    other = replace(changed(trained.checkpoint), config=config.model_copy(update={"calibrate": calibrate}))
    (finding,) = findings_of(replace(Classifier(trained.checkpoint)(read_png(film)), checkpoint=other))
    assert finding.classification is not None
    assert (finding.classification.temperature is not None) == calibrated


# -------------------------------------------------------------------------------------------------- task and checkpoint


def test_each_checkpoint_is_asked_what_it_does(trained: Run) -> None:
    assert isinstance(open_predictor(trained.checkpoint), Classifier)
    with pytest.raises(WrongTask, match="classify"):
        Predictor(trained.checkpoint)


def test_calibration_comes_from_the_validation_cases(trained: Run) -> None:
    metrics = trained.checkpoint.metrics
    threshold = metrics["calibration"]["thresholds"]["odd"]
    each = metrics["validation"]["each"].values()
    odd = [said["probability"][1] for said in each if said["classes"] == ["odd"]]
    assert np.mean(np.array(odd) >= threshold - 1e-4) >= metrics["calibration"]["sensitivity"]
    assert metrics["validation"]["scores"]["odd"]["sensitivity"]["mean"] >= metrics["calibration"]["sensitivity"]


def test_card_tells_figures_threshold_and_abstention(trained: Run) -> None:
    card = (trained.checkpoint.folder / "README.md").read_text()
    figure = trained.checkpoint.metrics["test"]["scores"]["odd"]["auc"]
    assert f"{figure['mean']:.3f}" in card
    assert "Threshold for odd" in card
    assert "cases called indeterminate for odd" in card


def test_command_line_tells_the_judgement(film: Path, model: str, tmp_path: Path, invoke: Any) -> None:
    result = invoke("infer", film, "--model", model, "--out", tmp_path / "out")
    assert result.exit_code == 0
    assert "Odd: abnormal, probability" in result.output
    shown = invoke("inspect", film, "--model", model)
    assert "taken by toy" in shown.output
