"""Whatever comes, one grid goes to the network: proportions as the config says, grey values of no known scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from monai.transforms import Resize

from imaging import gridding
from imaging.config import Augmentation, ClassifyPreprocess
from imaging.errors import ConfigInvalid, ConstantImage, NotApplicable, UnknownName
from imaging.gridding import classify_augmentation, classify_preprocessing
from imaging.memory import rising
from imaging.transforms import IMAGE, apply
from imaging.volume import Volume


def gridded(array_XYZ: np.ndarray[Any, Any], spacing: tuple[float, float, float] = (1, 1, 1), **config: Any) -> Any:
    volume = Volume(array_XYZ[None].astype(np.float32), np.diag([*spacing, 1.0]))
    prepare = classify_preprocessing(ClassifyPreprocess(**config))
    return np.asarray(apply(prepare, {IMAGE: volume.as_metatensor()})[IMAGE])


def ramp(*shape: int) -> np.ndarray[Any, Any]:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(40, 40, 1), (64, 30, 1), (11, 90, 1), (7, 5, 1)])
def test_every_picture_has_the_grid_s_size(aspect: str, shape: tuple[int, ...]) -> None:
    found = gridded(ramp(*shape), size=(24, 20), aspect=aspect)
    assert found.shape == (1, 24, 20)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("aspect", ["pad", "crop", "stretch"])
def test_every_volume_has_the_grid_s_size(aspect: str) -> None:
    found = gridded(ramp(20, 14, 9), (1, 2, 3), size=(12, 10, 8), aspect=aspect)
    assert found.shape == (1, 12, 10, 8)


def test_picture_of_the_grid_s_size_is_only_normalised() -> None:
    image = np.random.default_rng(0).random((6, 5, 1))
    found = gridded(image, size=(6, 5))
    assert np.allclose(found[0], (image[..., 0] - image.mean()) / image.std(), atol=1e-5)


def test_crop_takes_the_middle() -> None:
    image = np.zeros((30, 10, 1))
    image[10:20] = np.random.default_rng(0).random((10, 10, 1))
    found = gridded(image, size=(10, 10), aspect="crop", normalise="range", range=(0, 1))
    assert np.allclose(found[0], image[10:20, :, 0], atol=1e-6)


def test_pad_fills_with_the_least_value_and_keeps_proportions() -> None:
    image = np.random.default_rng(0).random((20, 10, 1)) + 1
    found = gridded(image, size=(20, 20), aspect="pad")[0]
    assert np.allclose(found[:, :5], found.min())
    assert np.allclose(found[:, 15:], found.min())
    assert np.allclose(found[:, 5:15], (image[..., 0] - image.mean()) / image.std(), atol=1e-5)


def test_proportions_are_those_of_the_patient_not_of_the_pixels() -> None:
    found = gridded(ramp(10, 20, 1), (2, 1, 1), size=(20, 20), aspect="pad")[0]
    assert (found.std(axis=0) > 0).all(), "10 pixels of 2 mm are as wide as 20 of 1 mm: nothing is filled"


def test_making_a_film_smaller_does_not_alias() -> None:
    checks = np.indices((512, 512)).sum(axis=0)[..., None] % 2
    found = gridded(checks, size=(28, 28), normalise="range", range=(0, 1))
    assert np.abs(found - 0.5).max() < 0.05, "single pixels are averaged away"


def test_scale_of_the_grey_values_does_not_matter() -> None:
    image = np.random.default_rng(0).random((40, 40, 1))
    assert np.allclose(gridded(image, size=(9, 9)), gridded(4000 * image - 1000, size=(9, 9)), atol=1e-3)


def test_range_is_brought_to_one_and_held_at_its_ends() -> None:
    image = np.array([[-2000.0, -1000.0], [-300.0, 900.0]])[..., None]
    found = gridded(image, size=(2, 2), normalise="range", range=(-1000, 400))
    assert np.allclose(found[0], [[0, 0], [0.5, 1]])


def test_volume_is_turned_to_the_config_s_orientation() -> None:
    image = ramp(6, 6, 6)
    volume = Volume(image[None], np.diag([-1.0, -1.0, 1.0, 1.0]))
    prepare = classify_preprocessing(ClassifyPreprocess(size=(6, 6, 6), normalise="range", range=(0, 216)))
    found = np.asarray(apply(prepare, {IMAGE: volume.as_metatensor()})[IMAGE])
    assert np.allclose(found[0] * 216, image[::-1, ::-1], atol=1e-3)


def test_stack_is_no_picture() -> None:
    with pytest.raises(NotApplicable, match="3 slices"):
        gridded(ramp(5, 5, 3), size=(5, 5))


def test_constant_picture_is_refused() -> None:
    with pytest.raises(ConstantImage):
        gridded(np.full((9, 9, 1), 7), size=(5, 5))


# ------------------------------------------------------------------------------------------------------- augmentations

CHOICES = [
    ("RandAffine", {"prob": 1.0, "rotate_range": 0.3, "scale_range": [0.1, 0.1]}),
    ("RandFlip", {"prob": 1.0, "spatial_axis": 0}),
    ("RandZoom", {"prob": 1.0, "min_zoom": 0.8, "max_zoom": 0.9}),
    ("RandCoarseDropout", {"prob": 1.0, "holes": 2, "spatial_size": [4, 4], "fill_value": 0}),
    ("RandGridDistortion", {"prob": 1.0}),
    ("Rand2DElastic", {"prob": 1.0, "spacing": [8, 8], "magnitude_range": [1, 2]}),
    ("RandGaussianNoise", {"prob": 1.0}),
    ("RandGaussianSmooth", {"prob": 1.0}),
    ("RandGaussianSharpen", {"prob": 1.0}),
    ("RandHistogramShift", {"prob": 1.0}),
    ("RandAdjustContrast", {"prob": 1.0}),
    ("RandScaleIntensity", {"prob": 1.0, "factors": 0.2}),
    ("RandShiftIntensity", {"prob": 1.0, "offsets": 0.2}),
    ("RandSimulateLowResolution", {"prob": 1.0, "zoom_range": [0.5, 0.8]}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), CHOICES, ids=[name for name, _ in CHOICES])
def test_registered_transform_changes_a_picture_and_keeps_its_size(name: str, options: dict[str, Any]) -> None:
    image = torch.rand(1, 24, 24, generator=torch.Generator().manual_seed(0))
    augment = classify_augmentation([Augmentation(name=name, options=options)], axes=2)
    augment.set_random_state(seed=1)
    found = torch.as_tensor(np.asarray(apply(augment, {IMAGE: image.clone()})[IMAGE]))
    assert found.shape == image.shape
    assert not torch.equal(found, image)


def test_nothing_is_flipped_unless_the_config_says_so() -> None:
    image = torch.rand(1, 8, 8)
    assert torch.equal(apply(classify_augmentation([], axes=2), {IMAGE: image})[IMAGE], image)


def test_unknown_transform_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="RandCoarseDropout"):
        classify_augmentation([Augmentation(name="RandomFlip")], axes=2)


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ConfigInvalid, match="RandFlip"):
        classify_augmentation([Augmentation(name="RandFlip", options={"often": 1})], axes=2)


@pytest.mark.parametrize(
    ("shape", "size"), [((40, 50, 60), (16, 20, 24)), ((40, 20, 10), (16, 32, 10)), ((10, 12, 9), (20, 12, 15))]
)
def test_volumes_are_resized_as_monai_does(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(100, 50, (1, *shape)).astype(np.float32))
    expected = torch.as_tensor(np.asarray(Resize(size, mode="trilinear", anti_aliasing=True)(values)))
    torch.testing.assert_close(gridding._resized(values, size), expected, rtol=0, atol=1e-4)


def test_a_volume_is_resized_in_the_memory_of_a_part_of_it() -> None:
    array = np.random.default_rng(0).normal(size=(160, 1, 160, 160)).astype(np.float32).transpose(1, 3, 2, 0)
    gridding._resized(torch.from_numpy(array[..., :40]), (32, 32, 32))  # what is loaded once
    with rising() as rise:
        gridding._resized(torch.from_numpy(array), (32, 32, 32))
    assert rise.bytes < array.nbytes
