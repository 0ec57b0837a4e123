"""Each row finds its study's volumes, or is refused; what is left over is told; nothing told names a patient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from classified import toy_config
from phantom import STUDY_UID, write_series
from pydicom.dataset import Dataset

from imaging.cases import ClassifiedCase, load_picture, read_cases
from imaging.config import ClassifyConfig
from imaging.dicom import load_series
from imaging.errors import ManifestInvalid

SECRET = ("SECRET", "ALSO-SECRET")
ONE, TWO = f"{STUDY_UID}.1", f"{STUDY_UID}.2"
Read = Callable[..., list[ClassifiedCase]]


def with_facts(age: str, sex: str, view: str) -> Callable[[Dataset, int], None]:
    def edit(dataset: Dataset, _k: int) -> None:
        dataset.PatientAge, dataset.PatientSex, dataset.ViewPosition = age, sex, view

    return edit


@pytest.fixture
def studies(tmp_path: Path) -> Path:
    """Two patients, one folder: a study with an MR and a CT, and one with an MR."""
    folder = tmp_path / "archive"
    first = with_facts("061Y", "F", "PA")
    write_series(folder, study_uid=ONE, series=1, patient_id=SECRET[0], edit=first)
    write_series(folder, study_uid=ONE, series=2, patient_id=SECRET[0], modality="CT", edit=first)
    write_series(folder, study_uid=TWO, series=3, patient_id=SECRET[1], edit=with_facts("006M", "M", "AP"))
    (folder / "readme.txt").write_text("no DICOM")
    return folder


@pytest.fixture
def config(tmp_path: Path) -> ClassifyConfig:
    return toy_config(tmp_path, "applies_to.modality=[MR]", "preprocess.size=[4, 4, 4]")


@pytest.fixture
def read(studies: Path, config: ClassifyConfig, tmp_path: Path) -> Read:
    """The cases of the studies by a table of some rows."""

    def call(*rows: str) -> list[ClassifiedCase]:
        labels = tmp_path / "labels.csv"
        labels.write_text("\n".join(rows))
        data = config.data.model_copy(update={"labels": str(labels)})
        return read_cases(studies, config.model_copy(update={"data": data}))

    return call


def refusal(read: Read, *rows: str) -> str:
    with pytest.raises(ManifestInvalid) as caught:
        read(*rows)
    told = str(caught.value)
    assert not any(secret in told for secret in SECRET)
    return told


@pytest.mark.parametrize(
    "rows",
    [
        ("StudyInstanceUID,label", f"{ONE},odd", f"{TWO},plain"),
        ("PatientID,label", f"{SECRET[0]},odd", f"{SECRET[1]},plain"),
        ("StudyInstanceUID,PatientID,label", f"{ONE},somebody,odd", f"{TWO},else,plain"),
    ],
)
def test_row_finds_the_volumes_that_the_config_takes(read: Read, rows: tuple[str, ...]) -> None:
    one, two = read(*rows)
    assert (one.name, one.classes, two.name, two.classes) == (f"{ONE}.1", ("odd",), f"{TWO}.3", ("plain",))
    assert len(one.files) == 4 and one.image == one.files[0]
    assert one.patient != two.patient and not any(secret in repr([one.name, one.patient]) for secret in SECRET)


def test_series_is_read_from_its_own_files(read: Read, studies: Path) -> None:
    (case,) = read("StudyInstanceUID,label", f"{TWO},plain")
    np.testing.assert_array_equal(load_picture(case).array, load_series(studies, series=f"{TWO}.3").array)


def test_facts_come_from_the_headers_where_the_table_has_none(read: Read) -> None:
    one, two = read("StudyInstanceUID,label", f"{ONE},odd", f"{TWO},plain")
    assert dict(one.facts) == {"age": "61", "sex": "F", "view": "PA"}
    assert dict(two.facts) == {"age": "0.5", "sex": "M", "view": "AP"}
    (case,) = read("StudyInstanceUID,label,sex,ward,patient,split", f"{ONE},odd,M,3,me,test")
    assert dict(case.facts) == {"age": "61", "sex": "M", "view": "PA", "ward": "3"}
    assert (case.patient, case.side) == ("me", "test")


def test_table_may_stand_beside_its_studies(studies: Path, config: ClassifyConfig) -> None:
    (studies.parent / "labels.csv").write_text(f"StudyInstanceUID,label\n{ONE},odd\n")
    config = config.model_copy(update={"data": config.data.model_copy(update={"images": "archive"})})
    assert [case.name for case in read_cases(studies.parent / "labels.csv", config)] == [f"{ONE}.1"]


def test_study_without_a_row_is_told_and_left_out(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    assert len(read("PatientID,label", f"{SECRET[0]},odd")) == 1
    assert f"1 studies have no row in labels.csv and are left out: {TWO}" in caplog.text
    assert not any(secret in caplog.text for secret in SECRET)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (("StudyInstanceUID,label", f"{ONE},odd", "1.2.3,odd"), "row 3 names the study 1.2.3 that is not there"),
        (("PatientID,label", f"{SECRET[0]},odd", "SECRETS,odd"), "row 3 names a PatientID that is not there"),
        (("StudyInstanceUID,label", f"{ONE},odd", ",odd"), "row 3 has no StudyInstanceUID"),
        (
            ("StudyInstanceUID,label", f"{ONE},odd", f"{ONE},plain"),
            "rows 2, 3 are of one StudyInstanceUID and disagree",
        ),
        (("PatientID,label", f"{SECRET[0]},odd", f"{SECRET[0]},plain"), "rows 2, 3 are of one PatientID and disagree"),
        (
            ("StudyInstanceUID,label,split", f"{ONE},odd,train", f"{ONE},odd,test"),
            "rows 2, 3 are of one StudyInstanceUID and disagree",
        ),
        (
            ("StudyInstanceUID,PatientID,label", f"{ONE},same,odd", f"{TWO},same,plain"),
            "1 PatientIDs of the table are several in the files, 0 of the files several in the table",
        ),
        (("StudyInstanceUID,label", f"{ONE},weird"), "'weird'"),
        (("Study,label", f"{ONE},odd"), "no column 'image'"),
    ],
)
def test_row_that_would_bend_what_is_learnt_is_refused(read: Read, rows: tuple[str, ...], told: str) -> None:
    assert told in refusal(read, *rows)


def test_one_patient_of_the_files_is_not_two_of_the_table(read: Read, studies: Path) -> None:
    write_series(studies, study_uid=f"{STUDY_UID}.9", series=4, patient_id=SECRET[0])
    rows = ("StudyInstanceUID,PatientID,label", f"{ONE},a,odd", f"{STUDY_UID}.9,b,plain")
    assert "0 PatientIDs of the table are several in the files, 1 of the files several" in refusal(read, *rows)
    one, two = read("StudyInstanceUID,PatientID,label,patient", f"{ONE},a,odd,x", f"{STUDY_UID}.9,b,plain,x")
    assert one.patient == two.patient == "x", "a column patient decides"


def test_rows_of_one_study_that_agree_are_one(read: Read) -> None:
    assert len(read("StudyInstanceUID,label", f"{ONE},odd", f"{ONE},odd")) == 1


def test_study_of_which_nothing_is_taken_is_refused(read: Read, studies: Path) -> None:
    write_series(studies, study_uid=f"{STUDY_UID}.9", series=4, patient_id="third", modality="CT")
    told = refusal(read, "StudyInstanceUID,label", f"{ONE},odd", f"{STUDY_UID}.9,odd")
    assert "no series of row 3 is taken: modality CT, MR was expected" in told


def test_files_without_a_patient_are_refused_unless_the_table_tells(read: Read, studies: Path) -> None:
    write_series(studies, study_uid=f"{STUDY_UID}.9", series=4, patient_id="")
    row = f"{STUDY_UID}.9,odd"
    assert "1 series have no PatientID" in refusal(read, "StudyInstanceUID,label", row)
    assert read("StudyInstanceUID,label,patient", f"{row},third")[0].patient == "third"


def test_two_patients_in_one_study_are_not_a_case(read: Read, studies: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_series(studies, study_uid=TWO, series=5, patient_id="third")
    assert f"the study {TWO} that is not there" in refusal(read, "StudyInstanceUID,label", f"{TWO},odd")
    assert "mixed_patients" in caplog.text


def test_folder_without_dicom_is_refused(tmp_path: Path, config: ClassifyConfig) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "labels.csv").write_text(f"StudyInstanceUID,label\n{ONE},odd\n")
    data = config.data.model_copy(update={"labels": str(tmp_path / "labels.csv")})
    with pytest.raises(ManifestInvalid, match="no DICOM study"):
        read_cases(tmp_path / "empty", config.model_copy(update={"data": data}))


def test_published_config_does_not_name_the_table(config: ClassifyConfig) -> None:
    data = config.data.model_copy(update={"root": "/home/me/archive", "labels": "/home/me/labels.csv"})
    told = config.model_copy(update={"data": data})
    assert "/home/me" not in told.without_paths().to_yaml() and told.digest() == config.digest()
