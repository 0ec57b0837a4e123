"""Colours over a slice: nothing where nothing was raised or seen, more where there was more."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from imaging.report.heat import colour_png, legend


def drawn(
    heat_YX: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Red, green, blue and opacity of each pixel, as a browser reads them."""
    head, _, content = colour_png(heat_YX.astype(np.float32)).partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGBA"))


def test_nothing_has_no_colour_and_more_has_more() -> None:
    pixels = drawn(np.array([[0.0, 0.25, 0.5, 1.0]]))
    opacity = pixels[0, :, 3].astype(int)
    assert opacity[0] == 0
    assert (np.diff(opacity) > 0).all()
    assert opacity[-1] < 255, "the picture below stays readable"
    # Lightness grows too, so that the order is read without any colour.
    assert (np.diff(pixels[0, :, :3] @ np.array([0.299, 0.587, 0.114])) > 0).all()


def test_what_was_not_seen_is_not_coloured() -> None:
    assert drawn(np.array([[np.nan, 1.0]]))[0, 0, 3] == 0


def test_rows_stay_rows() -> None:
    heat_YX = np.zeros((2, 3))
    heat_YX[1, 2] = 1
    pixels = drawn(heat_YX)
    assert pixels.shape == (2, 3, 4)
    assert np.argwhere(pixels[..., 3] > 0).tolist() == [[1, 2]]


def test_legend_ends_in_the_colour_of_the_greatest_value() -> None:
    red, green, blue, alpha = drawn(np.ones((1, 1)))[0, 0].tolist()
    assert legend().startswith("linear-gradient(to right, rgba(68, 1, 84, 0.00)")
    assert legend().endswith(f"rgba({red}, {green}, {blue}, {alpha / 255:.2f}))")
