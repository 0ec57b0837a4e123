"""No patient on two sides, no case lost, and what training sees depends on nothing but seed, epoch and case."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imaging.config import Config, load_config
from imaging.data import CachedCases, EpochSampler, Position, SegmentationData, load_case
from imaging.errors import (
    ConstantImage,
    ImagingError,
    LabelMismatch,
    ManifestInvalid,
    NotFinite,
    PatientLeak,
    TooFewCases,
    UnreadableNifti,
)
from imaging.files import shipped
from imaging.manifest import Case, Split, cases_of, read_manifest, split_by_patient
from imaging.patches import Patches
from imaging.transforms import IMAGE, LABEL

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


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Two real cases with files of plain names, to write manifests for."""
    for number in ("001", "003"):
        shutil.copy(data / "hippocampus" / "imagesTr" / f"hippocampus_{number}.nii.gz", tmp_path / f"i{number}.nii.gz")
        shutil.copy(data / "hippocampus" / "labelsTr" / f"hippocampus_{number}.nii.gz", tmp_path / f"l{number}.nii.gz")
    return tmp_path


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


def test_csv_tells_case_and_patient(folder: Path) -> None:
    manifest = write_csv(
        folder, "case,image,label,patient", "left,i001.nii.gz,l001.nii.gz,p", "right,i003.nii.gz,l003.nii.gz,p"
    )
    assert [(case.name, case.patient) for case in read_manifest(manifest)] == [("left", "p"), ("right", "p")]


def test_csv_without_case_and_patient_takes_the_file_name(folder: Path) -> None:
    manifest = write_csv(folder, "image,label", "i001.nii.gz,l001.nii.gz")
    assert read_manifest(manifest) == [Case("i001", (folder / "i001.nii.gz",), folder / "l001.nii.gz", "i001")]


def test_csv_names_several_images_of_a_case(folder: Path) -> None:
    manifest = write_csv(folder, "image,label", "i001.nii.gz | i003.nii.gz,l001.nii.gz")
    assert read_manifest(manifest) == [
        Case("i001", (folder / "i001.nii.gz", folder / "i003.nii.gz"), folder / "l001.nii.gz", "i001")
    ]


@pytest.mark.parametrize("start", ["\ufeff", ""], ids=["bom", "plain"])
def test_csv_of_a_spreadsheet_is_read(folder: Path, start: str) -> None:
    manifest = write_csv(folder, f"{start}image,label", "i001.nii.gz,l001.nii.gz", "")
    assert len(read_manifest(manifest)) == 1


def test_blanks_around_a_patient_do_not_make_another_patient(folder: Path) -> None:
    manifest = write_csv(folder, "image,label,patient", "i001.nii.gz,l001.nii.gz,p", "i003.nii.gz,l003.nii.gz,p ")
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
def test_bad_csv_is_refused(folder: Path, rows: list[str], told: str) -> None:
    with pytest.raises(ManifestInvalid) as caught:
        read_manifest(write_csv(folder, *rows))
    assert told in caught.value.seen


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"training": [1]}', '{"training": ["i001.nii.gz"]}', '{"training": []}',
                '{"training": [{"image": "i001.nii.gz"}]}', '{"training": [{"image": 1, "label": 2}]}']
)  # fmt: skip
def test_bad_dataset_json_is_refused(folder: Path, content: str) -> None:
    (folder / "dataset.json").write_text(content)
    with pytest.raises(ManifestInvalid):
        read_manifest(folder)


@pytest.mark.parametrize("name", ["", "missing.csv", "missing"])
def test_data_set_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ManifestInvalid):
        read_manifest(tmp_path / name)


# ------------------------------------------------------------------------------------------------------- image and mask


def case_in(folder: Path) -> Case:
    return Case("one", (folder / "i001.nii.gz",), folder / "l001.nii.gz", "one")


def rewrite(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """Change the voxels and the affine of a NIfTI file."""
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj, dtype=np.float32), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)


def moved(affine: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return matrix @ affine


SHIFTED = np.array([[1, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
FLIPPED_AT_THE_FAR_CORNER = np.array([[-1, 0, 0, 72], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def test_real_case_belongs_together(folder: Path) -> None:
    image, mask = load_case(case_in(folder), values=(1, 2))
    assert image.shape == mask.shape == (35, 51, 35)
    assert set(np.unique(mask.array)) == {0, 1, 2}


@pytest.mark.parametrize(
    "change",
    [
        lambda array, affine: (array[1:], affine),
        lambda array, affine: (array.transpose(1, 0, 2), affine),
        lambda array, affine: (array, moved(affine, SHIFTED)),
        lambda array, affine: (array, moved(affine, np.diag([-1.0, -1, 1, 1]))),
        lambda array, affine: (array, moved(affine, np.diag([1.01, 1, 1, 1]))),
        lambda array, affine: (array, moved(affine, FLIPPED_AT_THE_FAR_CORNER)),
        lambda array, affine: (array + 1, affine),
        lambda array, affine: (array - 1, affine),
        lambda array, affine: (array * 0.5, affine),
    ],
    ids=["cropped", "transposed", "shifted", "lps", "scaled", "flipped", "label_3", "label_-1", "label_half"],
)
def test_mask_that_does_not_fit_is_refused(
    folder: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    rewrite(folder / "l001.nii.gz", change)
    with pytest.raises(LabelMismatch, match=r"l001\.nii\.gz"):
        load_case(case_in(folder), values=(1, 2))


def test_label_that_the_config_does_not_name_is_told(folder: Path) -> None:
    with pytest.raises(LabelMismatch, match="the value 2; whole numbers 0 to 1"):
        load_case(case_in(folder), values=(1,))


def test_mask_a_hair_off_is_taken(folder: Path) -> None:
    rewrite(folder / "l001.nii.gz", lambda array, affine: (array, affine + 1e-4))
    load_case(case_in(folder), values=(1, 2))


def test_image_with_nan_is_refused(folder: Path) -> None:
    rewrite(folder / "i001.nii.gz", lambda array, affine: (np.where(array > 50, np.nan, array), affine))
    with pytest.raises(NotFinite):
        load_case(case_in(folder), values=(1, 2))


def test_image_cut_short_is_refused(folder: Path) -> None:
    content = (folder / "i001.nii.gz").read_bytes()
    (folder / "i001.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableNifti):
        load_case(case_in(folder), values=(1, 2))


# --------------------------------------------------------------------------------------------------- what training sees


@pytest.fixture
def config() -> Config:
    """The shipped config on small patches."""
    return load_config(shipped("configs") / "hippocampus_mr.yaml", ["train.patch=[16, 24, 16]", "train.batch_size=2"])


def cached(folder: Path, config: Config, *, augmented: bool) -> CachedCases:
    return CachedCases([case_in(folder)], config, Patches(config.train) if augmented else None)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return torch.equal(left[IMAGE], right[IMAGE]) and torch.equal(left[LABEL], right[LABEL])


def test_augmented_case_depends_on_seed_epoch_and_case_alone(folder: Path, config: Config) -> None:
    first, second = (cached(folder, config, augmented=True) for _ in range(2))
    expected = [first[epoch, 0] for epoch in range(4)]
    torch.manual_seed(9)
    np.random.seed(9)
    assert all(same(second[epoch, 0], expected[epoch]) for epoch in reversed(range(4)))
    assert not same(expected[0], expected[1])
    other = cached(folder, load_config(shipped("configs") / "hippocampus_mr.yaml",
                                       ["train.patch=[16, 24, 16]", "train.seed=1"]), augmented=True)  # fmt: skip
    assert not same(other[0, 0], expected[0])


def test_case_without_augmentation_is_the_whole_normalised_volume(folder: Path, config: Config) -> None:
    sample = cached(folder, config, augmented=False)[7, 0]
    assert sample[IMAGE].shape == sample[LABEL].shape == (1, 35, 51, 35)
    assert float(sample[IMAGE].mean()) == pytest.approx(0, abs=1e-4)
    assert float(sample[IMAGE].std()) == pytest.approx(1, abs=1e-3)
    truth = np.asarray(nib.load(folder / "l001.nii.gz").dataobj)
    assert np.array_equal(sample[LABEL][0].numpy(), truth)


def test_augmentation_does_not_touch_the_cache(folder: Path, config: Config) -> None:
    cases = cached(folder, config, augmented=True)
    before = cases._prepared[0][IMAGE].clone()
    for epoch in range(3):
        _ = cases[epoch, 0]
    assert torch.equal(cases._prepared[0][IMAGE], before)


def test_refusal_of_a_case_names_its_file(folder: Path, config: Config) -> None:
    rewrite(folder / "i001.nii.gz", lambda array, affine: (np.full_like(array, 7), affine))
    with pytest.raises(ConstantImage, match="i001"):
        cached(folder, config, augmented=False)


def test_refusals_keep_their_name_on_the_way_through_monai(folder: Path, config: Config) -> None:
    rewrite(folder / "i001.nii.gz", lambda array, affine: (np.full_like(array, 7), affine))
    with pytest.raises(ImagingError):
        cached(folder, config, augmented=False)


@given(length=st.integers(1, 40), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_has_each_case_once(length: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(length, seed=seed, shuffle=True)
    sampler.set_epoch(epoch)
    keys = list(sampler)
    assert sorted(keys) == [(epoch, index) for index in range(length)]
    assert keys == list(sampler)


@given(length=st.integers(1, 40), epoch=st.integers(0, 9), share=st.floats(0, 1))
def test_continued_epoch_is_the_rest_of_the_whole_one(length: int, epoch: int, share: float) -> None:
    whole = EpochSampler(length, seed=3, shuffle=True)
    skip = int(share * length)
    rest = EpochSampler(length, seed=3, shuffle=True, epoch=epoch, skip=skip)
    whole.set_epoch(epoch)
    assert list(rest) == list(whole)[skip:], "before Lightning says which epoch it is: loaders look ahead"
    rest.set_epoch(epoch)
    assert list(rest) == list(whole)[skip:]
    assert len(rest) == length
    for sampler in (rest, whole):
        sampler.set_epoch(epoch + 1)
    assert list(rest) == list(whole)


def test_first_draw_of_a_case_is_that_of_a_single_one(folder: Path, config: Config) -> None:
    """And it is what (seed, epoch, case) alone give."""
    cases = [replace(case_in(folder), name=name) for name in ("one", "two")]
    single = CachedCases(cases, config, Patches(config.train))
    several = CachedCases(cases, several_patches(config, 3), Patches(config.train))
    assert (len(single), len(several)) == (2, 6)
    expected = Patches(config.train)(single._prepared[1], {}, np.random.SeedSequence([0, 4, 1]), subject="case two")
    assert same(single[4, 1], {key: expected[key].as_tensor() for key in (IMAGE, LABEL)})
    assert all(same(several[4, index], single[4, index]) for index in range(2))


def test_draws_of_a_case_differ_and_depend_on_their_number_alone(folder: Path, config: Config) -> None:
    cases = [replace(case_in(folder), name=name) for name in ("one", "two")]
    first, second = (CachedCases(cases, several_patches(config, draws), Patches(config.train)) for draws in (3, 5))
    drawn = [first[4, item] for item in range(6)]
    assert [sample["index"] for sample in drawn] == [0, 1, 0, 1, 0, 1]
    assert not any(same(drawn[one], drawn[other]) for one in range(6) for other in range(one))
    assert all(same(second[4, item], drawn[item]) for item in reversed(range(6)))
    assert not any(same(second[5, item], drawn[item]) for item in range(6))


def test_whole_volumes_are_validated_once_however_many_patches_there_are(folder: Path, config: Config) -> None:
    case = case_in(folder)
    module = SegmentationData(several_patches(config, 3), [case, replace(case, name="two")], [case])
    assert [batch["index"].tolist() for batch in module.val_dataloader()] == [[0]]
    trained = [index for batch in module.train_dataloader() for index in batch["index"].tolist()]
    assert sorted(trained) == [0, 0, 0, 1, 1, 1]


def several_patches(config: Config, number: int) -> Config:
    train = config.train.model_copy(update={"patches_per_case": number})
    return config.model_copy(update={"train": train})


@pytest.mark.parametrize("patches", [1, 2])
def test_continued_run_begins_with_the_batch_after_the_last(folder: Path, config: Config, patches: int) -> None:
    case = case_in(folder)
    cases = [replace(case, name=f"{number}") for number in range(5)]
    config = several_patches(config, patches)

    def batches(begin: Position) -> list[tuple[list[int], float]]:
        module = SegmentationData(config, cases, [case])
        module.begin_at(begin)
        loader = module.train_dataloader()
        loader.sampler.set_epoch(2)
        assert len(loader) == {1: 2, 2: 5}[patches]
        return [(batch["index"].tolist(), float(batch[IMAGE].sum())) for batch in loader]

    assert batches(Position(2, 1)) == batches(Position(0, 0))[1:]


@given(
    length=st.integers(1, 40),
    ranks=st.integers(1, 4),
    each=st.integers(1, 3),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_share_the_batches_of_one(length: int, ranks: int, each: int, shuffle: bool, epoch: int) -> None:
    def batches(rank: int, ranks: int, size: int) -> list[set[int]]:
        sampler = EpochSampler(length, seed=1, shuffle=shuffle, batch_size=each * total, rank=rank, ranks=ranks)
        sampler.set_epoch(epoch)
        indices = [index for _, index in sampler]
        assert len(indices) == len(sampler) >= 1
        return [set(indices[at : at + size]) for at in range(0, len(indices), size)]

    total = ranks
    whole = batches(0, 1, each * total)
    shares = [batches(rank, ranks, each) for rank in range(ranks)]
    if shuffle and length >= ranks:
        assert {len(share) for share in shares} == {len(whole)}, "the ranks step together"
        assert [set.union(*parts) for parts in zip(*shares, strict=True)] == whole
    covered = set.union(*(part for share in shares for part in share))
    assert covered == set.union(*whole)
    assert shuffle or covered == set(range(length))


def test_order_changes_with_the_epoch_and_not_without_shuffling() -> None:
    def order(epoch: int, *, shuffle: bool) -> list[int]:
        sampler = EpochSampler(20, seed=0, shuffle=shuffle)
        sampler.set_epoch(epoch)
        return [index for _, index in sampler]

    assert order(0, shuffle=True) != order(1, shuffle=True)
    assert order(0, shuffle=False) == order(1, shuffle=False) == list(range(20))


def test_batches_are_patches_to_train_on_and_whole_volumes_to_validate_on(folder: Path, config: Config) -> None:
    second = Case("two", (folder / "i003.nii.gz",), folder / "l003.nii.gz", "two")
    module = SegmentationData(config, [case_in(folder), second], [second])
    (batch,) = module.train_dataloader()
    assert batch[IMAGE].shape == batch[LABEL].shape == (2, 1, 16, 24, 16)
    assert batch[LABEL].dtype == torch.uint8
    assert [module.train_names[index] for index in sorted(batch["index"].tolist())] == ["one", "two"]
    (whole,) = module.val_dataloader()
    assert whole[IMAGE].shape == (1, 1, 34, 52, 35)


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
