"""No file stops a scan and none disappears; patients are never joined and never named."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
import pytest
from phantom import PATIENT_ID, PATIENT_NAME, STUDY_UID, change, write_series
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from imaging.dicom import read_series, scan
from imaging.errors import ImagingError

OTHER_STUDY = "1.2.826.0.1.3680043.8.498.2"


def codes(refused: tuple[ImagingError, ...]) -> list[str]:
    return [error.code for error in refused]


def assert_whole(folder: Path) -> None:
    """The one phantom series of four slices is still there and reads."""
    ((study,), *_) = (scan(folder).studies,)
    (series,) = study.series
    assert len(series.instances) == 4
    assert read_series(series).shape == (7, 5, 4)


def test_two_patients_in_one_folder_are_two_studies(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "b", study_uid=OTHER_STUDY, patient_id="other")
    found = scan(tmp_path)
    assert [study.uid for study in found.studies] == [STUDY_UID, OTHER_STUDY]
    assert [study.patient_id for study in found.studies] == [PATIENT_ID, "other"]
    assert found.refused == ()


def test_one_study_of_two_patients_is_refused_and_the_others_stay(tmp_path: Path) -> None:
    write_series(tmp_path / "a", series=1)
    write_series(tmp_path / "b", series=2, patient_id="other")
    write_series(tmp_path / "c", study_uid=OTHER_STUDY)
    found = scan(tmp_path)
    assert [study.uid for study in found.studies] == [OTHER_STUDY]
    assert codes(found.refused) == ["mixed_patients"]
    assert STUDY_UID in found.refused[0].subject


def test_the_same_id_from_two_issuers_is_two_patients(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[0], IssuerOfPatientID="another hospital")
    assert codes(scan(tmp_path).refused) == ["mixed_patients"]


def test_the_series_of_a_study_are_told_apart(tmp_path: Path) -> None:
    write_series(tmp_path, series=1)
    write_series(tmp_path, series=2, slices=3)
    (study,) = scan(tmp_path).studies
    assert {series.uid: len(series.instances) for series in study.series} == {
        f"{STUDY_UID}.1": 4,
        f"{STUDY_UID}.2": 3,
    }


def zip_of(path: Path, *files: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "no image")
        for number, file in enumerate(files):
            archive.write(file, f"deep/{number}.dcm")


@pytest.mark.parametrize(
    ("make", "seen"),
    [
        (lambda path: path.write_text("notes of a study\n" * 20), "text file"),
        (lambda path: path.write_text("short"), "text file"),
        (zip_of, "in which member 1 is not DICOM"),
        (lambda path: path.write_bytes(gzip.compress(b"x" * 500)), "gzip"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_bytes(b"\0" * 400), "DICM"),
    ],
    ids=["text", "short_text", "text_in_a_zip", "gzip", "empty", "zeros"],
)
def test_what_is_not_dicom_is_named_with_what_was_seen(tmp_path: Path, make: object, seen: str) -> None:
    write_series(tmp_path)
    stranger = tmp_path / "stranger"
    assert callable(make)
    make(stranger)
    (error,) = scan(tmp_path).refused
    assert error.code == "not_dicom"
    assert seen in error.seen
    assert error.subject == str(stranger)
    assert_whole(tmp_path)


def test_a_study_in_an_archive_is_read_and_leads_back_to_it(tmp_path: Path) -> None:
    phantom = write_series(tmp_path / "study")
    archive = tmp_path / "inbox" / "study.zip"
    archive.parent.mkdir()
    zip_of(archive, *phantom.paths)
    found = scan(archive)
    assert codes(found.refused) == ["not_dicom"]
    assert found.refused[0].path == archive
    ((series,),) = (study.series for study in found.studies)
    assert {found.origin(instance.path) for instance in series.instances} == {archive}
    assert phantom.worst_error(read_series(series)) <= phantom.tolerance
    folder = Path(found.unpacked[0].folder.name)
    assert folder.is_dir()
    del found
    assert folder.is_dir(), "the series can still be read"
    volume = read_series(series)
    assert all(frame.path.exists() for frame in volume.sources)
    del series, volume
    assert not folder.exists(), "what was unpacked goes with the last that needs it"


def test_a_dicomdir_stands_for_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"anything")
    found = scan(tmp_path / "DICOMDIR")
    assert [path.name for path in found.strays] == ["DICOMDIR"]
    assert [len(series.instances) for study in found.studies for series in study.series] == [4]


def without_preamble(path: Path) -> None:
    path.write_bytes(path.read_bytes()[132:])


def without_meta(path: Path) -> None:
    """Nothing but the data set, as very old archives keep it."""
    dataset = pydicom.dcmread(path)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\x08\x00\x05\x00CS") :])


def without_meta_implicit(path: Path) -> None:
    dataset = pydicom.dcmread(path)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\x08\x00\x05\x00\x0a\0\0\0") :])


@pytest.mark.parametrize(
    ("strip", "noted"),
    [(without_preamble, []), (without_meta, ["no_meta_header"]), (without_meta_implicit, ["no_meta_header"])],
)
def test_files_without_preamble_or_meta_header_are_read(
    tmp_path: Path, strip: Callable[[Path], None], noted: list[str]
) -> None:
    phantom = write_series(tmp_path)
    for path in phantom.paths:
        strip(path)
    found = scan(tmp_path)
    assert found.refused == ()
    volume = read_series(found.studies[0].series[0])
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert [defect.code for defect in volume.defects] == noted


def cut_inside(path: Path, keyword: str, offset: int) -> None:
    """Cut a file some bytes into the value of an attribute."""
    content = path.read_bytes()
    dataset = pydicom.dcmread(path)
    element = dataset.get_item(keyword)
    assert isinstance(element, RawDataElement)
    path.write_bytes(content[: element.value_tell + offset])


@pytest.mark.parametrize(
    ("keyword", "offset"),
    [
        ("SOPInstanceUID", 5),
        ("StudyInstanceUID", 10),
        ("SeriesInstanceUID", len(STUDY_UID) - 1),
        ("SeriesInstanceUID", -4),
        ("FrameOfReferenceUID", 3),
        ("Rows", 1),
        ("Rows", -8),
        ("PixelSpacing", 2),
        ("RescaleSlope", -8),
        ("RescaleIntercept", 1),
    ],
)
def test_a_header_cut_short_is_unreadable(tmp_path: Path, keyword: str, offset: int) -> None:
    write_series(tmp_path / "good", study_uid=OTHER_STUDY)
    phantom = write_series(tmp_path / "bad")
    cut_inside(phantom.paths[0], keyword, offset)
    found = scan(tmp_path)
    assert codes(found.refused) == ["unreadable_dicom"]
    assert found.refused[0].subject == str(phantom.paths[0])
    assert [len(series.instances) for study in found.studies for series in study.series] == [3, 4]


def test_a_file_cut_inside_its_meta_header_is_unreadable(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    phantom.paths[0].write_bytes(phantom.paths[0].read_bytes()[:150])
    assert codes(scan(tmp_path).refused) == ["unreadable_dicom"]


def test_no_cut_makes_a_study_or_series_that_never_was(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=2, rows=2, columns=2)
    content = phantom.paths[1].read_bytes()
    for size in range(132, len(content), 5):
        phantom.paths[1].write_bytes(content[:size])
        found = scan(tmp_path)
        series = {(study.uid, series.uid) for study in found.studies for series in study.series}
        assert series == {(STUDY_UID, f"{STUDY_UID}.1")}, f"cut at byte {size}"


def damaged_meta(path: Path, *, leave_copy: bool) -> None:
    """An unknown VR of (0002,0003), a data set without the UID that it repeats, and perhaps not even the copy."""
    content = path.read_bytes()
    content = content.replace(b"\x02\x00\x03\x00UI", b"\x02\x00\x03\x00U\\", 1)
    content = content.replace(b"\x08\x00\x18\x00UI", b"\x08\x00\x17\x00UI", 1)
    if not leave_copy:
        content = content.replace(b"\x02\x00\x03\x00U\\", b"\x02\x00\x04\x00U\\", 1)
    path.write_bytes(content)


def test_a_damaged_meta_header_does_not_stop_the_scan(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=5)
    damaged_meta(phantom.paths[4], leave_copy=False)
    assert codes(scan(tmp_path).refused) == ["missing_attribute"]
    assert_whole(tmp_path)


def test_an_unknown_vr_in_the_meta_header_loses_nothing(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    damaged_meta(phantom.paths[3], leave_copy=True)
    assert_whole(tmp_path)
    instances = scan(tmp_path).studies[0].series[0].instances
    assert {instance.sop_instance_uid for instance in instances} == set(phantom.uids)


@pytest.mark.parametrize(
    "name", ["DIRFILE", "DICOMDIR", "dicomdir", "._0001.dcm", "Thumbs.db", ".DS_Store", "Report.txt"]
)
def test_known_strays_are_listed_apart(tmp_path: Path, name: str) -> None:
    write_series(tmp_path)
    stray = tmp_path / name
    stray.write_bytes(b"anything")
    found = scan(tmp_path)
    assert found.strays == (stray,)
    assert found.refused == ()
    assert_whole(tmp_path)


def test_a_real_dirfile_is_a_stray(data: Path) -> None:
    found = scan(data / "philips_localiser")
    assert [path.name for path in found.strays] == ["DIRFILE"]
    assert found.refused == ()


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"])
@pytest.mark.parametrize("uid", ["../../etc", "1.2/../3", "1..2", "1.2.", "1.2\\3", "1.2x", "1" * 65])
def test_a_uid_that_is_none_is_refused(tmp_path: Path, keyword: str, uid: str) -> None:
    phantom = write_series(tmp_path, slices=5)
    change(phantom.paths[4], **{keyword: uid})
    (error,) = scan(tmp_path).refused
    assert error.code == "invalid_uid"
    assert keyword in error.seen
    assert uid not in str(error)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    "keywords", [("StudyInstanceUID",), ("SeriesInstanceUID",), ("StudyInstanceUID", "SeriesInstanceUID")]
)
@pytest.mark.parametrize("value", [None, ""])
def test_files_that_name_no_study_or_series_are_taken_as_one_or_refused(
    tmp_path: Path, keywords: tuple[str, ...], value: str | None
) -> None:
    phantom = write_series(tmp_path / "nameless")
    for path in phantom.paths:
        change(path, **dict.fromkeys(keywords, value))
    write_series(tmp_path / "whole", study_uid=OTHER_STUDY)
    found = scan(tmp_path)
    assert found.refused == ()
    made, whole = sorted((study.series[0] for study in found.studies), key=lambda series: OTHER_STUDY in series.uid)
    for keyword, uid in (("StudyInstanceUID", made.facts.study_uid), ("SeriesInstanceUID", made.facts.series_uid)):
        assert (re.fullmatch(r"2\.25\.[1-9][0-9]{1,38}", uid) is not None) == (keyword in keywords)
    assert made.uid == made.facts.series_uid
    with pytest.raises(ImagingError) as caught:
        read_series(made, policy="strict")
    assert caught.value.code == "missing_attribute"
    volume = read_series(made)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert [(defect.code, defect.action) for defect in volume.defects] == [("missing_uid", "repaired")]
    assert read_series(whole, policy="strict").defects == ()
    again = scan(tmp_path)
    assert {study.uid for study in again.studies} == {study.uid for study in found.studies}
    assert made.uid in {series.uid for study in again.studies for series in study.series}


def test_one_file_that_names_no_study_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=5)
    change(phantom.paths[4], StudyInstanceUID=None)
    studies = {study.uid: study for study in scan(tmp_path).studies}
    assert sorted(len(study.series[0].instances) for study in studies.values()) == [1, 4]
    assert read_series(studies[STUDY_UID].series[0], policy="strict").defects == ()


def test_files_without_uids_of_two_people_or_folders_are_never_joined(tmp_path: Path) -> None:
    for folder, patient in (("a", "one"), ("b", "one"), ("c", "two")):
        phantom = write_series(tmp_path / folder, patient_id=patient, study_uid=f"{OTHER_STUDY}.{ord(folder)}")
        for path in phantom.paths:
            change(path, StudyInstanceUID=None, SeriesInstanceUID=None)
    found = scan(tmp_path)
    assert found.refused == ()
    assert len({study.uid for study in found.studies}) == 3
    assert [len(series.instances) for study in found.studies for series in study.series] == [4, 4, 4]


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID"])
def test_an_instance_that_does_not_say_what_it_is_is_refused(tmp_path: Path, keyword: str) -> None:
    phantom = write_series(tmp_path, slices=5)
    change(phantom.paths[4], **{keyword: None})
    content = phantom.paths[4].read_bytes()
    element = {"SOPClassUID": b"\x02\0\x02\0UI", "SOPInstanceUID": b"\x02\0\x03\0UI"}[keyword]
    phantom.paths[4].write_bytes(content.replace(element, b"\x02\0\x09\0UI", 1))
    (error,) = scan(tmp_path).refused
    assert error.code == "missing_attribute"
    assert keyword in error.seen
    assert_whole(tmp_path)


@pytest.mark.parametrize("keyword", ["SOPClassUID", "SOPInstanceUID"])
def test_uids_that_only_the_meta_header_tells_are_taken(tmp_path: Path, keyword: str) -> None:
    phantom = write_series(tmp_path)
    for path in phantom.paths:
        change(path, **{keyword: None})
    assert_whole(tmp_path)
    assert {instance.sop_instance_uid for instance in scan(tmp_path).studies[0].series[0].instances} == set(
        phantom.uids
    )


@pytest.mark.parametrize("make_folder", [True, False], ids=["empty", "absent"])
def test_nothing_to_scan_is_an_error(tmp_path: Path, make_folder: bool) -> None:
    folder = tmp_path / "study"
    if make_folder:
        (folder / "below").mkdir(parents=True)
    with pytest.raises(ImagingError) as caught:
        scan(folder)
    assert caught.value.code == "nothing_found"
    assert caught.value.subject == str(folder)


def test_one_bad_file_of_every_kind_never_stops_the_scan(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=7)
    cut_inside(phantom.paths[6], "Rows", 1)
    change(phantom.paths[4], StudyInstanceUID="../../etc")
    damaged_meta(phantom.paths[5], leave_copy=False)
    (tmp_path / "notes.txt").write_text("notes")
    zip_of(tmp_path / "more.zip")
    found = scan(tmp_path)
    assert sorted(codes(found.refused)) == [
        "invalid_uid", "missing_attribute", "not_dicom", "not_dicom", "unreadable_dicom",
    ]  # fmt: skip
    assert_whole(tmp_path)


def count(*roots: Path) -> int:
    return sum(len(series.instances) for study in scan(roots).studies for series in study.series)


def test_overlapping_paths_count_each_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = write_series(tmp_path / "study")
    study = phantom.folder
    assert count(tmp_path, study, phantom.paths[0]) == 4
    assert count(phantom.paths[0], phantom.paths[0], phantom.paths[1]) == 2
    monkeypatch.chdir(tmp_path)
    assert count(study, Path("study")) == 4
    assert count(study, study / ".." / "study") == 4


def test_a_link_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    write_series(tmp_path)
    (tmp_path / "lost.dcm").symlink_to(tmp_path / "not here")
    (error,) = scan(tmp_path).refused
    assert error.subject == str(tmp_path / "lost.dcm")
    assert_whole(tmp_path)


def test_files_lie_at_any_depth(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    for number, path in enumerate(phantom.paths):
        folder = tmp_path.joinpath(*"abcd"[: number + 1])
        folder.mkdir(exist_ok=True)
        path.rename(folder / "IM")
    assert_whole(tmp_path)


def test_no_patient_is_named_in_errors_reprs_or_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")

    def edit(dataset: Dataset, _k: int) -> None:
        dataset.PatientBirthDate = "SECRET-birth"
        dataset.AccessionNumber = "SECRET-accession" * 4
        dataset.StudyDate = "SECRET-date"

    good = write_series(tmp_path / "good", study_uid=OTHER_STUDY, edit=edit)
    write_series(tmp_path / "mixed", series=1, edit=edit)
    write_series(tmp_path / "mixed", series=2, patient_id="SECRET-other", edit=edit)
    bad = write_series(tmp_path / "bad", study_uid=f"{OTHER_STUDY}.9", edit=edit)
    change(bad.paths[0], SeriesInstanceUID=PATIENT_ID)
    change(bad.paths[2], SOPInstanceUID=None)
    bad.paths[3].write_bytes(bad.paths[3].read_bytes()[:600])
    caplog.clear()
    found = scan(tmp_path)
    for study in found.studies:
        for series in study.series:
            if series.instances[0].path.is_relative_to(good.folder):
                read_series(series)
    told = "".join(map(str, found.refused)) + repr(found.studies) + repr(found.refused) + caplog.text
    told += "".join(str(error.as_dict()) for error in found.refused)
    assert len(found.refused) >= 3
    for secret in ("SECRET", PATIENT_NAME, "Jane", "Doe"):
        assert secret not in told.replace(str(tmp_path), "")


@pytest.mark.parametrize(
    "module",
    ["imaging", "imaging.dicom.scan", "imaging.dicom.geometry", "imaging.nifti", "imaging.selection", "imaging.files"],
)
def test_reading_headers_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'monai', 'lightning'}} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": "."},
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "study", slices=3)
    closed = tmp_path / "study" / "closed"
    closed.mkdir()
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path) == str(closed):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = scan(tmp_path / "study")
    assert [error.path for error in found.refused] == [closed]


def test_two_people_without_an_id_are_told_apart_by_name(tmp_path: Path) -> None:
    def rename(dataset: Dataset, number: int) -> None:
        dataset.PatientID = ""
        dataset.PatientName = "DOE^JANE" if number % 2 else "ROE^JOHN"

    write_series(tmp_path / "study", slices=4, edit=rename)
    found = scan(tmp_path / "study")
    assert not found.studies
    assert [error.code for error in found.refused] == ["mixed_patients"]
