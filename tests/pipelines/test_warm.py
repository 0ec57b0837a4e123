"""A worker's studies go through the code of `imgpipe infer`, and what is wrong with one says whose turn it is."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import BasicTextSRStorage

from imaging.dicom.deidentify import Pseudonyms, make_key, read_key
from imaging.errors import (
    CheckpointCorrupt,
    InputRefused,
    MissingSlices,
    MixedPatients,
    NothingFound,
    OutputNotWritable,
    StudyFailed,
    UnknownCheckpoint,
)
from pipelines.delivery import read_back
from pipelines.infer import infer
from pipelines.warm import WarmReader, hidden
from pipelines.worker import Hiding, Outcome, Reporting, Task, serve, why_not

UID1 = "1.3.6.1.4.1.14519.5.2.1.4429.7055.290332099546120305394775536058"


@pytest.fixture(scope="module")
def reader(model: str) -> WarmReader:
    return WarmReader((Reporting(models=(model,)),))


def task(study: Path, out: Path, **more: object) -> Task:
    files = tuple(sorted(path for path in study.rglob("*") if path.is_file()))
    out.mkdir()
    return Task(UID1, files, out, **more)  # type: ignore[arg-type]


def test_the_findings_are_those_of_infer(reader: WarmReader, model: str, study1: Path, tmp_path: Path) -> None:
    reader(task(study1, tmp_path / "warm", version=3, replaces=(2, "c" * 64)))
    [cold] = infer(paths=[study1], models=[model], out=tmp_path / "cold").studies
    result = read_back(tmp_path / "warm" / UID1, UID1, 3)
    assert cold.report is not None
    [seg] = [name for name in result.sums if name.startswith("seg_")]
    assert (result.folder / seg).read_bytes()[-4096:] == (tmp_path / "cold" / UID1 / seg).read_bytes()[-4096:]
    assert str(pydicom.dcmread(result.folder / seg).SOPInstanceUID) in result.dicom
    assert len(result.dicom) == len([name for name in result.sums if name.endswith(".dcm")]) > 1
    assert '"report_sha256": "ccc' in (result.folder / "report.json").read_text()


def test_a_broken_file_in_a_study_is_told_and_the_rest_reported(
    reader: WarmReader, study1: Path, tmp_path: Path
) -> None:
    shutil.copytree(study1, tmp_path / "study")
    one = sorted((tmp_path / "study").rglob("*.dcm"))[0]
    one.write_bytes(one.read_bytes()[:-500])
    reader(task(tmp_path / "study", tmp_path / "out"))
    result = read_back(tmp_path / "out" / UID1, UID1, 1)
    assert "truncated" in (result.folder / "report.json").read_text()


def test_a_study_of_two_patients_is_refused_and_would_be_again(
    reader: WarmReader, study1: Path, tmp_path: Path
) -> None:
    shutil.copytree(study1, tmp_path / "study")
    one = sorted((tmp_path / "study").rglob("*.dcm"))[0]
    dataset = pydicom.dcmread(one)
    dataset.PatientID = "ANOTHER"
    dataset.save_as(one)
    with pytest.raises(MixedPatients) as caught:
        reader(task(tmp_path / "study", tmp_path / "out"))
    assert Outcome(caught.value).is_refusal


def test_files_of_another_study_than_was_said_are_refused(reader: WarmReader, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=UID1):
        reader(task(data / "hippocrop_study2", tmp_path / "out"))


def test_whose_turn_it_is_is_that_of_the_gravest() -> None:
    refused, full = MissingSlices("series 1", seen="3"), OutputNotWritable("out", seen="No space left on device")
    fault = StudyFailed("study 1", seen="KeyError")
    assert why_not([refused, full, fault], "1") is fault
    assert why_not([refused, full], "1") is full
    assert not Outcome(full).is_refusal
    assert why_not([CheckpointCorrupt("c", seen="x"), refused], "1") is refused
    assert isinstance(why_not([], "1"), NothingFound)


def test_the_setup_names_all_that_decides_the_output(reader: WarmReader, model: str) -> None:
    assert WarmReader((Reporting(models=(model,)),)).setup == reader.setup
    others = [
        Reporting(models=(model,), formats=("html",)),
        Reporting(models=(model,), policy="strict"),
        Reporting(models=(model, "chest_xray")),
        Reporting(models=(model, "request_text")),
        Reporting(models=(model,), memory="4GB"),
        Reporting(models=(model,), fhir_page="whole"),
    ]
    assert len({reader.setup, *(WarmReader((other,)).setup for other in others)}) == 7


def test_a_later_version_names_the_one_it_replaces_in_its_sr_and_its_fhir_too(
    model: str, study1: Path, tmp_path: Path
) -> None:
    reader = WarmReader((Reporting(models=(model,), formats=("seg", "sr", "fhir")),))
    reader(task(study1, tmp_path / "first"))
    before = read_back(tmp_path / "first" / UID1, UID1, 1)
    told = (1, before.report_sha256)
    reader(task(study1, tmp_path / "second", version=2, replaces=told, earlier=before.folder))
    after = read_back(tmp_path / "second" / UID1, UID1, 2)
    [named] = pydicom.dcmread(after.folder / "sr.dcm").PredecessorDocumentsSequence
    [series] = named.ReferencedSeriesSequence
    [instance] = series.ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == pydicom.dcmread(before.folder / "sr.dcm").SOPInstanceUID
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(before.folder / "sr.dcm")
    [bundle] = after.folder.glob("fhir*.json")
    assert '"revision"' in bundle.read_text()
    reader(task(study1, tmp_path / "third", version=2, replaces=(1, "0" * 64), earlier=before.folder))
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(tmp_path / "third" / UID1 / "sr.dcm")


def test_a_process_says_why_it_will_never_be_ready() -> None:
    spawn = multiprocessing.get_context("spawn")
    mine, other = spawn.Pipe()
    reading = Reporting(models=("none_such",))
    process = spawn.Process(target=serve, args=(other, reading, {}, 30, os.getpid()), daemon=True)
    process.start()
    other.close()
    said = mine.recv()
    while not isinstance(said, Outcome):
        said = mine.recv()
    assert isinstance(said.error, UnknownCheckpoint)
    mine.close()
    process.join(30)
    assert process.exitcode == 0


def hiding(folder: Path) -> Hiding:
    make_key(folder / "the.key")
    return Hiding(str(folder / "the.key"))


def test_what_is_read_under_pseudonyms_says_nowhere_whose_it_is(
    reader: WarmReader, model: str, study1: Path, tmp_path: Path
) -> None:
    shutil.copytree(study1, tmp_path / "study")
    original = pydicom.dcmread(next((tmp_path / "study").rglob("*.dcm")))
    hide = hiding(tmp_path)
    asked = Reporting(models=(model,), formats=("html", "seg", "sr"), hiding=hide)
    reader(task(tmp_path / "study", tmp_path / "out", reporting=asked))
    pseudonym = Pseudonyms(read_key(Path(hide.key))).uid(UID1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [pseudonym]
    result = read_back(tmp_path / "out" / pseudonym, pseudonym, 1)
    assert {Path(name).suffix for name in result.sums} == {".json", ".html", ".dcm"}
    secrets = [str(original.get(keyword, "")) for keyword in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID",
                                                             "SOPInstanceUID", "FrameOfReferenceUID")]  # fmt: skip
    assert all(len(secret) > 3 for secret in secrets)
    for name in result.sums:
        content = (result.folder / name).read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == [], name


def test_a_picture_that_cannot_be_given_away_refuses_the_study_and_a_report_beside_it_does_not(
    study1: Path, tmp_path: Path
) -> None:
    files = sorted(study1.rglob("*.dcm"))
    (tmp_path / "copies").mkdir()
    report = pydicom.dcmread(files[0])
    del report.PixelData
    del report.Rows
    report.SOPClassUID, report.SOPInstanceUID = BasicTextSRStorage, "1.2.3"
    report.file_meta.MediaStorageSOPClassUID, report.file_meta.MediaStorageSOPInstanceUID = BasicTextSRStorage, "1.2.3"
    report.Modality = "SR"
    report.save_as(tmp_path / "report.dcm")
    hide = hiding(tmp_path)
    _, copies = hidden(UID1, [*files, tmp_path / "report.dcm"], hide, tmp_path / "copies")
    assert len(copies) == len(files)
    burnt = pydicom.dcmread(files[0])
    burnt.BurnedInAnnotation = "YES"
    burnt.save_as(tmp_path / "burnt.dcm")
    with pytest.raises(InputRefused):
        hidden(UID1, [*files, tmp_path / "burnt.dcm"], hide, tmp_path / "copies")


def test_rules_that_name_the_same_checkpoint_share_it_and_a_budget_bounds_them(model: str) -> None:
    one, other = Reporting(models=(model,)), Reporting(models=(model,), formats=("html",))
    reader = WarmReader((one, other), most_bytes=1 << 40)
    assert len(reader._opened) == 2
    assert len(reader._shelf.names()) == 1
    tight = WarmReader((one, other), most_bytes=1)
    assert tight._shelf.names() == []  # there is no room: it is opened when it is asked
    assert tight.setup == reader.setup
