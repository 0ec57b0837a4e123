"""An ensemble answers with the mean of its members, and nothing but the members of its config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import picture, toy_config
from safetensors.torch import load_file

from imaging.checkpoint import Checkpoint, joined, save_checkpoint
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig, Config, SegmentConfig, load_config
from imaging.errors import CheckpointCorrupt
from imaging.files import shipped
from imaging.networks import build_classifier, build_network, weights_of
from imaging.nifti import read_nifti
from imaging.normalise import scaled
from imaging.predict import Predictor
from imaging.resampling import to_network_grid
from imaging.restore import restore_labels
from imaging.volume import SeriesFacts, Volume

TINY = (
    "network.options.filters=[4, 8, 8]",
    "network.options.kernel_size=[3, 3, 3]",
    "network.options.strides=[1, 2, 2]",
    "network.options.upsample_kernel_size=[2, 2]",
    "predict.patch=[24, 32, 24]",
    "predict.precision='32'",
)


def weights_for(config: Config, seed: int) -> dict[str, torch.Tensor]:
    """A network's random weights."""
    torch.manual_seed(seed)
    if isinstance(config, SegmentConfig):
        return weights_of(build_network(config.network, in_channels=1, out_channels=3))
    return weights_of(build_classifier(config.network, spatial_dims=2, in_channels=1, classes=2))


def save(folder: Path, config: Config, members: list[dict[str, torch.Tensor]], **metrics: Any) -> Checkpoint:
    return save_checkpoint(folder, config.model_copy(update={"members": len(members)}), joined(members), metrics)


def whole(predictor: Predictor, image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The probabilities of a predictor's blocks, put together."""
    x, y, z = image.shape[1:]
    found = np.zeros((3, x, y, z), np.float32)
    for block in predictor._blocks(image, shape=(x, y, z), subject="case"):
        place = tuple(slice(low, low + n) for low, n in zip(block.low, block.probability_KXYZ.shape[1:], strict=True))
        found[:, *place] = block.probability_KXYZ
    return found


@pytest.fixture
def segmenter() -> SegmentConfig:
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", TINY)
    assert isinstance(config, SegmentConfig)
    return config


@pytest.fixture
def classifier(tmp_path: Path) -> ClassifyConfig:
    return toy_config(tmp_path, "predict.flip_axes=[0]")


def test_mask_is_that_of_the_mean_probability(segmenter: SegmentConfig, data: Path, tmp_path: Path) -> None:
    members = [weights_for(segmenter, seed) for seed in range(3)]
    volume = read_nifti(data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    alone = [Predictor(save(tmp_path / str(n), segmenter, [one])) for n, one in enumerate(members)]
    image, affine = to_network_grid(volume.array, volume.affine, segmenter.preprocess)
    array = scaled(image, segmenter.scales, subject="case")
    by_hand = np.mean([whole(predictor, array) for predictor in alone], axis=0)
    said = Predictor(save(tmp_path / "all", segmenter, members))(volume)
    expected = restore_labels(by_hand, affine, shape=volume.shape, to_affine=volume.affine)
    assert np.array_equal(said.mask_XYZ, expected)
    masks = [predictor(volume).mask_XYZ for predictor in alone]
    assert not any(np.array_equal(said.mask_XYZ, mask) for mask in masks), "no member has its way alone"
    labels = by_hand.argmax(0)
    for label, mean in said.mean_probability.items():
        assert mean == pytest.approx(float(by_hand[label][labels == label].mean()), abs=1e-5)


def test_logits_are_the_mean_of_the_members(classifier: ClassifyConfig, tmp_path: Path) -> None:
    members = [weights_for(classifier, seed) for seed in range(3)]
    array = picture(np.random.default_rng(0), odd=True).astype(np.float32).T[None, :, :, None]
    volume = Volume(array, np.eye(4), facts=SeriesFacts(modality="DX"))
    alone = [Classifier(save(tmp_path / str(n), classifier, [one])).ask(volume) for n, one in enumerate(members)]
    said = Classifier(save(tmp_path / "all", classifier, members)).ask(volume)
    assert said.logits_K == pytest.approx(np.mean([one.logits_K for one in alone], axis=0), abs=1e-5)
    assert not np.allclose(said.logits_K, alone[0].logits_K, atol=1e-3)


def test_network_alone_lies_in_the_file_as_before_there_were_ensembles(
    classifier: ClassifyConfig, tmp_path: Path
) -> None:
    weights = weights_for(classifier, 0)
    one, alone = save(tmp_path / "a", classifier, [weights]), save_checkpoint(tmp_path / "b", classifier, weights, {})
    assert one.weights_sha256 == alone.weights_sha256
    assert load_file(one.folder / "weights.safetensors").keys() == weights.keys()
    assert classifier.digest() == classifier.model_copy(update={"members": 1}).digest()


@pytest.mark.parametrize("told", [1, 2, 4])
def test_other_members_than_the_config_says_are_refused(classifier: ClassifyConfig, tmp_path: Path, told: int) -> None:
    members = joined([weights_for(classifier, seed) for seed in range(3)])
    checkpoint = save_checkpoint(tmp_path / "all", classifier.model_copy(update={"members": told}), members, {})
    with pytest.raises(CheckpointCorrupt):
        Classifier(checkpoint)
