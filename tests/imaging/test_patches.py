"""A patch holds what lies in its place, shows structures as often as it should, and depends on nothing but its seed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from imaging.config import Augmentation, Train
from imaging.errors import ConfigInvalid, UnknownName
from imaging.patches import Patches, places_of
from imaging.transforms import IMAGE, LABEL

PATCH = (12, 14, 10)
TURN = {"prob": 1, "rotate_range": [0.3, 0.3, 0.3]}


def sample_of(shape: tuple[int, ...] = (20, 20, 20)) -> dict[str, Any]:
    """An image that equals its own label, so that both must move alike. Synthetic."""
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 4, shape).astype(np.float32))[None]
    return {IMAGE: MetaTensor(labels.clone()), LABEL: MetaTensor(labels.clone())}


def patches_of(*augment: tuple[str, dict[str, Any]], **settings: Any) -> Patches:
    chosen = [Augmentation(name=name, options=options) for name, options in augment]
    return Patches(Train(**({"patch": PATCH, "epochs": 1, "augment": chosen} | settings)))


def drawn(patches: Patches, sample: dict[str, Any], seed: int = 0) -> dict[str, Any]:
    places = places_of(sample[LABEL], seed=[0])
    return patches(sample, places, np.random.SeedSequence(seed), subject="case synthetic")


def augmented(name: str, options: dict[str, Any], seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    return drawn(patches_of((name, options)), sample_of(**kwargs), seed)


# ------------------------------------------------------------------------------------------------ the random transforms


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RandFlip", {"prob": 1, "spatial_axis": 0}),
        ("RandRotate90", {"prob": 1, "max_k": 3, "spatial_axes": [0, 1]}),
        ("RandAffine", TURN | {"mode": "nearest"}),
        ("Rand3DElastic", {"prob": 1, "sigma_range": [3, 4], "magnitude_range": [90, 99], "mode": "nearest"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_spatial_transform_moves_image_and_label_alike(name: str, options: dict[str, Any]) -> None:
    result = augmented(name, options)
    untouched = augmented("RandFlip", {"prob": 0, "spatial_axis": 0})
    assert torch.equal(torch.as_tensor(result[IMAGE]), torch.as_tensor(result[LABEL]))
    assert not torch.equal(torch.as_tensor(result[LABEL]), torch.as_tensor(untouched[LABEL]))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RandGaussianNoise", {"prob": 1, "std": 0.5}),
        ("RandGaussianSmooth", {"prob": 1}),
        ("RandScaleIntensity", {"prob": 1, "factors": 0.5}),
        ("RandShiftIntensity", {"prob": 1, "offsets": 0.5}),
        ("RandAdjustContrast", {"prob": 1, "gamma": [0.5, 0.7]}),
        ("RandBiasField", {"prob": 1}),
        ("RandSimulateLowResolution", {"prob": 1, "zoom_range": [0.5, 0.6]}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_intensity_transform_leaves_the_label_alone(name: str, options: dict[str, Any]) -> None:
    result, untouched = augmented(name, options), augmented(name, options | {"prob": 0})
    assert torch.equal(torch.as_tensor(result[LABEL]), torch.as_tensor(untouched[LABEL]))
    assert not torch.equal(torch.as_tensor(result[IMAGE]), torch.as_tensor(untouched[IMAGE]))


def test_resampled_label_holds_label_ids_only() -> None:
    label = augmented("RandAffine", TURN | {"scale_range": [0.2, 0.2, 0.2]})[LABEL]
    assert set(label.unique().tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("name", ["RandomFlip", "RandFlipd", "Compose", "Rand2DElastic", ""])
def test_unknown_augmentation_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        patches_of((name, {}))
    assert caught.value.seen == repr(name)
    assert "RandFlip" in caught.value.expected and "RandGaussianNoise" in caught.value.expected


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("RandFlip", {"axis": 0}),
        ("RandGaussianNoise", {"keys": "label"}),
        ("Rand3DElastic", {}),
        ("RandAdjustContrast", {"gamma": 0.1}),
        ("RandAffine", {"spatial_size": [8, 8, 8]}),
    ],
)
def test_options_that_a_transform_does_not_take_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=name):
        patches_of((name, options))


# ------------------------------------------------------------------------------------------------------------ the place


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    """An image whose voxels are numbered, so that a patch tells where it was."""
    return torch.arange(int(np.prod(shape)), dtype=torch.float32).reshape(1, *shape)


@pytest.mark.parametrize("shape", [(20, 20, 20), (5, 20, 9), (4, 4, 4)], ids=str)
def test_patch_has_its_size_for_smaller_volumes_too(shape: tuple[int, int, int]) -> None:
    for augment in ((), (("RandAffine", TURN),), (("RandRotate90", {"prob": 1}),)):
        result = drawn(patches_of(*augment), sample_of(shape))
        assert tuple(result[IMAGE].shape) == tuple(result[LABEL].shape) == (1, *PATCH)


def test_patch_is_the_volume_in_its_place_and_leaves_the_volume_alone() -> None:
    image = numbered((20, 30, 15))
    sample = {IMAGE: image.clone(), LABEL: torch.zeros_like(image)}
    starts = set()
    for seed in range(40):
        patch = drawn(patches_of(), sample, seed)[IMAGE]
        x, y, z = (int(i) for i in np.unravel_index(int(patch[0, 0, 0, 0]), image.shape[1:]))
        assert torch.equal(patch, image[:, x : x + 12, y : y + 14, z : z + 10])
        starts.add((x, y, z))
        patch += 1
    assert torch.equal(sample[IMAGE], image)
    assert {x for x, _, _ in starts} == set(range(9)), "every place may be drawn"


def test_a_patch_of_two_axes_is_of_a_slice() -> None:
    image = numbered((20, 30, 15))
    sample = {IMAGE: image, LABEL: torch.zeros_like(image)}
    patches, slices = patches_of(patch=(12, 14)), set()
    for seed in range(60):
        patch = drawn(patches, sample, seed)[IMAGE]
        x, y, z = (int(i) for i in np.unravel_index(int(patch[0, 0, 0]), image.shape[1:]))
        assert torch.equal(patch, image[:, x : x + 12, y : y + 14, z])
        slices.add(z)
    assert len(slices) > 12, "every slice may be drawn"


@pytest.mark.parametrize(
    "augment",
    [
        ("RandAffine", {"prob": 1, "rotate_range": [0.5], "scale_range": [0.2, 0.2]}),
        ("Rand2DElastic", {"prob": 1, "spacing": [5, 5], "magnitude_range": [1, 2]}),
        ("RandSimulateLowResolution", {"prob": 1, "zoom_range": [0.5, 0.6]}),
    ],
    ids=lambda augment: augment[0],
)
def test_slices_are_moved_within_themselves(augment: tuple[str, dict[str, Any]]) -> None:
    """Synthetic: each slice holds its own number, which nothing within it can change."""
    image = torch.arange(15.0).expand(1, 40, 40, 15).clone()
    patch = drawn(patches_of(augment, patch=(12, 14)), {IMAGE: image, LABEL: image.clone()})
    assert patch[IMAGE].shape == patch[LABEL].shape == (1, 12, 14)
    assert float(torch.as_tensor(patch[IMAGE]).std()) == pytest.approx(0, abs=1e-5)


def test_slices_around_structures_show_them() -> None:
    sample = with_three_structures()
    patches = patches_of(patch=(12, 14), foreground=1.0)
    seen = [set(torch.as_tensor(drawn(patches, sample, seed)[LABEL]).unique().tolist()) - {0} for seed in range(40)]
    assert all(seen)
    assert {1, 2, 3} == set().union(*seen)


def test_smaller_volume_lies_in_the_middle_of_zeros() -> None:
    sample = {IMAGE: torch.ones(1, 4, 5, 20), LABEL: torch.ones(1, 4, 5, 20)}
    patch = drawn(patches_of(), sample)
    for key in (IMAGE, LABEL):
        assert patch[key].sum() == 4 * 5 * 10
        assert bool((patch[key][:, 4:8, 4:9] == 1).all())


@pytest.mark.parametrize("augment", [[], [("RandAffine", TURN), ("RandFlip", {"prob": 1, "spatial_axis": 0})]])
def test_padding_that_is_ignored_is_marked_in_the_mask_alone(augment: list[tuple[str, dict[str, Any]]]) -> None:
    sample = {IMAGE: torch.ones(1, 4, 5, 20), LABEL: torch.ones(1, 4, 5, 20)}
    marked, plain = (drawn(patches_of(*augment, padding=padding), sample) for padding in ("ignored", "background"))
    assert torch.equal(torch.as_tensor(marked[IMAGE]), torch.as_tensor(plain[IMAGE]))
    label = torch.as_tensor(marked[LABEL])
    assert set(label.unique().tolist()) == {1, 255}
    assert torch.equal(label.masked_fill(label == 255, 0), torch.as_tensor(plain[LABEL]))


def test_a_volume_that_fills_the_patch_has_nothing_to_ignore() -> None:
    sample = with_three_structures()
    for seed in range(5):
        one, other = (drawn(patches_of(padding=p), sample, seed)[LABEL] for p in ("ignored", "background"))
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.parametrize("shape", [(60, 60, 60), (20, 60, 15)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"rotate_range": [3.1, 0, 0]},
        {"rotate_range": [0.4, 0.4, 0.4]},
        {"scale_range": [[0.3, 0.31], 0, 0]},
        {"shear_range": [0.3] * 6},
        {"translate_range": [6, 6, 6]},
        {"rotate_range": [0.4] * 3, "shear_range": [0.1] * 6, "scale_range": [0.3] * 3, "translate_range": [3, 0, 2]},
    ],
    ids="_".join,
)  # fmt: skip
def test_a_turned_patch_is_that_of_the_whole_turned_volume(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    """Only the patch and its margin are looked at; with three times the margin nothing may change."""
    image = torch.from_numpy(np.random.default_rng(3).random((1, *shape), dtype=np.float32))
    sample = {IMAGE: image, LABEL: torch.zeros_like(image)}
    near = patches_of(("RandAffine", {"prob": 1, **options}))
    far = patches_of(("RandAffine", {"prob": 1, **options}))
    far._margin = [3 * (margin + 1) for margin in near._margin]
    assert any(near._margin)
    for seed in range(4):
        one, other = (torch.as_tensor(drawn(patches, sample, seed)[IMAGE]) for patches in (near, far))
        assert torch.allclose(one, other, atol=1e-3)


def test_a_smaller_margin_would_be_seen() -> None:
    sample = {IMAGE: numbered((60, 60, 60)), LABEL: torch.zeros(1, 60, 60, 60)}
    near, short = (patches_of(("RandAffine", {"prob": 1, "scale_range": [[0.3, 0.31]] * 3})) for _ in range(2))
    short._margin = [margin - 1 for margin in near._margin]
    assert not torch.allclose(*(torch.as_tensor(drawn(patches, sample)[IMAGE]) for patches in (near, short)), atol=1e-3)


def test_patch_is_a_function_of_its_seed() -> None:
    patches = patches_of(("RandAffine", TURN), foreground=0.5)
    first, second, other = (torch.as_tensor(drawn(patches, sample_of(), seed)[IMAGE]) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------------------------------- the structures


def with_three_structures() -> dict[str, Any]:
    """Synthetic: a large structure, a small one and a single voxel, in corners of a large volume."""
    label = torch.zeros(1, 60, 60, 40)
    label[:, 2:22, 2:22, 2:12] = 1
    label[:, 50:54, 50:54, 30:34] = 2
    label[:, 5, 55, 20] = 3
    return {IMAGE: label.clone(), LABEL: label}


def test_places_are_those_of_each_structure() -> None:
    label = with_three_structures()[LABEL]
    places = places_of(label, seed=[0])
    assert {key: len(found) for key, found in places.items()} == {1: 4000, 2: 64, 3: 1}
    assert places[3].tolist() == [[5, 55, 20]]
    assert all(bool((label[0][tuple(found.T)] == key).all()) for key, found in places.items())


def test_of_a_large_structure_ten_thousand_places_are_known() -> None:
    label = torch.ones(1, 30, 30, 30)
    found = places_of(label, seed=[0])[1]
    assert len(np.unique(found, axis=0)) == len(found) == 10_000
    assert found.max(axis=0).tolist() == [29, 29, 29]


@pytest.mark.parametrize("share", [0.0, 0.33, 1.0])
def test_the_share_of_patches_with_a_structure_is_as_asked(share: float) -> None:
    sample = with_three_structures()
    patches, places = patches_of(foreground=share), places_of(sample[LABEL], seed=[0])
    seen = []
    for seed in range(300):
        label = patches(sample, places, np.random.SeedSequence([7, seed]), subject="case synthetic")[LABEL]
        seen.append({int(value) for value in label.unique()} - {0})
    rarest = np.mean([3 in found for found in seen])
    # A single voxel of 144,000 is in 1 of some 60 patches that lie anywhere (12 x 14 x 10 voxels near the border).
    assert rarest == pytest.approx(share / 3, abs=0.08)
    if share == 1:
        assert all(seen), "each of them shows a structure"
        assert {1, 2, 3} == set().union(*seen)


def test_a_structure_in_the_middle_of_its_patch_stays_there_when_turned_and_mirrored() -> None:
    label = torch.zeros(1, 60, 60, 60)
    label[:, 29:32, 29:32, 29:32] = 1
    sample = {IMAGE: label.clone(), LABEL: label}
    patches = patches_of(("RandAffine", TURN), ("RandFlip", {"prob": 1, "spatial_axis": 0}), foreground=1.0)
    for seed in range(20):
        found = torch.as_tensor(drawn(patches, sample, seed)[LABEL])[0].nonzero().float().mean(0)
        assert torch.allclose(found, torch.tensor([5.5, 6.5, 4.5]), atol=2.5)


def test_a_case_without_structures_gives_patches_from_anywhere() -> None:
    sample = {IMAGE: numbered((20, 30, 15)), LABEL: torch.zeros(1, 20, 30, 15)}
    found = {float(drawn(patches_of(foreground=1.0), sample, seed)[IMAGE][0, 0, 0, 0]) for seed in range(10)}
    assert len(found) > 5
