"""Everything that is wrong with a data set is told at once, and a sound one is described by its own figures."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from imaging.dataset_check import Survey, survey
from imaging.description import describe
from imaging.errors import ManifestInvalid

Array = np.ndarray
RAS, LPS = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, -1, 1, 1])


class Broken:
    """A synthetic data set with a dataset.json, to break in one way or many."""

    def __init__(self, folder: Path, cases: int = 4) -> None:
        self.folder = folder
        generator = np.random.default_rng(0)
        self.rows: list[dict[str, str]] = []
        for number in range(cases):
            mask = np.zeros((10, 12, 8))
            mask[2:5, 3:6, 2:6], mask[5:8, 3:6, 2:6] = 1, 2
            self.put(f"c{number}", generator.normal(100, 20, mask.shape), mask)
            self.rows.append({"image": f"c{number}.nii.gz", "label": f"c{number}_mask.nii.gz"})

    def put(self, name: str, image: Array | None = None, mask: Array | None = None, affine: Array = RAS) -> None:
        """Write an image, a mask or both."""
        for suffix, array in (("", image), ("_mask", mask)):
            if array is not None:
                path = self.folder / f"{name}{suffix}.nii.gz"
                nib.save(nib.Nifti1Image(array.astype(np.float32), affine), path)

    def mask(self, name: str) -> Array:
        return np.asarray(nib.load(self.folder / f"{name}_mask.nii.gz").dataobj)

    def image(self, name: str) -> Array:
        return np.asarray(nib.load(self.folder / f"{name}.nii.gz").dataobj)

    def survey(self, **told: object) -> Survey:
        content = {"labels": {"0": "background", "1": "head", "2": "tail"}, "training": self.rows, **told}
        (self.folder / "dataset.json").write_text(json.dumps(content))
        return survey(self.folder)

    def csv(self, *rows: str) -> Survey:
        (self.folder / "cases.csv").write_text("\n".join(rows))
        return survey(self.folder / "cases.csv")


@pytest.fixture
def broken(tmp_path: Path) -> Broken:
    return Broken(tmp_path)


def codes(found: Survey) -> list[str]:
    return [problem.code for problem in found.problems]


# --------------------------------------------------------------------------------------------------------- sound ones


def test_real_data_set_is_sound_and_described(data: Path) -> None:
    found = survey(data / "hippocampus")
    assert (found.problems, found.notes) == ((), ())
    assert (found.listed, found.labels) == (8, ("Anterior", "Posterior"))
    assert (found.description.name, found.description.modality) == ("Hippocampus", "MR")
    told = found.as_dict()
    assert told["cases_with"] == {"Anterior": 8, "Posterior": 8}
    assert told["spacing_mm"] == {key: [1, 1, 1] for key in ("least", "median", "greatest")}
    shapes = [nib.load(path).shape for path in sorted((data / "hippocampus" / "imagesTr").glob("*.nii.gz"))]
    assert told["size"]["median"] == np.median(shapes, axis=0).tolist()
    json.dumps(told)


def test_facts_of_a_case_are_those_of_its_voxels(data: Path) -> None:
    facts = {case.name: case for case in survey(data / "hippocampus").cases}["hippocampus_001"]
    image, mask = (
        np.asarray(nib.load(data / "hippocampus" / kind / "hippocampus_001.nii.gz").dataobj)
        for kind in ("imagesTr", "labelsTr")
    )
    assert facts.voxels == {1: int((mask == 1).sum()), 2: int((mask == 2).sum())}
    assert (*facts.mean, *facts.deviation) == pytest.approx((image.mean(), image.std()), rel=1e-5)
    assert sorted(facts.foreground_CN[0]) == pytest.approx(sorted(image[mask > 0]))


def test_sizes_are_told_along_the_patient_axes(broken: Broken) -> None:
    turned = np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    broken.put("c0", broken.image("c0"), broken.mask("c0"), turned)
    facts = broken.survey().cases[0]
    assert (facts.size, facts.spacing_mm, facts.orientation) == ((8, 10, 12), (2, 1, 3), "ASR")


def test_foreground_is_a_bounded_repeatable_sample(broken: Broken) -> None:
    mask = np.ones((30, 30, 30))
    broken.put("c0", np.random.default_rng(1).normal(size=mask.shape), mask)
    first, second = broken.survey().cases[0].foreground_CN[0], broken.survey().cases[0].foreground_CN[0]
    assert len(first) == 10_000
    assert np.array_equal(first, second)


def test_csv_without_names_takes_the_labels_that_the_masks_hold(broken: Broken) -> None:
    found = broken.csv("image,label", "c0.nii.gz,c0_mask.nii.gz", "c1.nii.gz,c1_mask.nii.gz")
    assert (found.problems, found.labels, found.description.name) == ((), ("label 1", "label 2"), "cases")


@pytest.mark.parametrize(
    ("told", "modality", "labels"),
    [
        ({"modality": {"0": "MRI"}, "labels": {"0": "b", "1": "x"}}, "MR", {1: "x"}),
        ({"channel_names": {"0": "CT"}, "labels": {"background": 0, "y": 2, "x": 1}}, "CT", {1: "x", 2: "y"}),
        ({"modality": {"0": "ultraviolet"}}, "", None),
        ({}, "", None),
    ],
    ids=["decathlon", "nnunet", "unknown", "silent"],
)
def test_what_a_data_set_says_of_itself(tmp_path: Path, told: dict[str, object], modality: str, labels: object) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    found = describe(tmp_path)
    assert (found.modality, found.labels, found.name) == (modality, labels, tmp_path.name)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"labels": [1]}', '{"labels": {"x": [1, null]}}', '{"labels": {"a": "b"}}']
)
def test_description_that_means_nothing_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ManifestInvalid):
        describe(tmp_path)


# ------------------------------------------------------------------------------------------------------ one thing wrong


def lose(broken: Broken) -> None:
    (broken.folder / "c1_mask.nii.gz").unlink()


def strange_label(broken: Broken) -> None:
    broken.put("c1", mask=np.where(broken.mask("c1") == 2, 5, 0))


def fraction(broken: Broken) -> None:
    broken.put("c1", mask=broken.mask("c1") * 0.5)


def crop(broken: Broken) -> None:
    broken.put("c1", mask=broken.mask("c1")[1:])


def turn(broken: Broken) -> None:
    broken.put("c1", mask=broken.mask("c1"), affine=LPS)


def nan(broken: Broken) -> None:
    broken.put("c1", np.where(broken.image("c1") > 120, np.nan, broken.image("c1")))


def nan_mask(broken: Broken) -> None:
    broken.put("c1", mask=np.where(broken.mask("c1") == 1, np.nan, 0))


def constant(broken: Broken) -> None:
    broken.put("c1", np.full((10, 12, 8), 7))


def copy(broken: Broken) -> None:
    """The same voxels, packed otherwise, so that the files differ."""
    content = gzip.decompress((broken.folder / "c0.nii.gz").read_bytes())
    (broken.folder / "c1.nii.gz").write_bytes(gzip.compress(content, 1))


def cut(broken: Broken) -> None:
    path = broken.folder / "c1.nii.gz"
    path.write_bytes(path.read_bytes()[:-200])


def repeat(broken: Broken) -> None:
    broken.rows.append(broken.rows[0])


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (lose, ["missing_file"]), (strange_label, ["label_mismatch"]), (fraction, ["label_mismatch"]),
        (crop, ["label_mismatch"]), (turn, ["label_mismatch"]), (nan, ["not_finite"]), (nan_mask, ["not_finite"]),
        (constant, ["constant_image"]), (copy, ["duplicate_image"]), (cut, ["unreadable_nifti"]),
        (repeat, ["manifest_invalid", "manifest_invalid"]),
    ],
)  # fmt: skip
def test_each_fault_is_told(broken: Broken, how: Callable[[Broken], None], expected: list[str]) -> None:
    how(broken)
    found = broken.survey()
    assert codes(found) == expected
    assert all("c1" in str(problem) or "c0" in str(problem) for problem in found.problems)


def test_structure_that_no_case_has_is_told(broken: Broken) -> None:
    found = broken.survey(labels={"0": "background", "1": "head", "2": "tail", "3": "fornix"})
    assert codes(found) == ["empty_class"]
    assert "'fornix' (value 3)" in found.problems[0].seen


def test_masks_without_any_structure_are_told(broken: Broken) -> None:
    for name in ("c0", "c1"):
        broken.put(name, mask=np.zeros((10, 12, 8)))
    found = broken.csv("image,label", "c0.nii.gz,c0_mask.nii.gz", "c1.nii.gz,c1_mask.nii.gz")
    assert codes(found) == ["empty_class"]
    assert [note.code for note in found.notes] == ["empty_mask"]


@pytest.mark.parametrize("values", [(1, 255), (2, 3)])
def test_values_with_a_gap_and_no_names_are_one_problem(broken: Broken, values: tuple[int, int]) -> None:
    for name in ("c0", "c1"):
        broken.put(name, mask=np.array([0, *values])[broken.mask(name).astype(int)])
    found = broken.csv("image,label", "c0.nii.gz,c0_mask.nii.gz", "c1.nii.gz,c1_mask.nii.gz")
    assert codes(found) == ["label_mismatch"]
    assert str(values[1]) in found.problems[0].seen


def test_names_with_a_gap_are_a_problem(broken: Broken) -> None:
    found = broken.survey(labels={"0": "background", "1": "head", "3": "tail"})
    assert "label_mismatch" in codes(found)


# ---------------------------------------------------------------------------------------------------- told, not refused


def test_patient_in_several_rows_is_told_and_not_named(broken: Broken) -> None:
    rows = [f"c{n}.nii.gz,c{n}_mask.nii.gz,{'Doe^John' if n < 3 else 'x'}" for n in range(4)]
    found = broken.csv("image,label,patient", *rows)
    assert found.problems == ()
    assert [note.code for note in found.notes] == ["patient_in_several_rows"]
    assert "1 of 2 patients" in found.notes[0].detail and "at most 3" in found.notes[0].detail
    assert "Doe" not in json.dumps(found.as_dict())


def test_same_voxels_of_one_patient_are_a_note(broken: Broken) -> None:
    copy(broken)
    found = broken.csv("image,label,patient", "c0.nii.gz,c0_mask.nii.gz,p", "c1.nii.gz,c1_mask.nii.gz,p",
                       "c2.nii.gz,c2_mask.nii.gz,q")  # fmt: skip
    assert found.problems == ()
    assert "same_image_of_one_patient" in [note.code for note in found.notes]


def test_files_that_are_turned_differently_are_a_note(broken: Broken) -> None:
    broken.put("c0", broken.image("c0"), broken.mask("c0"), LPS)
    found = broken.survey()
    assert found.problems == ()
    assert [note.code for note in found.notes] == ["several_orientations"]


# ---------------------------------------------------------------------------------------------------------- all at once


def test_all_problems_are_told_at_once_and_the_rest_is_described(broken: Broken) -> None:
    constant(broken)
    (broken.folder / "c2.nii.gz").unlink()
    broken.put("c2", mask=np.where(broken.mask("c2") == 2, np.nan, 0))
    broken.put("c3", mask=broken.mask("c3")[1:] + 4)
    found = broken.survey()
    assert sorted(codes(found)) == sorted(
        ["constant_image", "missing_file", "not_finite", "label_mismatch", "label_mismatch"]
    )
    assert [case.name for case in found.cases] == ["c0"]


def test_nothing_readable_is_no_crash(broken: Broken) -> None:
    for file in broken.folder.glob("*.nii.gz"):
        file.unlink()
    found = broken.survey()
    assert codes(found) == ["missing_file"] * 8
    assert found.as_dict()["size"] is None


def test_cases_are_counted_as_they_are_read(data: Path) -> None:
    told: list[tuple[str, int, int]] = []
    survey(data / "hippocampus", on_case=lambda *progress: told.append(progress))
    assert [number for _, number, _ in told] == list(range(8))
    assert {total for *_, total in told} == {8}


@pytest.mark.parametrize("content", ['{"training": []}', '{"training": 3}', ""])
def test_no_list_of_cases_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(ManifestInvalid):
        survey(tmp_path)


def test_copy_of_real_data_under_another_name_is_found(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data / "hippocampus", tmp_path / "set")
    for kind in ("imagesTr", "labelsTr"):
        shutil.copy(folder / kind / "hippocampus_001.nii.gz", folder / kind / "hippocampus_999.nii.gz")
    content = json.loads((folder / "dataset.json").read_text())
    content["training"].append({"image": "imagesTr/hippocampus_999.nii.gz", "label": "labelsTr/hippocampus_999.nii.gz"})
    (folder / "dataset.json").write_text(json.dumps(content))
    (problem,) = survey(folder).problems
    assert problem.code == "duplicate_image"
    assert "hippocampus_001" in problem.seen and "hippocampus_999" in problem.seen


def test_data_set_of_classes_is_refused_as_a_whole(broken: Broken) -> None:
    with pytest.raises(ManifestInvalid, match="no label is a mask, the first is 'normal'"):
        broken.csv("image,label", "c0.nii.gz,normal", "c1.nii.gz,pneumonia")
