"""The Decathlon's and both nnU-Nets' dataset.json give the cases that lie there, or refuse what does not add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from imaging.dataset_check import survey
from imaging.dataset_json import DatasetJson, list_files, read_dataset_json
from imaging.errors import ManifestInvalid
from imaging.manifest import read_manifest
from imaging.samples import load_case

NNUNET_2 = {
    "channel_names": {"0": "T1", "1": "FLAIR"},
    "labels": {"background": 0, "edema": 1, "core": 2},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Three cases of two channels as nnU-Net lays them out; channel k of case n begins with the value 10 n + k."""

    def call(told: object = NNUNET_2, *, values: tuple[int, ...] = (1, 2), **changes: object) -> Path:
        for folder in ("imagesTr", "labelsTr"):
            (tmp_path / folder).mkdir(exist_ok=True)
        ramp = np.linspace(0, 0.5, 8 * 8 * 8).reshape(8, 8, 8)
        for number in range(3):
            for channel in range(2):
                put(tmp_path / "imagesTr" / f"brain{number}_{channel:04d}.nii.gz", ramp + 10 * number + channel)
            mask = np.zeros((8, 8, 8))
            for value in values:
                mask[value : value + 1, 2:6, 2:6] = value
            put(tmp_path / "labelsTr" / f"brain{number}.nii.gz", mask)
        content = {**told, **changes} if isinstance(told, dict) else told
        (tmp_path / "dataset.json").write_text(json.dumps(content))
        return tmp_path

    return call


def put(path: Path, voxels: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), np.eye(4)), path)


def read(folder: Path) -> DatasetJson:
    return read_dataset_json(folder / "dataset.json")


def refusal(folder: Path) -> ManifestInvalid:
    with pytest.raises(ManifestInvalid) as caught:
        read(folder)
        list_files(folder / "dataset.json")
    return caught.value


# ---------------------------------------------------------------------------------------------------------- nnU-Net 2


def test_second_nnunet_gives_its_cases_with_their_channels(make: Make) -> None:
    folder = make()
    cases = read_manifest(folder)
    assert [case.name for case in cases] == ["brain0", "brain1", "brain2"]
    assert [image.name for image in cases[1].images] == ["brain1_0000.nii.gz", "brain1_0001.nii.gz"]
    image, mask = load_case(cases[1], values=[1, 2], channels=2)
    assert image.array[:, 0, 0, 0].tolist() == [10, 11]
    assert np.unique(mask.array).tolist() == [0, 1, 2]


def test_second_nnunet_is_looked_through(make: Make) -> None:
    found = survey(make())
    assert (found.problems, found.labels) == ((), ("edema", "core"))
    assert found.description.channels == ("T1", "FLAIR") and found.description.modality == "MR"


def test_channels_are_named_by_their_numbers_in_any_order(make: Make) -> None:
    """The file _0000 is the channel that is called 0, wherever that stands."""
    assert read(make(channel_names={"1": "CT", "0": "PET", "10": "T1", "2": "ADC"})).channels == (
        "PET", "CT", "ADC", "T1"
    )  # fmt: skip


def test_cases_may_be_named_one_by_one(make: Make) -> None:
    images = ["imagesTr/brain2_0000.nii.gz", "imagesTr/brain0_0001.nii.gz"]
    folder = make(dataset={"right": {"images": images, "label": "labelsTr/brain1.nii.gz"}}, numTraining=1)
    (case,) = read_manifest(folder)
    assert case.name == "right" and case.label == folder / "labelsTr" / "brain1.nii.gz"
    assert [image.name for image in case.images] == ["brain2_0000.nii.gz", "brain0_0001.nii.gz"]


def test_regions_and_what_is_ignored_are_told_apart(make: Make) -> None:
    labels = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    told = read(make(labels=labels))
    assert told.regions == {"whole": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    assert told.labels == {1: "label 1", 2: "label 2", 3: "enhancing"}
    assert told.ignore == 4


def test_ignored_voxels_are_allowed_and_are_no_structure(make: Make) -> None:
    folder = make(labels={"background": 0, "edema": 1, "core": 2, "ignore": 3}, values=(1, 2, 3))
    found = survey(folder)
    assert found.problems == ()
    assert [set(case.voxels) for case in found.cases] == [{1, 2}] * 3
    (folder / "dataset.json").write_text(json.dumps(NNUNET_2))
    assert [problem.code for problem in survey(folder).problems] == ["label_mismatch"] * 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"channel_names": {"0": "T1"}}, "channel 0001 of case 'brain0'"),
        ({"channel_names": {}}, "no channel_names"),
        ({"numTraining": 4}, "3 cases"),
        ({"file_ending": ".nrrd"}, "file_ending '.nrrd'"),
        ({"file_ending": None}, "file_ending 'None'"),
        ({"labels": {"core": "many"}}, "cannot be read"),
        ({"labels": {"core": [1, "x"]}}, "cannot be read"),
        ({"dataset": {"a": {"images": ["imagesTr/brain0_0000.nii.gz"], "label": "l"}}, "numTraining": 1}, "1 images"),
        ({"dataset": {"a": {"label": "l"}}}, "KeyError"),
    ],
)
def test_what_does_not_add_up_is_refused(make: Make, changes: dict[str, object], told: str) -> None:
    assert told in refusal(make(**changes)).seen


def test_image_without_a_channel_in_its_name_is_refused(make: Make) -> None:
    folder = make()
    put(folder / "imagesTr" / "brain7.nii.gz", np.zeros((8, 8, 8)))
    assert "'brain7.nii.gz'" in refusal(folder).seen


@pytest.mark.parametrize("gone", ["imagesTr/brain1_0001.nii.gz", "labelsTr/brain1.nii.gz"])
def test_missing_file_is_named(make: Make, gone: str) -> None:
    folder = make()
    (folder / gone).unlink()
    with pytest.raises(ManifestInvalid, match=f"brain1.*{Path(gone).name}.*does not exist"):
        read_manifest(folder)
    assert [problem.code for problem in survey(folder).problems] == ["missing_file"]


def test_what_systems_leave_behind_is_no_case(make: Make) -> None:
    folder = make()
    (folder / "imagesTr" / "._brain0_0000.nii.gz").write_bytes(b"")
    assert len(read_manifest(folder)) == 3


# -------------------------------------------------------------------------------------- nnU-Net 1 and the Decathlon


def first(**changes: object) -> dict[str, object]:
    rows = [{"image": f"./imagesTr/brain{n}.nii.gz", "label": f"./labelsTr/brain{n}.nii.gz"} for n in range(3)]
    labels = {"0": "background", "1": "edema", "2": "core"}
    return {"modality": {"0": "T1", "1": "FLAIR"}, "labels": labels, "training": rows, **changes}


def test_first_nnunet_lists_a_case_by_a_file_that_is_not_there(make: Make) -> None:
    cases = read_manifest(make(first()))
    assert [image.name for image in cases[2].images] == ["brain2_0000.nii.gz", "brain2_0001.nii.gz"]
    assert cases[2].name == "brain2"


def test_first_nnunet_with_a_channel_too_many_is_refused(make: Make) -> None:
    assert "channel 0001 of case 'brain0'" in refusal(make(first(modality={"0": "T1"}))).seen


def test_decathlon_image_of_four_dimensions_holds_its_channels(make: Make) -> None:
    folder = make(first())
    for number in range(3):
        put(folder / "imagesTr" / f"brain{number}.nii.gz", np.random.default_rng(number).normal(size=(8, 8, 8, 2)))
    cases = read_manifest(folder)
    assert [image.name for image in cases[0].images] == ["brain0.nii.gz"]
    assert load_case(cases[0], values=[1, 2], channels=2)[0].array.shape == (2, 8, 8, 8)


def test_decathlon_in_the_tests_is_read(data: Path) -> None:
    told = read(data / "hippocampus")
    assert (told.labels, told.regions, told.ignore) == ({1: "Anterior", 2: "Posterior"}, {}, None)
    assert (told.name, told.channels) == ("Hippocampus", ("MRI",))
    assert len(list_files(data / "hippocampus" / "dataset.json")) == 8
