"""The affine is the truth: what is derived from it holds for permuted, flipped and oblique grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from imaging.volume import SeriesFacts, Volume, extent_in_ras, lps_to_ras, orientation_of, spacing_of

SPACING = (0.7, 1.3, 2.5)
GRIDS = [(order, signs) for order in itertools.permutations(range(3)) for signs in itertools.product((1, -1), repeat=3)]


def grid(order: tuple[int, ...], signs: tuple[int, ...]) -> NDArray[np.float64]:
    """Voxel axis k runs along patient axis order[k] with signs[k], by SPACING[k]."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for voxel, (patient, sign) in enumerate(zip(order, signs, strict=True)):
        affine[patient, voxel] = sign * SPACING[voxel]
    affine[:3, 3] = [-12, 7.5, 30]
    return affine


def rotation(x: float, y: float, z: float) -> NDArray[np.float64]:
    matrix = np.eye(4)
    for (a, b), angle in zip(((1, 2), (2, 0), (0, 1)), np.radians([x, y, z]), strict=True):
        turn = np.eye(4)
        turn[[a, a, b, b], [a, b, a, b]] = [np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)]
        matrix = turn @ matrix
    return matrix


def volume_on(affine: NDArray[np.float64], shape: tuple[int, int, int] = (3, 4, 5)) -> Volume:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(1, *shape)
    return Volume(array, affine)


def test_lps_to_ras_turns_the_first_two_axes() -> None:
    np.testing.assert_array_equal(lps_to_ras(np.eye(4)), np.diag([-1, -1, 1, 1]))
    affine = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [0, 0, 0, 1.0]])
    np.testing.assert_array_equal(lps_to_ras(affine), affine * [[-1], [-1], [1], [1]])


@given(st.lists(st.floats(-1e3, 1e3), min_size=12, max_size=12))
def test_lps_to_ras_is_its_own_inverse(numbers: list[float]) -> None:
    affine = np.vstack([np.reshape(numbers, (3, 4)), [0, 0, 0, 1]])
    np.testing.assert_array_equal(lps_to_ras(lps_to_ras(affine)), affine)
    assert np.linalg.det(lps_to_ras(affine)) == pytest.approx(np.linalg.det(affine), abs=1e-3)


@pytest.mark.parametrize(("order", "signs"), GRIDS)
def test_every_permuted_and_flipped_grid_is_described(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = grid(order, signs)
    expected = "".join(("RAS" if sign > 0 else "LPI")[patient] for patient, sign in zip(order, signs, strict=True))
    assert orientation_of(affine) == expected
    assert spacing_of(affine) == pytest.approx(SPACING)
    sizes = [10 * SPACING[0], 20 * SPACING[1], 30 * SPACING[2]]
    assert extent_in_ras((10, 20, 30), affine) == pytest.approx([sizes[order.index(patient)] for patient in range(3)])


@pytest.mark.parametrize(("order", "signs"), GRIDS[::5])
@pytest.mark.parametrize("turn", [(20, 0, 0), (-15, 20, 10), (0, 0, -35)])
def test_a_turned_grid_keeps_its_name_size_and_volume(
    order: tuple[int, ...], signs: tuple[int, ...], turn: tuple[float, float, float]
) -> None:
    straight = grid(order, signs)
    oblique = rotation(*turn) @ straight
    assert orientation_of(oblique) == orientation_of(straight)
    assert spacing_of(oblique) == pytest.approx(SPACING)
    assert extent_in_ras((10, 20, 30), oblique) == pytest.approx(extent_in_ras((10, 20, 30), straight))
    assert volume_on(oblique).voxel_volume == pytest.approx(0.7 * 1.3 * 2.5)


angles = st.floats(-180, 180)


@given(angles, angles, angles)
def test_no_rotation_gives_one_patient_axis_to_two_voxel_axes(x: float, y: float, z: float) -> None:
    affine = rotation(x, y, z) @ np.diag([*SPACING, 1])
    axes = [{"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[letter] for letter in orientation_of(affine)]
    assert sorted(axes) == [0, 1, 2]
    assert sorted(extent_in_ras((1, 1, 1), affine)) == pytest.approx(sorted(SPACING))


def test_a_sheared_voxel_has_the_volume_of_its_determinant() -> None:
    affine = np.diag([*SPACING, 1.0])
    affine[0, 2] = 1.1
    assert volume_on(affine).voxel_volume == pytest.approx(0.7 * 1.3 * 2.5)


def test_shape_spacing_and_orientation_are_those_of_the_grid() -> None:
    volume = volume_on(grid((2, 0, 1), (1, -1, -1)), (3, 4, 5))
    assert volume.shape == (3, 4, 5)
    assert volume.spacing == pytest.approx(SPACING)
    assert volume.orientation == "SLP"


def test_a_volume_of_a_series_is_named_by_what_tells_it_from_the_others() -> None:
    assert SeriesFacts(series_uid="1.2.3").subject == "series 1.2.3"
    assert SeriesFacts(series_uid="1.2.3", volume="EchoTime=4.92").subject == "series 1.2.3 (EchoTime=4.92)"
    assert SeriesFacts(description="a.nii.gz").subject == "a.nii.gz"


@pytest.mark.parametrize("layout", ["C", "slice_by_slice"])
def test_a_metatensor_shares_the_memory_and_keeps_the_affine(layout: str) -> None:
    affine = rotation(10, 20, 30) @ grid((0, 1, 2), (-1, -1, 1))
    volume = volume_on(affine)
    if layout == "slice_by_slice":  # as the DICOM reader lays it out
        slices_ZYX = np.ascontiguousarray(volume.array[0].transpose(2, 1, 0))
        volume = Volume(slices_ZYX.transpose(2, 1, 0)[np.newaxis], affine)
    tensor = volume.as_metatensor()
    assert tensor.data_ptr() == volume.array.ctypes.data
    assert tuple(tensor.shape) == (1, 3, 4, 5)
    np.testing.assert_array_equal(tensor.numpy(), volume.array)
    np.testing.assert_array_equal(np.asarray(tensor.affine), affine)
    volume.array[0, 1, 2, 3] = -99
    assert float(tensor[0, 1, 2, 3]) == -99
