"""Picture or volume -> a classifier's input: one grid of fixed size, whatever comes.

Invariant: the same transforms in training and serving, and the class never depends on the scale of the grey values
(with `zscore`) or on the size of a pixel, only on proportions as `preprocess.aspect` says.

Shapes: pictures are (C, X, Y), volumes (C, X, Y, Z); X runs along a picture's rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d, separable_filtering
from monai.transforms import Compose, MapTransform
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform
from numpy.typing import NDArray
from torch.nn import functional

from imaging.config import Augmentation, ClassifyPreprocess, Size3
from imaging.errors import NotApplicable
from imaging.normalise import zscored
from imaging.resampling import turned
from imaging.transforms import IMAGE, PICTURE_ONLY, affine_of, random_transform
from imaging.volume import Affine, spacing_of

# Layers of a volume that are resized together.
_LAYERS = 8


def classify_preprocessing(config: ClassifyPreprocess) -> Compose:
    """The deterministic transforms of a classifier's config.

    Returns
    -------
    Compose
        Takes ``{"image": MetaTensor (C, X, Y, Z)}`` and gives (C, *size): a picture has lost its Z axis, a volume is
        turned to `orientation`. The affine is no longer that of the result.
    """
    flat = len(config.size) == 2
    lying = _OneSlice(IMAGE) if flat else _Turned(IMAGE, config.orientation)
    normalised = _ZScored(IMAGE) if config.range is None else _Ranged(IMAGE, config.range)
    fitted = _Fitted(IMAGE, config.size, config.aspect)
    return Compose([lying, fitted, normalised, _Filled(IMAGE, config.size)])


def classify_augmentation(chosen: Sequence[Augmentation], *, axes: int) -> Compose:
    """The random transforms of a classifier's config, for pictures (2 axes) or volumes (3).

    Nothing is flipped unless the config names RandFlip: a mirrored chest has its heart on the wrong side. See
    `imaging.transforms.random_transform` for what is raised.
    """
    return Compose([random_transform(item, keys=(IMAGE,), known=PICTURE_ONLY, axes=axes) for item in chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where an image lies on the network's grid, along each axis that the network sees.

    Attributes
    ----------
    first, shown
        The image's first voxel that is on the grid, and how many are; the others were cut off.
    before, taken
        The first cell of the grid that holds image, and how many do; the others are filling.
    """

    first: NDArray[np.int64]
    shown: NDArray[np.int64]
    before: NDArray[np.int64]
    taken: NDArray[np.int64]


def placement(shape: Sequence[int], spacing: Sequence[float], size: Sequence[int], aspect: str) -> Placement:
    """Where an image of `shape` voxels, each of `spacing`, comes to lie on a grid of `size`."""
    have, want, step = np.array(shape), np.array(size), np.array(spacing)
    extent = have * step
    shown, taken = have, want
    if aspect == "pad":
        taken = np.clip(np.rint(extent * (want / extent).min()), 1, want).astype(np.int64)
    elif aspect == "crop":
        shown = np.clip(np.rint(want / (want / extent).max() / step), 1, have).astype(np.int64)
    return Placement((have - shown) // 2, shown, (want - taken) // 2, taken)


def affine_of_grid(config: ClassifyPreprocess, shape: Size3, affine: Affine) -> Affine:
    """Where the grid that `classify_preprocessing` makes of an image lies: the way back from the network.

    Parameters
    ----------
    config
        The preprocessing.
    shape, affine
        Of the image: voxels along X, Y, Z and voxel index to RAS+ mm.

    Returns
    -------
    ndarray of float64 (4, 4)
        Index of a cell of the network's grid to RAS+ mm. A picture's grid has one cell along Z, its own slice. The
        centre of the first of n cells that m voxels became lies m / 2n voxels behind the first voxel's outer edge.
    """
    if len(config.size) == 3:
        turn = ornt_transform(nib.io_orientation(affine), axcodes2ornt(config.orientation))
        affine = np.asarray(affine @ inv_ornt_aff(turn, shape), dtype=np.float64)
        shape = tuple(np.array(shape)[np.argsort(turn[:, 0])].tolist())
    axes = len(config.size)
    placed = placement(shape[:axes], spacing_of(affine)[:axes], config.size, config.aspect)
    step = placed.shown / placed.taken
    to_voxels = np.eye(4)
    to_voxels[range(axes), range(axes)] = step
    to_voxels[:axes, 3] = placed.first - 0.5 + (0.5 - placed.before) * step
    return np.asarray(affine @ to_voxels, dtype=np.float64)


class _OneSlice(MapTransform):
    """(C, X, Y, 1) -> (C, X, Y); a stack of slices is refused rather than cut."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            slices = result[key].shape[-1]
            if slices != 1:
                raise NotApplicable("network input", seen=f"{slices} slices", expected="one was expected")
        return result


class _Turned(MapTransform):
    """A volume with its axes as the config names them."""

    def __init__(self, keys: KeysCollection, orientation: str) -> None:
        super().__init__(keys)
        self._orientation = orientation

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            values, affine = turned(image.as_tensor().numpy(), affine_of(image), self._orientation)
            result[key] = MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=torch.from_numpy(affine))
        return result


class _Fitted(MapTransform):
    """Bring an image to the grid's size, or, with ``pad``, to the largest size of its own proportions within it."""

    def __init__(self, keys: KeysCollection, size: Sequence[int], aspect: str) -> None:
        super().__init__(keys)
        self._size, self._aspect = tuple(size), aspect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            assert isinstance(image, MetaTensor)
            axes = len(self._size)
            values = image.as_tensor()
            values = values[..., 0] if axes == 2 else values
            spacing = spacing_of(image.affine.numpy())[:axes]
            placed = placement(values.shape[1:], spacing, self._size, self._aspect)
            kept = (slice(a, a + n) for a, n in zip(placed.first.tolist(), placed.shown.tolist(), strict=True))
            result[key] = _resized(values[(slice(None), *kept)], tuple(placed.taken.tolist()))
        return result


def _resized(values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Without aliasing: a film is made some thirty times smaller, and single pixels must not decide."""
    shape = tuple(values.shape[1:])
    if shape == size:
        return values
    if len(size) == 2:
        return functional.interpolate(values[None], size=size, mode="bilinear", antialias=True)[0]
    # What loses most comes first: what the other axes then have to do is less.
    smooth = any(n < m for n, m in zip(size, shape, strict=True))
    for axis in sorted((1, 2, 3), key=lambda axis: size[axis - 1] / values.shape[axis]):
        values = _resized_along(values, axis, size[axis - 1], smooth=smooth)
    return values


def _resized_along(values: torch.Tensor, axis: int, count: int, *, smooth: bool) -> torch.Tensor:
    """A volume (C, X, Y, Z) with `count` voxels along one axis; layer by layer, so that nothing is copied whole."""
    weights_IO = _weights(values.shape[axis], count, smooth=smooth)
    across = max((other for other in (1, 2, 3) if other != axis), key=values.stride)
    layers = (
        torch.movedim(layer.movedim(axis, -1) @ weights_IO, -1, axis) for layer in torch.split(values, _LAYERS, across)
    )
    return torch.cat(list(layers), dim=across)


def _weights(size: int, count: int, *, smooth: bool) -> torch.Tensor:
    """How much each of `size` voxels in a line counts for each of `count`, (size, count).

    As `monai.transforms.Resize` with ``mode="trilinear"`` and ``anti_aliasing`` has it: a Gaussian along each axis that
    is made shorter, 0 beyond the borders, then a linear mixture. Both are linear and separable.
    """
    lines = torch.eye(size)[:, None]
    if smooth:
        lines = separable_filtering(lines, [gaussian_1d(torch.tensor(max(0.0, (size / count - 1) / 2)))])
    return functional.interpolate(lines, size=count, mode="linear")[:, 0]


class _ZScored(MapTransform):
    """Each channel less its mean, by its deviation; `ConstantImage` where there is none."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = torch.from_numpy(zscored(result[key].numpy()))
        return result


class _Ranged(MapTransform):
    """The given range of values to 0..1, what lies beyond held at the ends."""

    def __init__(self, keys: KeysCollection, limits: tuple[float, float]) -> None:
        super().__init__(keys)
        self._low, self._high = limits

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = ((result[key] - self._low) / (self._high - self._low)).clamp(0, 1)
        return result


class _Filled(MapTransform):
    """Fill up to the grid's size on both sides with the image's least value, which is what lies around a film."""

    def __init__(self, keys: KeysCollection, size: Sequence[int]) -> None:
        super().__init__(keys)
        self._size = size

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            widths: list[int] = []
            for have, want in zip(image.shape[1:], self._size, strict=True):
                widths = [(want - have) // 2, want - have - (want - have) // 2, *widths]
            result[key] = functional.pad(image, widths, value=float(image.min()))
        return result
