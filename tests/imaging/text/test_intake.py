"""Texts are found beside a study and told apart; those of others are refused; no word gets into an error or a log."""

from __future__ import annotations

import json
import logging
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest
from phantom import PATIENT_ID, STUDY_UID, write_series
from pydicom.dataset import Dataset
from written import text, write_sr

from imaging.dicom.scan import TEXTS, Study, scan
from imaging.errors import ImagingError, NotAReport, NotFhir, TextOfAnother, TextRole, TextTooLarge
from imaging.text.intake import Found, read_text, texts_of

OTHER_UID = "1.2.826.0.1.3680043.8.498.2"
REPORT = "FINDINGS: The lungs are clear.\nIMPRESSION: Normal."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.ReasonForStudy = "Cough and fever"
        dataset.AccessionNumber = "A-1"

    write_series(tmp_path / "study" / "series", edit=edit, slices=2)
    return tmp_path / "study"


def study_in(folder: Path) -> Study:
    (study,) = scan(folder / "series").studies
    return study


def found_in(folder: Path) -> Found:
    return texts_of(study_in(folder), roots=[folder])


def fhir(kind: str, patient: str = PATIENT_ID, **values: Any) -> str:
    return json.dumps({"resourceType": kind, "subject": {"identifier": {"value": patient}}, **values})


def test_everything_beside_a_study_is_found_once_and_told_apart(folder: Path) -> None:
    (folder / "report.txt").write_text(REPORT)
    (folder / "series" / "REPORT.TXT").write_text(REPORT)
    (folder / "order.json").write_text(fhir("ServiceRequest", reasonCode=[{"text": "Exclude pneumonia"}]))
    (folder / "patient.json").write_text(fhir("Patient"))
    (folder / "settings.json").write_text('{"a": 1')
    (folder / "notes.txt").write_text("The words of somebody")
    write_sr(folder / "series" / "sr.dcm", text("No nodule is seen."), AccessionNumber="A-1")
    found = found_in(folder)
    assert found.refused == ()
    assert {(item.role, item.source, item.text) for item in found.documents} == {
        ("request", "attribute ReasonForStudy", "INDICATION: Cough and fever"),
        ("report", f"sr {STUDY_UID}.900.1", "FINDINGS:\nNo nodule is seen."),
        ("report", "file report.txt", REPORT),
        ("request", "fhir ServiceRequest", "INDICATION: Exclude pneumonia"),
    }
    assert {path.name for path in found.sidecars} == {"report.txt", "REPORT.TXT", "order.json"}
    assert [item.language for item in found.documents if item.text == REPORT] == ["en"]


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_the_scan_passes_over_is_read_here(folder: Path, name: str) -> None:
    (folder / name).write_text("No nodule is seen in the lungs.")
    assert scan(folder).refused == ()
    documents = {item.source: item.role for item in found_in(folder).documents}
    assert documents[f"file {name}"] == name.removesuffix(".txt")


def test_a_text_in_an_archive_is_told(folder: Path, tmp_path: Path) -> None:
    (folder / "report.txt").write_text(REPORT)
    archive = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", folder))
    assert [error.code for error in scan(archive).refused] == ["not_dicom"]


def test_one_bad_text_does_not_stop_the_others(folder: Path) -> None:
    (folder / "report.txt").write_bytes(b"\xff\xfe\xff XANTHIPPE")
    (folder / "request.txt").write_text("XANTHIPPE ist nicht der Befund und auch kein Nachweis")
    (folder / "report.fhir.json").write_text("{XANTHIPPE")
    found = found_in(folder)
    assert [item.source for item in found.documents] == ["attribute ReasonForStudy"]
    assert {error.code for error in found.refused} == {"text_encoding", "text_language", "not_fhir"}
    assert "XANTHIPPE" not in " ".join(map(str, found.refused))


def test_a_folder_shared_with_another_study_says_nothing_of_whose_its_texts_are(folder: Path) -> None:
    (folder / "report.txt").write_text(REPORT)
    write_series(folder / "other", study_uid=OTHER_UID, slices=2)
    studies = scan(folder).studies
    own = next(study for study in studies if study.uid == STUDY_UID)
    found = texts_of(own, others=studies, roots=[folder])
    assert [item.source for item in found.documents] == ["attribute ReasonForStudy"]
    (folder / "series" / "report.txt").write_text(REPORT)
    assert "file report.txt" in [item.source for item in texts_of(own, others=studies, roots=[folder]).documents]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", fhir("DiagnosticReport", patient="P-2", conclusion="XANTHIPPE")),
        ("a.json", fhir("ServiceRequest", reasonCode=[{"text": "XANTHIPPE"}],
                        identifier=[{"type": {"coding": [{"code": "ACSN"}]}, "value": "A-2"}])),
        ("a.txt", f"Study Instance UID: {OTHER_UID}\nFindings: XANTHIPPE"),
        ("a.txt", "MRN: P-2\nFindings: XANTHIPPE"),
        ("a.txt", "Accession Number: A-2\r\nFindings: XANTHIPPE"),
        ("a.txt", "Patient Name: DOE, JANE   MRN: P-2   DOB: 1 Jan 1970\nFindings: XANTHIPPE"),
        ("a.txt", "| Patient ID | P-2 |\nFindings: XANTHIPPE"),
        ("a.txt", "Name DOE; PatientID 4711; male\nFindings: XANTHIPPE"),
    ],
)  # fmt: skip
def test_texts_of_others_are_refused(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    role = "report" if name.endswith(".txt") else None
    with pytest.raises(TextOfAnother) as raised:
        read_text(folder / name, role=role, study=study_in(folder))
    for secret in ("XANTHIPPE", "P-2", "A-2", PATIENT_ID, OTHER_UID):
        assert secret not in str(raised.value)


def test_texts_that_name_the_study_or_nobody_are_taken(folder: Path) -> None:
    study = study_in(folder)
    own = f"Patient ID: {PATIENT_ID}\nAccession #: A-1\nStudyInstanceUID: {STUDY_UID}\n{REPORT}"
    for number, content in enumerate((own, REPORT)):
        (folder / f"{number}.txt").write_text(content)
        assert read_text(folder / f"{number}.txt", role="report", study=study).text == content
    (folder / "a.json").write_text(fhir("DiagnosticReport", conclusion="Normal."))
    assert read_text(folder / "a.json", study=study).role == "report"


@pytest.mark.parametrize(
    "words",
    ["No PatientID was given. No nodule.", "The MRN is missing. No nodule.", "MRN: P-1  DOB: 1 Jan 1970\nNo nodule.",
     "Compared with the CT, accession 4711. No nodule."],
)  # fmt: skip
def test_prose_is_no_identifier(folder: Path, words: str) -> None:
    (folder / "a.txt").write_text(words.replace("P-1", PATIENT_ID))
    assert read_text(folder / "a.txt", role="report", study=study_in(folder)).text


def test_an_sr_of_another_study_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_sr(tmp_path / "sr.dcm", text("Lungs clear."), study_uid=OTHER_UID)
    with pytest.raises(TextOfAnother):
        read_text(path, study=study_in(folder))
    path = write_sr(tmp_path / "sr.dcm", text("Lungs clear."), PatientID="P-2")
    with pytest.raises(TextOfAnother):
        read_text(path, study=study_in(folder))


def test_the_role_is_told_or_known_and_never_guessed(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "words.txt"
    plain.write_text(REPORT)
    with pytest.raises(TextRole):
        read_text(plain)
    assert read_text(plain, role="request").role == "request"
    resource = tmp_path / "resource.txt"
    resource.write_text("\n" + fhir("DiagnosticReport", conclusion="Normal."))
    assert read_text(resource).source == "fhir DiagnosticReport"
    with pytest.raises(TextRole):
        read_text(resource, role="request")
    with pytest.raises(TextRole):
        read_text(write_sr(tmp_path / "sr.dcm", text("Clear.")), role="request")
    with pytest.raises(NotAReport):
        read_text(next((folder / "series").iterdir()))


def test_files_that_only_look_like_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("FINDINGS: clear")
    with pytest.raises(NotFhir):
        read_text(tmp_path / "a.json", role="report")
    (tmp_path / "b.txt").write_bytes(b"clear " * 2_000_000)
    with pytest.raises(TextTooLarge):
        read_text(tmp_path / "b.txt", role="report")
    (tmp_path / "c.txt").write_bytes(b"clear " * 200_000)
    with pytest.raises(TextTooLarge):
        read_text(tmp_path / "c.txt", role="report")


@pytest.mark.parametrize(
    "content",
    [
        b"XANTHIPPE \xff", b"XANTHIPPE \x01", b"\0XANTHIPPE", b"<XANTHIPPE xmlns>", b"%PDF XANTHIPPE",
        b'{"resourceType": "DiagnosticReport", "XANTHIPPE": 1,',
        b'{"resourceType": "DiagnosticReport", "conclusion": {"XANTHIPPE": 1}}',
        b'{"resourceType": "DiagnosticReport", "status": "XANTHIPPE"}',
        "XANTHIPPE и лёгкие без изменений".encode(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["report.txt", "report.fhir.json"])
def test_no_word_of_a_text_in_errors_tracebacks_or_logs(
    folder: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
) -> None:
    caplog.set_level(logging.DEBUG)
    (folder / name).write_bytes(content)
    with pytest.raises(ImagingError) as raised:
        read_text(folder / name, role="report")
    told = "".join(traceback.format_exception(raised.value))
    assert "XANTHIPPE" not in told + str(raised.value.as_dict()) + caplog.text
    found = found_in(folder)
    assert "XANTHIPPE" not in str(found.refused) + repr(found) + caplog.text
