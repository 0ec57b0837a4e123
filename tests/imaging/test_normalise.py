"""The network's scale: PyTorch's numbers to the rounding of float32, summed in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.config import Channel, Preprocess, Window
from imaging.errors import ConstantImage, NotApplicable
from imaging.normalise import scaled, zscored

ZSCORE = Preprocess(spacing_mm=(1, 1, 1))
WINDOW = Window(low=-200, high=300, mean=50, deviation=125)
WINDOWED = Preprocess(spacing_mm=(1, 1, 1), normalise="window", window=WINDOW)


def noise(shape: tuple[int, ...], offset: float = 0, width: float = 1000) -> np.ndarray[Any, Any]:
    return (offset + width * np.random.default_rng(0).random(shape)).astype(np.float32)


@given(
    shape=st.tuples(st.integers(1, 3), *[st.integers(2, 60)] * 3),
    offset=st.floats(-2000, 4000),
    width=st.floats(10, 5000),
)
@settings(max_examples=40, deadline=None)
def test_zscore_is_pytorch_s(shape: tuple[int, ...], offset: float, width: float) -> None:
    image = noise(shape, offset, width)
    tensor = torch.from_numpy(image).double()
    axes = (1, 2, 3)
    truth = (tensor - tensor.mean(axes, keepdim=True)) / tensor.std(axes, keepdim=True, correction=0)
    # What float32 itself leaves of a value beside a large offset.
    allowed = 3e-6 + 3e-7 * (abs(offset) + width) / width * 4
    assert np.abs(zscored(image) - truth.numpy()).max() < allowed


def test_window_is_pytorch_s_to_the_last_digit() -> None:
    image = noise((1, 20, 30, 10), -1000, 3000)
    truth = (torch.from_numpy(image).clamp(WINDOW.low, WINDOW.high) - WINDOW.mean) / WINDOW.deviation
    assert np.array_equal(scaled(image, (WINDOWED,)), truth.numpy())


def test_a_large_offset_costs_no_digits() -> None:
    """Summed in float32 a million values of 30,000 would lose their fourth digit."""
    image = noise((1, 128, 128, 64), 30_000, 50)
    exact = image.astype(np.float64)
    found = zscored(image)
    assert np.abs(found - (exact - exact.mean()) / exact.std()).max() < 2e-4
    assert abs(found.mean(dtype=np.float64)) < 2e-4


def test_turned_memory_gives_the_same_and_is_left_alone() -> None:
    image = noise((1, 9, 8, 7))
    other = image.transpose(0, 3, 1, 2).copy().transpose(0, 2, 3, 1)[:, ::-1]
    before = other.copy()
    found = scaled(other, (ZSCORE,))
    assert found.flags.c_contiguous
    assert np.allclose(found[:, ::-1], scaled(image, (ZSCORE,)), atol=1e-6)
    assert np.array_equal(other, before)


@pytest.mark.parametrize("rule", [ZSCORE, WINDOWED], ids=["zscore", "window"])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1000.1, 1e30])
def test_one_value_is_refused_with_the_series(value: float, rule: Preprocess) -> None:
    with pytest.raises(ConstantImage, match="series 7"):
        scaled(np.full((1, 35, 51, 35), value, np.float32), (rule,), subject="series 7")


def test_each_channel_by_its_own_rule_and_as_many_as_there_are_rules() -> None:
    scales = (Channel(name="pet"), Channel(name="ct", normalise="window", window=WINDOW))
    image = noise((2, 8, 9, 10))
    found = scaled(image, scales)
    assert np.array_equal(found[0], zscored(image[:1])[0])
    assert np.allclose(found[1], (image[1].clip(-200, 300) - 50) / 125, atol=1e-6)
    with pytest.raises(NotApplicable, match="2 channels"):
        scaled(image, scales[:1])
