"""`LoadSeriesd` gives what `load_series` gives, as the first transform of anybody's pipeline."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd, Spacingd
from phantom import OBLIQUE, Phantom, change, write_series

import imaging
from imaging.dicom import Policy
from imaging.errors import ImagingError, MissingSlices, SeveralSeries, UnknownName
from imaging.nifti import write_volume
from imaging.transforms import LoadSeriesd, affine_of
from imaging.volume import Volume


@pytest.fixture
def phantom(tmp_path: Path) -> Phantom:
    return write_series(tmp_path / "series", orientation=OBLIQUE, modality="CT")


def loaded(source: object, **options: str) -> MetaTensor:
    image = LoadSeriesd("image", **options)({"image": source, "other": 3})["image"]  # type: ignore[arg-type]
    assert isinstance(image, MetaTensor)
    return image


@pytest.mark.parametrize("given", [str, Path, lambda folder: [str(folder)], lambda folder: sorted(folder.iterdir())])
def test_the_series_is_loaded_with_all_that_was_told(phantom: Phantom, given: object) -> None:
    assert callable(given)
    image = loaded(given(phantom.folder))
    volume = imaging.load_series(phantom.folder)
    assert (image.dtype, image.shape) == (torch.float32, (1, 7, 5, 4))
    np.testing.assert_array_equal(image.numpy(), volume.array)
    np.testing.assert_array_equal(affine_of(image), volume.affine)
    assert (image.meta["modality"], image.meta["unit"], image.meta["resampled"]) == ("CT", "HU", False)
    assert image.meta["series_uid"] == volume.facts.series_uid
    assert image.meta["sources"] == [(uid, 1) for uid in phantom.uids]
    assert image.meta["defects"] == []


@pytest.mark.parametrize("kind", ["DICOM", "NIfTI"])
def test_monai_s_own_transforms_come_after_it(phantom: Phantom, tmp_path: Path, kind: str) -> None:
    source: Path = phantom.folder
    if kind == "NIfTI":
        source = tmp_path / "one.nii.gz"
        write_volume(source, imaging.load_series(phantom.folder))
    chain = Compose(
        [
            LoadSeriesd("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(1.0, 1.0, 1.0), mode="nearest"),
        ]
    )
    image = chain({"image": str(source)})["image"]
    assert image.ndim == 4 and image.shape[0] == 1
    whole = imaging.load_series(phantom.folder)
    # Nearest neighbours keep the values: what lies where must be what the phantom has there, to half a voxel.
    volume = Volume(image.numpy(), affine_of(image), whole.facts)
    half = np.array([0.35, 0.65, 1.25]) @ np.array([11.0, 5.3, 7.9]) * np.sqrt(3)
    inside = Volume(volume.array[:, 1:-1, 1:-1, 1:-1], volume.affine @ _shift(1), whole.facts)
    assert np.ptp(inside.array) > 50
    assert phantom.worst_error(inside) < 3 * half
    np.testing.assert_allclose(image.meta["original_affine"], whole.affine, atol=1e-4)


def _shift(by: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    shift = np.eye(4)
    shift[:3, 3] = by
    return shift


def test_ensure_channel_first_changes_nothing(phantom: Phantom) -> None:
    chain = Compose([LoadSeriesd("image"), EnsureChannelFirstd("image")])
    image = chain({"image": phantom.folder})["image"]
    np.testing.assert_array_equal(image.numpy(), loaded(phantom.folder).numpy())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_makes_batches_of_it(phantom: Phantom, workers: int) -> None:
    dataset = Dataset([{"image": str(phantom.folder)}] * 2, LoadSeriesd("image"))
    (batch,) = DataLoader(dataset, batch_size=2, num_workers=workers)
    assert batch["image"].shape == (2, 1, 7, 5, 4)


@pytest.mark.parametrize("policy", ["Strict", "nope", None])
def test_a_misspelt_policy_is_refused_at_once(policy: Policy) -> None:
    with pytest.raises(UnknownName):
        LoadSeriesd("image", policy=policy)


def test_the_policy_is_the_reader_s(tmp_path: Path) -> None:
    write_series(tmp_path, slices=6, keep=[0, 1, 2, 4, 5])
    with pytest.raises(MissingSlices):
        loaded(tmp_path, policy="strict")
    with pytest.raises(RuntimeError) as caught:
        Compose([LoadSeriesd("image", policy="strict")])({"image": tmp_path})
    assert isinstance(caught.value.__cause__, MissingSlices)
    image = loaded(tmp_path)
    (defect,) = image.meta["defects"]
    assert (defect["code"], defect["action"]) == ("missing_slices", "repaired")


def test_series_and_volume_are_chosen(tmp_path: Path) -> None:
    first, second = (write_series(tmp_path, series=number) for number in (1, 2))
    for path in second.paths:
        change(path, EchoTime=9, SeriesInstanceUID="1.2.9")
    third = write_series(tmp_path, series=3, origin=(0, 0, 0.5))
    for path in third.paths:
        change(path, SeriesInstanceUID="1.2.9")
    with pytest.raises(SeveralSeries):
        loaded(tmp_path)
    with pytest.raises(SeveralSeries):
        loaded(tmp_path, series="1.2.9")
    chosen = loaded(tmp_path, series="1.2.9", volume="EchoTime=9")
    assert [uid for uid, _ in chosen.meta["sources"]] == list(second.uids)
    assert [uid for uid, _ in loaded(tmp_path, volume="").meta["sources"]] == list(first.uids)
    with pytest.raises(ImagingError):
        loaded(tmp_path, series="1.2.10")


def test_a_key_that_is_not_there_is_passed_over_where_that_is_allowed(phantom: Phantom) -> None:
    load = LoadSeriesd(["image", "other"], allow_missing_keys=True)
    assert set(load({"image": phantom.folder})) == {"image"}
    with pytest.raises(KeyError):
        LoadSeriesd(["image", "other"])({"image": phantom.folder})
