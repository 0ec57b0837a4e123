"""The way to the network's grid and back puts every voxel where it was, for any orientation, spacing and obliquity."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import Compose

from imaging.config import Channel, Preprocess, Window
from imaging.errors import ConstantImage, GridMismatch, NotApplicable
from imaging.restore import restore_labels
from imaging.transforms import (
    IMAGE,
    LABEL,
    affine_of,
    apply,
    as_label_tensor,
    preprocessing,
)
from imaging.volume import Volume, orientation_of

Array = np.ndarray[Any, Any]

ORIENTATIONS = {
    orientation_of(turn): turn
    for order in permutations(range(3))
    for signs in product((1.0, -1.0), repeat=3)
    for turn in [np.vstack([np.column_stack([np.eye(3)[:, order] * signs, [0, 0, 0]]), [0, 0, 0, 1]])]
}
SHAPE = (7, 9, 6)
SLOPE, OFFSET = np.array([3.0, -1.7, 0.9]), 50.0


def rotated(degrees: float, axis: tuple[float, float, float] = (1, 2, 3)) -> Array:
    """A rotation about an axis (Rodrigues) as a 4 x 4 matrix."""
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return matrix


def grid(orientation: str, spacing: tuple[float, ...], degrees: float = 0) -> Array:
    """An affine whose axes run along an orientation, turned by some degrees, with an odd origin."""
    affine: Array = rotated(degrees) @ ORIENTATIONS[orientation] @ np.diag([*spacing, 1.0])
    affine[:3, 3] = [-31.7, 12.3, 80.9]
    return affine


def points_of(shape: tuple[int, ...], affine: Array) -> Array:
    """(3, X, Y, Z): where each voxel's centre lies in RAS mm."""
    indices = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ indices + affine[:3, 3:]).reshape(3, *shape)


def linear(points: Array) -> Array:
    """A value that tells the place."""
    return np.tensordot(SLOPE, points, axes=1) + OFFSET


def random_labels(shape: tuple[int, ...], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 4, shape).astype(np.uint8)


def there(labels: Array, affine: Array, spacing: tuple[float, ...], orientation: str = "RAS") -> tuple[Array, Array]:
    """Labels on the network's grid, with its affine, by the product's own preprocessing."""
    image = Volume(np.random.default_rng(1).random((1, *labels.shape), dtype=np.float32), affine).as_metatensor()
    config = Preprocess(spacing_mm=spacing, orientation=orientation)
    sample = preprocessing(config, with_label=True)({IMAGE: image, LABEL: as_label_tensor(labels, affine)})
    assert np.allclose(affine_of(sample[IMAGE]), affine_of(sample[LABEL]))
    return sample[LABEL][0].numpy().astype(np.uint8), affine_of(sample[IMAGE])


def along_ras(orientation: str, spacing: tuple[float, ...]) -> tuple[float, ...]:
    """The spacing of a grid's axes in the order R-L, A-P, S-I."""
    axes = [next(axis for axis, letter in enumerate(orientation) if letter in pair) for pair in ("RL", "AP", "SI")]
    return tuple(spacing[axis] for axis in axes)


# ------------------------------------------------------------------------------------------------------- there and back


def test_all_orientations_are_different() -> None:
    assert len(ORIENTATIONS) == 48


@pytest.mark.parametrize("degrees", [0, 17], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_labels_go_there_and_back_unchanged(orientation: str, degrees: float) -> None:
    spacing = (0.7, 1.3, 2.0)
    affine = grid(orientation, spacing, degrees)
    labels = random_labels(SHAPE)
    # An oblique grid is named by the axes it is closest to, so its spacing is too.
    network, to_ras = there(labels, affine, along_ras(orientation_of(affine), spacing))
    assert sorted(network.shape) == sorted(SHAPE)
    assert np.array_equal(back(network, to_ras, shape=SHAPE, to_affine=affine), labels)


@pytest.mark.parametrize("network_orientation", ["RAS", "LPS", "LAI"])
def test_networks_may_want_another_orientation(network_orientation: str) -> None:
    affine, labels = grid("PSL", (1.0, 1.0, 1.0)), random_labels(SHAPE)
    network, to_ras = there(labels, affine, (1.0, 1.0, 1.0), network_orientation)
    assert orientation_of(to_ras) == network_orientation
    assert np.array_equal(back(network, to_ras, shape=SHAPE, to_affine=affine), labels)


def back(labels: Array, affine: Array, *, shape: tuple[int, ...], to_affine: Array) -> Array:
    """The way back of a label map that a network is certain of."""
    certain = np.stack([labels == label for label in range(int(labels.max()) + 1)]).astype(np.float32)
    return restore_labels(certain, affine, shape=shape, to_affine=to_affine)


def blob(shape: tuple[int, ...], affine: Array, radius: float) -> Array:
    """A ball in the middle of the grid, a fifth of a voxel off the middle so that nothing is symmetric."""
    middle = affine[:3, :3] @ (np.array(shape) / 2 + [0.2, -0.3, 0.1]) + affine[:3, 3]
    distance = np.linalg.norm(points_of(shape, affine) - middle[:, None, None, None], axis=0)
    return (distance < radius).astype(np.uint8)


def centroid(labels: Array, affine: Array) -> Array:
    return points_of(labels.shape, affine)[:, labels > 0].mean(axis=1)


@pytest.mark.parametrize("degrees", [0, 33], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSL", "SRA", "IAL"])
@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0], ids=lambda factor: f"spacing_x{factor}")
def test_resampled_ball_stays_in_its_place(orientation: str, factor: float, degrees: float) -> None:
    spacing, shape = (1.0, 1.2, 1.5), (36, 30, 26)
    affine = grid(orientation, spacing, degrees)
    ball = blob(shape, affine, radius=11)
    network, to_ras = there(ball, affine, tuple(factor * value for value in along_ras(orientation_of(affine), spacing)))
    restored = back(network, to_ras, shape=shape, to_affine=affine)
    for labels, labels_affine in ((network, to_ras), (restored, affine)):
        apart = centroid(labels, labels_affine) - centroid(ball, affine)
        voxels = np.linalg.inv(affine)[:3, :3] @ apart / max(factor, 1)
        assert np.abs(voxels).max() < 0.5, "of the coarser grid"
    assert int(restored.sum()) == pytest.approx(int(ball.sum()), rel=0.07)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.3, 2.0, 2.5, 3.0], ids=lambda factor: f"spacing_x{factor}")
def test_way_back_does_not_shift_masks_one_way(factor: float) -> None:
    """A box may lose part of a voxel at either face; over boxes at all places it may not move."""
    shape = (int(40 * factor) + 9, 3, 3)
    network, own = np.diag([factor, 1, 1, 1.0]), np.eye(4)
    shifts = []
    for start in range(3, 23):
        labels = np.zeros((40, 3, 3), np.uint8)
        labels[start : start + 11] = 1
        restored = back(labels, network, shape=shape, to_affine=own)
        shifts.append((centroid(restored, own) - centroid(labels, network))[0])
    assert abs(np.mean(shifts)) < 0.1


def test_half_a_voxel_of_shift_would_be_seen() -> None:
    affine = grid("LPS", (1.0, 1.0, 1.0))
    labels, ball = random_labels(SHAPE), blob((30, 30, 30), affine, radius=9)
    for sign in (-1, 1):
        shifted = affine.copy()
        shifted[:3, 3] += sign * affine[:3, :3] @ [0.51, 0, 0]
        network, to_ras = there(labels, affine, (1.0, 1.0, 1.0))
        assert not np.array_equal(back(network, to_ras, shape=SHAPE, to_affine=shifted), labels)
        network, to_ras = there(ball, affine, (2.0, 2.0, 2.0))
        restored = back(network, to_ras, shape=ball.shape, to_affine=shifted)
        assert np.linalg.norm(centroid(restored, affine) - centroid(ball, affine)) > 0.2


@given(
    orientation=st.sampled_from(sorted(ORIENTATIONS)),
    spacing=st.tuples(*[st.floats(0.4, 3)] * 3),
    shape=st.tuples(*[st.integers(2, 9)] * 3),
    degrees=st.floats(-180, 180),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_each_voxel_takes_the_likeliest_class_at_its_centre(
    orientation: str, spacing: tuple[float, ...], shape: tuple[int, int, int], degrees: float, seed: int
) -> None:
    """Against the plain definition: trilinear interpolation at each voxel's centre, in mm, one voxel at a time."""
    network_grid = rotated(degrees) @ grid("RAS", (1.0, 1.0, 1.0))
    own = rotated(degrees) @ grid(orientation, spacing)
    probability = np.random.default_rng(seed).dirichlet([1, 1, 1], (8, 7, 6)).transpose(3, 0, 1, 2).astype(np.float32)
    restored = restore_labels(probability, network_grid, shape=shape, to_affine=own)
    centres = np.linalg.inv(network_grid) @ np.vstack([points_of(shape, own).reshape(3, -1), np.ones(np.prod(shape))])
    last = np.array(probability.shape[1:]) - 1
    for value, centre in zip(restored.reshape(-1), centres[:3].T, strict=True):
        outside = np.maximum(-centre, centre - last).max() - 0.5
        if abs(outside) < 1e-3:
            continue
        here = trilinear(probability, np.clip(centre, 0, last))
        best = np.sort(here)
        assert value == 0 if outside > 0 else best[-1] - best[-2] < 1e-3 or value == here.argmax()


def trilinear(probability: Array, centre: Array) -> Array:
    lower = np.minimum(np.floor(centre).astype(int), np.array(probability.shape[1:]) - 2)
    total = np.zeros(len(probability))
    for corner in np.ndindex(2, 2, 2):
        weight = np.prod([f if step else 1 - f for f, step in zip(centre - lower, corner, strict=True)])
        x, y, z = lower + corner
        total += weight * probability[:, x, y, z]
    return total


def test_beyond_the_network_grid_there_is_no_label() -> None:
    restored = back(np.ones((2, 2, 2), np.uint8), np.eye(4), shape=(6, 2, 2), to_affine=np.eye(4) - _x(2))
    assert restored[:, 0, 0].tolist() == [0, 0, 1, 1, 0, 0]


def _x(mm: float) -> Array:
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return shift


@pytest.mark.parametrize("degrees", [1, 10, 45, 80])
def test_axes_that_are_not_parallel_are_refused(degrees: float) -> None:
    with pytest.raises(GridMismatch, match="axes that diverge"):
        back(random_labels((20, 20, 20)), rotated(degrees), shape=(20, 20, 20), to_affine=np.eye(4))


def test_axes_that_fall_together_are_refused() -> None:
    flat = np.array([[1, 1, 0, 0], [0, 1e-3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    with pytest.raises(GridMismatch):
        back(random_labels((4, 4, 4)), np.eye(4), shape=(4, 4, 4), to_affine=flat)


# ----------------------------------------------------------------------------------------------------- the image itself


def resampled(volume: Volume, spacing: tuple[float, ...]) -> tuple[Array, Array]:
    """The image on the network's grid before it is normalised, with its affine."""
    placing = preprocessing(Preprocess(spacing_mm=spacing), with_label=False).transforms[:-1]
    image = Compose(placing)({IMAGE: volume.as_metatensor()})[IMAGE]
    return image[0].numpy().astype(np.float64), affine_of(image)


def worst_displacement(values: Array, affine: Array) -> float:
    """By how many mm along the field's gradient a value lies elsewhere than the affine says, away from the borders."""
    inner = tuple(slice(size // 5, -(size // 5)) for size in values.shape)
    error = np.abs(values - linear(points_of(values.shape, affine)))[inner]
    return float(error.max() / np.linalg.norm(SLOPE))


def field(orientation: str, spacing: tuple[float, ...], degrees: float) -> Volume:
    """About 30 mm of a value that is linear in RAS mm."""
    affine, shape = grid(orientation, spacing, degrees), tuple(int(30 / step) for step in spacing)
    return Volume(linear(points_of(shape, affine))[None].astype(np.float32), affine)


@pytest.mark.parametrize("degrees", [0, 25], ids=["straight", "oblique"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PSL", "SRA", "IAL", "ASR"])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 2.0), (0.9, 0.8, 3.0)], ids=str)
@pytest.mark.parametrize("wanted", [(1.0, 1.0, 1.0), (0.8, 1.1, 1.7)], ids=["isotropic", "anisotropic"])
def test_resampled_image_has_each_value_in_its_place(
    orientation: str, spacing: tuple[float, ...], wanted: tuple[float, ...], degrees: float
) -> None:
    values, affine = resampled(field(orientation, spacing, degrees), wanted)
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx(wanted)
    assert degrees or orientation_of(affine) == "RAS"
    assert worst_displacement(values, affine) < 0.01


def test_a_tenth_of_a_voxel_would_be_seen() -> None:
    values, affine = resampled(field("LPS", (0.7, 1.3, 2.0), 0), (1.0, 1.0, 1.0))
    affine[:3, 3] += affine[:3, :3] @ [0.1, 0, 0]
    assert worst_displacement(values, affine) > 0.05


def test_input_of_the_network_is_normalised() -> None:
    volume = field("LPS", (1.0, 1.0, 1.0), 0)
    before = volume.array.copy()
    image = preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False)({IMAGE: volume.as_metatensor()})[IMAGE]
    assert float(image.mean()) == pytest.approx(0, abs=1e-4)
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert np.array_equal(volume.array, before), "the volume itself is left alone"


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 1.3, 1.0)], ids=str)
@pytest.mark.parametrize("value", [0.0, 7.0, 0.1, -3.3, 1000.1, 123456.78, 1e30])
def test_constant_image_is_refused_whatever_its_value(value: float, spacing: tuple[float, ...]) -> None:
    """Rounding gives the voxels of a constant image a deviation; dividing by it would make noise an image."""
    volume = Volume(np.full((1, 35, 51, 35), value, np.float32), np.diag([*spacing, 1.0]))
    with pytest.raises(ConstantImage):
        apply(preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False), {IMAGE: volume.as_metatensor()})


def test_small_contrast_on_a_large_offset_is_an_image() -> None:
    array = 1000 + 0.1 * np.random.default_rng(0).random((1, 20, 20, 20), dtype=np.float32)
    volume = Volume(array, np.eye(4))
    image = preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False)({IMAGE: volume.as_metatensor()})[IMAGE]
    assert float(image.std(correction=0)) == pytest.approx(1, abs=1e-2)


def two_channels() -> Volume:
    """Synthetic: values of 0 to 100 in the first channel, of -1000 to 1000 in the second."""
    ramp = np.linspace(0, 1, 8 * 9 * 10, dtype=np.float32).reshape(8, 9, 10)
    return Volume(np.stack([100 * ramp, 2000 * ramp - 1000]), np.eye(4))


WINDOW = Window(low=-200, high=300, mean=50, deviation=125)


def test_a_window_clips_and_scales_by_its_numbers_alone() -> None:
    config = Preprocess(spacing_mm=(1, 1, 1), normalise="window", window=WINDOW)
    values = np.array([-1000.0, -200, 50, 175, 300, 3000], np.float32).reshape(1, 6, 1, 1)
    image = preprocessing(config, with_label=False)({IMAGE: Volume(values, np.eye(4)).as_metatensor()})[IMAGE]
    assert image.flatten().tolist() == pytest.approx([-2, -2, 0, 1, 2, 2])


def test_each_channel_is_scaled_by_its_own_rule() -> None:
    scales = (Channel(name="pet"), Channel(name="ct", normalise="window", window=WINDOW))
    prepare = preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False, scales=scales)
    volume = two_channels()
    image = prepare({IMAGE: volume.as_metatensor()})[IMAGE]
    assert image.shape == (2, 8, 9, 10)
    assert float(image[0].mean()) == pytest.approx(0, abs=1e-4)
    assert float(image[0].std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert np.allclose(image[1].numpy(), (volume.array[1].clip(-200, 300) - 50) / 125, atol=1e-5)


@pytest.mark.parametrize("constant", [0, 1])
def test_a_constant_channel_is_refused_by_its_name(constant: int) -> None:
    scales = (Channel(name="pet"), Channel(name="ct", normalise="window", window=WINDOW))
    volume = two_channels()
    volume.array[constant] = 7
    with pytest.raises(ConstantImage, match=f"channel {scales[constant].name}"):
        apply(
            preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False, scales=scales),
            {IMAGE: volume.as_metatensor()},
        )


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(NotApplicable, match="2 channels"):
        apply(
            preprocessing(Preprocess(spacing_mm=(1, 1, 1)), with_label=False), {IMAGE: two_channels().as_metatensor()}
        )
