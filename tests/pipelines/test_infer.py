"""Each study whole or not at all, none mixed with another, and nothing left untold."""

from __future__ import annotations

import hashlib
import html
import json
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from jsonschema import Draft202012Validator
from phantom import write_series
from pydicom.uid import UID

from imaging.errors import (
    CheckpointCorrupt,
    DuplicateName,
    OutputNotWritable,
    UnknownCheckpoint,
    UnknownName,
)
from imaging.files import sha256_of
from imaging.predict import Prediction, Predictor
from imaging.report.report import Replaced, Report
from imaging.report.schema import schema
from imaging.volume import Volume
from pipelines.cli.verb import status_of
from pipelines.infer import Inference, Inferred, infer
from pipelines.reporting import StudyResult
from pipelines.tables import repairs_of

UID1 = "1.3.6.1.4.1.14519.5.2.1.4429.7055.290332099546120305394775536058"
UID2 = "1.3.6.1.4.1.14519.5.2.1.4429.7055.157560484903082616773144202981"

Infer = Callable[..., Inferred]


@pytest.fixture
def run(model: str, tmp_path: Path) -> Infer:
    """Infer with the tiny checkpoint into a folder of the test's own."""

    def call(*paths: Path, out: Path | None = None, models: tuple[str, ...] = (model,), **options: Any) -> Inferred:
        return infer(paths=paths, models=models, out=out or tmp_path / "out", **options)

    return call


@pytest.fixture(scope="module")
def done(model: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """One DICOM study, reported. Read only."""
    (result,) = infer(paths=[data / "hippocrop_study1"], models=[model], out=tmp_path_factory.mktemp("done")).studies
    return result


def only(inferred: Inferred) -> StudyResult:
    (study,) = inferred.studies
    return study


def codes(*problems: Any) -> list[str]:
    return [problem.code for problem in problems]


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ------------------------------------------------------------------------------------------------------------ one study


def test_study_is_written_to_a_folder_named_by_its_uid(done: StudyResult) -> None:
    assert done.folder is not None
    assert done.name == done.folder.name == UID1
    assert files_in(done.folder.parent) == [
        f"{UID1}/report.html", f"{UID1}/report.json", f"{UID1}/seg_hippocampus_mr.dcm", f"{UID1}/sr.dcm"
    ]  # fmt: skip
    assert done.problems == ()


def test_report_json_is_the_report(done: StudyResult) -> None:
    assert done.folder is not None and done.report is not None
    text = (done.folder / "report.json").read_text(encoding="utf-8")
    assert Report.model_validate_json(text) == done.report
    Draft202012Validator(schema()).validate(json.loads(text))


def test_report_names_each_output_with_its_checksum(done: StudyResult) -> None:
    assert done.folder is not None and done.report is not None
    listed = {output.file: output.sha256 for output in done.report.outputs}
    assert set(listed) == {path.name for path in done.folder.iterdir()} - {"report.json"}
    for name, digest in listed.items():
        assert hashlib.sha256((done.folder / name).read_bytes()).hexdigest() == digest


def test_report_names_model_series_and_instances(done: StudyResult, model: str, study1: Path) -> None:
    assert done.report is not None
    (entry,), (series,) = done.report.models, done.report.series
    assert entry.weights_sha256 == hashlib.sha256((Path(model) / "weights.safetensors").read_bytes()).hexdigest()
    instances = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in study1.iterdir()}
    assert set(series.source_sop_instance_uids) == instances
    assert series.sop_class_uid == "1.2.840.10008.5.1.4.1.1.4"  # MR Image Storage
    assert (series.shape, series.orientation, series.models) == ((35, 51, 32), "LPS", ("hippocampus_mr",))


def test_findings_are_in_the_seg(done: StudyResult) -> None:
    assert done.folder is not None and done.report is not None
    seg = pydicom.dcmread(done.folder / "seg_hippocampus_mr.dcm")
    assert (seg.Modality, seg.StudyInstanceUID) == ("SEG", UID1)
    voxels = {
        segment.SegmentNumber: int(
            sum(
                frame.sum()
                for frame, group in zip(seg.pixel_array, seg.PerFrameFunctionalGroupsSequence, strict=True)
                if group.SegmentIdentificationSequence[0].ReferencedSegmentNumber == segment.SegmentNumber
            )
        )
        for segment in seg.SegmentSequence
    }
    measured = [sum(slice_["voxels"] for slice_ in evidence) for evidence in evidences(done.report)]
    assert list(voxels.values()) == [count for count in measured if count]
    assert sum(measured) > 0


def evidences(report: Report) -> list[list[dict[str, Any]]]:
    """The slices of each finding."""
    return [finding["structure"]["evidence"] for finding in report.model_dump()["findings"]]


def test_evidence_leads_to_source_instances(done: StudyResult) -> None:
    assert done.report is not None
    sources = done.report.series[0].source_sop_instance_uids
    for evidence in evidences(done.report):
        assert all(sources[slice_["index"]] == slice_["sop_instance_uid"] for slice_ in evidence)


def test_page_shows_the_patient_id_and_never_the_name(done: StudyResult) -> None:
    assert done.folder is not None
    page = (done.folder / "report.html").read_text(encoding="utf-8")
    assert "PGBM-002" in page
    assert "Avasarala" not in page + (done.folder / "report.json").read_text(encoding="utf-8")


def test_second_run_gives_the_same(run: Infer, done: StudyResult, study1: Path, tmp_path: Path) -> None:
    assert done.folder is not None and done.report is not None
    again = only(run(study1))
    assert again.report is not None and again.folder is not None
    assert again.report.findings == done.report.findings
    assert again.report.series == done.report.series
    first, second = (pydicom.dcmread(folder / "seg_hippocampus_mr.dcm") for folder in (done.folder, again.folder))
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID", "PixelData"):
        assert first[keyword].value == second[keyword].value


def test_checkpoints_opened_once_tell_version_and_predecessor(model: str, study1: Path, tmp_path: Path) -> None:
    inference = Inference(models=(model,), formats=("html",))
    inference.warm_up()
    first = only(inference([study1], tmp_path / "a")).report
    assert first is not None
    assert (first.version, first.replaces) == (1, None)
    replaced = Replaced(version=1, report_sha256=sha256_of(tmp_path / "a" / first.study.uid / "report.json"))
    second = only(inference([study1], tmp_path / "b", version=2, replaces=replaced)).report
    assert second is not None
    assert (second.version, second.replaces, second.findings) == (2, replaced, first.findings)
    page = (tmp_path / "b" / first.study.uid / "report.html").read_text()
    assert "replaces version 1" in page
    assert "replaces" not in (tmp_path / "a" / first.study.uid / "report.html").read_text()


def test_second_run_replaces_the_first_and_leaves_what_is_not_ours(run: Infer, study1: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out" / UID1
    folder.mkdir(parents=True)
    for name in ("report.json", "mask_old.nii.gz", "seg_old.dcm", "notes.txt"):
        (folder / name).write_text("old")
    run(study1)
    assert files_in(folder) == ["notes.txt", "report.html", "report.json", "seg_hippocampus_mr.dcm", "sr.dcm"]
    assert (folder / "notes.txt").read_text() == "old"
    Report.model_validate_json((folder / "report.json").read_text())


def test_what_a_killed_run_left_is_removed_and_told(model: str, study1: Path, tmp_path: Path) -> None:
    killed = "import os, sys, signal; from pathlib import Path; from imaging.files import staged_folder\n\
with staged_folder(Path(sys.argv[1])) as stage: (stage / 'report.html').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path / "1.2.3")], check=False)
    (left,) = tmp_path.iterdir()
    inference = Inference(models=(model,), formats=("json",))
    told = inference.studies_in([study1], tmp_path).inferred((), tmp_path, {}).refused
    assert [(error.code, error.path) for error in told] == [("part_removed", left)]
    assert list(tmp_path.iterdir()) == [] and status_of(told) == 0
    assert inference.studies_in([study1], tmp_path).inferred((), tmp_path, {}).refused == ()


def test_output_below_the_input_is_not_read_as_input(run: Infer, study1: Path, tmp_path: Path) -> None:
    """As `cd STUDY; imgpipe infer .` does it, twice."""
    study = shutil.copytree(study1, tmp_path / "study")
    first, second = (run(study, out=study / "out") for _ in range(2))
    assert second.refused == first.refused == ()
    assert [result.name for result in second.studies] == [UID1]
    before, after = only(first).report, only(second).report
    assert before is not None and after is not None
    assert (after.series, after.findings) == (before.series, before.findings)


@pytest.mark.parametrize(
    ("formats", "files"),
    [
        (["json"], ["report.json"]),
        (["html"], ["report.html", "report.json"]),
        (["seg"], ["report.json", "seg_hippocampus_mr.dcm"]),
        (["sr"], ["report.json", "sr.dcm"]),
        (["sc"], ["capture.dcm", "report.json"]),
        (["fhir"], ["fhir.json", "report.json"]),
        (["nifti", "json"], ["mask_hippocampus_mr.nii.gz", "report.json"]),
    ],
    ids="+".join,
)
def test_formats_choose_the_outputs(run: Infer, study1: Path, formats: list[str], files: list[str]) -> None:
    study = only(run(study1, formats=formats))
    assert study.folder is not None
    assert files_in(study.folder) == files
    again = only(run(study1, formats=["json"]))
    assert again.folder is not None
    assert files_in(again.folder) == ["report.json"], "what the earlier run wrote and this one does not is removed"


def test_mask_of_dicom_as_nifti_lies_where_the_seg_lies(run: Infer, study1: Path) -> None:
    study = only(run(study1, formats=["nifti", "json"]))
    assert study.folder is not None and study.report is not None
    mask = nib.load(study.folder / "mask_hippocampus_mr.nii.gz")
    array = np.asarray(mask.dataobj)
    for label, finding in enumerate(study.report.model_dump()["findings"], start=1):
        assert (array == label).sum() == finding["structure"]["voxels"]
        if finding["structure"]["voxels"]:
            centre = mask.affine @ [*np.argwhere(array == label).mean(axis=0), 1]
            assert centre[:3] == pytest.approx(finding["structure"]["centre_ras_mm"], abs=1e-2)


# ---------------------------------------------------------------------------------------------- the same every time

MOMENTS = {"InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributionDateTime",
           "DateOfSecondaryCapture", "TimeOfSecondaryCapture"}  # fmt: skip
TOLD = {"created", "timestamp", "issued", "occurredDateTime", "recorded"}


def without_moments(path: Path) -> Any:
    """What a file says but the moments that it states and, in JSON, the sums of files that state them."""
    if path.suffix == ".dcm":
        dataset = pydicom.dcmread(path)
        for element in [found for found in dataset.iterall() if found.keyword in MOMENTS]:
            element.value = ""
        return dataset.to_json()
    if path.suffix == ".json":
        document = json.loads(path.read_text(encoding="utf-8"), object_hook=timeless)
        assert document != json.loads(path.read_text(encoding="utf-8")), "it states a moment"
        return document
    page = path.read_bytes()
    created = json.loads((path.parent / "report.json").read_text())["created"]
    report = json.loads((path.parent / "report.json").read_text())
    for told in (created, *(output["sha256"] for output in report["outputs"])):
        page = page.replace(told.encode(), b"")
    return page


def timeless(part: dict[str, Any]) -> dict[str, Any]:
    """A part of a JSON document without its moments, and an output without the sum of its bytes."""
    left = {key: value for key, value in part.items() if key not in TOLD}
    if part.get("contentType") == "text/html":  # the page
        left = {key: value for key, value in left.items() if key not in {"url", "hash", "data"}}
    return {key: value for key, value in left.items() if "file" not in left or key != "sha256"}


@pytest.mark.parametrize("seg_type", ["binary", "labelmap"])
def test_same_input_gives_the_same_bytes_but_for_the_moment(
    run: Infer, study1: Path, tmp_path: Path, seg_type: str
) -> None:
    formats = ["json", "html", "seg", "sr", "sc", "fhir", "nifti"]
    first = only(run(study1, out=tmp_path / "first", formats=formats, seg_type=seg_type))
    time.sleep(1.1)  # the moment is told in seconds
    again = only(run(study1, out=tmp_path / "again", formats=formats, seg_type=seg_type))
    assert first.folder is not None and again.folder is not None
    assert first.problems == again.problems == ()
    assert len(files_in(first.folder)) == 7
    assert (first.folder / "sr.dcm").read_bytes() != (again.folder / "sr.dcm").read_bytes(), "it states the moment"
    for name in files_in(first.folder):
        assert without_moments(first.folder / name) == without_moments(again.folder / name), name


def test_sr_refers_to_the_segments_of_the_seg(run: Infer, study1: Path) -> None:
    study = only(run(study1))
    assert study.folder is not None
    seg, sr = (pydicom.dcmread(study.folder / name) for name in ("seg_hippocampus_mr.dcm", "sr.dcm"))
    referred = {item.value for item in sr.iterall() if item.keyword == "ReferencedSOPInstanceUID"}
    assert seg.SOPInstanceUID in referred


def test_sr_of_a_new_version_names_the_one_that_it_replaces(model: str, study1: Path, tmp_path: Path) -> None:
    inference = Inference(models=[model], formats=["sr"])
    first = only(inference([study1], tmp_path))
    assert first.folder is not None
    old = pydicom.dcmread(first.folder / "sr.dcm").SOPInstanceUID
    sha256 = hashlib.sha256((first.folder / "report.json").read_bytes()).hexdigest()
    second = only(inference([study1], tmp_path, version=2, replaces=Replaced(version=1, report_sha256=sha256)))
    assert second.folder is not None and second.problems == ()
    new = pydicom.dcmread(second.folder / "sr.dcm")
    (predecessor,) = new.PredecessorDocumentsSequence
    assert predecessor.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == old
    other = Replaced(version=2, report_sha256="0" * 64)
    third = only(inference([study1], tmp_path, version=3, replaces=other))
    assert third.folder is not None
    assert "PredecessorDocumentsSequence" not in pydicom.dcmread(third.folder / "sr.dcm"), "another result lay there"


@pytest.mark.parametrize(("option", "value"), [("seg_type", "fractional"), ("fhir_version", "r6")])
def test_unknown_kind_of_output_is_refused(run: Infer, study1: Path, option: str, value: str) -> None:
    with pytest.raises(UnknownName, match=value):
        run(study1, **{option: value})


def test_report_says_what_was_not_looked_at(run: Infer, data: Path, study1: Path) -> None:
    study = only(run(data / "philips_localiser"))
    assert study.report is not None
    (unread,) = study.report.not_looked_at
    assert study.report.series[0].uid in unread and "localizer" in unread
    seen = only(run(study1, formats=["json"])).report
    assert seen is not None
    assert seen.not_looked_at == ("Anything but: Hippocampus, anterior part, Hippocampus, posterior part",)


# ---------------------------------------------------------------------------------------------------------------- nifti


def test_nifti_is_a_study_of_its_own(run: Infer, image: Path) -> None:
    study = only(run(image))
    assert study.name == "hippocampus_001"
    assert study.folder is not None and study.problems == ()
    assert files_in(study.folder) == ["mask_hippocampus_mr.nii.gz", "report.html", "report.json"]


def turned_copy(image: Path, target: Path, axcodes: str, origin: tuple[float, float, float]) -> nib.Nifti1Image:
    """The same image stored in another orientation and elsewhere in space."""
    source = nib.load(image)
    to = nib.orientations.axcodes2ornt(axcodes)
    turned = source.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(source.affine), to))
    affine = turned.affine.copy()
    affine[:3, 3] += origin
    copy = nib.Nifti1Image(np.asarray(turned.dataobj, dtype=np.float32), affine)
    nib.save(copy, target)
    return copy


@pytest.mark.parametrize("axcodes", ["RAS", "LPS", "PIR"])
def test_mask_lies_on_the_inputs_own_grid(run: Infer, image: Path, tmp_path: Path, axcodes: str) -> None:
    source = turned_copy(image, tmp_path / "turned.nii.gz", axcodes, (-13.5, 7.25, 90.0))
    study = only(run(tmp_path / "turned.nii.gz"))
    assert study.folder is not None
    mask = nib.load(study.folder / "mask_hippocampus_mr.nii.gz")
    assert mask.shape == source.shape
    assert mask.affine == pytest.approx(source.affine)
    assert mask.get_data_dtype() == np.uint8
    assert mask.header.get_zooms() == pytest.approx(source.header.get_zooms())
    assert {0, 1, 2} >= set(np.unique(mask.dataobj)) > {0}


def test_name_of_a_nifti_cannot_leave_the_output_folder(run: Infer, image: Path, tmp_path: Path) -> None:
    for name in ("..nii.gz", "a b%c.nii.gz"):
        shutil.copy(image, tmp_path / name)
    inferred = run(tmp_path / "..nii.gz", tmp_path / "a b%c.nii.gz", formats=["json"])
    folders = [study.folder for study in inferred.studies]
    assert all(folder is not None and folder.parent == tmp_path / "out" for folder in folders)
    assert sorted(folder.name for folder in folders if folder) == ["a_b_c", "unnamed"]


def test_two_inputs_of_one_name_are_refused_and_the_others_done(run: Infer, image: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(image, tmp_path / folder / "same.nii.gz")
    inferred = run(tmp_path / "a", tmp_path / "b", image, formats=["json"])
    assert [study.name for study in inferred.studies] == ["hippocampus_001"]
    assert codes(*inferred.refused) == ["duplicate_name"]
    assert "same" in inferred.refused[0].subject
    assert files_in(tmp_path / "out") == ["hippocampus_001/report.json"]


def test_same_path_twice_is_one_input(run: Infer, image: Path) -> None:
    assert len(run(image, image, formats=["json"]).studies) == 1


def test_seg_of_a_nifti_is_refused_and_told(run: Infer, image: Path) -> None:
    study = only(run(image, formats=["json", "seg"]))
    assert study.problems
    assert study.report is not None
    assert [refusal.code for refusal in study.report.refused] == codes(*study.problems)


# ------------------------------------------------------------------------------------------------------ several studies


def test_two_patients_in_one_folder_are_two_reports(run: Infer, both_studies: Path, data: Path) -> None:
    inferred = run(both_studies)
    assert sorted(study.name for study in inferred.studies) == sorted([UID1, UID2])
    for study in inferred.studies:
        folder, patient = {UID1: ("hippocrop_study1", "PGBM-002"), UID2: ("hippocrop_study2", "PGBM-006")}[study.name]
        own = {pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in (data / folder).iterdir()}
        assert study.report is not None and study.folder is not None
        assert study.report.study.patient_id == patient
        assert set(study.report.series[0].source_sop_instance_uids) == own
        seg = pydicom.dcmread(study.folder / "seg_hippocampus_mr.dcm", stop_before_pixels=True)
        assert (seg.StudyInstanceUID, seg.PatientID) == (study.name, patient)


def test_study_alone_and_among_others_gives_the_same(run: Infer, done: StudyResult, both_studies: Path) -> None:
    assert done.report is not None
    (among,) = [study for study in run(both_studies, formats=["json"]).studies if study.name == UID1]
    assert among.report is not None
    assert among.report.findings == done.report.findings


def test_one_study_of_two_patients_is_refused(run: Infer, both_studies: Path, tmp_path: Path) -> None:
    for path in both_studies.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = "1.2.3.4"
        dataset.save_as(path)
    inferred = run(both_studies)
    assert inferred.studies == ()
    assert codes(*inferred.refused) == ["mixed_patients"]
    assert files_in(tmp_path / "out") == []


def test_progress_is_told_before_each_study(run: Infer, both_studies: Path) -> None:
    told: list[tuple[str, int, int]] = []
    run(both_studies, formats=["json"], on_study=lambda *study: told.append(study))
    assert [(number, total) for _, number, total in told] == [(0, 2), (1, 2)]
    assert {name for name, _, _ in told} == {UID1, UID2}


@pytest.mark.parametrize("failing", [0, 1])
def test_fault_in_one_study_leaves_the_other_done(
    run: Infer, both_studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    predict, calls = Predictor.__call__, iter(range(2))

    def broken(self: Predictor, volume: Volume) -> Prediction:
        if next(calls) == failing:
            raise RuntimeError("SECRET of patient Doe")
        return predict(self, volume)

    monkeypatch.setattr(Predictor, "__call__", broken)
    inferred = run(both_studies)
    failed, whole = inferred.studies[failing], inferred.studies[1 - failing]
    assert codes(*failed.problems) == ["study_failed"]
    assert (failed.folder, failed.report) == (None, None)
    assert "SECRET" not in str(failed.problems[0])
    assert whole.report is not None and whole.problems == ()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {whole.name}


def test_fault_while_writing_leaves_nothing_behind(
    run: Infer, study1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> str:
        raise RuntimeError

    monkeypatch.setattr("pipelines.outputs.render_html", broken)
    study = only(run(study1))
    assert codes(*study.problems) == ["study_failed"]
    assert list((tmp_path / "out").iterdir()) == []


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def beside(study1: Path, tmp_path: Path) -> Path:
    """A copy of a study to put other files beside, or to break."""
    return shutil.copytree(study1, tmp_path / "study")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.dcm", b"\0" * 200)


def write_half(path: Path) -> None:
    source = next(path.parent.glob("*.dcm"))
    path.write_bytes(source.read_bytes()[:150])


@pytest.mark.parametrize(
    ("name", "write", "code"),
    [
        ("notes.txt", lambda path: path.write_text("hello"), "not_dicom"),
        ("study.zip", write_zip, "not_dicom"),
        ("broken.zip", lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)), "archive_refused"),
        ("empty.dcm", lambda path: path.write_bytes(b""), "not_dicom"),
        ("half.dcm", write_half, None),
    ],
)
def test_stray_file_is_told_and_the_study_is_done(
    run: Infer, beside: Path, name: str, write: Callable[[Path], object], code: str | None
) -> None:
    write(beside / name)
    inferred = run(beside)
    study = only(inferred)
    assert study.report is not None and study.report.findings
    (refused,) = inferred.refused
    assert name in refused.subject
    assert code is None or refused.code == code
    assert [refusal.subject for refusal in study.report.refused] == [refused.subject]


def test_truncated_pixels_refuse_the_series_by_name(run: Infer, beside: Path) -> None:
    path = beside / "10.dcm"
    path.write_bytes(path.read_bytes()[:-100])
    study = only(run(beside))
    assert study.report is not None
    assert study.report.findings == ()
    (refusal,) = study.report.series[0].refusals
    assert refusal.code == "truncated_pixels"
    assert codes(*study.problems) == ["truncated_pixels"]


def test_missing_slice_refuses_the_series_by_name_under_strict(run: Infer, beside: Path) -> None:
    (beside / "10.dcm").unlink()
    study = only(run(beside, policy="strict"))
    assert codes(*study.problems) == ["missing_slices"]
    assert study.folder is not None
    assert files_in(study.folder) == ["report.html", "report.json"]
    assert "missing_slices" in (study.folder / "report.html").read_text()


def test_missing_slice_is_repaired_and_told(run: Infer, beside: Path, study1: Path) -> None:
    """The longest run is left: what it holds is measured, and the report says what was done."""
    positions = {path: float(pydicom.dcmread(path).ImagePositionPatient[2]) for path in study1.iterdir()}
    ordered = sorted(positions, key=positions.__getitem__)
    (beside / ordered[3].name).unlink()
    kept = [pydicom.dcmread(path).SOPInstanceUID for path in ordered[4:]]
    study = only(run(beside))
    assert study.problems == ()
    assert study.report is not None and study.folder is not None
    (series,) = study.report.series
    assert (series.instances, series.shape, series.models) == (28, (35, 51, 28), ("hippocampus_mr",))
    assert list(series.source_sop_instance_uids) == kept
    assert [(defect.code, defect.action) for defect in series.defects] == [("missing_slices", "repaired")]
    page = html.unescape((study.folder / "report.html").read_text())
    found, rest = page.split("<h2>Key images</h2>")
    assert series.defects[0].detail in found, "a reader of the finding must see it"
    assert series.defects[0].detail in rest
    assert [series.defects[0].detail in line for line in repairs_of(study.report)] == [True]
    assert {slice_["sop_instance_uid"] for evidence in evidences(study.report) for slice_ in evidence} <= set(kept)


@pytest.fixture
def two_echoes(study1: Path, tmp_path: Path) -> Path:
    """A real series sent with a second echo, whose pixels are half as bright."""
    folder = tmp_path / "echoes"
    folder.mkdir()
    for path in study1.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.EchoTime = 3
        dataset.save_as(folder / path.name)
        dataset.EchoTime = 9
        dataset.PixelData = (dataset.pixel_array // 2).tobytes()
        dataset.SOPInstanceUID = UID(f"{dataset.SOPInstanceUID[:50]}.9.{path.stem}")
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"second_{path.name}")
    return folder


def test_each_volume_of_a_series_is_measured_and_listed_by_itself(run: Infer, two_echoes: Path) -> None:
    study = only(run(two_echoes))
    assert study.report is not None and study.folder is not None
    assert study.problems == ()
    assert [series.uid for series in study.report.series] == [study.report.series[0].uid] * 2
    assert sorted(series.volume for series in study.report.series) == ["EchoTime=3", "EchoTime=9"]
    first, second = (set(series.source_sop_instance_uids) for series in study.report.series)
    assert (len(first), len(second), first & second) == (32, 32, set())
    for series in study.report.series:
        assert [(defect.code, defect.action) for defect in series.defects] == [("duplicate_slices", "noted")]
    measured = [{slice_["sop_instance_uid"] for slice_ in evidence} for evidence in evidences(study.report)]
    assert [uids <= first for uids in measured] == [True, True, False, False]
    assert all(uids and uids <= second for uids in measured[2:])
    segs = [pydicom.dcmread(path) for path in study.folder.glob("seg_*.dcm")]
    assert len(segs) == 2
    referred = [
        {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
        for seg in segs
    ]
    assert {tuple(uids <= group for group in (first, second)) for uids in referred} == {(True, False), (False, True)}
    page = (study.folder / "report.html").read_text()
    assert "EchoTime=3" in page and "EchoTime=9" in page


def tilted(folder: Path) -> Path:
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, f"{float(y) + 0.1 * float(z):.4f}", z]
        dataset.save_as(path)
    return folder


def test_a_resampled_volume_has_a_mask_of_its_own_grid_and_no_seg(run: Infer, beside: Path) -> None:
    study = only(run(tilted(beside)))
    assert study.report is not None and study.folder is not None
    assert study.problems == ()
    assert files_in(study.folder) == ["mask_hippocampus_mr.nii.gz", "report.html", "report.json", "sr.dcm"]
    (series,) = study.report.series
    assert {"gantry_tilt", "beyond_acquired"} <= {defect.code for defect in series.defects}
    assert nib.load(study.folder / "mask_hippocampus_mr.nii.gz").shape == series.shape
    asked = only(run(beside, formats=["json", "seg"]))
    assert codes(*asked.problems) == ["format_not_applicable"]
    assert "resampled" in asked.problems[0].seen


def test_an_archive_is_reported_on_as_its_folder_would_be(
    run: Infer, done: StudyResult, study1: Path, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in study1.iterdir():
            archive.write(path, path.name)
    study = only(run(tmp_path / "study.zip"))
    assert study.problems == ()
    assert study.report is not None and done.report is not None
    assert study.report.findings == done.report.findings
    assert study.report.series == done.report.series


@pytest.mark.parametrize("kind", ["empty", "missing", "text_only"])
def test_path_without_a_study_is_told(run: Infer, tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind != "missing":
        path.mkdir()
    if kind == "text_only":
        (path / "a.txt").write_text("hello")
    inferred = run(path)
    assert inferred.studies == ()
    assert codes(*inferred.refused) == ["not_dicom" if kind == "text_only" else "nothing_found"]


def test_bad_paths_among_good_ones_do_not_stop_them(run: Infer, study1: Path, image: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.nii.gz").write_bytes(b"no gzip")
    inferred = run(
        tmp_path / "missing", image, tmp_path / "empty", study1, tmp_path / "broken.nii.gz", formats=["json"]
    )
    done = {study.name for study in inferred.studies if study.report and study.report.findings}
    assert done == {"hippocampus_001", UID1}
    assert codes(*inferred.refused) == ["nothing_found", "nothing_found"]
    (broken,) = [study for study in inferred.studies if study.name == "broken"]
    assert codes(*broken.problems) == ["unreadable_nifti"]


def test_series_that_the_reader_refuses_is_reported(run: Infer, data: Path) -> None:
    study = only(run(data / "philips_localiser"))
    assert study.report is not None and study.folder is not None
    assert study.report.findings == ()
    assert [refusal.code for refusal in study.report.series[0].refusals] == ["localizer"]
    assert codes(*study.problems) == ["localizer"]


def test_series_that_no_checkpoint_takes_is_reported_with_the_reason(run: Infer, tmp_path: Path) -> None:
    write_series(tmp_path / "phantom")
    study = only(run(tmp_path / "phantom"))
    assert study.report is not None
    (series,) = study.report.series
    assert (series.models, [refusal.code for refusal in series.refusals]) == ((), ["not_applicable"])
    assert "mm was expected" in series.refusals[0].expected


def test_nifti_without_a_named_checkpoint_is_not_guessed(run: Infer, image: Path) -> None:
    """Asks the checkpoints that ship, for their rules only."""
    study = only(run(image, models=()))
    assert study.report is not None and study.report.findings == ()
    assert set(codes(*study.problems)) == {"not_applicable"}
    assert "--model" in study.report.series[0].refusals[0].remedy


def test_constant_series_is_refused_and_named(run: Infer, image: Path, tmp_path: Path) -> None:
    source = nib.load(image)
    nib.save(nib.Nifti1Image(np.full(source.shape, 7, np.float32), source.affine), tmp_path / "flat.nii.gz")
    study = only(run(tmp_path / "flat.nii.gz"))
    assert codes(*study.problems) == ["constant_image"]
    assert "flat" in study.problems[0].subject


def test_weights_that_do_not_fit_are_told(run: Infer, model: str, study1: Path, tmp_path: Path) -> None:
    """Checksums that agree do not make weights of a network."""
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "weights.safetensors").write_bytes(b"no safetensors")
    names = ("config.yaml", "weights.safetensors", "metrics.json", "README.md")
    sums = (f"{hashlib.sha256((broken / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (broken / "SHA256SUMS").write_text("".join(sums))
    with pytest.raises(CheckpointCorrupt):
        problems = only(run(study1, models=(str(broken),))).problems
        raise problems[0]


# ------------------------------------------------------------------------------------- what is refused before it begins


def test_changed_checkpoint_is_refused_and_nothing_is_written(
    run: Infer, model: str, study1: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    content = bytearray((broken / "weights.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (broken / "weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointCorrupt, match=r"weights\.safetensors"):
        run(study1, models=(str(broken),))
    assert not (tmp_path / "out").exists()


def test_unknown_checkpoint_is_refused(run: Infer, study1: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownCheckpoint, match="hippocampus_mr"):
        run(study1, models=("nothing",))
    assert not (tmp_path / "out").exists()


def test_two_checkpoints_of_one_name_are_not_mixed_up(run: Infer, model: str, study1: Path, tmp_path: Path) -> None:
    """Both are called hippocampus_mr: one must not answer for the other."""
    other = shutil.copytree(model, tmp_path / "other")
    with pytest.raises(DuplicateName, match="hippocampus_mr"):
        run(study1, models=(model, str(other)))


def test_same_checkpoint_twice_is_one(run: Infer, model: str, study1: Path) -> None:
    study = only(run(study1, models=(model, model), formats=["json"]))
    assert study.report is not None
    assert len(study.report.findings) == 2


@pytest.mark.parametrize("formats", [["pdf"], ["json", ""], ["JSON"]])
def test_unknown_format_lists_the_known(run: Infer, study1: Path, formats: list[str]) -> None:
    with pytest.raises(UnknownName, match="json, html, seg, sr, sc, fhir, nifti"):
        run(study1, formats=formats)


@pytest.mark.parametrize("out", ["file", "file/below", "file/far/below"])
def test_output_folder_that_cannot_be_made_is_refused(run: Infer, study1: Path, tmp_path: Path, out: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputNotWritable):
        run(study1, out=tmp_path / out)
    assert (tmp_path / "file").read_text() == "mine"
