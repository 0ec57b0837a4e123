"""What is spared on the way back to the series' own grid changes no voxel of a mask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from imaging.restore import Block, OwnGrid, restore_labels

SIZE, SHAPE = (24, 20, 18), (90, 71, 66)


def probabilities(sharpness: float, *, certain: bool) -> np.ndarray:
    """Of five structures that touch each other."""
    generator = np.random.default_rng(3)
    noise = generator.normal(size=(5, *SIZE)).astype(np.float32)
    scores = sharpness * np.stack([gaussian_filter(each, 2) for each in noise])
    probability = np.exp(scores - scores.max(0))
    probability /= probability.sum(0)
    return np.asarray(probability == probability.max(0) if certain else probability, dtype=np.float32)


@pytest.mark.parametrize("threads", ["1", "4"])
@pytest.mark.parametrize(("sharpness", "certain"), [(1, False), (100, False), (100, True)])
def test_classes_that_cannot_win_are_not_missed(
    monkeypatch: pytest.MonkeyPatch, sharpness: float, certain: bool, threads: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    probability = probabilities(sharpness, certain=certain)
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    own = np.array([[0.0, -0.55, 0.0, 39.0], [0.5, 0.0, 0.0, -1.2], [0.0, 0.0, 0.5, 0.3], [0.0, 0.0, 0.0, 1.0]])
    found = restore_labels(probability, grid, shape=SHAPE, to_affine=own)
    monkeypatch.setattr(OwnGrid, "_able", lambda here, near_KXYZ: list(range(len(near_KXYZ))))
    assert np.array_equal(found, restore_labels(probability, grid, shape=SHAPE, to_affine=own))
    assert len(np.unique(found)) == 5


def test_a_box_within_one_structure_takes_its_label() -> None:
    probability = np.zeros((4, 30, 30, 30), dtype=np.float32)
    probability[2] = 1
    found = restore_labels(probability, np.diag([4.0, 4.0, 4.0, 1.0]), shape=(110, 110, 110), to_affine=np.eye(4))
    assert (found == 2).all()


def plainly(probability_KXYZ: np.ndarray, positions: list[np.ndarray], tie: float) -> np.ndarray:
    """Class by class over the whole at once, one axis after another in float32, as the labels are defined."""
    labels = np.zeros([len(at) for at in positions], dtype=np.uint8)
    turn, greatest = np.indices(labels.shape).sum(axis=0) % 2 == 1, np.zeros(0)
    for label, values in enumerate(probability_KXYZ):
        here = values
        for axis, at in enumerate(positions):
            held = np.clip(at, 0, values.shape[axis] - 1)
            lower = np.floor(held).astype(int)
            below = np.take(here, lower, axis=axis)
            above = np.take(here, np.minimum(lower + 1, values.shape[axis] - 1), axis=axis)
            weight = (held - lower).astype(np.float32).reshape([-1 if other == axis else 1 for other in range(3)])
            here = (above - below) * weight + below
        if label == 0:
            greatest = here
            continue
        wins = (here > greatest + np.float32(tie)) | (turn & (here > greatest - np.float32(tie)))
        labels[wins], greatest = label, np.maximum(greatest, here)
    return labels


@pytest.mark.parametrize("certain", [False, True])
def test_labels_are_those_of_the_whole_bit_for_bit(certain: bool) -> None:
    """On a finer grid half of whose voxels lie midway, where a network that is certain leaves ties."""
    probability = probabilities(20, certain=certain)
    found = restore_labels(probability, np.eye(4), shape=(95, 79, 71), to_affine=np.diag([0.25, 0.25, 0.25, 1.0]))
    positions = [0.25 * np.arange(n) for n in (95, 79, 71)]
    beyond = np.ix_(*(at <= size - 0.5 for at, size in zip(positions, SIZE, strict=True)))
    expected = np.zeros_like(found)
    expected[beyond] = plainly(probability, positions, 1e-5)[beyond]
    assert np.array_equal(found, expected)
    assert len(np.unique(found)) == 5


def test_where_the_grids_share_their_voxels_it_is_the_argmax() -> None:
    probability = probabilities(20, certain=False)
    found = restore_labels(probability, np.eye(4), shape=SIZE, to_affine=np.eye(4))
    assert np.array_equal(found, probability.argmax(axis=0))


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_region_is_where_it_is_likelier_than_not(monkeypatch: pytest.MonkeyPatch, threads: str) -> None:
    """Judged on its own, each as if it and what is not it were the two classes."""
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    probability = probabilities(20, certain=False)
    own = np.diag([0.3, 0.4, 0.3, 1.0])
    regions = np.zeros((len(probability), *SHAPE), dtype=np.bool_)
    grid = OwnGrid(np.eye(4), SIZE, shape=SHAPE, to_affine=own)
    grid.add_regions(Block((0, 0, 0), probability), regions)
    for region, values in zip(regions, probability, strict=True):
        pair = np.stack((1 - values, values))
        assert region.any()
        assert np.array_equal(region, restore_labels(pair, np.eye(4), shape=SHAPE, to_affine=own) == 1)
