"""The files of a case become the channels of one volume on one grid, in the order given, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from phantom import write_series
from PIL import Image

from imaging.channels import read_channels, read_image
from imaging.dicom import load_series
from imaging.errors import ChannelMismatch, ImagingError, UnsupportedNifti
from imaging.manifest import Case
from imaging.nifti import read_nifti
from imaging.samples import load_case

AFFINE = np.diag([1.0, 1.5, 2.0, 1.0])
Put = Callable[..., Path]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Write a NIfTI file of a constant, or of given voxels."""

    def call(name: str, array: object, affine: np.ndarray = AFFINE, shape: tuple[int, ...] = (4, 5, 6)) -> Path:
        voxels = np.full(shape, array, dtype=np.float32) if np.isscalar(array) else np.asarray(array, dtype=np.float32)
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / f"{name}.nii.gz")
        return tmp_path / f"{name}.nii.gz"

    return call


def test_files_become_channels_in_the_order_given(put: Put) -> None:
    t1, t2 = put("t1", 1), put("t2", 2)
    assert [read_channels(order).array[:, 0, 0, 0].tolist() for order in ((t1, t2), (t2, t1))] == [[1, 2], [2, 1]]
    volume = read_channels((t1, t2))
    assert volume.array.shape == (2, 4, 5, 6) and volume.facts.description == "t1.nii.gz"
    np.testing.assert_array_equal(volume.affine, AFFINE)


@pytest.mark.parametrize("axes", [(4, 5, 6, 3), (4, 5, 6, 1, 3)])
def test_last_axis_of_one_file_is_its_channels(put: Put, axes: tuple[int, ...]) -> None:
    voxels = np.random.default_rng(0).normal(size=(4, 5, 6, 3)).astype(np.float32)
    path = put("brats", voxels.reshape(axes))
    np.testing.assert_array_equal(read_channels((path,)).array, np.moveaxis(voxels, 3, 0))
    with pytest.raises(UnsupportedNifti):
        read_nifti(path)


def test_single_file_is_read_as_ever(put: Put) -> None:
    path = put("one", np.arange(120).reshape(4, 5, 6))
    np.testing.assert_array_equal(read_channels((path,)).array, read_nifti(path).array)


def test_channels_of_other_kinds_of_files_mix(put: Put, tmp_path: Path) -> None:
    write_series(tmp_path / "study")
    volume = load_series(tmp_path / "study")
    voxels = np.arange(volume.array[0].size).reshape(volume.shape)
    both = read_channels((tmp_path / "study", put("map", voxels, volume.affine)))
    np.testing.assert_array_equal(both.array, np.stack([volume.array[0], voxels]))
    assert both.facts == volume.facts


def test_mask_of_a_series_drawn_on_a_converted_copy_is_turned_to_it(put: Put, tmp_path: Path) -> None:
    """Slices from above, rows from below, and another axis first: as converters write what DICOM tells."""
    write_series(tmp_path / "study")
    image = load_series(tmp_path / "study")
    truth = (np.arange(image.array[0].size).reshape(image.shape) % 5 == 0).astype(np.float32)
    there = np.array([[0, 1], [2, -1], [1, -1]])  # which axis each goes to, and its direction
    turned = nib.orientations.apply_orientation(truth, there)
    affine = image.affine @ nib.orientations.inv_ornt_aff(there, truth.shape)
    mask = put("mask", turned, affine)
    assert turned.shape != truth.shape
    found = load_case(Case("a", (tmp_path / "study",), mask, "p"), values=[1])
    np.testing.assert_array_equal(found[1].array[0], truth)
    np.testing.assert_allclose(found[1].affine, image.affine, atol=1e-4)
    both = read_channels((tmp_path / "study", mask))
    np.testing.assert_array_equal(both.array[1], truth)


@pytest.mark.parametrize(
    ("affine", "shape", "told"),
    [
        (AFFINE, (4, 5, 7), "shape (4, 5, 7), a.nii.gz has (4, 5, 6)"),
        (AFFINE + np.eye(4, k=3) * 0.5, (4, 5, 6), "0.50 mm from a.nii.gz"),
        (np.diag([1.0, 1.5, 2.2, 1.0]), (4, 5, 6), "1.20 mm from a.nii.gz"),
        (np.diag([-1.0, -1.5, 2.0, 1.0]), (4, 5, 6), "mm from a.nii.gz"),
    ],
)
def test_channel_in_another_place_is_refused_by_name(
    put: Put, affine: np.ndarray, shape: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ChannelMismatch) as caught:
        read_channels((put("a", 1), put("b", 2, affine, shape)))
    assert "b.nii.gz" in caught.value.subject and told in caught.value.seen


@pytest.mark.parametrize(("wanted", "files"), [(1, 2), (3, 2), (2, 1)])
def test_other_number_of_channels_than_the_network_takes_is_refused(put: Put, wanted: int, files: int) -> None:
    images = tuple(put(name, number) for number, name in enumerate("ab"[:files]))
    case = Case("brain7", images, put("mask", 1), "p")
    with pytest.raises(ChannelMismatch) as caught:
        load_case(case, values=(1,), channels=wanted)
    assert "brain7" in caught.value.subject
    assert (f"{files} channels", f"{wanted} were expected") == (caught.value.seen, caught.value.expected)


def test_case_with_two_channels_is_read_with_its_mask(put: Put) -> None:
    case = Case("a", (put("t1", 1), put("t2", 2)), put("mask", 1), "p")
    image, mask = load_case(case, values=(1,), channels=2)
    assert image.array.shape[0] == 2 and mask.array.shape[0] == 1


def test_picture_is_read_by_its_name(tmp_path: Path, put: Put) -> None:
    Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4)).save(tmp_path / "film.png")
    assert read_image(tmp_path / "film.png").shape == (4, 3, 1)
    assert read_image(put("one", 1)).shape == (4, 5, 6)
    with pytest.raises(ImagingError):
        read_image(tmp_path / "nothing")
