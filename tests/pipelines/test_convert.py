"""`convert` writes every volume to a file of its own, says in a JSON what it is, and tells what it did not write."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from phantom import ORIENTATIONS, STUDY_UID, Edit, Phantom, write_series
from pydicom.dataset import Dataset

from imaging.dicom import load_series
from imaging.errors import SeveralSeries, UnknownName
from imaging.nifti import read_nifti
from pipelines.convert import Converted, convert

Invoke = Callable[..., Result]
SERIES_UID = f"{STUDY_UID}.1"


def of_one_series(edit: Edit) -> Edit:
    def whole(dataset: Dataset, k: int) -> None:
        dataset.SeriesInstanceUID, dataset.SeriesNumber = SERIES_UID, 1
        edit(dataset, k)

    return whole


def parts(folder: Path, *edits: Edit, **more: object) -> list[Phantom]:
    """Stacks of one series, each 100 mm above the one before."""
    return [
        write_series(folder, series=number, origin=(0, 0, 100.0 * number), edit=of_one_series(edit), **more)  # type: ignore[arg-type]
        for number, edit in enumerate(edits, start=1)
    ]


def checked(converted: Converted, out: Path) -> list[Path]:
    """The files that were written: each once, whole, and with the document that was returned beside it."""
    files = [Path(document["file"]) for document in converted.written]
    assert len({str(file).lower() for file in files}) == len(files), "two volumes have one name"
    assert sorted(out.glob("*.nii.gz")) == sorted(files)
    for file, document in zip(files, converted.written, strict=True):
        beside = json.loads(file.with_name(file.name.replace(".nii.gz", ".json")).read_text())
        assert beside | {"file": str(file)} == json.loads(json.dumps(document))
        assert beside["file"] == file.name
        assert beside["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
        volume = read_nifti(file)
        assert volume.shape == tuple(beside["shape"])
        np.testing.assert_allclose(volume.affine, beside["affine_ras_mm"], atol=1e-4)
    return files


# ---------------------------------------------------------------------------------------------------------------- names


def _values(**values: object) -> Edit:
    def edit(dataset: Dataset, _k: int) -> None:
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    return edit


_LONG = "1.2.840.113619.2.408.5554020.7697731.17801.1490799938.930.990"
TWINS: dict[str, tuple[Edit, Edit]] = {
    "long_frames_of_reference": (_values(FrameOfReferenceUID=f"{_LONG}1"), _values(FrameOfReferenceUID=f"{_LONG}2")),
    "spacings_alike_in_four_digits": (_values(PixelSpacing=[1, 1.0]), _values(PixelSpacing=[1, 1.0003])),
    "small_and_capital_letters": (_values(ConvolutionKernel="b30F"), _values(ConvolutionKernel="B30f")),
    "signs_that_no_file_name_has": (_values(ConvolutionKernel="B/30"), _values(ConvolutionKernel="B:30")),
}


@pytest.mark.parametrize("twins", TWINS)
def test_two_volumes_never_have_one_name(tmp_path: Path, twins: str) -> None:
    phantoms = parts(tmp_path / "in", *TWINS[twins], modality="CT")
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert converted.refused == ()
    files = checked(converted, tmp_path / "out")
    assert len(files) == 2
    assert all(file.name.startswith(SERIES_UID) and len(file.name) < 200 for file in files)
    uids = [tuple(source["sop_instance_uid"] for source in document["sources"]) for document in converted.written]
    assert sorted(uids) == sorted(phantom.uids for phantom in phantoms)


def test_a_series_in_two_studies_gives_two_files(tmp_path: Path) -> None:
    def edit(dataset: Dataset, k: int) -> None:
        if k % 2:
            dataset.StudyInstanceUID = "1.2.8"

    write_series(tmp_path / "in", slices=8, edit=edit)
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert len(checked(converted, tmp_path / "out")) == 2
    assert {document["study_uid"] for document in converted.written} == {STUDY_UID, "1.2.8"}
    strict = convert(path=tmp_path / "in", out=tmp_path / "strict", policy="strict")
    assert (strict.written, [error.code for error in strict.refused]) == ((), ["missing_attribute"] * 2)


def test_projections_of_one_number_give_two_files(tmp_path: Path) -> None:
    def flat(dataset: Dataset, _k: int) -> None:
        dataset.InstanceNumber = 1
        del dataset.ImagePositionPatient, dataset.ImageOrientationPatient

    parts(tmp_path / "in", flat, flat, slices=1, modality="MG", rescale="none")
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert len(checked(converted, tmp_path / "out")) == 2


def test_converting_again_gives_the_same_files(tmp_path: Path) -> None:
    parts(tmp_path / "in", *TWINS["long_frames_of_reference"])
    hashes = []
    for _ in range(2):
        checked(convert(path=tmp_path / "in", out=tmp_path / "out"), tmp_path / "out")
        files = sorted((tmp_path / "out").iterdir())
        hashes.append([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])
    assert hashes[0] == hashes[1]


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("name", ["one.nii.gz", "one.nii", "ONE.NII.GZ", "new/folder/one.nii.gz"])
def test_one_volume_goes_where_its_name_says(tmp_path: Path, name: str) -> None:
    phantom = write_series(tmp_path / "in", orientation=ORIENTATIONS["oblique"])
    out = tmp_path / name
    converted = convert(path=tmp_path / "in", out=out)
    (document,) = converted.written
    assert (document["file"], converted.refused) == (str(out), ())
    volume = read_nifti(out)
    assert phantom.worst_error(volume) <= phantom.tolerance
    np.testing.assert_array_equal(volume.array, load_series(tmp_path / "in").array)
    (beside,) = [path for path in out.parent.iterdir() if path.suffix == ".json"]
    assert beside.name == out.name.split(".")[0] + ".json"


def test_the_document_says_what_was_done_and_what_was_left_out(tmp_path: Path) -> None:
    phantom = write_series(tmp_path / "in", modality="CT", shift=lambda k: (0, 0.55 * k, 0), rows=8)
    write_series(tmp_path / "in", series=2, slices=1, edit=of_one_series(_values(ImageType=["ORIGINAL", "LOCALIZER"])),
                 modality="CT")  # fmt: skip
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    checked(converted, tmp_path / "out")
    (document,) = converted.written
    told = {defect["code"]: defect["detail"] for defect in document["defects"]}
    assert set(told) == {"gantry_tilt", "beyond_acquired", "left_out"}
    assert told["left_out"].startswith("localizer: 1 x")
    assert [error.code for error in converted.refused] == ["localizer"]
    assert (document["resampled"], document["unit"], document["policy"]) == (True, "HU", "repair")
    assert tuple(source["sop_instance_uid"] for source in document["sources"]) == phantom.uids
    assert {source["frame"] for source in document["sources"]} == {1}
    assert (document["series_uid"], document["modality"]) == (SERIES_UID, "CT")
    strict = convert(path=tmp_path / "in", out=tmp_path / "strict", policy="strict")
    assert (strict.written, {error.code for error in strict.refused}) == ((), {"localizer", "gantry_tilt"})


def test_a_lost_file_is_told_in_the_document_and_keeps_strict_from_writing(tmp_path: Path) -> None:
    """Nobody knows whether the file was the last slice."""
    phantom = write_series(tmp_path / "in", slices=6)
    phantom.paths[5].write_bytes(phantom.paths[5].read_bytes()[:300])
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    (document,) = converted.written
    assert document["shape"] == (7, 5, 5)
    assert [(d["code"], d["detail"].split(":")[0]) for d in document["defects"]] == [("left_out", "unreadable_dicom")]
    assert [error.code for error in converted.refused] == ["unreadable_dicom"]
    strict = convert(path=tmp_path / "in", out=tmp_path / "strict", policy="strict")
    assert (strict.written, [error.code for error in strict.refused]) == ((), ["unreadable_dicom"])
    assert not (tmp_path / "strict").exists()


def test_no_patient_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "in", patient_id="SECRET-1", edit=_values(PatientName="Doe^Jane"))
    convert(path=tmp_path / "in", out=tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes() if path.suffix == ".json" else gzip.decompress(path.read_bytes())
        assert b"SECRET-1" not in content and b"Doe" not in content and b"Doe" not in path.name.encode()


def test_one_bad_series_does_not_keep_the_others(tmp_path: Path) -> None:
    write_series(tmp_path / "in", series=1)
    bad = write_series(tmp_path / "in", series=2)
    bad.paths[0].write_bytes(bad.paths[0].read_bytes()[:-20])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert [document["series_uid"] for document in converted.written] == [SERIES_UID]
    assert {error.code for error in converted.refused} == {"not_dicom", "truncated_pixels"}
    checked(converted, tmp_path / "out")


# -------------------------------------------------------------------------------------------------- what is not written


def test_several_volumes_to_one_file_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    for number in (1, 2):
        write_series(tmp_path / "in", series=number)
    with pytest.raises(SeveralSeries) as caught:
        convert(path=tmp_path / "in", out=tmp_path / "one.nii.gz")
    assert f"{STUDY_UID}.1" in caught.value.seen and f"{STUDY_UID}.2" in caught.value.seen
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("chosen", [f"{STUDY_UID}.2", "98.1.2", "...98.1.2"])
def test_a_series_is_chosen_by_its_uid_or_the_end_of_it(tmp_path: Path, chosen: str) -> None:
    for number in (1, 2, 3):
        write_series(tmp_path / "in", series=number)
    converted = convert(path=tmp_path / "in", out=tmp_path / "one.nii.gz", series=chosen)
    assert [document["series_uid"] for document in converted.written] == [f"{STUDY_UID}.2"]


def test_an_end_that_several_series_have_chooses_the_one_that_is_it_or_none(tmp_path: Path) -> None:
    write_series(tmp_path / "in", edit=_values(SeriesInstanceUID="1.2.33"))
    write_series(tmp_path / "in", series=2, edit=_values(SeriesInstanceUID="9.1.2.33"))
    converted = convert(path=tmp_path / "in", out=tmp_path / "out", series="1.2.33")
    assert [document["series_uid"] for document in converted.written] == ["1.2.33"]
    for chosen in ("33", "", "1.2.34", "..."):
        with pytest.raises(UnknownName):
            convert(path=tmp_path / "in", out=tmp_path / "none", series=chosen)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("content", ['{"EchoTime": 0.003}', "[1]", "not JSON", '{"software": "dcm2niix 1.0"}'])
def test_a_json_of_another_program_is_not_overwritten(tmp_path: Path, content: str) -> None:
    write_series(tmp_path / "in")
    (tmp_path / "one.json").write_text(content)
    converted = convert(path=tmp_path / "in", out=tmp_path / "one.nii.gz")
    assert (converted.written, [error.code for error in converted.refused]) == ((), ["output_not_writable"])
    assert (tmp_path / "one.json").read_text() == content
    assert not (tmp_path / "one.nii.gz").exists()


def test_what_convert_wrote_is_overwritten(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    for _ in range(2):
        assert len(convert(path=tmp_path / "in", out=tmp_path / "one.nii.gz").written) == 1


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    (tmp_path / "out").write_text("a file")
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert (converted.written, [error.code for error in converted.refused]) == ((), ["output_not_writable"])


def test_nifti_below_the_path_is_told(tmp_path: Path, image: Path) -> None:
    write_series(tmp_path / "in")
    shutil.copy(image, tmp_path / "in")
    converted = convert(path=tmp_path / "in", out=tmp_path / "out")
    assert len(converted.written) == 1
    assert [(error.code, error.seen) for error in converted.refused] == [("not_dicom", "1 NIfTI files")]


def test_our_own_results_within_the_path_are_no_input(tmp_path: Path) -> None:
    write_series(tmp_path)
    for _ in range(2):
        converted = convert(path=tmp_path, out=tmp_path / "out")
        assert (len(converted.written), converted.refused) == (1, ())


def test_a_misspelt_policy_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "in")
    with pytest.raises(UnknownName):
        convert(path=tmp_path / "in", out=tmp_path / "out", policy="Strict")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


# ----------------------------------------------------------------------------------------------------- the command line


def test_the_exit_status_says_whether_all_was_written(tmp_path: Path, invoke: Invoke) -> None:
    write_series(tmp_path / "in")
    done = invoke("convert", tmp_path / "in", tmp_path / "out")
    assert (done.exit_code, f"{SERIES_UID}.nii.gz: 7 x 5 x 4" in done.output) == (0, True)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    done = invoke("convert", tmp_path / "in", tmp_path / "out", "--json")
    told = json.loads(done.stdout)
    assert (done.exit_code, told["exit_status"], len(told["written"])) == (3, 3, 1)
    assert [refusal["code"] for refusal in told["refused"]] == ["not_dicom"]


def test_a_localizer_that_was_set_aside_is_no_failure(tmp_path: Path, invoke: Invoke) -> None:
    write_series(tmp_path / "in")
    write_series(tmp_path / "in", series=2, slices=1, edit=_values(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    done = invoke("convert", tmp_path / "in", tmp_path / "out")
    assert (done.exit_code, "localizer" in done.output) == (0, True)


def test_wrong_usage_has_a_status_of_its_own(tmp_path: Path, invoke: Invoke) -> None:
    for number in (1, 2):
        write_series(tmp_path / "in", series=number)
    assert invoke("convert", tmp_path / "in", tmp_path / "out", "--policy", "Strict").exit_code == 2
    assert invoke("convert", tmp_path / "in", tmp_path / "out", "--series", "9.9").exit_code == 2
    assert invoke("convert", tmp_path / "nowhere", tmp_path / "out").exit_code == 3
    assert invoke("convert", tmp_path / "in", tmp_path / "one.nii.gz").exit_code == 2
    assert not (tmp_path / "out").exists() and not (tmp_path / "one.nii.gz").exists()
