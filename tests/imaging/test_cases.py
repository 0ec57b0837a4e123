"""Classified cases: a row is taken as it says, or refused by name; nobody is on two sides; each side has each class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from classified import picture, toy_config, write_pictures
from PIL import Image

from imaging.cases import ClassifiedCase, list_classified, load_picture, read_cases, split_cases
from imaging.config import ClassifyConfig
from imaging.errors import DuplicateCases, ManifestInvalid, TooFewCases
from imaging.manifest import cases_of
from imaging.samples import without_copies

Manifest = Callable[..., Path]


@pytest.fixture
def config(tmp_path: Path) -> ClassifyConfig:
    return toy_config(tmp_path)


@pytest.fixture
def sigmoid(tmp_path: Path) -> ClassifyConfig:
    return toy_config(tmp_path, "output=sigmoid")


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """Write a CSV beside three pictures."""

    def call(*rows: str) -> Path:
        for name in "abc":
            Image.fromarray(picture(np.random.default_rng(ord(name)), odd=False)).save(tmp_path / f"{name}.png")
        (tmp_path / "cases.csv").write_text("\n".join(rows))
        return tmp_path / "cases.csv"

    return call


def write_npz(path: Path, **changes: object) -> Path:
    generator = np.random.default_rng(0)
    arrays: dict[str, object] = {}
    for part, count in (("train", 12), ("val", 6)):
        labels = np.arange(count, dtype=np.uint8)[:, None] % 2
        arrays[f"{part}_images"] = np.stack([picture(generator, odd=bool(label[0])) for label in labels])
        arrays[f"{part}_labels"] = labels
    arrays |= changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


# --------------------------------------------------------------------------------------------------------------- a CSV


def test_row_is_taken_as_it_says(manifest: Manifest, config: ClassifyConfig) -> None:
    path = manifest("image,label,case,patient,split,sex,age", "a.png,odd,one,p1,val,F,40", "b.png,plain,two,p2,test,,")
    one, two = read_cases(path, config)
    assert (one.name, one.classes, one.patient, one.side) == ("one", ("odd",), "p1", "validation")
    assert one.facts == {"sex": "F", "age": "40"}
    assert two.facts == {"sex": "", "age": ""}


def test_case_and_patient_default_to_the_picture(manifest: Manifest, config: ClassifyConfig) -> None:
    (case,) = read_cases(manifest("image,label", "a.png,odd"), config)
    assert (case.name, case.patient, case.side) == ("a", "a", "")


def test_several_classes_and_none_where_each_is_there_or_not(manifest: Manifest, sigmoid: ClassifyConfig) -> None:
    cases = read_cases(manifest("image,label", "a.png,odd | plain", "b.png,", "c.png,odd"), sigmoid)
    assert [case.classes for case in cases] == [("plain", "odd"), (), ("odd",)]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (("image,label", "a.png,weird"), "'weird'.*known: plain, odd"),
        (("image,label", "a.png,"), "0 classes"),
        (("image,label", "a.png,odd|plain"), "2 classes"),
        (("image,label", "missing.png,odd"), "does not exist"),
        (("image,label", ",odd"), "row 2 names no image"),
        (("image,label", "a.png,odd", "a.png,odd"), "more than once"),
        (("image,label,case", "a.png,odd,x", "b.png,odd,x"), "'x' is there more than once"),
        (("image,label,split", "a.png,odd,training"), "'training'"),
        (("image,label,subject_id", "a.png,odd,1"), "'patient'"),
        (("image,label,patient", "a.png,odd,1", "b.png,odd,"), "without a patient"),
        (("image,class", "a.png,odd"), "no column .label."),
        (("picture,label", "a.png,odd"), "no column .image."),
        (("image,label",), "no case"),
    ],
)
def test_bad_manifest_is_refused(manifest: Manifest, config: ClassifyConfig, rows: tuple[str, ...], match: str) -> None:
    with pytest.raises(ManifestInvalid, match=match):
        read_cases(manifest(*rows), config)


def test_listing_tells_everything_that_is_wrong_with_the_list(manifest: Manifest, config: ClassifyConfig) -> None:
    path = manifest(
        "image,label,split,subject", "a.png,odd,train,1", ",odd,train,1", "b.png,weird,dev,2", "gone.png,,val,3"
    )
    listing = list_classified(path, config)
    assert [problem.seen for problem in listing.problems] == [
        "a column 'subject' and none called 'patient'",
        "row 3 names no image",
        "row 4 has the split 'dev'",
        "the class 'weird'",
        "0 classes",
    ]
    assert [(case.name, case.classes) for case in listing.cases] == [("a", ("odd",)), ("b", ("weird",)), ("gone", ())]


def test_listing_without_a_config_takes_the_classes_as_they_are_told(manifest: Manifest, tmp_path: Path) -> None:
    listing = list_classified(manifest("image,label", "a.png,odd|weird", "b.png,", "c.png,odd|odd"))
    assert [case.classes for case in listing.cases] == [("odd", "weird"), (), ("odd", "odd")]
    assert [problem.seen for problem in listing.problems] == ["a class twice in 'odd|odd'"]
    single = list_classified(write_npz(tmp_path / "a.npz", train_labels=np.array([[0], [7], [1]] * 4, dtype=np.uint8)))
    assert {case.classes for case in single.cases if case.side == "train"} == {("0",), ("7",), ("1",)}
    assert single.problems == ()


def test_class_twice_in_a_cell_is_refused(manifest: Manifest, sigmoid: ClassifyConfig) -> None:
    with pytest.raises(ManifestInvalid, match="twice"):
        read_cases(manifest("image,label", "a.png,odd|odd"), sigmoid)


def test_folder_is_no_manifest(tmp_path: Path, config: ClassifyConfig) -> None:
    with pytest.raises(ManifestInvalid, match="no file"):
        read_cases(tmp_path, config)


# ------------------------------------------------------------------------------------------------------ a MedMNIST file


def test_medmnist_file_is_a_manifest(tmp_path: Path, config: ClassifyConfig) -> None:
    path = write_npz(tmp_path / "toy.npz")
    cases = read_cases(path, config)
    assert len(cases) == 18
    assert {case.side for case in cases} == {"train", "validation"}
    assert cases[1].classes == ("odd",)
    with np.load(path) as arrays:
        volume = load_picture(cases[1])
        assert np.array_equal(volume.array[0, :, :, 0], arrays["train_images"][1].T)
        assert "train_00001" in volume.facts.subject


def test_medmnist_labels_of_several_classes(tmp_path: Path, sigmoid: ClassifyConfig) -> None:
    labels = np.array([[0, 0], [1, 0], [1, 1]] * 4, dtype=np.uint8)
    cases = read_cases(write_npz(tmp_path / "toy.npz", train_labels=labels, val_images=None, val_labels=None), sigmoid)
    assert [case.classes for case in cases[:3]] == [(), ("plain",), ("plain", "odd")]


@pytest.mark.parametrize(
    "changes",
    [
        {"train_labels": np.full((12, 1), 2, dtype=np.uint8)},
        {"train_labels": np.zeros((11, 1), dtype=np.uint8)},
        {"train_labels": np.zeros(12, dtype=np.uint8)},
        {"train_labels": None},
        {"train_images": np.zeros((12, 8, 8, 3), dtype=np.uint8)},
        {"train_images": np.zeros((12, 8, 8), dtype=np.float32)},
        {"train_labels": np.array([[object()]] * 12, dtype=object)},
    ],
    ids=["class", "count", "flat", "missing", "colour", "float", "pickle"],
)
def test_bad_medmnist_file_is_refused(tmp_path: Path, config: ClassifyConfig, changes: dict[str, object]) -> None:
    with pytest.raises(ManifestInvalid):
        read_cases(write_npz(tmp_path / "toy.npz", **changes), config)


def test_file_that_is_no_npz_is_refused(tmp_path: Path, config: ClassifyConfig) -> None:
    (tmp_path / "toy.npz").write_bytes(b"not a zip")
    with pytest.raises(ManifestInvalid):
        read_cases(tmp_path / "toy.npz", config)


# --------------------------------------------------------------------------------------------------------------- splits


def test_no_patient_is_on_two_sides_and_no_case_is_lost(tmp_path: Path) -> None:
    config = toy_config(tmp_path)
    cases = read_cases(write_pictures(tmp_path), config)
    validated: list[str] = []
    for fold in (0, 1):
        split = split_cases(cases, toy_config(tmp_path, f"data.fold={fold}"))
        sides = cases_of(split, cases)
        assert sum(map(len, sides.values())) == len(cases)
        assert len({case.patient for case in sides["test"]}) == 6
        for members in sides.values():
            odd = sum("odd" in case.classes for case in members)
            assert abs(odd - len(members) / 2) <= 2, "each class has its share on each side"
        validated += split.validation
    assert len(validated) == len(set(validated)) == 36


def test_given_split_is_honoured_and_its_test_part_comes_from_its_training_part(tmp_path: Path) -> None:
    config = toy_config(tmp_path, "data.split=given")
    cases = read_cases(write_npz(tmp_path / "toy.npz"), config)
    split = split_cases(cases, config)
    assert len(split.validation) == 6
    assert all(name.startswith("val_") for name in split.validation)
    assert len(split.test) == 3
    assert all(name.startswith("train_") for name in split.test)
    other_fold = toy_config(tmp_path, "data.split=given", "data.fold=1")
    assert split_cases(cases, other_fold) == split


def test_case_without_a_given_side_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    path = manifest("image,label,split", "a.png,odd,train", "b.png,odd,")
    config = toy_config(tmp_path, "data.split=given")
    with pytest.raises(ManifestInvalid, match="'b' has no split"):
        split_cases(read_cases(path, config), config)


def test_class_without_a_case_on_a_side_is_refused_by_name(manifest: Manifest, tmp_path: Path) -> None:
    path = manifest("image,label,split", "a.png,odd,train", "b.png,plain,train", "c.png,plain,val")
    config = toy_config(tmp_path, "data.split=given", "data.test_fraction=0")
    with pytest.raises(TooFewCases, match=r"class odd.*validation"):
        split_cases(read_cases(path, config), config)


def test_class_that_every_case_has_cannot_be_learnt(manifest: Manifest, tmp_path: Path) -> None:
    path = manifest("image,label,split", "a.png,odd|plain,train", "b.png,plain,train", "c.png,odd|plain,val")
    config = toy_config(tmp_path, "data.split=given", "data.test_fraction=0", "output=sigmoid")
    with pytest.raises(TooFewCases, match=r"class plain.*have it"):
        split_cases(read_cases(path, config), config)


# --------------------------------------------------------------------------------------------------------------- copies


def copies(folder: Path, *rows: tuple[str, str, str]) -> list[ClassifiedCase]:
    """Cases with the same pixels, by name, class and side."""
    cases = []
    for name, label, side in rows:
        Image.fromarray(picture(np.random.default_rng(0), odd=False)).save(folder / f"{name}.png")
        cases.append(ClassifiedCase(name, folder / f"{name}.png", (label,), name, side))
    return cases


def test_copies_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DuplicateCases, match=r"case b.*case a"):
        without_copies(copies(tmp_path, ("a", "odd", ""), ("b", "odd", "")), "refuse")


@pytest.mark.parametrize(
    ("first", "second", "kept"), [("train", "validation", "b"), ("test", "validation", "a"), ("train", "train", "a")]
)
def test_the_held_out_copy_is_kept(tmp_path: Path, first: str, second: str, kept: str) -> None:
    found, dropped = without_copies(copies(tmp_path, ("a", "odd", first), ("b", "odd", second)), "drop")
    assert [case.name for case in found] == [kept]
    assert dropped == 1


def test_copies_of_different_classes_all_go(tmp_path: Path) -> None:
    assert without_copies(copies(tmp_path, ("a", "odd", ""), ("b", "plain", "")), "drop") == ([], 2)


def test_copies_may_be_kept(tmp_path: Path) -> None:
    assert len(without_copies(copies(tmp_path, ("a", "odd", ""), ("b", "plain", "")), "keep")[0]) == 2
