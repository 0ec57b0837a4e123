"""Every voxel lies where the affine says, whatever the orientation and numbering.

What is not one grid is repaired and told, or refused by name; under `strict` always refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from phantom import (
    AXIAL,
    NUMBERINGS,
    OBLIQUE,
    ORIENTATIONS,
    RESCALES,
    Edit,
    Floats,
    Orientation,
    change,
    turned,
    write_series,
)
from pydicom.dataset import Dataset
from pydicom.uid import BasicTextSRStorage

from imaging.dicom import Policy, Series, load_series, read_series, read_stack, scan, stacks
from imaging.dicom.geometry import JITTER_SHARE
from imaging.dicom.stack import ROUNDING_MM
from imaging.errors import ImagingError
from imaging.volume import lps_to_ras

POLICIES: tuple[Policy, ...] = ("strict", "repair")


def refusal(folder: Path, policy: Policy = "repair") -> ImagingError:
    with pytest.raises(ImagingError) as caught:
        load_series(folder, policy=policy)
    return caught.value


def series_in(folder: Path) -> Series:
    found = scan(folder)
    assert found.refused == ()
    ((series,),) = (study.series for study in found.studies)
    return series


@pytest.mark.parametrize("rescale", RESCALES)
@pytest.mark.parametrize("numbering", NUMBERINGS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_voxel_is_where_the_affine_says(tmp_path: Path, orientation: str, numbering: str, rescale: str) -> None:
    phantom = write_series(tmp_path, orientation=ORIENTATIONS[orientation], numbering=numbering, rescale=rescale)
    volume = load_series(tmp_path)
    assert volume.array.shape == (1, 7, 5, 4)
    assert volume.array.dtype == np.float32
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert tuple(frame.sop_instance_uid for frame in volume.sources) == phantom.uids
    assert tuple(frame.path for frame in volume.sources) == phantom.paths
    assert volume.spacing == pytest.approx((0.7, 1.3, 2.5))
    assert volume.defects == ()


@pytest.mark.parametrize("orientation", ORIENTATIONS.values(), ids=ORIENTATIONS)
def test_slices_ascend_along_the_normal_and_keep_the_handedness_of_dicom(
    tmp_path: Path, orientation: Orientation
) -> None:
    phantom = write_series(tmp_path, orientation=orientation, numbering="reversed")
    affine_lps = lps_to_ras(load_series(tmp_path).affine)
    normal = np.cross(*orientation)
    assert np.linalg.det(affine_lps[:3, :3]) == pytest.approx(0.7 * 1.3 * 2.5)
    np.testing.assert_allclose(affine_lps[:3, 2], 2.5 * normal, atol=1e-9)
    np.testing.assert_allclose(affine_lps[:3, 3], phantom.positions[0], atol=1e-9)


angles = st.floats(-180, 180)
millimetres = st.floats(-200, 200)
spacings = st.floats(0.3, 4)


@settings(max_examples=30, deadline=None)
@given(
    turn=st.tuples(angles, angles, angles),
    origin=st.tuples(millimetres, millimetres, millimetres),
    pixel_spacing=st.tuples(spacings, spacings),
    slice_spacing=st.floats(0.5, 6),
    size=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(2, 6)),
    numbering=st.sampled_from(sorted(NUMBERINGS)),
)
def test_any_regular_stack_is_read_rightly(
    turn: tuple[float, float, float],
    origin: tuple[float, float, float],
    pixel_spacing: tuple[float, float],
    slice_spacing: float,
    size: tuple[int, int, int],
    numbering: str,
) -> None:
    rows, columns, slices = size
    with tempfile.TemporaryDirectory() as folder:
        phantom = write_series(
            Path(folder), orientation=turned(*turn), origin=origin, pixel_spacing=pixel_spacing,
            slice_spacing=slice_spacing, rows=rows, columns=columns, slices=slices, numbering=numbering,
            rescale="per_slice",
        )  # fmt: skip
        volume = load_series(Path(folder))
    assert volume.shape == (columns, rows, slices)
    assert phantom.worst_error(volume) <= phantom.tolerance
    assert tuple(frame.sop_instance_uid for frame in volume.sources) == phantom.uids


both_planes = pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE], ids=["axial", "oblique"])


@both_planes
@pytest.mark.parametrize(
    ("keep", "run"),
    [([0, 1, 2, 4, 5, 6], [0, 1, 2]), ([0, 1, 2, 3, 7], [0, 1, 2, 3]), ([0, 2, 3, 4, 6, 7], [1, 2, 3])],
    ids=["one", "three_at_the_end", "two_holes"],
)
def test_missing_slices_are_refused_or_the_longest_whole_run_is_kept(
    tmp_path: Path, keep: list[int], run: list[int], orientation: Orientation
) -> None:
    phantom = write_series(tmp_path, keep=keep, orientation=orientation, numbering="missing")
    assert refusal(tmp_path, "strict").code == "missing_slices"
    volume = load_series(tmp_path)
    assert [frame.sop_instance_uid for frame in volume.sources] == [phantom.uids[rank] for rank in run]
    assert volume.shape == (7, 5, len(run))
    assert phantom.worst_error(volume) <= phantom.tolerance
    (defect,) = volume.defects
    assert (defect.code, defect.action, defect.error_mm) == ("missing_slices", "repaired", 0)
    assert f"slices {run[0] + 1} to {run[-1] + 1} of {len(keep)}" in defect.detail
    assert not volume.resampled


def test_missing_slices_are_counted_and_located(tmp_path: Path) -> None:
    write_series(tmp_path, keep=[0, 1, 2, 6, 7], origin=(0, 0, 100))
    error = refusal(tmp_path, "strict")
    assert "2.500 mm" in error.expected
    (defect,) = load_series(tmp_path).defects
    for seen in (error.seen, defect.detail):
        assert "3 slices are missing" in seen
        assert "5.00 mm from the first slice" in seen


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("keep", [[0], [0, 0]], ids=["one", "one_twice"])
def test_one_slice_is_no_volume(tmp_path: Path, keep: list[int], policy: Policy) -> None:
    write_series(tmp_path, keep=keep)
    assert refusal(tmp_path, policy).code == "too_few_slices"


def along_normal(distances: list[float]) -> Callable[[int], tuple[float, float, float]]:
    return lambda k: (0.0, 0.0, distances[k])


@both_planes
@pytest.mark.parametrize(
    "distances",
    [[0, 0.4, 0, 0.4, 0, 0.4], [0, 0, 0, 0, 0, 0.9], [0, 0.02, 0.06, 0.12, 0.2, 0.3]],
    ids=["alternating", "last", "drift"],
)
def test_variable_spacing_is_refused_under_strict(
    tmp_path: Path, distances: list[float], orientation: Orientation
) -> None:
    write_series(tmp_path, slices=6, slice_spacing=1.0, shift=along_normal(distances), orientation=orientation)
    assert refusal(tmp_path, "strict").code == "variable_spacing"


@both_planes
@pytest.mark.parametrize("sideways", [(0.0, 0.5), (-0.3, 0.0), (0.2, 0.2)])
def test_gantry_tilt_is_refused_under_strict(
    tmp_path: Path, sideways: tuple[float, float], orientation: Orientation
) -> None:
    write_series(tmp_path, shift=lambda k: (k * sideways[0], k * sideways[1], 0.0), orientation=orientation)
    assert refusal(tmp_path, "strict").code == "gantry_tilt"


def test_one_slice_pushed_aside_is_refused_under_strict(tmp_path: Path) -> None:
    write_series(tmp_path, slices=5, shift=lambda k: (2.0 * (k == 2), 0.0, 0.0))
    assert refusal(tmp_path, "strict").code == "gantry_tilt"


@pytest.mark.parametrize(
    ("shift", "error_mm"),
    [
        (lambda k: (0.0, 0.0, 0.03 * (k == 2)), 0.03),
        (lambda k: (0.04 * (k == 2), 0.0, 0.0), 0.04),
        (lambda k: (0.0, 0.03 * (k == 1), 0.04 * (k == 1)), 0.05),
    ],
    ids=["along", "aside", "both"],
)
def test_jitter_is_noted_with_its_error(
    tmp_path: Path, shift: Callable[[int], tuple[float, float, float]], error_mm: float
) -> None:
    phantom = write_series(tmp_path, slices=6, shift=shift)
    volume = load_series(tmp_path)
    (defect,) = volume.defects
    assert (defect.code, defect.action) == ("uneven_positions", "noted")
    assert defect.error_mm == pytest.approx(error_mm, abs=1e-6)
    assert phantom.worst_error(volume) <= phantom.tolerance + 15 * error_mm  # |GRADIENT| < 15 a mm


def test_rounding_of_positions_is_not_worth_telling(tmp_path: Path) -> None:
    write_series(tmp_path, slices=6, shift=lambda k: (0.0, 0.0, 0.4 * ROUNDING_MM * (-1) ** k))
    assert load_series(tmp_path).defects == ()


def wobble(k: int) -> tuple[Floats, tuple[float, float]]:
    angle = 4e-4 * (-1) ** k
    return np.array([np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0]), (1.3, 0.7)


def stretch(k: int) -> tuple[Floats, tuple[float, float]]:
    return np.array([1, 0, 0, 0, 1, 0]), (1.3 + 4e-5 * (-1) ** k, 0.7)


def skew(_: int) -> tuple[Floats, tuple[float, float]]:
    return np.array([1, 0, 0, 9e-4, 1, 0]), (1.3, 0.7)


@pytest.mark.parametrize("plane", [wobble, stretch, skew])
def test_what_cosines_and_spacings_leave_is_told_in_mm(
    tmp_path: Path, plane: Callable[[int], tuple[Floats, tuple[float, float]]]
) -> None:
    rows, columns, slices = 512, 512, 4

    def edit(dataset: Dataset, k: int) -> None:
        cosines, spacing = plane(k)
        dataset.ImageOrientationPatient = [f"{cosine:.10f}" for cosine in cosines]
        dataset.PixelSpacing = [f"{value:.10f}" for value in spacing]
        dataset.Rows, dataset.Columns = rows, columns
        dataset.PixelData = bytes(2 * rows * columns)

    phantom = write_series(tmp_path, slices=slices, edit=edit)
    volume = load_series(tmp_path)
    affine = lps_to_ras(volume.affine)
    worst = 0.0
    for k in range(slices):
        cosines, spacing = plane(k)
        corner = phantom.positions[k] + cosines[:3] * spacing[1] * (columns - 1) + cosines[3:] * spacing[0] * (rows - 1)
        worst = max(worst, float(np.linalg.norm(affine[:3] @ [columns - 1, rows - 1, k, 1] - corner)))
    assert worst <= sum(defect.error_mm or 0 for defect in volume.defects) + 2 * ROUNDING_MM


def test_jitter_share_is_relative_to_the_spacing(tmp_path: Path) -> None:
    beyond = 1.5 * JITTER_SHARE * 0.5
    write_series(tmp_path, slices=6, slice_spacing=0.5, shift=lambda k: (0.0, 0.0, beyond * (k == 3)))
    assert refusal(tmp_path, "strict").code == "variable_spacing"
    assert [defect.code for defect in load_series(tmp_path).defects] == ["variable_spacing"]


@pytest.mark.parametrize("policy", POLICIES)
def test_slices_beside_each_other_in_one_plane_are_no_stack(tmp_path: Path, policy: Policy) -> None:
    """As tiles of a mosaic would lie; the distance between them along their normal is nothing."""
    write_series(tmp_path, shift=lambda k: (0.5 * k, 0.0, -2.5 * k))
    assert refusal(tmp_path, policy).code == "invalid_geometry"


@pytest.mark.parametrize("policy", POLICIES)
def test_an_enhanced_object_gives_the_volumes_that_its_functional_groups_place(data: Path, policy: Policy) -> None:
    series = series_in(data / "philips_mr_enhanced")
    with pytest.raises(ImagingError) as caught:
        read_series(series, policy=policy)
    assert caught.value.code == "several_series"
    found, refused = stacks(series, policy=policy)
    assert refused == []
    assert sum(len(stack.slices) for stack in found) == 64
    assert len({stack.name for stack in found}) == len(found) > 1
    dataset = pydicom.dcmread(data / "philips_mr_enhanced" / "IM_0027_fMAP.dcm")
    for stack in found:
        volume = read_stack(series, stack)
        assert volume.facts.volume == stack.name
        affine = lps_to_ras(volume.affine)
        for index, frame in enumerate(volume.sources):
            group = dataset.PerFrameFunctionalGroupsSequence[frame.number - 1]
            position = group.PlanePositionSequence[0].ImagePositionPatient
            np.testing.assert_allclose(affine[:3] @ [0, 0, index, 1], position, atol=0.05)
            rescale = group.PixelValueTransformationSequence[0]
            stored = dataset.pixel_array[frame.number - 1]
            expected = stored * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
            np.testing.assert_allclose(volume.array[0, :, :, index], expected.T, rtol=1e-5, atol=1e-3)


def test_real_localizer_is_refused(data: Path) -> None:
    assert refusal(data / "philips_localiser").code == "localizer"


def on(k_broken: int | None, **values: object) -> Edit:
    """Set attributes in one slice, or in all; None removes the attribute."""

    def edit(dataset: Dataset, k: int) -> None:
        if k_broken is None or k == k_broken:
            for keyword, value in values.items():
                if value is None:
                    delattr(dataset, keyword)
                else:
                    setattr(dataset, keyword, value)

    return edit


def as_report(dataset: Dataset, _k: int) -> None:
    dataset.Modality = "SR"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = BasicTextSRStorage
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (as_report, "not_an_image"),
        (on(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "secondary_capture"),
        (on(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.7.2"), "secondary_capture"),
        (on(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4"), "not_an_image"),
        (on(None, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
        (on(None, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "multi_frame"),
        (on(None, NumberOfFrames=2), "multi_frame"),
        (on(None, PhotometricInterpretation=None), "colour_image"),
        (on(None, PhotometricInterpretation="CMYK"), "colour_image"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_stack_of_slices_is_refused_by_what_it_is(
    tmp_path: Path, edit: Edit, code: str, policy: Policy
) -> None:
    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path, policy).code == code


@pytest.mark.parametrize(
    "edit",
    [
        on(1, ImagePositionPatient=["NaN", "0", "0"]),
        on(1, ImagePositionPatient=["0", "inf", "0"]),
        on(None, PixelSpacing=[0, 0.7]),
        on(None, PixelSpacing=[1.3, -0.7]),
        on(None, PixelSpacing=["NaN", "1"]),
        on(None, PixelSpacing=["1e9", "1"]),
        on(None, ImageOrientationPatient=[0.9, 0, 0, 0, 1, 0]),
        on(None, ImageOrientationPatient=[0, 0, 0, 0, 0, 0]),
        on(None, ImageOrientationPatient=[1, 0, 0, 0.1, 0.995, 0]),
        on(None, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]),
        on(None, ImageOrientationPatient=["NaN", "0", "0", "0", "1", "0"]),
    ],
    ids=[
        "position_nan", "position_inf", "spacing_zero", "spacing_negative", "spacing_nan", "spacing_huge",
        "cosines_short", "cosines_zero", "cosines_skew", "cosines_parallel", "cosines_nan",
    ],
)  # fmt: skip
@pytest.mark.parametrize("policy", POLICIES)
def test_geometry_that_no_scanner_means_is_refused(tmp_path: Path, edit: Edit, policy: Policy) -> None:
    write_series(tmp_path, edit=edit)
    assert refusal(tmp_path, policy).code == "invalid_geometry"


@pytest.mark.parametrize("k", [None, 1], ids=["all", "one"])
@pytest.mark.parametrize(
    ("keyword", "malformed"),
    [
        ("ImagePositionPatient", ["1", "2"]),
        ("ImageOrientationPatient", ["1", "0", "0"]),
        ("PixelSpacing", ["1"]),
        ("PixelSpacing", ["", ""]),
    ],
)
def test_missing_or_malformed_geometry_is_a_missing_attribute(
    tmp_path: Path, keyword: str, malformed: list[str], k: int | None
) -> None:
    for name, value in (("absent", None), ("malformed", malformed)):
        write_series(tmp_path / name, edit=on(k, **{keyword: value}))
        _, refused = stacks(series_in(tmp_path / name))
        assert [error.code for error in refused] == ["missing_attribute"]
        assert keyword in refused[0].seen
        if k is None:
            assert refusal(tmp_path / name).code == "missing_attribute"


def test_several_series_are_not_one(tmp_path: Path) -> None:
    write_series(tmp_path, series=1)
    write_series(tmp_path, series=2)
    assert refusal(tmp_path).code == "several_series"


def test_a_bad_file_among_good_ones_is_not_passed_over(tmp_path: Path) -> None:
    phantom = write_series(tmp_path)
    change(phantom.paths[1], SOPInstanceUID="../1")
    assert refusal(tmp_path, "strict").code == "invalid_uid"
    told = {defect.code: defect.detail for defect in load_series(tmp_path).defects}
    assert told.keys() == {"missing_slices", "left_out"}
    assert told["left_out"].startswith("invalid_uid: ")


def test_error_names_the_series_and_not_the_patient(tmp_path: Path) -> None:
    write_series(tmp_path, keep=[0, 1, 3, 4, 5])
    error = refusal(tmp_path, "strict")
    assert "1.2.826.0.1.3680043.8.498.1.1" in error.subject
    assert "SECRET" not in str(error)
    assert "Doe" not in str(error)


def test_facts_come_from_the_header(tmp_path: Path) -> None:
    write_series(tmp_path, modality="CT")
    volume = load_series(tmp_path)
    assert (volume.facts.modality, volume.facts.description, volume.unit) == ("CT", "Linear phantom", "HU")
    assert volume.facts.frame_of_reference_uid == "1.2.826.0.1.3680043.8.498.1.0"
