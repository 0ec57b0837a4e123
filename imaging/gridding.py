"""Picture or volume -> a classifier's input: one grid of fixed size, whatever comes.

Invariant: the same transforms in training and serving, and the class never depends on the scale of the grey values
(with `zscore`) or on the size of a pixel, only on proportions as `preprocess.aspect` says.

Shapes: pictures are (C, X, Y), volumes (C, X, Y, Z); X runs along a picture's rows.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai import transforms as monai_transforms
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from torch.nn import functional

from imaging.config import Augmentation, ClassifyPreprocess
from imaging.errors import NotApplicable
from imaging.transforms import IMAGE, PICTURE_ONLY, ZScored, random_transform


def classify_preprocessing(config: ClassifyPreprocess) -> Compose:
    """The deterministic transforms of a classifier's config.

    Returns
    -------
    Compose
        Takes ``{"image": MetaTensor (C, X, Y, Z)}`` and gives (C, *size): a picture has lost its Z axis, a volume is
        turned to `orientation`. The affine is no longer that of the result.
    """
    flat = len(config.size) == 2
    turned = _OneSlice(IMAGE) if flat else monai_transforms.Orientationd(IMAGE, axcodes=config.orientation, labels=None)
    normalised = ZScored(IMAGE) if config.range is None else _Ranged(IMAGE, config.range)
    fitted = _Fitted(IMAGE, config.size, config.aspect)
    return Compose([turned, fitted, normalised, _Filled(IMAGE, config.size)])


def classify_augmentation(chosen: Sequence[Augmentation], *, axes: int) -> Compose:
    """The random transforms of a classifier's config, for pictures (2 axes) or volumes (3).

    Nothing is flipped unless the config names RandFlip: a mirrored chest has its heart on the wrong side. See
    `imaging.transforms.random_transform` for what is raised.
    """
    return Compose([random_transform(item, keys=(IMAGE,), known=PICTURE_ONLY, axes=axes) for item in chosen])


class _OneSlice(MapTransform):
    """(C, X, Y, 1) -> (C, X, Y); a stack of slices is refused rather than cut."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            slices = result[key].shape[-1]
            if slices != 1:
                raise NotApplicable("network input", seen=f"{slices} slices", expected="one was expected")
        return result


class _Fitted(MapTransform):
    """Bring an image to the grid's size, or, with ``pad``, to the largest size of its own proportions within it."""

    def __init__(self, keys: KeysCollection, size: Sequence[int], aspect: str) -> None:
        super().__init__(keys)
        self._size, self._aspect = np.array(size), aspect

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            assert isinstance(image, MetaTensor)
            spacing = np.linalg.norm(image.affine.numpy()[:3, :3], axis=0)[: len(self._size)]
            values = image.as_tensor()
            values = values[..., 0] if len(self._size) == 2 else values
            result[key] = self._fit(values, spacing)
        return result

    def _fit(self, values: torch.Tensor, spacing: np.ndarray[Any, Any]) -> torch.Tensor:
        extent = np.array(values.shape[1:]) * spacing
        target = self._size
        if self._aspect == "pad":
            scale = (self._size / extent).min()
            target = np.clip(np.rint(extent * scale), 1, self._size).astype(int)
        elif self._aspect == "crop":
            shown = self._size / (self._size / extent).max()
            kept = np.clip(np.rint(shown / spacing), 1, values.shape[1:]).astype(int)
            first = (np.array(values.shape[1:]) - kept) // 2
            values = values[(slice(None), *(slice(a, a + n) for a, n in zip(first, kept, strict=True)))]
        return _resized(values, tuple(target.tolist()))


def _resized(values: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Without aliasing: a film is made some thirty times smaller, and single pixels must not decide."""
    if tuple(values.shape[1:]) == size:
        return values
    if len(size) == 2:
        return functional.interpolate(values[None], size=size, mode="bicubic", antialias=True)[0]
    resize = monai_transforms.Resize(size, mode="trilinear", anti_aliasing=True)
    resized: torch.Tensor = torch.as_tensor(np.asarray(resize(values)))
    return resized


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
