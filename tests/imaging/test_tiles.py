"""Tiles lie and count as MONAI's, and take the memory that is foretold."""

from __future__ import annotations

import numpy as np
import pytest
from monai.data.utils import compute_importance_map

from imaging.config import Predict
from imaging.tiles import gaussian, layout_of


@pytest.mark.parametrize("patch", [(40, 56, 40), (7, 8, 1), (96, 96, 96), (1, 1, 1), (2, 3, 2)])
def test_weights_are_those_of_monai(patch: tuple[int, int, int]) -> None:
    np.testing.assert_allclose(gaussian(patch), compute_importance_map(patch, mode="gaussian").numpy(), rtol=2e-6)


@pytest.mark.parametrize("flips", [(), (0,), (2,), (0, 1, 2)])
def test_open_memory_is_as_foretold(flips: tuple[int, ...]) -> None:
    config = Predict(patch=(8, 8, 8), batch_size=2, flip_axes=flips)
    whole, cut = layout_of(config, (20, 24, 60)), layout_of(config, (20, 24, 60), cuts=(1, 3))
    assert whole.axis == cut.axis == 2
    layers = sum(whole.thickness(flip) for flip in whole.flips)
    assert layers <= 12 * 2 ** len(flips)
    assert whole.bytes_open(3, 1) == 4 * 20 * 24 * (layers * 4 + 3)
    assert cut.bytes_open(3, 1) < whole.bytes_open(3, 1) / 2
    assert cut.tiles() > whole.tiles() == 2 ** len(flips) * 4 * 5 * 14
