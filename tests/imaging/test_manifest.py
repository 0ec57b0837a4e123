"""Cases are read as they are listed, no patient is on two sides, and no case is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.errors import ManifestInvalid, PatientLeak, TooFewCases
from imaging.manifest import Case, Split, cases_of, read_manifest, split_by_patient

SIDES = ("train", "validation", "test")


# --------------------------------------------------------------------------------------------------------------- splits


@st.composite
def manifests(draw: st.DrawFn) -> list[Case]:
    """Cases of a few patients, some with several."""
    owners = draw(st.lists(st.integers(0, 12), min_size=1, max_size=30))
    return [Case(f"case{index}", (Path("i"),), Path("l"), f"patient{owner}") for index, owner in enumerate(owners)]


settings_of_a_split = st.fixed_dictionaries(
    {"test_fraction": st.floats(0, 0.9), "folds": st.integers(2, 6), "seed": st.integers(0, 99)}
)


def splits(cases: list[Case], **settings: float) -> list[Split]:
    """The split of every fold that has one."""
    found = []
    for fold in range(int(settings["folds"])):
        try:
            found.append(split_by_patient(cases, fold=fold, **settings))
        except TooFewCases:
            continue
    return found


@given(cases=manifests(), settings=settings_of_a_split)
def test_no_patient_is_on_two_sides_and_every_case_on_one(cases: list[Case], settings: dict[str, float]) -> None:
    patient = {case.name: case.patient for case in cases}
    for split in splits(cases, **settings):
        sides = [{patient[name] for name in getattr(split, side)} for side in SIDES]
        assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
        assert sorted([*split.train, *split.validation, *split.test]) == sorted(patient)
        assert split.train and split.validation
        assert cases_of(split, cases)


@given(cases=manifests(), settings=settings_of_a_split, data=st.data())
def test_order_of_the_manifest_does_not_matter(
    cases: list[Case], settings: dict[str, float], data: st.DataObject
) -> None:
    assert splits(data.draw(st.permutations(cases)), **settings) == splits(cases, **settings)


@given(cases=manifests(), settings=settings_of_a_split)
def test_test_part_is_the_same_in_every_fold(cases: list[Case], settings: dict[str, float]) -> None:
    assert len({split.test for split in splits(cases, **settings)}) <= 1


@given(cases=manifests(), settings=settings_of_a_split)
def test_every_case_outside_the_test_part_validates_once(cases: list[Case], settings: dict[str, float]) -> None:
    found = splits(cases, **settings)
    if len(found) == settings["folds"]:
        validated = [name for split in found for name in split.validation]
        assert sorted([*validated, *found[0].test]) == sorted(case.name for case in cases)


def test_another_seed_gives_another_split() -> None:
    cases = [Case(f"c{index}", (Path("i"),), Path("l"), f"p{index}") for index in range(20)]
    first, second = (split_by_patient(cases, test_fraction=0.2, folds=4, fold=0, seed=seed) for seed in (0, 1))
    assert first != second
    assert len(first.test) == 4 and len(first.validation) == 4


@pytest.mark.parametrize(("patients", "folds", "fold"), [(1, 2, 0), (1, 2, 1), (2, 4, 3)])
def test_split_with_an_empty_side_is_refused(patients: int, folds: int, fold: int) -> None:
    cases = [Case(f"c{index}", (Path("i"),), Path("l"), f"p{index}") for index in range(patients)]
    with pytest.raises(TooFewCases):
        split_by_patient(cases, test_fraction=0, folds=folds, fold=fold, seed=0)


@pytest.mark.parametrize(
    "split",
    [Split(("a1",), ("a2",), ("b",)), Split(("a1", "b"), (), ("a2",)), Split(("b",), ("a1",), ("a2",))],
    ids=["train_validation", "train_test", "validation_test"],
)
def test_patient_on_two_sides_is_a_leak(split: Split) -> None:
    cases = [Case(name, (Path("i"),), Path("l"), name[0]) for name in ("a1", "a2", "b")]
    with pytest.raises(PatientLeak) as caught:
        cases_of(split, cases)
    assert "a2" in caught.value.subject


def test_split_that_names_an_unknown_case_is_refused() -> None:
    with pytest.raises(ManifestInvalid, match="'z'"):
        cases_of(Split(("a",), ("z",), ()), [Case("a", (Path("i"),), Path("l"), "a")])


def test_saved_split_is_the_split() -> None:
    split = Split(("a", "b"), ("c",), ())
    assert json.loads(split.to_json()) == {"train": ["a", "b"], "validation": ["c"], "test": []}


# ------------------------------------------------------------------------------------------------------------ manifests


def write_csv(folder: Path, *rows: str) -> Path:
    path = folder / "cases.csv"
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("given_as", ["folder", "file"])
def test_decathlon_folder_is_a_manifest(data: Path, given_as: str) -> None:
    root = data / "hippocampus"
    cases = read_manifest(root if given_as == "folder" else root / "dataset.json")
    assert len(cases) == 8
    assert all(case.patient == case.name == case.images[0].name.removesuffix(".nii.gz") for case in cases)


def test_csv_tells_case_and_patient(two_cases: Path) -> None:
    manifest = write_csv(
        two_cases, "case,image,label,patient", "left,i001.nii.gz,l001.nii.gz,p", "right,i003.nii.gz,l003.nii.gz,p"
    )
    assert [(case.name, case.patient) for case in read_manifest(manifest)] == [("left", "p"), ("right", "p")]


def test_csv_without_case_and_patient_takes_the_file_name(two_cases: Path) -> None:
    manifest = write_csv(two_cases, "image,label", "i001.nii.gz,l001.nii.gz")
    assert read_manifest(manifest) == [Case("i001", (two_cases / "i001.nii.gz",), two_cases / "l001.nii.gz", "i001")]


def test_csv_names_several_images_of_a_case(two_cases: Path) -> None:
    manifest = write_csv(two_cases, "image,label", "i001.nii.gz | i003.nii.gz,l001.nii.gz")
    assert read_manifest(manifest) == [
        Case("i001", (two_cases / "i001.nii.gz", two_cases / "i003.nii.gz"), two_cases / "l001.nii.gz", "i001")
    ]


@pytest.mark.parametrize("start", ["\ufeff", ""], ids=["bom", "plain"])
def test_csv_of_a_spreadsheet_is_read(two_cases: Path, start: str) -> None:
    manifest = write_csv(two_cases, f"{start}image,label", "i001.nii.gz,l001.nii.gz", "")
    assert len(read_manifest(manifest)) == 1


def test_blanks_around_a_patient_do_not_make_another_patient(two_cases: Path) -> None:
    manifest = write_csv(two_cases, "image,label,patient", "i001.nii.gz,l001.nii.gz,p", "i003.nii.gz,l003.nii.gz,p ")
    assert {case.patient for case in read_manifest(manifest)} == {"p"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (["image,label"], "no case"),
        (["picture,label", "i001.nii.gz,l001.nii.gz"], "image"),
        (["image,label", "i001.nii.gz"], "TypeError"),
        (["image,label", "i999.nii.gz,l001.nii.gz"], "i999.nii.gz, which does not exist"),
        (["image,label", "i001.nii.gz,l999.nii.gz"], "l999.nii.gz, which does not exist"),
        (["image,label", "i001.nii.gz,l001.nii.gz", "i001.nii.gz,l001.nii.gz"], "1 images are listed more than once"),
        (["case,image,label", "a,i001.nii.gz,l001.nii.gz", "a,i003.nii.gz,l003.nii.gz"], "'a' is there more than once"),
        (["image,label", ",l001.nii.gz"], "row 2 names no image"),
        (["image,label", '"i\0.nii.gz",l001.nii.gz'], ""),
    ],
)
def test_bad_csv_is_refused(two_cases: Path, rows: list[str], told: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        read_manifest(write_csv(two_cases, *rows))
    assert told in caught.value.seen


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"training": [1]}', '{"training": ["i001.nii.gz"]}', '{"training": []}',
                '{"training": [{"image": "i001.nii.gz"}]}', '{"training": [{"image": 1, "label": 2}]}']
)  # fmt: skip
def test_bad_dataset_json_is_refused(two_cases: Path, content: str) -> None:
    (two_cases / "dataset.json").write_text(content)
    with pytest.raises(ManifestInvalid):
        read_manifest(two_cases)


@pytest.mark.parametrize("name", ["", "missing.csv", "missing"])
def test_data_set_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestInvalid):
        read_manifest(tmp_path / name)


@pytest.mark.parametrize("column", ["Patient", "patient_id", "PatientID", "subject", " patient"])
def test_a_column_that_means_the_patient_and_is_not_called_so_is_refused(tmp_path: Path, column: str) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text(f"image,label,{column}\ni001.nii.gz,l001.nii.gz,p1\n")
    with pytest.raises(ManifestInvalid, match="none called 'patient'"):
        read_manifest(manifest)


def test_a_patient_that_some_rows_leave_blank_is_refused(tmp_path: Path) -> None:
    manifest = tmp_path / "cases.csv"
    manifest.write_text("image,label,patient\ni001.nii.gz,l001.nii.gz,p1\ni003.nii.gz,l003.nii.gz,\n")
    with pytest.raises(ManifestInvalid, match="1 rows without a patient"):
        read_manifest(manifest)
