"""Volume -> network input, as MONAI's dictionary transforms.

Invariant: the way is that of `imaging.resampling` and `imaging.normalise`, the same in training and serving; the way
back is `imaging.restore`.
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

from imaging.config import Augmentation, Preprocess, Scale
from imaging.dicom import Policy, load_series
from imaging.dicom.stack import check_policy
from imaging.errors import ConfigInvalid, ConstantImage, ImagingError, NotApplicable, UnknownName
from imaging.nifti import is_nifti, read_nifti
from imaging.normalise import scaled
from imaging.resampling import to_network_grid
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
        the affine updated. MONAI's own transforms may stand before it and behind it.
    """
    keys = (IMAGE, LABEL) if with_label else (IMAGE,)
    return Compose([OnNetworkGrid(keys, config), Scaled(IMAGE, scales or (config,))])


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


class OnNetworkGrid(MapTransform):
    """Bring MetaTensors to the network's grid by `imaging.resampling`: a label by nearest neighbour, all else linearly.

    Parameters
    ----------
    keys
        Of MetaTensors (C, X, Y, Z); that under ``label`` holds label ids.
    config
        Orientation and spacing are read.
    """

    def __init__(self, keys: KeysCollection, config: Preprocess) -> None:
        super().__init__(keys)
        self._config = config

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Resample each of the keys, with their affines."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            values, affine = to_network_grid(
                image.as_tensor().numpy(), affine_of(image), self._config, labels=key == LABEL
            )
            result[key] = _metatensor(values, image, affine)
        return result


class Scaled(MapTransform):
    """Bring the values of each channel to the network's scale by `imaging.normalise`, as each one's config says."""

    def __init__(self, keys: KeysCollection, scales: Sequence[Scale]) -> None:
        super().__init__(keys)
        self._scales = tuple(scales)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale each of the keys."""
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            result[key] = _metatensor(scaled(image.as_tensor().numpy(), self._scales), image, affine_of(image))
        return result


def _metatensor(values: NDArray[Any], image: MetaTensor, affine: Affine) -> MetaTensor:
    """An array as a MetaTensor that knows what `image` knows, but lies elsewhere."""
    # PyTorch knows no negative steps in memory.
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return MetaTensor(tensor, meta=image.meta | {"affine": torch.from_numpy(affine)})


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
