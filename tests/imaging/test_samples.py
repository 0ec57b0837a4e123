"""Image and mask belong together, and a sample depends on nothing but seed, epoch, case and the patch's number."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from segmented import case_in, several_patches

from imaging.config import SegmentConfig, load_config
from imaging.errors import CaseChanged, ConstantImage, ImagingError, LabelMismatch, NotFinite, UnreadableNifti
from imaging.files import shipped
from imaging.manifest import Case
from imaging.patches import Patches
from imaging.samples import CachedCases, Sample, load_case
from imaging.transforms import IMAGE, LABEL


def rewrite(path: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> None:
    """Change the voxels and the affine of a NIfTI file."""
    image = nib.load(path)
    array, affine = change(np.asarray(image.dataobj, dtype=np.float32), image.affine.copy())
    nib.save(nib.Nifti1Image(array, affine), path)


def touch(path: Path) -> None:
    os.utime(path, (1, 1))


def moved(affine: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return matrix @ affine


SHIFTED = np.array([[1, 0, 0, 0.2], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
FLIPPED_AT_THE_FAR_CORNER = np.array([[-1, 0, 0, 72], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


def test_real_case_belongs_together(two_cases: Path) -> None:
    image, mask = load_case(case_in(two_cases), values=(1, 2))
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
    two_cases: Path, change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> None:
    rewrite(two_cases / "l001.nii.gz", change)
    with pytest.raises(LabelMismatch, match=r"l001\.nii\.gz"):
        load_case(case_in(two_cases), values=(1, 2))


def test_label_that_the_config_does_not_name_is_told(two_cases: Path) -> None:
    with pytest.raises(LabelMismatch, match="the value 2; whole numbers 0 to 1"):
        load_case(case_in(two_cases), values=(1,))


def test_mask_a_hair_off_is_taken(two_cases: Path) -> None:
    rewrite(two_cases / "l001.nii.gz", lambda array, affine: (array, affine + 1e-4))
    load_case(case_in(two_cases), values=(1, 2))


def test_image_with_nan_is_refused(two_cases: Path) -> None:
    rewrite(two_cases / "i001.nii.gz", lambda array, affine: (np.where(array > 50, np.nan, array), affine))
    with pytest.raises(NotFinite):
        load_case(case_in(two_cases), values=(1, 2))


def test_image_cut_short_is_refused(two_cases: Path) -> None:
    content = (two_cases / "i001.nii.gz").read_bytes()
    (two_cases / "i001.nii.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableNifti):
        load_case(case_in(two_cases), values=(1, 2))


def cached(folder: Path, config: SegmentConfig, *, augmented: bool) -> CachedCases:
    return CachedCases([case_in(folder)], config, Patches(config.train) if augmented else None)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return torch.equal(left[IMAGE], right[IMAGE]) and torch.equal(left[LABEL], right[LABEL])


def test_augmented_case_depends_on_seed_epoch_and_case_alone(two_cases: Path, small_patches: SegmentConfig) -> None:
    first, second = (cached(two_cases, small_patches, augmented=True) for _ in range(2))
    expected = [first[epoch, 0] for epoch in range(4)]
    torch.manual_seed(9)
    np.random.seed(9)
    assert all(same(second[epoch, 0], expected[epoch]) for epoch in reversed(range(4)))
    assert not same(expected[0], expected[1])
    other = cached(two_cases, load_config(shipped("configs") / "hippocampus_mr.yaml",
                                       ["train.patch=[16, 24, 16]", "train.seed=1"]), augmented=True)  # fmt: skip
    assert not same(other[0, 0], expected[0])


def test_case_without_augmentation_is_the_whole_normalised_volume(
    two_cases: Path, small_patches: SegmentConfig
) -> None:
    sample = cached(two_cases, small_patches, augmented=False)[7, 0]
    assert sample[IMAGE].shape == sample[LABEL].shape == (1, 35, 51, 35)
    assert float(sample[IMAGE].mean()) == pytest.approx(0, abs=1e-4)
    assert float(sample[IMAGE].std()) == pytest.approx(1, abs=1e-3)
    truth = np.asarray(nib.load(two_cases / "l001.nii.gz").dataobj)
    assert np.array_equal(sample[LABEL][0].numpy(), truth)


def test_augmentation_does_not_touch_the_cache(two_cases: Path, small_patches: SegmentConfig) -> None:
    cases = cached(two_cases, small_patches, augmented=True)
    before = cases._prepared[0][IMAGE].clone()
    for epoch in range(3):
        _ = cases[epoch, 0]
    assert torch.equal(cases._prepared[0][IMAGE], before)


def test_refusal_of_a_case_names_its_file(two_cases: Path, small_patches: SegmentConfig) -> None:
    rewrite(two_cases / "i001.nii.gz", lambda array, affine: (np.full_like(array, 7), affine))
    with pytest.raises(ConstantImage, match="i001"):
        cached(two_cases, small_patches, augmented=False)


def test_refusals_keep_their_name_on_the_way_through_monai(two_cases: Path, small_patches: SegmentConfig) -> None:
    rewrite(two_cases / "i001.nii.gz", lambda array, affine: (np.full_like(array, 7), affine))
    with pytest.raises(ImagingError):
        cached(two_cases, small_patches, augmented=False)


def test_first_draw_of_a_case_is_that_of_a_single_one(two_cases: Path, small_patches: SegmentConfig) -> None:
    """And it is what (seed, epoch, case) alone give."""
    cases = [replace(case_in(two_cases), name=name) for name in ("one", "two")]
    single = CachedCases(cases, small_patches, Patches(small_patches.train))
    several = CachedCases(cases, several_patches(small_patches, 3), Patches(small_patches.train))
    assert (len(single), len(several)) == (2, 6)
    expected = Patches(small_patches.train)(
        single._prepared[1], {}, np.random.SeedSequence([0, 4, 1]), subject="case two"
    )
    assert same(single[4, 1], {key: expected[key].as_tensor() for key in (IMAGE, LABEL)})
    assert all(same(several[4, index], single[4, index]) for index in range(2))


def test_draws_of_a_case_differ_and_depend_on_their_number_alone(two_cases: Path, small_patches: SegmentConfig) -> None:
    cases = [replace(case_in(two_cases), name=name) for name in ("one", "two")]
    first, second = (
        CachedCases(cases, several_patches(small_patches, draws), Patches(small_patches.train)) for draws in (3, 5)
    )
    drawn = [first[4, item] for item in range(6)]
    assert [sample["index"] for sample in drawn] == [0, 1, 0, 1, 0, 1]
    assert not any(same(drawn[one], drawn[other]) for one in range(6) for other in range(one))
    assert all(same(second[4, item], drawn[item]) for item in reversed(range(6)))
    assert not any(same(second[5, item], drawn[item]) for item in range(6))


@pytest.mark.parametrize("when", ["before it is read", "after it is read"])
@pytest.mark.parametrize(
    ("change", "told"), [(Path.unlink, "is gone"), (lambda path: os.utime(path, (1, 1)), "changed")]
)
def test_case_that_changes_while_it_is_read_is_named(
    two_cases: Path,
    small_patches: SegmentConfig,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
    change: Callable[[Path], None],
    told: str,
) -> None:
    cases = cached(two_cases, small_patches, augmented=False)
    prepare = cases._prepare

    def raced(case: Case) -> Sample:
        sample = prepare(case) if when == "after it is read" else {}
        change(case.images[0])
        return sample or prepare(case)

    monkeypatch.setattr(cases, "_prepare", raced)
    with pytest.raises(CaseChanged, match=rf"i001\.nii\.gz: {told} \(case one\)"):
        cases._plainly(0)
