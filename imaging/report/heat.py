"""A heat map as colours over a key slice, with the legend that says what the colours mean.

Invariant: the colours are drawn from the same map that report.json tells of, on the slice's own pixels; where
nothing was raised nothing is coloured, and what the network did not see is marked and never coloured.

Shapes: ``heat_YX`` is a displayed slice, rows downwards.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Anchors of viridis (van der Walt and Smith, 2015, CC0), which is read alike with and without colour blindness.
_VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
# Opacity of the greatest value; the picture must stay readable below it.
_OPACITY = 0.65
_LEVELS = 255


@dataclass(frozen=True, slots=True)
class Heat:
    """What is drawn over a slice.

    Attributes
    ----------
    name, title
        Of the finding whose probability was raised there.
    png
        Colours as a data URI, as many pixels as the slice.
    unseen
        Border of what the network saw, as an SVG path in pixels; empty where it saw the whole slice.
    method, cells
        How the map was made, and how coarse it is along each axis of the network's grid.
    blank
        Whether nothing raised it.
    """

    name: str
    title: str
    png: str
    unseen: str
    method: str
    cells: tuple[int, ...]
    blank: bool


def legend() -> str:
    """The colours from nothing to the greatest value as a CSS gradient, as opaque as they are drawn."""
    stops = _colours_RGBA()[np.linspace(0, _LEVELS, 9).round().astype(int)]
    told = (f"rgba({red}, {green}, {blue}, {alpha / 255:.2f})" for red, green, blue, alpha in stops.tolist())
    return f"linear-gradient(to right, {', '.join(told)})"


def colour_png(heat_YX: NDArray[np.float32]) -> str:
    """Shares 0 to 1 as a PNG with opacity, as a data URI; NaN is not coloured."""
    levels = np.rint(np.nan_to_num(heat_YX, nan=0.0).clip(0, 1) * _LEVELS).astype(np.uint8)
    colours = _colours_RGBA()
    image = Image.fromarray(levels, mode="P")
    image.putpalette(colours[:, :3].tobytes())
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=colours[:, 3].tobytes(), optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _colours_RGBA() -> NDArray[np.uint8]:
    """A colour and an opacity for each level; the opacity grows with the level, so that nothing has no colour."""
    anchors = np.array([[int(colour[at : at + 2], 16) for at in (1, 3, 5)] for colour in _VIRIDIS], dtype=np.float64)
    levels = np.linspace(0, 1, _LEVELS + 1)
    places = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(levels, places, anchors[:, channel]) for channel in range(3)]
    return np.rint(np.stack([*channels, 255 * _OPACITY * levels**2], axis=1)).astype(np.uint8)
