"""The files of a case -> one Volume with a channel for each, and the mask that belongs to it.

Invariant: every channel and the mask lie on the grid of the first channel; what lies elsewhere is refused by name, and
nothing is resampled. Imports no torch.

A channel is a NIfTI or PNG file, or a DICOM series as a file or folder. A four-dimensional NIfTI file holds its
channels along the last axis, as the Medical Segmentation Decathlon and nnU-Net have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import nibabel as nib
import numpy as np

from imaging.dicom import load_series
from imaging.errors import ChannelMismatch
from imaging.nifti import is_nifti, read_nifti, read_nifti_channels
from imaging.png import is_png, read_png
from imaging.volume import Affine, Volume, spacing_of

# How far from its image, in shares of the smallest spacing, rounding may put a channel or a mask.
_APART = 0.1


def read_image(path: Path) -> Volume:
    """Read one picture or volume by its name: NIfTI, PNG, or else one DICOM series (a file, a folder or an archive).

    Raises
    ------
    InputRefused, SeveralSeries
        As the reader of its kind does.
    """
    if is_png(path):
        return read_png(path)
    return read_nifti(path) if is_nifti(path) else load_series(path)


def read_channels(images: Sequence[Path]) -> Volume:
    """Read the files of a case as one volume.

    Parameters
    ----------
    images
        One or more, in the order of the channels.

    Returns
    -------
    Volume
        (C, X, Y, Z) on the grid of the first file, with its facts and the defects of all.

    Raises
    ------
    ChannelMismatch
        If a file has another shape or lies elsewhere than the first.
    InputRefused, SeveralSeries
        As the reader of its kind does.
    """
    volumes = [read_nifti_channels(path) if is_nifti(path) else read_image(path) for path in images]
    return joined(volumes, [(path, path.name) for path in images])


def joined(volumes: Sequence[Volume], called: Sequence[tuple[object, str]]) -> Volume:
    """Volumes on one grid as one with all their channels; see `read_channels`.

    Parameters
    ----------
    volumes
        In the order of the channels.
    called
        Of each, the subject of a refusal, and what others call it.

    Raises
    ------
    ChannelMismatch
        If one has another shape or lies elsewhere than the first.
    """
    first, others = volumes[0], [turned_to(other, volumes[0]) for other in volumes[1:]]
    for (subject, _), other in zip(called[1:], others, strict=True):
        if other.shape != first.shape:
            raise ChannelMismatch(subject, seen=f"shape {other.shape}, {called[0][1]} has {first.shape}")
        apart = corners_apart(first, other)
        if apart > allowed_apart(first):
            raise ChannelMismatch(subject, seen=f"it lies up to {apart:.2f} mm from {called[0][1]}")
    if not others:
        return first
    array = np.concatenate([first.array, *(other.array for other in others)])
    return replace(first, array=array, defects=tuple(d for volume in (first, *others) for d in volume.defects))


def read_mask(path: Path, image: Volume | None) -> Volume:
    """Read a NIfTI or PNG mask, its axes turned to those of its image where there is one (see `turned_to`).

    A DICOM series and a NIfTI mask that was drawn on a converted copy of it have one grid, told in another order.

    Raises
    ------
    InputRefused
        As `imaging.nifti.read_nifti` and `imaging.png.read_png` do.
    """
    mask = read_png(path) if is_png(path) else read_nifti(path)
    return turned_to(mask, image) if image is not None else mask


def turned_to(volume: Volume, other: Volume) -> Volume:
    """The volume with its axes in the order and direction of another's, voxel for voxel; nothing is resampled."""
    turn = nib.orientations.ornt_transform(nib.io_orientation(volume.affine), nib.io_orientation(other.affine))
    if np.array_equal(turn, [[0, 1], [1, 1], [2, 1]]):
        return volume
    array = np.stack([nib.orientations.apply_orientation(channel, turn) for channel in volume.array])
    affine = volume.affine @ nib.orientations.inv_ornt_aff(turn, volume.shape)
    return replace(volume, array=array, affine=affine)


def check_channels(image: Volume, wanted: int, subject: object) -> None:
    """Refuse an image with another number of channels than the network takes.

    Raises
    ------
    ChannelMismatch
        With both numbers.
    """
    found = image.array.shape[0]
    if found != wanted:
        raise ChannelMismatch(subject, seen=f"{found} channels", expected=f"{wanted} were expected")


class Grid(Protocol):
    """What has voxels in places: a volume, or the slices that will be one."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X, Y and Z."""

    @property
    def affine(self) -> Affine:
        """Voxel index to RAS+ mm."""


def corners_apart(a: Grid, b: Grid) -> float:
    """How far, in mm, the corners of two grids of the same shape lie apart at most."""
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*a.shape, 1]
    return float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())


def allowed_apart(image: Grid) -> float:
    """How far, in mm, rounding may put a channel or a mask from its image."""
    return _APART * min(spacing_of(image.affine))
