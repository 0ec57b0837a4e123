"""What is spared on the way back to the series' own grid changes no voxel of a mask."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from imaging.restore import OwnGrid, restore_labels

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
