"""Volume -> network input.

Invariant: the way is made of MONAI's transforms, and the same in training and serving. The way back is
`imaging.restore`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai import transforms as monai_transforms
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform, Transform
from numpy.typing import NDArray

from imaging.config import Augmentation, Channel, Preprocess, Scale
from imaging.dicom import Policy, load_series
from imaging.dicom.stack import check_policy
from imaging.errors import ConfigInvalid, ConstantImage, ImagingError, NotApplicable, UnknownName
from imaging.nifti import is_nifti, read_nifti
from imaging.volume import Affine

IMAGE, LABEL = "image", "label"

# Random transforms that may change the image only, and those that move voxels and so must move the label alike.
_INTENSITY = ("RandAdjustContrast", "RandBiasField", "RandGaussianNoise", "RandGaussianSharpen", "RandGaussianSmooth",
              "RandHistogramShift", "RandScaleIntensity", "RandShiftIntensity",
              "RandSimulateLowResolution")  # fmt: skip
_SPATIAL = ("RandAffine", "RandFlip", "RandRotate90")
_ELASTIC = {2: "Rand2DElastic", 3: "Rand3DElastic"}
# Further ones that need no mask to move with the image, or would hide a structure that the mask still holds.
PICTURE_ONLY = ("Rand2DElastic", "RandCoarseDropout", "RandGridDistortion", "RandZoom")


def preprocessing(config: Preprocess, *, with_label: bool, scales: Sequence[Scale] = ()) -> Compose:
    """The deterministic transforms of a config.

    Parameters
    ----------
    config
        Orientation, spacing and normalisation of the network's grid.
    with_label
        Whether the dictionaries hold a mask under ``label``, which goes to the same grid by nearest neighbour.
    scales
        How each channel is scaled (`SegmentConfig.scales`); by default there is one, scaled as `config` says.

    Returns
    -------
    Compose
        Takes ``{"image": MetaTensor (C, X, Y, Z)[, "label": ...]}`` and gives the same keys on the network's grid, with
        the affine updated.
    """
    keys = (IMAGE, LABEL) if with_label else (IMAGE,)
    modes = ("bilinear", "nearest")[: len(keys)]
    return Compose(
        [
            monai_transforms.Orientationd(keys, axcodes=config.orientation, labels=None),
            # MONAI keeps an image's own spacing where it is given 0.
            monai_transforms.Spacingd(
                keys, pixdim=[step or 0 for step in config.spacing_mm], mode=modes, padding_mode="border"
            ),
            Scaled(IMAGE, scales or (config,)),
        ]
    )


class LoadSeriesd(MapTransform):
    """Load the DICOM series (or NIfTI file) that each key names, as the first transform of anybody's `Compose`.

    Parameters
    ----------
    keys
        Keys whose values are a folder, a file, or several of both.
    policy, series, volume
        As `imaging.load_series` takes them.
    allow_missing_keys
        Whether a key that is not there is passed over.

    Notes
    -----
    Each key becomes a MetaTensor (C, X, Y, Z) of float32 in real-world units with the affine to RAS+ mm. Its ``meta``
    has ``series_uid``, ``modality``, ``unit``, ``resampled``, ``defects`` (a dictionary each) and ``sources``
    (SOPInstanceUID and frame number of each slice), so that nothing the reader told is lost on the way.

    Raises
    ------
    ImagingError
        As `imaging.load_series` does; inside a `Compose` MONAI makes a RuntimeError of it, with the refusal as cause.
    """

    def __init__(
        self,
        keys: KeysCollection,
        *,
        policy: Policy = "repair",
        series: str | None = None,
        volume: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_policy(policy)
        self._policy: Policy = policy
        self._series, self._volume = series, volume

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Load each of the keys."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._load(result[key])
        return result

    def _load(self, source: Any) -> MetaTensor:
        paths = [Path(source)] if isinstance(source, str | Path) else [Path(part) for part in source]
        is_file = len(paths) == 1 and is_nifti(paths[0])
        volume = (
            read_nifti(paths[0])
            if is_file
            else load_series(paths, policy=self._policy, series=self._series, volume=self._volume)
        )
        image = volume.as_metatensor()
        image.meta.update(
            filename_or_obj=str(paths[0]),
            original_channel_dim=0,  # for EnsureChannelFirstd
            original_affine=torch.from_numpy(volume.affine),
            spatial_shape=volume.shape,
            series_uid=volume.facts.series_uid,
            modality=volume.facts.modality,
            unit=volume.unit,
            resampled=volume.resampled,
            defects=[asdict(defect) for defect in volume.defects],
            sources=[(frame.sop_instance_uid, frame.number) for frame in volume.sources],
        )
        return image


def apply(transform: Compose, sample: dict[str, Any], *, subject: object = "network input") -> dict[str, Any]:
    """Run transforms; a named refusal inside comes out as itself, not as the RuntimeError that MONAI makes of it."""
    try:
        result: dict[str, Any] = transform(sample)
    except RuntimeError as error:
        if isinstance(error.__cause__, ConstantImage | NotApplicable):
            cause = error.__cause__
            raise type(cause)(subject, seen=cause.seen, expected=cause.expected, remedy=cause.remedy) from error
        if isinstance(error.__cause__, ImagingError):
            raise error.__cause__ from error
        raise
    return result


class Scaled(MapTransform):
    """Bring the values of each channel to the network's scale, each as its own config says.

    Raises `ConstantImage` where a channel holds one value only, and `NotApplicable` where there is another number of
    channels.
    """

    def __init__(self, keys: KeysCollection, scales: Sequence[Scale]) -> None:
        super().__init__(keys)
        self._scales = tuple(scales)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale each of the keys."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if image.shape[0] != len(self._scales):
                raise NotApplicable(
                    "network input", seen=f"{image.shape[0]} channels", expected=f"{len(self._scales)} were expected"
                )
            parts = [_scaled(image[c : c + 1], scale) for c, scale in enumerate(self._scales)]
            result[key] = parts[0] if len(parts) == 1 else torch.cat(parts)
        return result


class ZScored(MapTransform):
    """Subtract the volume's mean and divide by its standard deviation, each channel by its own.

    Raises `ConstantImage` where the deviation is zero, instead of handing on NaN.
    """

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Normalise each of the keys."""
        return {**data, **{key: _zscored(data[key]) for key in map(str, self.keys)}}


def _scaled(image: torch.Tensor, scale: Scale) -> torch.Tensor:
    """One channel, scaled."""
    window = scale.window
    named = f" of channel {scale.name}" if isinstance(scale, Channel) else ""
    if window is None:
        return _zscored(image, named)
    if not bool(image.max() > image.min()):
        raise ConstantImage("network input", seen=f"all voxels{named} are equal")
    # Isensee et al., Nature Methods 18:203, 2021: CT is clipped, and scaled by the data set's figures.
    return (image.clamp(window.low, window.high) - window.mean) / window.deviation


def _zscored(image: torch.Tensor, named: str = "") -> torch.Tensor:
    """MR has no unit: the same tissue has another value on another scanner."""
    axes = tuple(range(1, image.ndim))
    deviation = image.std(dim=axes, keepdim=True, correction=0)
    mean = image.mean(dim=axes, keepdim=True)
    # Rounding alone gives a constant image a deviation of about 1e-7 of its value.
    if not bool((deviation > 1e-6 * mean.abs()).all()):
        raise ConstantImage("network input", seen=f"all voxels{named} are equal")
    return (image - mean) / deviation


def random_transform(
    item: Augmentation,
    *,
    keys: tuple[str, ...],
    known: Sequence[str] = (),
    axes: int = 3,
    size: tuple[int, ...] | None = None,
) -> Transform:
    """A MONAI random transform by its registered name.

    Parameters
    ----------
    item
        Name and options.
    keys
        What a spatial transform moves: the image, and its label where there is one.
    known
        Names that are registered for this task beside those of every task.
    axes
        How many spatial axes the image has.
    size
        What a transform that resamples gives: the middle of the image at this size. None for the image's own size.

    Raises
    ------
    UnknownName
        If the name is not registered.
    ConfigInvalid
        If MONAI does not take the options.
    """
    # YAML has lists where MONAI wants tuples.
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in item.options.items()}
    spatial = (*_SPATIAL, _ELASTIC[axes])
    if item.name in known:
        keys = (IMAGE,)
    elif item.name in spatial:
        if item.name not in ("RandFlip", "RandRotate90"):
            options = {"mode": ("bilinear", "nearest")[: len(keys)], "padding_mode": "border"} | options
            options = _sized(item.name, options, size)
    elif item.name in _INTENSITY:
        keys = (IMAGE,)
        if item.name == "RandSimulateLowResolution":
            # MONAI's default, nearest, moves the image by half a voxel and more against its label.
            options = {"downsample_mode": "area", "upsample_mode": ("bilinear", "trilinear")[axes - 2]} | options
    else:
        names = ", ".join(sorted({*spatial, *_INTENSITY, *known}))
        raise UnknownName("train.augment", seen=repr(item.name), expected=f"known: {names}")
    try:
        transform: Transform = getattr(monai_transforms, f"{item.name}d")(keys, **options)
    except (TypeError, ValueError) as error:
        raise ConfigInvalid("train.augment", seen=f"{item.name} does not take its options: {error}") from error
    return transform


def _sized(name: str, options: dict[str, Any], size: tuple[int, ...] | None) -> dict[str, Any]:
    if size is None:
        return options
    if "spatial_size" in options:
        raise ConfigInvalid("train.augment", seen=f"{name} with a spatial_size",
                            expected="none was expected: train.patch says it")  # fmt: skip
    return options | {"spatial_size": size}


def affine_of(image: MetaTensor) -> Affine:
    """The affine of a MetaTensor as float64 (4, 4)."""
    return np.asarray(image.affine.numpy(), dtype=np.float64)


def as_label_tensor(mask_XYZ: NDArray[Any], affine: Affine) -> MetaTensor:
    """A mask as the (1, X, Y, Z) MetaTensor that `preprocessing` takes under ``label``."""
    return MetaTensor(
        torch.from_numpy(np.ascontiguousarray(mask_XYZ, dtype=np.float32))[None], affine=torch.from_numpy(affine)
    )
