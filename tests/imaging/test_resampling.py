"""The network's grid is MONAI's, voxel by voxel; midway between two voxels a label goes to either side in turn."""

from __future__ import annotations

import warnings
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Orientationd, Spacingd

from imaging import resampling
from imaging.config import Preprocess
from imaging.resampling import resampled, spaced_grid, threads_here, to_network_grid, turned

Array = np.ndarray[Any, Any]
ORIENTATIONS = ["".join(code) for axes in permutations(("RL", "AP", "SI")) for code in product(*axes)]


def by_monai(array: Array, affine: Array, config: Preprocess, *, labels: bool = False) -> tuple[Array, Array]:
    """What MONAI's own transforms make of it."""
    image = MetaTensor(torch.from_numpy(np.ascontiguousarray(array)), affine=torch.from_numpy(affine))
    pixdim = [step or 0 for step in config.spacing_mm]
    mode = "nearest" if labels else "bilinear"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transform = Compose([
            Orientationd(["it"], axcodes=config.orientation, labels=None),
            Spacingd(["it"], pixdim=pixdim, mode=mode, padding_mode="border"),
        ])  # fmt: skip
        found = transform({"it": image})["it"]
    return found.as_tensor().numpy(), found.affine.numpy()


def affine_of(orientation: str, spacing: tuple[float, ...], turn: tuple[float, float, float]) -> Array:
    """Axes along an orientation, turned by some degrees about each patient axis, with an odd origin."""
    ornt = nib.orientations.axcodes2ornt(orientation)
    affine = np.zeros((4, 4))
    for axis, (to, sign) in enumerate(ornt):
        affine[int(to), axis] = sign * spacing[axis]
    for n, degrees in enumerate(turn):
        rotation, (a, b) = np.eye(3), [m for m in range(3) if m != n]
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        rotation[a, a], rotation[a, b], rotation[b, a], rotation[b, b] = cos, -sin, sin, cos
        affine[:3, :3] = rotation @ affine[:3, :3]
    affine[:, 3] = [-31.7, 12.3, 80.9, 1]
    return affine


def noise(shape: tuple[int, ...], seed: int = 0) -> Array:
    return (2000 * np.random.default_rng(seed).random(shape, dtype=np.float32) - 1000).astype(np.float32)


spacings = st.one_of(st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0, 5.0]), st.floats(0.3, 6))
given_grids = given(
    orientation=st.sampled_from(ORIENTATIONS),
    wanted_orientation=st.sampled_from(["RAS", "LPS", "SAL"]),
    spacing=st.tuples(spacings, spacings, spacings),
    wanted=st.tuples(*[st.one_of(st.none(), spacings)] * 3),
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    turn=st.one_of(st.just((0.0, 0.0, 0.0)), st.tuples(*[st.floats(-40, 40)] * 3)),
    channels=st.integers(1, 3),
)


@given_grids
@settings(max_examples=150, deadline=None)
def test_image_is_monai_s_voxel_by_voxel(
    orientation: str, wanted_orientation: str, spacing: Any, wanted: Any, shape: Any, turn: Any, channels: int
) -> None:
    affine = affine_of(orientation, spacing, turn)
    config = Preprocess(spacing_mm=wanted, orientation=wanted_orientation)
    image = noise((channels, *shape))
    found, place = to_network_grid(image, affine, config)
    truth, there = by_monai(image, affine, config)
    assert found.shape == truth.shape
    assert found.dtype == np.float32
    assert np.allclose(place, there, atol=1e-9)
    # float32 has steps of 6e-5 at 1000; the places may differ by 1e-6 voxels, over which values change by up to 2000.
    assert np.abs(found - truth).max() < 2.5e-3


def not_midway(into: Array, shape: tuple[int, ...]) -> Array:
    """Which voxels of a grid of `shape` are nearer to one voxel than to another; `into` leads to those indices."""
    at = np.tensordot(into[:3, :3], np.indices(shape), axes=1) + into[:3, 3, None, None, None]
    return (np.abs(at - np.floor(at) - 0.5) > 1e-5).all(axis=0)


@given_grids
@settings(max_examples=100, deadline=None)
def test_labels_are_monai_s_wherever_a_voxel_is_not_midway(
    orientation: str, wanted_orientation: str, spacing: Any, wanted: Any, shape: Any, turn: Any, channels: int
) -> None:
    affine = affine_of(orientation, spacing, turn)
    config = Preprocess(spacing_mm=wanted, orientation=wanted_orientation)
    labels = np.random.default_rng(1).integers(0, 200, (channels, *shape)).astype(np.uint8)
    found, place = to_network_grid(labels, affine, config, labels=True)
    truth, there = by_monai(labels.astype(np.float32), affine, config, labels=True)
    assert found.shape == truth.shape
    assert found.dtype == np.uint8
    _, own = turned(labels, affine, wanted_orientation)
    into = np.linalg.inv(own) @ place
    decided = not_midway(into, found.shape[1:])
    assert np.array_equal(found[:, decided], truth[:, decided])
    assert np.allclose(place, there, atol=1e-9)


@pytest.mark.parametrize("labels", [False, True], ids=["image", "labels"])
@pytest.mark.parametrize("shear", [0.02, 0.3, -0.6])
def test_sheared_axes_are_monai_s_too(shear: float, labels: bool) -> None:
    affine = affine_of("LPS", (0.9, 1.1, 2.3), (11.0, -7.0, 3.0))
    affine[:3, 1] += shear * affine[:3, 0]
    affine[:3, 2] -= 0.5 * shear * affine[:3, 1]
    config = Preprocess(spacing_mm=(1.0, 1.0, 1.3))
    image = np.rint(noise((2, 12, 9, 7)))
    found, place = to_network_grid(image, affine, config, labels=labels)
    truth, there = by_monai(image, affine, config, labels=labels)
    assert np.allclose(place, there, atol=1e-9)
    assert found.shape == truth.shape
    _, own = turned(image, affine, "RAS")
    compared = not_midway(np.linalg.inv(own) @ place, found.shape[1:]) if labels else np.ones(found.shape[1:], bool)
    assert compared.mean() > 0.8
    assert np.abs(found - truth)[:, compared].max() < 2.5e-3


def test_axes_that_float32_made_a_little_oblique_are_taken_as_straight() -> None:
    """NIfTI keeps its affine in float32; what that leaves is no shear."""
    affine = affine_of("RAS", (0.7, 0.7, 1.1), (20.0, 31.0, -8.0)).astype(np.float32).astype(np.float64)
    config, image = Preprocess(spacing_mm=(1.0, 1.0, 1.0)), noise((1, 60, 50, 40))
    found, place = to_network_grid(image, affine, config)
    truth, there = by_monai(image, affine, config)
    assert np.allclose(place, there, atol=1e-9)
    # A ten-thousandth of a voxel beside the place, where neighbours differ by up to 2000.
    assert np.abs(found - truth).max() < 0.2


def test_what_lies_right_is_not_touched() -> None:
    image = noise((1, 5, 6, 7))
    affine = affine_of("RAS", (1.0, 1.0, 1.0004), (0.0, 0.0, 0.0))
    found, place = to_network_grid(image, affine, Preprocess(spacing_mm=(1.0, 1.0, 1.0)))
    assert np.shares_memory(found, image)
    assert np.array_equal(place, affine)


@pytest.mark.parametrize("factor", [2, 4])
def test_midway_labels_keep_size_and_place(factor: int) -> None:
    """A box anywhere, on a finer grid, has the volume and the middle that it had; a plane too many would tell."""
    for start, width in product(range(2, 8), (3, 4, 5)):
        box = np.zeros((1, 16, 16, 16), np.uint8)
        box[0, start : start + width, 3:9, 4:11] = 1
        config = Preprocess(spacing_mm=(1 / factor,) * 3)
        found, place = to_network_grid(box, np.eye(4), config, labels=True)
        assert found.sum() / factor**3 == pytest.approx(box.sum(), rel=0.01)
        middle = place[:3, :3] @ np.argwhere(found[0]).mean(axis=0) + place[:3, 3]
        assert middle == pytest.approx(np.argwhere(box[0]).mean(axis=0), abs=0.02)


def test_neither_threads_nor_memory_order_nor_parts_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    image, affine = noise((2, 40, 30, 20)), affine_of("PSL", (0.8, 1.3, 2.1), (5.0, 0.0, 9.0))
    config = Preprocess(spacing_mm=(1.0, 0.9, 1.5))
    for labels in (False, True):
        plain, _ = to_network_grid(image, affine, config, labels=labels, threads=1)
        monkeypatch.setattr(resampling, "_CHUNK", 500)
        other = image.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)
        found, _ = to_network_grid(other, affine, config, labels=labels, threads=3)
        assert np.array_equal(found, plain)


def test_values_beyond_the_ends_are_held() -> None:
    line = np.array([1.0, 2.0, 4.0], np.float32).reshape(3, 1, 1)
    at = np.array([-2.0, -0.4, 0.25, 1.5, 2.0, 9.0])
    still = np.zeros(1)
    assert resampled(line, [at, still, still]).ravel().tolist() == [1, 1, 1.25, 3, 4, 4]
    assert resampled(line, [at, still, still], nearest=True)[[0, 1, 2, 4, 5]].ravel().tolist() == [1, 1, 1, 4, 4]


def test_grid_keeps_the_first_voxel_in_its_place() -> None:
    affine = affine_of("RAS", (1.0, 1.0, 3.0), (10.0, 0.0, 0.0))
    shape, target = spaced_grid((11, 11, 5), affine, (2.0, None, 1.0))
    assert shape == (6, 11, 13)
    assert np.allclose(target[:, 3], affine[:, 3])
    assert np.allclose(np.linalg.norm(target[:3, :3], axis=0), [2, 1, 1])


@pytest.mark.parametrize(("told", "expected"), [("3", 3), ("1", 1)])
def test_threads_are_those_that_omp_allows(monkeypatch: pytest.MonkeyPatch, told: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_here() == expected


@pytest.mark.parametrize("told", ["", "0", "many"])
def test_without_a_number_all_processors_are_used(monkeypatch: pytest.MonkeyPatch, told: str) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert threads_here() >= 1
