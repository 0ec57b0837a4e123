"""A projection image is a volume of one slice, and where its scale comes from is always told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantom import change, write_series
from pydicom.dataset import Dataset
from pydicom.uid import UID

from imaging.dicom import Policy, Series, load_series, scan, stacks
from imaging.errors import ImagingError

POLICIES: tuple[Policy, ...] = ("strict", "repair")
DX = UID("1.2.840.10008.5.1.4.1.1.1.1")
PIXELS = np.arange(35).reshape(5, 7) * 100


def write_projections(folder: Path, values: dict[str, Any], *, count: int = 1) -> None:
    """Images without a position in the patient."""

    def edit(dataset: Dataset, _k: int) -> None:
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = DX
        dataset.Modality = "DX"
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
            delattr(dataset, keyword)
        del dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType
        dataset.PixelData = PIXELS.astype("<i2").tobytes()
        for keyword, value in values.items():
            setattr(dataset, keyword, value)

    write_series(folder, slices=count, edit=edit)


def series_in(folder: Path) -> Series:
    ((series,),) = (study.series for study in scan(folder).studies)
    return series


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("values", "spacing", "words", "is_known"),
    [
        ({"PixelSpacing": [0.2, 0.1]}, (0.1, 0.2), "Pixel Spacing, not said how calibrated", True),
        (
            {"PixelSpacing": [0.2, 0.1], "ImagerPixelSpacing": [0.3, 0.15], "PixelSpacingCalibrationType": "FIDUCIAL"},
            (0.1, 0.2), "Pixel Spacing, calibrated by fiducial", True,
        ),
        ({"PixelSpacing": [0.3, 0.15], "ImagerPixelSpacing": [0.3, 0.15]}, (0.15, 0.3), "at the detector", False),
        ({"ImagerPixelSpacing": [0.3, 0.15]}, (0.15, 0.3), "smaller than it says", False),
        (
            {"ImagerPixelSpacing": [0.3, 0.15], "EstimatedRadiographicMagnificationFactor": 1.5},
            (0.1, 0.2), "divided by the estimated magnification 1.5", False,
        ),
    ],
    ids=["pixel", "calibrated", "both_equal", "imager", "magnified"],
)  # fmt: skip
def test_the_origin_of_the_spacing_is_told(
    tmp_path: Path, values: dict[str, object], spacing: tuple[float, float], words: str, is_known: bool, policy: Policy
) -> None:
    write_projections(tmp_path, values)
    volume = load_series(tmp_path, policy=policy)
    assert volume.shape == (7, 5, 1)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], PIXELS.T)
    assert volume.spacing[:2] == pytest.approx(spacing)
    by_code = {defect.code: defect for defect in volume.defects}
    assert set(by_code) == {"no_patient_position", "spacing_origin"}
    assert by_code["no_patient_position"].error_mm is None
    assert words in by_code["spacing_origin"].detail
    assert (by_code["spacing_origin"].error_mm is not None) == is_known
    assert len(volume.sources) == 1


def test_a_size_that_nothing_tells_is_refused_or_counts_as_pixels(tmp_path: Path) -> None:
    write_projections(tmp_path, {})
    with pytest.raises(ImagingError) as caught:
        load_series(tmp_path, policy="strict")
    assert caught.value.code == "missing_attribute"
    volume = load_series(tmp_path)
    (defect,) = [defect for defect in volume.defects if defect.code == "unknown_spacing"]
    assert (defect.action, defect.error_mm) == ("repaired", None)
    assert volume.spacing == (1, 1, 1)


@pytest.mark.parametrize("spacing", [["0", "0.1"], ["-1", "1"], ["NaN", "1"], ["1e9", "1"]])
@pytest.mark.parametrize("keyword", ["PixelSpacing", "ImagerPixelSpacing"])
def test_a_spacing_that_is_no_length_is_refused(tmp_path: Path, keyword: str, spacing: list[str]) -> None:
    write_projections(tmp_path, {keyword: spacing})
    with pytest.raises(ImagingError) as caught:
        load_series(tmp_path)
    assert caught.value.code == "invalid_geometry"


@pytest.mark.parametrize("factor", ["NaN", "inf"])
def test_a_magnification_that_is_no_number_is_never_divided_by(tmp_path: Path, factor: str) -> None:
    write_projections(tmp_path, {"ImagerPixelSpacing": [0.3, 0.15], "EstimatedRadiographicMagnificationFactor": factor})
    try:
        spacing = load_series(tmp_path).spacing
    except ImagingError as error:
        assert error.code == "invalid_geometry"
    else:
        assert spacing[:2] == pytest.approx((0.15, 0.3))


def test_what_a_viewer_would_do_to_the_values_is_told_and_not_done(tmp_path: Path) -> None:
    shown = {"PresentationIntentType": "FOR PROCESSING", "WindowCenter": 50, "WindowWidth": 10}
    write_projections(tmp_path, {"PixelSpacing": [0.2, 0.1], **shown})
    volume = load_series(tmp_path)
    np.testing.assert_array_equal(volume.array[0, :, :, 0], PIXELS.T)
    assert {"for_processing", "voi_not_applied"} <= {defect.code for defect in volume.defects}


def test_each_image_of_a_series_is_a_volume_of_its_own(tmp_path: Path) -> None:
    write_projections(tmp_path, {"PixelSpacing": [0.2, 0.1]}, count=3)
    found, refused = stacks(series_in(tmp_path))
    assert refused == []
    assert {stack.name for stack in found} == {f"InstanceNumber={number}" for number in (1, 2, 3)}
    assert [stack.shape for stack in found] == [(7, 5, 1)] * 3
    with pytest.raises(ImagingError) as caught:
        load_series(tmp_path)
    assert caught.value.code == "several_series"


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_cross_section_without_a_position_is_no_projection(tmp_path: Path, modality: str, policy: Policy) -> None:
    phantom = write_series(tmp_path, modality="CT")
    for path in phantom.paths:
        change(path, Modality=modality, ImagePositionPatient=None)
    _, refused = stacks(series_in(tmp_path), policy=policy)
    assert [error.code for error in refused] == ["missing_attribute"]
    assert "ImagePositionPatient" in refused[0].seen
