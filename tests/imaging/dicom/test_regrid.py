"""Slices that lie on no regular grid are brought onto one: right wherever something was acquired, and told."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from phantom import AXIAL, OBLIQUE, Floats, Orientation, Phantom, turned, value_at_ras, write_series

from imaging.dicom import load_series
from imaging.dicom.geometry import LARGEST_BRIDGED
from imaging.dicom.regrid import regrid
from imaging.dicom.stack import ROUNDING_MM, Regrid
from imaging.errors import ImagingError
from imaging.volume import Defect, Volume, lps_to_ras

Bools = NDArray[np.bool_]

ROWS, COLUMNS = 5, 7
PIXELS = (1.3, 0.7)
UNEVEN = {
    "alternating": [0, 0.4, 0, 0.4, 0, 0.4],
    "last": [0, 0, 0, 0, 0, 0.9],
    "drift": [0, 0.02, 0.06, 0.12, 0.2, 0.3],
}
TILTS = [(0.0, 0.5), (-0.3, 0.0), (0.2, 0.2), (0.7, -1.3)]

both_planes = pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])


def along_normal(distances: list[float]) -> Callable[[int], tuple[float, float, float]]:
    return lambda k: (0.0, 0.0, distances[k])


def told(volume: Volume, code: str) -> Defect:
    (defect,) = [defect for defect in volume.defects if defect.code == code]
    return defect


def points_of(volume: Volume) -> Floats:
    """Where the affine puts each voxel, in RAS mm."""
    indices = np.indices(volume.shape).reshape(3, -1)
    points: Floats = (volume.affine[:3, :3] @ indices + volume.affine[:3, 3:]).T
    return points


def acquired(phantom: Phantom, volume: Volume, kept: range, pixels: tuple[float, float] = PIXELS) -> Bools:
    """Which voxels lie on a slice that was kept, or between two of them, within the pixels of both."""
    points_N3 = points_of(volume) * [-1, -1, 1]
    axes = lps_to_ras(volume.affine)[:3, :3] / volume.spacing
    offsets = np.array([(points_N3 - phantom.positions[k]) @ axes for k in kept])
    most = [(COLUMNS - 1) * pixels[1], (ROWS - 1) * pixels[0]]
    within = (offsets[..., :2] > -1e-3) & (offsets[..., :2] < np.array(most) + 1e-3)
    inside: Bools = np.all(within, axis=-1)
    height = offsets[..., 2]
    # A resampled slice this close to an acquired one is that one; both of its neighbours are the same slice then.
    height = np.where(np.abs(height) <= ROUNDING_MM, 0, height)
    below = np.where(height >= 0, height, np.inf).argmin(axis=0)
    above = np.where(height <= 0, -height, np.inf).argmin(axis=0)
    chosen = np.arange(len(points_N3))
    whole: Bools = inside[below, chosen] & inside[above, chosen]
    return whole.reshape(volume.shape)


def assert_right_where_acquired(phantom: Phantom, volume: Volume, kept: range | None = None) -> None:
    """The field holds on every voxel that was acquired; the others have the smallest value, and their share is told."""
    seen = acquired(phantom, volume, range(len(phantom.uids)) if kept is None else kept)
    error = np.abs(volume.array[0] - value_at_ras(points_of(volume)).reshape(volume.shape))
    assert seen.any(axis=(0, 1)).all(), "every slice of the grid holds something that was acquired"
    assert float(error[seen].max()) <= phantom.tolerance
    assert (volume.array[0][~seen] == volume.array[0][seen].min()).all()
    beyond = [defect for defect in volume.defects if defect.code == "beyond_acquired"]
    assert len(beyond) == int(not seen.all())
    assert all(f"{(~seen).mean():.1%}" in defect.detail for defect in beyond)


# ----------------------------------------------------------------------------------------------------- uneven distances


@both_planes
@pytest.mark.parametrize("distances", UNEVEN.values(), ids=UNEVEN)
def test_uneven_slices_are_resampled_over_their_own_extent(
    tmp_path: Path, distances: list[float], orientation: Orientation
) -> None:
    phantom = write_series(
        tmp_path, slices=6, slice_spacing=1.0, shift=along_normal(distances), orientation=orientation
    )
    volume = load_series(tmp_path)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert volume.resampled
    assert volume.spacing[2] * (volume.shape[2] - 1) == pytest.approx(5 + distances[5], abs=1e-5)
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("variable_spacing", "repaired")
    own = np.arange(6) + distances
    made = np.linspace(0, own[-1], volume.shape[2])
    assert defect.error_mm == pytest.approx(np.abs(made[:, None] - own).min(axis=1).max(), abs=1e-6)


def test_each_resampled_slice_names_the_nearest_frame(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=6, slice_spacing=1.0, shift=along_normal(UNEVEN["last"]))
    volume = load_series(tmp_path)
    made = np.linspace(0, 5.9, volume.shape[2])
    nearest = np.abs(made[:, None] - (np.arange(6) + UNEVEN["last"])).argmin(axis=1)
    assert [frame.sop_instance_uid for frame in volume.sources] == [phantom.uids[number] for number in nearest]


def test_rounding_of_positions_costs_no_pixel_at_the_rim(tmp_path: Path) -> None:
    phantom = write_series(
        tmp_path, slices=6, slice_spacing=1.0, orientation=OBLIQUE,
        shift=lambda k: (2e-4 * (-1) ** k, 2e-4 * (k % 3), UNEVEN["alternating"][k]),
    )  # fmt: skip
    volume = load_series(tmp_path)
    assert volume.shape[:2] == (COLUMNS, ROWS)
    assert [defect.code for defect in volume.defects] == ["variable_spacing"]
    assert phantom.worst_error(volume) <= phantom.tolerance + 15 * ROUNDING_MM  # |GRADIENT| < 15 a mm


def test_jitter_aside_of_uneven_slices_is_told(tmp_path: Path) -> None:
    phantom = write_series(
        tmp_path, slices=6, slice_spacing=1.0, shift=lambda k: (0.015 * (k == 3), 0.0, UNEVEN["alternating"][k])
    )
    volume = load_series(tmp_path)
    defect = told(volume, "uneven_positions")
    assert defect.action == "noted"
    assert defect.error_mm == pytest.approx(0.015, abs=1e-5)
    assert phantom.worst_error(volume) <= phantom.tolerance + 15 * 0.015


def test_a_tilt_of_whole_pixels_loses_none(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, shift=lambda k: (0.7 * k + 3e-4 * (k % 2), 0.0, 0.0))
    volume = load_series(tmp_path)
    assert volume.shape == (COLUMNS + 3, ROWS, 4)
    assert int((volume.array != volume.array.min()).sum()) >= 4 * ROWS * COLUMNS - 1
    assert_right_where_acquired(phantom, volume)


def test_two_interleaved_stacks_become_one_grid(tmp_path: Path) -> None:
    """Half a stack was sent again after the patient had moved by a third of a slice."""
    phantom = write_series(tmp_path, slices=8, slice_spacing=1.5, shift=lambda k: (0.0, 0.0, 0.5 * (k % 2)))
    volume = load_series(tmp_path)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert told(volume, "variable_spacing").action == "repaired"


def test_a_gap_too_wide_to_bridge_is_never_interpolated_over(tmp_path: Path) -> None:
    wide = LARGEST_BRIDGED + 0.5
    distances = [0, 0.3, 0, 0.3, wide, wide + 0.3, wide]
    phantom = write_series(tmp_path, slices=7, slice_spacing=1.0, shift=along_normal(distances))
    volume = load_series(tmp_path)
    assert [defect.code for defect in volume.defects] == ["missing_slices", "variable_spacing"]
    assert {frame.sop_instance_uid for frame in volume.sources} <= set(phantom.uids[:4])
    assert volume.spacing[2] * (volume.shape[2] - 1) == pytest.approx(3.3)
    assert phantom.worst_error(volume) <= phantom.tolerance


# ----------------------------------------------------------------------------------------------------------------- tilt


@both_planes
@pytest.mark.parametrize("sideways", TILTS)
def test_gantry_tilt_is_undone(tmp_path: Path, sideways: tuple[float, float], orientation: Orientation) -> None:
    phantom = write_series(tmp_path, shift=lambda k: (k * sideways[0], k * sideways[1], 0.0), orientation=orientation)
    volume = load_series(tmp_path)
    assert_right_where_acquired(phantom, volume)
    assert volume.resampled
    assert [frame.sop_instance_uid for frame in volume.sources] == list(phantom.uids)
    axes = volume.affine[:3, :3] / volume.spacing
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    defect = told(volume, "gantry_tilt")
    assert defect.action == "repaired"
    assert f"{np.degrees(np.arctan(np.hypot(*sideways) / 2.5)):.1f} degrees" in defect.detail


def test_one_slice_pushed_aside_is_put_back(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, slices=5, shift=lambda k: (2.0 * (k == 2), 0.0, 0.0))
    volume = load_series(tmp_path)
    assert_right_where_acquired(phantom, volume)
    assert "not along one line" in told(volume, "gantry_tilt").detail


@both_planes
def test_tilt_and_uneven_distances_are_both_undone_and_told(tmp_path: Path, orientation: Orientation) -> None:
    distances = UNEVEN["alternating"]
    phantom = write_series(
        tmp_path, slices=6, slice_spacing=1.0, shift=lambda k: (0.1 * k, -0.3 * k, distances[k]),
        orientation=orientation,
    )  # fmt: skip
    volume = load_series(tmp_path)
    assert_right_where_acquired(phantom, volume)
    assert {defect.code for defect in volume.defects} == {"variable_spacing", "gantry_tilt", "beyond_acquired"}


def test_tilt_and_missing_slices_are_both_told(tmp_path: Path) -> None:
    phantom = write_series(tmp_path, keep=[0, 1, 2, 4, 5, 6, 7], shift=lambda k: (0.1 * k, 0.3 * k, 0.0))
    volume = load_series(tmp_path)
    assert_right_where_acquired(phantom, volume, range(3, 7))
    assert [frame.sop_instance_uid for frame in volume.sources] == list(phantom.uids[3:])
    assert {defect.code for defect in volume.defects} == {"missing_slices", "gantry_tilt", "beyond_acquired"}


def test_a_tilt_that_no_grid_of_a_sane_size_holds_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, shift=lambda k: (3.0 * k, 4.0 * k, 0.0))
    with pytest.raises(ImagingError, match="times larger") as caught:
        load_series(tmp_path)
    assert caught.value.code == "gantry_tilt"


angles = st.floats(-180, 180)
spacings = st.floats(0.3, 4)


@settings(max_examples=40, deadline=None)
@given(
    turn=st.tuples(angles, angles, angles),
    pixels=st.tuples(spacings, spacings),
    tilt=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    steps=st.lists(st.floats(1.0, 1.9), min_size=2, max_size=6),
)
def test_any_tilt_and_spacing_is_right_where_it_was_acquired(
    turn: tuple[float, float, float], pixels: tuple[float, float], tilt: tuple[float, float], steps: list[float]
) -> None:
    along = [0.0, *np.cumsum(steps).tolist()]
    with tempfile.TemporaryDirectory() as folder:
        phantom = write_series(
            Path(folder), orientation=turned(*turn), pixel_spacing=pixels, slices=len(along), slice_spacing=0.0,
            shift=lambda k: (tilt[0] * along[k], tilt[1] * along[k], along[k]), numbering="equal",
        )  # fmt: skip
        try:
            volume = load_series(Path(folder))
        except ImagingError as refused:
            assert refused.code == "gantry_tilt" and "times larger" in refused.seen
            return
    assert len({frame.sop_instance_uid for frame in volume.sources}) > len(along) // 2
    jitter = sum(defect.error_mm or 0 for defect in volume.defects if defect.code == "uneven_positions")
    seen = acquired(phantom, volume, range(len(along)), pixels)
    error = np.abs(volume.array[0] - value_at_ras(points_of(volume)).reshape(volume.shape))
    # |GRADIENT| < 15 a mm; where jitter was told, a voxel at the rim may count as acquired here and not there.
    if jitter:
        seen[volume.array[0] == volume.array.min()] = False
    assert float(error[seen].max(initial=0)) <= phantom.tolerance + 15 * (jitter + 2 * ROUNDING_MM)


# ------------------------------------------------------------------------------------------------------ the room itself


def ramp(number: int, columns: int = 4) -> NDArray[np.float32]:
    """One row of 10 x slice + column."""
    return (10 * number + np.arange(columns, dtype=np.float32))[None, None, :]


def regridded(plan: Regrid, targets: range, size: int) -> NDArray[np.float32]:
    made = np.full((len(plan.target), 1, 1, size), -1, np.float32)
    regrid(ramp, plan, targets, made)
    return made[:, 0, 0, :]


def test_between_two_slices_a_voxel_is_their_linear_mix() -> None:
    plan = Regrid(np.array([0.0, 1, 3]), np.array([0.0, 1.5, 3]), np.zeros((3, 2)))
    made = regridded(plan, range(3), 4)
    np.testing.assert_allclose(made[:, 0], [0, 12.5, 20])


def test_half_a_pixel_sideways_is_the_mean_of_two_and_the_rest_is_nan() -> None:
    plan = Regrid(np.array([0.0, 1]), np.array([0.0, 1]), np.array([[0.0, 0], [0.5, 0]]))
    made = regridded(plan, range(2), 5)
    np.testing.assert_allclose(made[0], [0, 1, 2, 3, np.nan])
    np.testing.assert_allclose(made[1], [np.nan, 10.5, 11.5, 12.5, np.nan])


def test_nan_of_a_pixel_reaches_no_farther_than_the_voxels_made_of_it() -> None:
    def holed(number: int) -> NDArray[np.float32]:
        image = ramp(number)
        image[0, 0, 1] = np.nan
        return image

    made = np.zeros((2, 1, 1, 5), np.float32)
    regrid(holed, Regrid(np.array([0.0, 1]), np.array([0.0, 1]), np.array([[0.0, 0], [1, 0]])), range(2), made)
    np.testing.assert_allclose(made[0, 0, 0], [0, np.nan, 2, 3, np.nan])
    np.testing.assert_allclose(made[1, 0, 0], [np.nan, 10, np.nan, 12, 13])


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_parts_of_a_grid_made_apart_are_those_made_together(draw: st.DataObject) -> None:
    steps = draw.draw(st.lists(st.floats(0.5, 2), min_size=2, max_size=8))
    along = np.array([0.0, *np.cumsum(steps)])
    target = np.linspace(0, along[-1], draw.draw(st.integers(2, 10)))
    shift = np.array([(draw.draw(st.floats(0, 2)), 0.0) for _ in along])
    plan = Regrid(along, target, shift)
    whole = regridded(plan, range(len(target)), 6)
    cut = draw.draw(st.integers(0, len(target)))
    first, second = regridded(plan, range(cut), 6), regridded(plan, range(cut, len(target)), 6)
    np.testing.assert_array_equal(np.concatenate([first[:cut], second[cut:]]), whole)
    assert not (whole == -1).any()


def test_each_slice_is_read_once_and_at_most_two_are_kept() -> None:
    asked: list[int] = []

    def read(number: int) -> NDArray[np.float32]:
        asked.append(number)
        return ramp(number)

    along = np.arange(6.0)
    made = np.zeros((9, 1, 1, 4), np.float32)
    regrid(read, Regrid(along, np.linspace(0, 5, 9), np.zeros((6, 2))), range(9), made)
    assert asked == list(range(6))
