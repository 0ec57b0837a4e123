"""The structures in a mask, whether each voxel has one label or several regions overlap.

Invariant: what a structure is made of is asked here and nowhere else.

Shapes: K structures in the order of the config. A *mask* is either uint8 label ids (X, Y, Z), or, where structures
overlap, bool (K, X, Y, Z): ``mask[k]`` is where the structure with the id k + 1 lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.config import Label, SegmentConfig

Mask = NDArray[np.uint8] | NDArray[np.bool_]
_UINT8 = 255


def structure_of(mask: NDArray[Any], label: Label) -> NDArray[np.bool_]:
    """Where one structure lies, (X, Y, Z)."""
    found: NDArray[np.bool_] = mask == label.id if mask.ndim == 3 else mask[label.id - 1]
    return found


def slice_of(mask: NDArray[Any], label: Label, index: int) -> NDArray[np.bool_]:
    """Where one structure lies on one slice, (X, Y); the rest of the mask is not looked at."""
    layer = mask[..., index]
    found: NDArray[np.bool_] = layer == label.id if mask.ndim == 3 else layer[label.id - 1]
    return found


def voxels_by_slice(mask: NDArray[Any], labels: Sequence[Label]) -> NDArray[np.int64]:
    """How many voxels each structure has on each slice, (structures, Z)."""
    if mask.ndim != 3:
        each = ((structure_of(mask, label)[..., z] for z in range(mask.shape[-1])) for label in labels)
        return np.array([[np.count_nonzero(found_XY) for found_XY in layers] for layers in each], dtype=np.int64)
    return values_by_slice(mask)[[label.id for label in labels]]


def values_by_slice(mask_XYZ: NDArray[Any]) -> NDArray[np.int64]:
    """How many voxels of each slice have each of the values that a label map can have, (256, Z)."""
    counts = np.zeros((256, mask_XYZ.shape[2]), dtype=np.int64)
    for z in range(mask_XYZ.shape[2]):
        layer = mask_XYZ[..., z].ravel(order="K")
        # Counting what is told apart takes several times longer than finding it, and most voxels are background.
        found = layer[layer != 0]
        counts[:, z] = np.bincount(found, minlength=256)
        counts[0, z] = layer.size - found.size
    return counts


def voxels_by_column(mask: NDArray[Any], label: Label, slices: Sequence[int]) -> NDArray[np.int64]:
    """On how many of some slices one structure lies at each place of them, (X, Y)."""
    counts = np.zeros(mask.shape[-3:-1], dtype=np.int64, order="F")
    for start in range(0, len(slices), _UINT8):
        # As many bytes as there are slices stay below what a byte holds; adding bytes takes an eighth of the time.
        some = np.zeros(counts.shape, dtype=np.uint8, order="F")
        for index in slices[start : start + _UINT8]:
            some += slice_of(mask, label, index).view(np.uint8)
        counts += some
    return counts


def truth_of(mask_XYZ: NDArray[Any], config: SegmentConfig) -> NDArray[Any]:
    """A manual mask, as a mask of the config's structures: label ids as they are, or the regions they make up."""
    if not config.overlapping:
        return mask_XYZ
    return np.stack([np.isin(mask_XYZ, label.values) for label in config.labels])


def labels_of(regions_KXYZ: NDArray[np.bool_], labels: Sequence[Label]) -> NDArray[np.uint8]:
    """Overlapping structures as label ids: where several lie, that of the last one.

    nnU-Net's ``regions_class_order``: the whole first, what lies inside it later.
    """
    mask_XYZ = np.zeros(regions_KXYZ.shape[1:], dtype=np.uint8)
    for label in labels:
        mask_XYZ[structure_of(regions_KXYZ, label)] = label.id
    return mask_XYZ
