"""A prediction lies on the volume's own grid and depends on the patient, not on how the array is laid out."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imaging import predict
from imaging.checkpoint import Checkpoint, open_checkpoint, save_checkpoint
from imaging.config import Config, load_config
from imaging.errors import AnswerNotNumbers, CheckpointCorrupt, ConstantImage, LooksLikeMask, NotApplicable
from imaging.files import shipped
from imaging.networks import build_network, weights_of
from imaging.nifti import read_nifti
from imaging.predict import Prediction, Predictor, check_not_mask
from imaging.volume import SeriesFacts, Volume, orientation_of

Array = np.ndarray[Any, Any]

# A network of random weights: every label somewhere, and no answer that could be guessed.
TINY = (
    "network.options.filters=[4, 8, 8]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
    "predict.patch=[40, 56, 40]",
    "predict.precision='32'",
    "predict.flip_axes=[]",
)


def config_of(*overrides: str) -> Config:
    return load_config(shipped("configs") / "hippocampus_mr.yaml", [*TINY, *overrides])


def checkpoint_in(folder: Path, *overrides: str) -> Checkpoint:
    torch.set_num_threads(1)
    config = config_of(*overrides)
    torch.manual_seed(3)
    network = build_network(config.network, in_channels=1, out_channels=3)
    return save_checkpoint(folder, config, weights_of(network), {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint_in(tmp_path_factory.mktemp("random") / "checkpoint")


@pytest.fixture(scope="module")
def predictor(checkpoint: Checkpoint) -> Predictor:
    return Predictor(checkpoint, device="cpu")


@pytest.fixture(scope="module")
def volume(data: Path) -> Volume:
    return read_nifti(data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")


@pytest.fixture(scope="module")
def prediction(predictor: Predictor, volume: Volume) -> Prediction:
    return predictor(volume)


def turned(array: Array, affine: Array, order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[Array, Array]:
    """The same voxels of (X, Y, Z) with their axes in another order and direction, and the affine that goes with it."""
    flipped = array[tuple(slice(None, None, sign) for sign in signs)]
    to_old = np.eye(4)
    for axis, (sign, size) in enumerate(zip(signs, array.shape, strict=True)):
        to_old[axis, axis], to_old[axis, 3] = sign, 0 if sign > 0 else size - 1
    to_old[:, :3] = to_old[:, list(order)]
    return np.ascontiguousarray(flipped.transpose(order)), affine @ to_old


def test_turned_array_has_the_same_value_at_the_same_place(volume: Volume) -> None:
    array, affine = turned(volume.array[0], volume.affine, (2, 0, 1), (1, -1, -1))
    place = volume.affine @ [5, 7, 9, 1]
    x, y, z, _ = np.rint(np.linalg.inv(affine) @ place).astype(int)
    assert array[x, y, z] == volume.array[0, 5, 7, 9]


# --------------------------------------------------------------------------------------------------------- the own grid


def test_mask_lies_on_the_grid_of_its_volume(prediction: Prediction, volume: Volume) -> None:
    assert prediction.volume is volume
    assert prediction.mask_XYZ.shape == volume.shape
    assert prediction.mask_XYZ.dtype == np.uint8
    assert set(np.unique(prediction.mask_XYZ)) == {0, 1, 2}


def test_mean_probability_is_told_for_what_was_found(prediction: Prediction) -> None:
    assert set(prediction.mean_probability) == {1, 2}
    assert all(1 / 3 < value <= 1 for value in prediction.mean_probability.values())


def test_volume_is_left_as_it_was(predictor: Predictor, volume: Volume) -> None:
    before = volume.array.copy()
    predictor(volume)
    assert np.array_equal(volume.array, before)


def test_same_volume_gives_the_same_mask(predictor: Predictor, prediction: Prediction, volume: Volume) -> None:
    assert np.array_equal(predictor(volume).mask_XYZ, prediction.mask_XYZ)


@pytest.mark.parametrize(
    ("order", "signs"),
    [
        *((tuple(range(3)), signs) for signs in product((1, -1), repeat=3)),
        *((order, (1, -1, 1)) for order in permutations(range(3))),
    ],
    ids=str,
)
def test_layout_of_the_array_does_not_matter(
    predictor: Predictor, prediction: Prediction, volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array, affine = turned(volume.array[0], volume.affine, order, signs)
    found = predictor(Volume(array[None], affine, volume.facts)).mask_XYZ
    expected, _ = turned(prediction.mask_XYZ, volume.affine, order, signs)
    # Sums in another order may settle a tie differently; one voxel of shift changes several percent.
    assert np.mean(found != expected) < 1e-4
    assert np.mean(np.roll(found, 1, axis=0) != expected) > 0.02


def test_ras_and_lps_are_both_among_the_layouts(volume: Volume) -> None:
    assert orientation_of(volume.affine) == "RAS"
    assert orientation_of(turned(volume.array[0], volume.affine, (0, 1, 2), (-1, -1, 1))[1]) == "LPS"


@pytest.mark.parametrize("spacing", [(0.5, 1.0, 1.0), (0.8, 0.9, 1.9)], ids=str)
def test_mask_of_another_spacing_lies_on_the_own_grid(predictor: Predictor, spacing: tuple[float, ...]) -> None:
    shape = tuple(int(40 / step) for step in spacing)
    array = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    found = predictor(Volume(array, np.diag([*spacing, 1.0])))
    assert found.mask_XYZ.shape == shape


def test_volume_larger_than_the_patch_is_covered(tmp_path: Path, volume: Volume) -> None:
    tiled = Predictor(checkpoint_in(tmp_path / "tiled", "predict.patch=[24, 32, 24]"))
    found = tiled(volume)
    assert found.mask_XYZ.shape == volume.shape
    faces = [found.mask_XYZ.take(index, axis=axis) for axis in range(3) for index in (0, -1)]
    assert all(face.any() for face in faces), "no side is left out"


@pytest.mark.parametrize("shape", [(56, 72, 60), (24, 32, 20)], ids=["largest", "smallest"])
def test_volume_at_the_limits_is_taken(predictor: Predictor, shape: tuple[int, int, int]) -> None:
    array = np.random.default_rng(0).random((1, *shape), dtype=np.float32)
    assert predictor(Volume(array, np.eye(4))).mask_XYZ.shape == shape


def test_flips_are_averaged(tmp_path: Path, volume: Volume) -> None:
    """With a flip of the right-left axis the prediction of the mirrored image is the mirrored prediction."""
    flipping = Predictor(checkpoint_in(tmp_path / "flipping", "predict.flip_axes=[0]"))
    mirrored = Volume(np.ascontiguousarray(volume.array[:, ::-1]), volume.affine, volume.facts)
    found, found_mirrored = flipping(volume).mask_XYZ, flipping(mirrored).mask_XYZ
    assert np.mean(found_mirrored[::-1] != found) < 1e-4


def test_bfloat16_gives_nearly_the_same(tmp_path: Path, prediction: Prediction, volume: Volume) -> None:
    found = Predictor(checkpoint_in(tmp_path / "bf16", "predict.precision=bf16"))(volume)
    assert np.mean(found.mask_XYZ == prediction.mask_XYZ) > 0.9


# ------------------------------------------------------------------------------------------------------ what is refused


def empty(shape: tuple[int, ...], spacing: float = 1.0, modality: str = "") -> Volume:
    array = np.zeros((1, *shape), np.float32)
    array[0, 0] = 1
    return Volume(array, np.diag([spacing, spacing, spacing, 1.0]), SeriesFacts(modality=modality))


@pytest.mark.parametrize(
    ("volume", "told"),
    [
        (empty((57, 50, 35)), "57 mm along R-L"),
        (empty((35, 31, 35)), "31 mm along A-P"),
        (empty((35, 50, 61)), "61 mm along S-I"),
        (empty((16, 20, 14), spacing=2.5), "spacing of 2.50 mm"),
        (empty((256, 256, 160)), "256 mm along R-L"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_volume_beyond_the_limits_is_refused(predictor: Predictor, volume: Volume, told: str) -> None:
    with pytest.raises(NotApplicable, match=told):
        predictor(volume)


def test_volume_of_another_modality_is_refused(predictor: Predictor) -> None:
    """The rule holds for whoever calls the predictor, not only for the command line."""
    with pytest.raises(NotApplicable, match="modality CT"):
        predictor(empty((35, 50, 35), modality="CT"))


def test_constant_volume_is_refused_and_named(predictor: Predictor) -> None:
    facts = SeriesFacts(series_uid="1.2.3.4", modality="MR")
    with pytest.raises(ConstantImage, match=r"1\.2\.3\.4"):
        predictor(Volume(np.full((1, 35, 50, 35), 7, np.float32), np.eye(4), facts))


def test_weights_of_another_network_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    weights = checkpoint.load_weights()
    other = config_of("network.options.filters=[4, 8, 16]")
    with pytest.raises(CheckpointCorrupt, match="do not fit"):
        Predictor(save_checkpoint(tmp_path / "shape", other, weights, {}))
    del weights[next(iter(weights))]
    with pytest.raises(CheckpointCorrupt, match="do not fit"):
        Predictor(save_checkpoint(tmp_path / "missing", checkpoint.config, weights, {}))


def test_weights_changed_after_opening_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = save_checkpoint(tmp_path / "copy", checkpoint.config, checkpoint.load_weights(), {})
    opened = open_checkpoint(copy.folder)
    path = copy.folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\7")
    with pytest.raises(CheckpointCorrupt, match="changed"):
        Predictor(opened)


def test_network_that_answers_with_no_number_is_refused(tmp_path: Path, volume: Volume) -> None:
    config = config_of()
    network = build_network(config.network, in_channels=1, out_channels=3)
    weights = {name: torch.full_like(tensor, torch.nan) for name, tensor in weights_of(network).items()}
    predictor = Predictor(save_checkpoint(tmp_path / "nan", config, weights, {}), device="cpu")
    with pytest.raises(AnswerNotNumbers, match="answered with NaN"):
        predictor(volume)


def test_a_picture_whose_first_column_has_few_values_is_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the sample would meet the same column of every row, as 512 columns times a power of two would have it."""
    values_ZYX = np.random.default_rng(0).normal(0, 100, (64, 64, 64)).astype(np.float32)
    values_ZYX[..., 0] = np.arange(64) % 3
    monkeypatch.setattr(predict, "_SAMPLED", 64 * 64)
    volume = Volume(values_ZYX.transpose(2, 1, 0)[None], np.eye(4))
    check_not_mask(volume)
    with pytest.raises(LooksLikeMask):
        check_not_mask(replace(volume, array=np.rint(volume.array / 100).clip(-1, 1)))
