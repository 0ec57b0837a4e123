"""Distances between spheres and boxes are what geometry says, in mm, whatever the voxels' shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from imaging.surface import boundary, hausdorff95, surface_dice, surface_distances, volume_error_percent

Spacing = tuple[float, float, float]
CUBES = arrays.arrays(np.bool_, (6, 5, 4))
SPACINGS: list[Spacing] = [(1.0, 1.0, 1.0), (1.0, 1.0, 4.0), (0.5, 2.0, 1.0)]


def sphere(radius: float, spacing: Spacing, centre: tuple[float, ...] = (0, 0, 0), extent: float = 60) -> np.ndarray:
    """A ball in mm on a grid of `extent` mm around the origin."""
    axes = [(np.arange(round(extent / step)) + 0.5) * step - extent / 2 for step in spacing]
    grid = np.meshgrid(*axes, indexing="ij")
    return sum((x - c) ** 2 for x, c in zip(grid, centre, strict=True)) <= radius**2


def box(low: tuple[int, ...], high: tuple[int, ...], shape: tuple[int, ...] = (50, 50, 50)) -> np.ndarray:
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def compare(found: np.ndarray, truth: np.ndarray, spacing: Spacing = (1.0, 1.0, 1.0), tolerance: float = 1.0):
    return boundary(found, truth, spacing_mm=spacing, tolerance_mm=tolerance)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("apart", [3, 6])
def test_concentric_spheres_are_as_far_apart_as_their_radii(spacing: Spacing, apart: float) -> None:
    scored = compare(sphere(14 + apart, spacing), sphere(14, spacing), spacing, tolerance=apart / 4)
    assert scored.hd95_mm == pytest.approx(apart, abs=0.5 * max(spacing))
    assert scored.surface_dice < 0.15, "slices 4 mm apart let a few elements of the two coincide"
    assert compare(sphere(14 + apart, spacing), sphere(14, spacing), spacing, apart + 3).surface_dice == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_box_that_is_moved_is_as_far_off_as_it_was_moved(axis: int, spacing: Spacing) -> None:
    low, high, step = [10, 10, 10], [30, 30, 30], 3
    moved_low, moved_high = list(low), list(high)
    moved_low[axis] += step
    moved_high[axis] += step
    scored = compare(box(moved_low, moved_high), box(low, high), spacing)
    assert scored.hd95_mm == pytest.approx(step * spacing[axis], abs=1e-3)


def test_share_of_a_box_beyond_the_tolerance_is_that_of_its_faces() -> None:
    """40 mm boxes, one of them 4 mm higher: off by more than 1 mm are both tops and 3 mm of the higher one's sides."""
    spacing = (1.0, 1.0, 2.0)
    scored = compare(box((5, 5, 5), (45, 45, 27)), box((5, 5, 5), (45, 45, 25)), spacing, tolerance=1)
    low, high = 2 * 40**2 + 4 * 40 * 40, 2 * 40**2 + 4 * 40 * 44
    assert scored.surface_dice == pytest.approx(1 - (2 * 40**2 + 4 * 40 * 3) / (low + high), abs=0.02)
    assert scored.hd95_mm == pytest.approx(4, abs=1e-3)


def test_percentile_is_over_area_not_over_voxels() -> None:
    """A side that bulges takes 6 % of the area but, cut by far-apart slices, 2 % of the border's voxels."""
    spacing = (1.0, 1.0, 8.0)
    truth = box((5, 5, 2), (45, 45, 8), (60, 60, 10))
    found = truth.copy()
    found[45:50, 8:30, 3:7] = True
    area = 22 * 32
    surface = 2 * 40 * 40 + 4 * 40 * 48
    assert 0.05 < area / surface < 0.07
    distances = surface_distances(found, truth, spacing_mm=spacing)
    assert hausdorff95(distances) == pytest.approx(5, abs=1e-3)
    border = 2 * 40 * 40 + 4 * 40 * 4
    assert 22 * 4 / border < 0.05


@pytest.mark.parametrize("spacing", SPACINGS)
def test_area_of_a_box_is_that_of_its_faces_but_for_its_edges(spacing: Spacing) -> None:
    mask = box((5, 5, 5), (45, 45, 45))
    a, b, c = (40 * step for step in spacing)
    area = surface_distances(mask, mask, spacing_mm=spacing).found_mm2.sum()
    assert area == pytest.approx(2 * (a * b + b * c + a * c), rel=0.03)


def test_mask_at_the_end_of_the_grid_is_closed_there() -> None:
    inside, at_the_end = box((5, 5, 5), (15, 15, 15), (30, 30, 30)), box((0, 0, 0), (10, 10, 10), (10, 10, 10))
    areas = [surface_distances(mask, mask, spacing_mm=(1, 1, 1)).found_mm2.sum() for mask in (inside, at_the_end)]
    assert areas[0] == pytest.approx(areas[1])


def test_a_stray_voxel_far_away_does_not_move_the_percentile() -> None:
    truth = box((10, 10, 10), (30, 30, 30))
    found = truth.copy()
    found[45, 45, 45] = True
    distances = surface_distances(found, truth, spacing_mm=(1, 1, 1))
    assert hausdorff95(distances) == 0
    assert distances.found_mm.max() > 20


@given(found=CUBES, truth=CUBES)
@settings(deadline=None, max_examples=50)
def test_scores_are_symmetric_and_bounded(found: np.ndarray, truth: np.ndarray) -> None:
    spacing = (1.0, 1.5, 3.0)
    one, other = compare(found, truth, spacing), compare(truth, found, spacing)
    if not found.any() and not truth.any():
        assert math.isnan(one.hd95_mm) and math.isnan(one.surface_dice)
        return
    assert one.hd95_mm == pytest.approx(other.hd95_mm)
    assert one.surface_dice == pytest.approx(other.surface_dice)
    assert 0 <= one.surface_dice <= 1
    assert 0 <= one.hd95_mm <= math.hypot(6, 7.5, 12) + 1e-6


@given(mask=CUBES)
@settings(deadline=None, max_examples=30)
def test_mask_against_itself_is_perfect(mask: np.ndarray) -> None:
    mask[0, 0, 0] = True
    scored = compare(mask, mask)
    assert (scored.hd95_mm, scored.surface_dice) == (0, 1)


def test_only_one_of_two_being_empty_is_the_worst_there_is() -> None:
    mask, nothing = box((1, 1, 1), (3, 3, 3), (10, 20, 5)), np.zeros((10, 20, 5), dtype=bool)
    for pair in ((mask, nothing), (nothing, mask)):
        scored = compare(*pair, (1.0, 2.0, 4.0))
        assert (scored.hd95_mm, scored.surface_dice) == (pytest.approx(math.hypot(10, 40, 20)), 0)


def test_wider_tolerance_is_no_smaller_share() -> None:
    distances = surface_distances(sphere(12, (1, 1, 1), (1, 2, 0)), sphere(11, (1, 1, 1)), spacing_mm=(1, 1, 1))
    shares = [surface_dice(distances, tolerance_mm=tolerance) for tolerance in (0, 0.5, 1, 2, 4)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@pytest.mark.parametrize(
    ("found", "truth", "expected"), [(110, 100, 10), (50, 100, -50), (0, 100, -100), (0, 0, None), (5, 0, None)]
)
def test_volume_error_is_signed_and_relative(found: float, truth: float, expected: float | None) -> None:
    error = volume_error_percent(found, truth)
    assert math.isnan(error) if expected is None else error == pytest.approx(expected)
