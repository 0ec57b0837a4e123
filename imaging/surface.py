"""How far the border of a mask lies from the true one, in mm: 95th percentile Hausdorff distance and surface Dice.

Invariant: distances are between surface elements, each counted by its area in mm2, so that neither the voxels' shape
nor the direction of the slices changes what is measured.

Shapes: masks are boolean (X, Y, Z) on one grid with `spacing_mm` along its axes; E surface elements.

Notes
-----
Nikolov et al., *Clinically applicable segmentation of head and neck anatomy for radiotherapy*, J Med Internet Res 23
(2021) e26151, define surface elements, their areas (by marching cubes) and the surface Dice at a tolerance. Maier-Hein,
Reinke et al., *Metrics reloaded*, Nature Methods 21 (2024) 195-212, recommend both metrics and say what an empty mask
counts. The areas are MONAI's table; the distances ITK's exact transform (Maurer et al., IEEE TPAMI 25 (2003) 265-270).
MONAI's own Hausdorff distance is not used: its percentile is over voxels, and where slices are far apart the edges of a
mask have fewer of them for the same area than its faces.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK
from monai.metrics.utils import ENCODING_KERNEL, create_table_neighbour_code_to_surface_area
from numpy.typing import NDArray

from imaging.config import Vector3

# What float32 distances may be off by, in mm: far below any voxel.
_SLACK_MM = 1e-4


@dataclass(frozen=True, slots=True)
class Boundary:
    """How well a border fits.

    Attributes
    ----------
    hd95_mm
        95th percentile Hausdorff distance in mm.
    surface_dice
        Share of both surfaces, by area, that lies within the tolerance of the other one; 0 to 1.
    """

    hd95_mm: float
    surface_dice: float


@dataclass(frozen=True, slots=True, eq=False)
class SurfaceDistances:
    """For each surface element of either mask its distance to the other's surface in mm and its area in mm2, (E,)."""

    found_mm: NDArray[np.float64]
    found_mm2: NDArray[np.float64]
    truth_mm: NDArray[np.float64]
    truth_mm2: NDArray[np.float64]


def boundary(
    found_XYZ: NDArray[np.bool_], truth_XYZ: NDArray[np.bool_], *, spacing_mm: Vector3, tolerance_mm: float
) -> Boundary:
    """Compare the borders of a mask and the truth.

    Parameters
    ----------
    found_XYZ, truth_XYZ
        The masks.
    spacing_mm
        Along X, Y and Z.
    tolerance_mm
        How far off a border may lie and still count as right.

    Returns
    -------
    Boundary
        Where neither has a voxel, NaN in both: nothing was to be found and nothing was. Where only one has any, the
        worst there is: the diagonal of the grid, and 0.
    """
    if not found_XYZ.any() and not truth_XYZ.any():
        return Boundary(math.nan, math.nan)
    if not found_XYZ.any() or not truth_XYZ.any():
        return Boundary(math.dist((0, 0, 0), np.multiply(found_XYZ.shape, spacing_mm).tolist()), 0.0)
    distances = surface_distances(found_XYZ, truth_XYZ, spacing_mm=spacing_mm)
    return Boundary(hausdorff95(distances), surface_dice(distances, tolerance_mm=tolerance_mm))


def surface_distances(
    found_XYZ: NDArray[np.bool_], truth_XYZ: NDArray[np.bool_], *, spacing_mm: Vector3
) -> SurfaceDistances:
    """Distances between the surfaces of two masks, neither of them empty; at the grid's end a mask is closed."""
    either = found_XYZ | truth_XYZ
    box = tuple(slice(*_ends(either, axis)) for axis in range(3))
    areas = [_surface_areas(np.pad(mask[box], 1), spacing_mm) for mask in (found_XYZ, truth_XYZ)]
    here = [area > 0 for area in areas]
    to = [_distance_to(surface, spacing_mm) for surface in here]
    return SurfaceDistances(to[1][here[0]], areas[0][here[0]], to[0][here[1]], areas[1][here[1]])


def hausdorff95(distances: SurfaceDistances) -> float:
    """The greater of the two distances, in mm, that 95 % of either surface's area do not exceed."""
    return max(
        _percentile(distances.found_mm, distances.found_mm2), _percentile(distances.truth_mm, distances.truth_mm2)
    )


def surface_dice(distances: SurfaceDistances, *, tolerance_mm: float) -> float:
    """Area of both surfaces that lies within the tolerance of the other one, over the area of both."""
    limit = tolerance_mm + _SLACK_MM
    within = distances.found_mm2[distances.found_mm <= limit].sum()
    within += distances.truth_mm2[distances.truth_mm <= limit].sum()
    return float(within / (distances.found_mm2.sum() + distances.truth_mm2.sum()))


def volume_error_percent(found_mm3: float, truth_mm3: float) -> float:
    """By how much of the true volume the found one is too large (positive) or too small; NaN without a true volume."""
    return 100 * (found_mm3 - truth_mm3) / truth_mm3 if truth_mm3 else math.nan


def _ends(mask: NDArray[np.bool_], axis: int) -> tuple[int, int]:
    there = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
    return int(there[0]), int(there[-1]) + 1


def _surface_areas(mask_XYZ: NDArray[np.bool_], spacing_mm: Vector3) -> NDArray[np.float64]:
    """Area in mm2 of the surface that runs through each 2 x 2 x 2 neighbourhood, (X - 1, Y - 1, Z - 1)."""
    x, y, z = (size - 1 for size in mask_XYZ.shape)
    code = np.zeros((x, y, z), dtype=np.uint8)
    for (a, b, c), weight in np.ndenumerate(np.array(ENCODING_KERNEL[3], dtype=np.uint8)):
        code += mask_XYZ[a : a + x, b : b + y, c : c + z] * weight
    found: NDArray[np.float64] = _area_table(spacing_mm)[code]
    return found


@lru_cache(maxsize=64)
def _area_table(spacing_mm: Vector3) -> NDArray[np.float64]:
    table, _ = create_table_neighbour_code_to_surface_area(spacing_mm)
    return np.asarray(table.numpy(), dtype=np.float64)


def _distance_to(surface_XYZ: NDArray[np.bool_], spacing_mm: Vector3) -> NDArray[np.float64]:
    """Distance in mm of each place to the nearest surface element."""
    image: Any = SimpleITK.GetImageFromArray(np.ascontiguousarray(surface_XYZ.T, dtype=np.uint8))
    image.SetSpacing([float(step) for step in spacing_mm])
    signed = SimpleITK.SignedMaurerDistanceMap(
        image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True
    )
    return np.maximum(SimpleITK.GetArrayFromImage(signed).T.astype(np.float64), 0)


def _percentile(distances_E: NDArray[np.float64], areas_E: NDArray[np.float64], share: float = 0.95) -> float:
    order = np.argsort(distances_E, kind="stable")
    reached = np.cumsum(areas_E[order])
    return float(distances_E[order][np.searchsorted(reached, share * reached[-1] * (1 - 1e-12))])
