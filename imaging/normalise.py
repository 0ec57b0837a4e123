"""Values on the network's grid -> the network's scale, each channel as its own config says, in numpy.

Invariant: mean and deviation of a channel are summed in float64, so that the numbers are PyTorch's to the rounding of
float32 (PyTorch sums in float32; the two differ by some 1e-6 of a deviation). An image of one value is refused, never
divided by what rounding left of it. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.config import Channel, Scale
from imaging.errors import ConstantImage, NotApplicable

# Rounding alone gives a constant image a deviation of about 1e-7 of its value.
_ROUNDING = 1e-6
# Values that are summed at a time, as float64.
_CHUNK = 1 << 16


def scaled(
    array_CXYZ: NDArray[np.float32], scales: Sequence[Scale], *, subject: str = "network input"
) -> NDArray[np.float32]:
    """Bring each channel to the network's scale.

    Parameters
    ----------
    array_CXYZ
        float32, in any memory order; it is left as it is.
    scales
        One for each channel.
    subject
        What a refusal is about.

    Returns
    -------
    ndarray of float32
        (C, X, Y, Z), in C order.

    Raises
    ------
    NotApplicable
        If there is another number of channels.
    ConstantImage
        If a channel holds one value only.
    """
    if len(array_CXYZ) != len(scales):
        raise NotApplicable(subject, seen=f"{len(array_CXYZ)} channels", expected=f"{len(scales)} were expected")
    result = np.empty(array_CXYZ.shape, dtype=np.float32)
    for values, scale, out in zip(array_CXYZ, scales, result, strict=True):
        _scale(values, scale, out, subject)
    return result


def zscored(array_CXYZ: NDArray[np.float32], *, subject: str = "network input") -> NDArray[np.float32]:
    """Subtract the mean and divide by the standard deviation, each channel by its own, whatever its axes.

    Raises
    ------
    ConstantImage
        If the deviation is zero.
    """
    result = np.empty(array_CXYZ.shape, dtype=np.float32)
    for values, out in zip(array_CXYZ, result, strict=True):
        _zscore(values, out, subject, "")
    return result


def _scale(values: NDArray[np.float32], scale: Scale, out: NDArray[np.float32], subject: str) -> None:
    window = scale.window
    named = f" of channel {scale.name}" if isinstance(scale, Channel) else ""
    if window is None:
        _zscore(values, out, subject, named)
        return
    if not values.max() > values.min():
        raise ConstantImage(subject, seen=f"all voxels{named} are equal")
    # Isensee et al., Nature Methods 18:203, 2021: CT is clipped, and scaled by the data set's figures.
    np.clip(values, window.low, window.high, out=out)
    out -= np.float32(window.mean)
    out /= np.float32(window.deviation)


def _zscore(values: NDArray[np.float32], out: NDArray[np.float32], subject: str, named: str) -> None:
    """MR has no unit: the same tissue has another value on another scanner."""
    mean, deviation = _moments(values)
    # Not a number in the values leaves no deviation to compare.
    if not deviation > _ROUNDING * abs(mean):
        raise ConstantImage(subject, seen=f"all voxels{named} are equal")
    np.subtract(values, np.float32(mean), out=out)
    out /= np.float32(deviation)


def _moments(values: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation (of the population), read once.

    The parts' means and sums of squares are put together as in Chan, Golub and LeVeque, *Updating formulae and a
    pairwise algorithm for computing sample variances*, COMPSTAT 1982.
    """
    count, mean, squares = 0, 0.0, 0.0
    # In the order of memory: a turned array is read as it lies.
    flat = values.ravel(order="K")
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        own = float(part.mean())
        part -= own
        apart, whole = own - mean, count + part.size
        mean += apart * part.size / whole
        # Not a dot product: the threads of a BLAS go on spinning for 30 ms, on the cores that the network wants next.
        np.multiply(part, part, out=part)
        squares += float(part.sum()) + apart * apart * count * part.size / whole
        count = whole
    return mean, float(np.sqrt(squares / count)) if count else 0.0
