"""What a right reader gives of a case, and how a reader's volume is held against it.

Every picture is a field that is linear in the patient's millimetres, so a voxel is right exactly if it holds the
field's value at the place where the volume's own affine puts it. No pytest here: a benchmark judges other readers by
the same truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phantom import GRADIENT, OFFSET, Floats

from imaging.volume import Volume

# Nearer than this in mm is the rounding of decimal strings.
_ROUNDING_MM = 2e-3
# Nearer than this to a slice in mm is on the slice.
_ON_SLICE_MM = 5e-3
# Nearer than this to a picture's edge in pixels may be taken as inside or outside.
_EDGE = 5e-3


@dataclass(frozen=True)
class Field:
    """Value = offset + gradient . position in LPS mm."""

    offset: float = OFFSET
    gradient: tuple[float, float, float] = (float(GRADIENT[0]), float(GRADIENT[1]), float(GRADIENT[2]))

    def __call__(self, points: Floats) -> Floats:
        values: Floats = self.offset + points @ np.array(self.gradient)
        return values

    def plus(self, offset: float) -> Field:
        """The same, brighter: tells volumes at one place apart."""
        return replace(self, offset=self.offset + offset)

    def times(self, factor: float) -> Field:
        """The same in another unit."""
        x, y, z = self.gradient
        return Field(self.offset * factor, (x * factor, y * factor, z * factor))


FIELD = Field()


@dataclass(frozen=True, eq=False)
class Plane:
    """One frame as it truly lies: LPS mm. Copies of a picture are one plane with several names (UID, frame number)."""

    names: frozenset[tuple[str, int]]
    position: Floats
    row: Floats
    column: Floats
    spacing: tuple[float, float]
    rows: int
    columns: int

    @property
    def normal(self) -> Floats:
        return np.cross(self.row, self.column)

    def points(self) -> Floats:
        """(rows, columns, 3): the centre of each pixel."""
        along = np.arange(self.columns)[None, :, None] * self.spacing[1] * self.row
        down = np.arange(self.rows)[:, None, None] * self.spacing[0] * self.column
        points: Floats = self.position + along + down
        return points

    def edge(self, points: Floats) -> Floats:
        """For points (n, 3) by how many pixels they lie inside of the outermost pixel centres; negative is outside."""
        column = (points - self.position) @ self.row / self.spacing[1]
        row = (points - self.position) @ self.column / self.spacing[0]
        inside: Floats = np.min([column, self.columns - 1 - column, row, self.rows - 1 - row], axis=0)
        return inside

    def same(self, *names: tuple[str, int]) -> Plane:
        """The same picture under more names."""
        return replace(self, names=self.names | set(names))


@dataclass(frozen=True, eq=False)
class Expected:
    """One volume as it must come out.

    Attributes
    ----------
    planes
        Its pictures, in the order of their normal.
    tolerance
        The most that quantisation can take from a value.
    fields
        One for each channel.
    codes
        Which defects must be told; no others may be.
    told
        Words that must stand in the detail of a defect, by its code.
    named
        What must stand in the volume's name, which tells it from the others of its series.
    unit
        Of the values; None where it does not matter.
    masked
        (planes, rows, columns): pixels without a value, which must come out as the smallest one seen.
    regridded
        Whether the grid must be another than the planes'.
    """

    planes: tuple[Plane, ...]
    tolerance: float
    fields: tuple[Field, ...] = (FIELD,)
    codes: frozenset[str] = frozenset()
    told: Mapping[str, str] = field(default_factory=dict)
    named: str = ""
    unit: str | None = None
    masked: NDArray[np.bool_] | None = None
    regridded: bool = False


@dataclass(frozen=True)
class Truth:
    """The volumes that must come out under each policy."""

    strict: tuple[Expected, ...] = ()
    repair: tuple[Expected, ...] = ()


@dataclass(frozen=True)
class Case:
    """One thing that a hospital sends.

    Attributes
    ----------
    name, row
        The case, and the row of the table that it stands for.
    write
        Writes it into a folder and gives the volumes that are in it.
    strict, repair
        Codes of what must be refused under each policy, no others.
    """

    name: str
    row: str
    write: Callable[[Path], Truth] = field(repr=False)
    strict: frozenset[str] = frozenset()
    repair: frozenset[str] = frozenset()


def expect(
    planes: Sequence[Plane], tolerance: float, *, codes: Sequence[str] = (), regridded: bool = False, **more: Any
) -> Expected:
    """A volume of some planes, put in the order of their normal."""
    ordered = tuple(sorted(planes, key=lambda plane: float(plane.position @ plane.normal)))
    return Expected(ordered, tolerance, codes=frozenset(codes), regridded=regridded, **more)


def both(*volumes: Expected) -> Truth:
    """The same under both policies."""
    return Truth(volumes, volumes)


def wrong(expected: Expected, array_CXYZ: NDArray[np.float32], affine_ras: Floats) -> list[str]:
    """What is wrong with a reader's values and places; nothing where each voxel is right."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    shape = array_CXYZ.shape[1:]
    first = expected.planes[0]
    if len(array_CXYZ) != len(expected.fields):
        return [f"{len(array_CXYZ)} channels instead of {len(expected.fields)}"]
    if not np.isfinite(array_CXYZ).all():
        return ["values that are not finite"]
    if not expected.regridded and shape != (first.columns, first.rows, len(expected.planes)):
        return [f"a shape of {shape} instead of {(first.columns, first.rows, len(expected.planes))}"]
    problems = _lost(expected, affine, shape)
    for z in range(shape[2]):
        problems += _wrong_slice(expected, array_CXYZ, affine, z)
    return problems


def misplacement(expected: Expected, affine_ras: Floats) -> float:
    """The largest distance in mm between a corner of a plane and where the affine puts it."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    worst = 0.0
    for z, plane in enumerate(expected.planes):
        points = plane.points()
        for row in (0, -1):
            for column in (0, -1):
                index = (column % plane.columns, row % plane.rows, z)
                put = affine[:3, :3] @ index + affine[:3, 3]
                worst = max(worst, float(np.linalg.norm(put - points[row, column])))
    return worst


def untold(expected: Expected, volume: Volume, policy: str) -> list[str]:
    """What a volume does not tell, or tells wrongly: defects, sources, name, unit."""
    problems = []
    codes = {defect.code for defect in volume.defects}
    if codes != expected.codes:
        problems.append(f"tells {sorted(codes)} instead of {sorted(expected.codes)}")
    problems += [
        f"{code} does not say {words!r}"
        for code, words in expected.told.items()
        if not any(defect.code == code and words in defect.detail for defect in volume.defects)
    ]
    if policy == "strict" and any(defect.action == "repaired" for defect in volume.defects):
        problems.append("repairs under strict")
    if volume.resampled != expected.regridded:
        problems.append(f"resampled is {volume.resampled}")
    if expected.named not in volume.facts.volume:
        problems.append(f"is named {volume.facts.volume!r} without {expected.named!r}")
    if expected.unit is not None and volume.unit != expected.unit:
        problems.append(f"its unit is {volume.unit!r} instead of {expected.unit!r}")
    if not expected.regridded:
        told = max((defect.error_mm or 0.0 for defect in volume.defects), default=0.0)
        true = misplacement(expected, volume.affine)
        if true > told + _ROUNDING_MM:
            problems.append(f"voxels lie up to {true:.3f} mm off and {told:.3f} mm are told")
    return problems + _strayed(expected, volume)


def _strayed(expected: Expected, volume: Volume) -> list[str]:
    """Slices whose source is not the nearest plane."""
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ volume.affine
    if len(volume.sources) != volume.shape[2]:
        return [f"{len(volume.sources)} sources for {volume.shape[2]} slices"]
    problems = []
    along = _along(expected)
    for z, source in enumerate(volume.sources):
        apart = np.abs(along - _height(expected, affine, z))
        near = {
            name
            for number in np.flatnonzero(apart < apart.min() + _ON_SLICE_MM).tolist()
            for name in expected.planes[number].names
        }
        if (source.sop_instance_uid, source.number) not in near:
            problems.append(f"slice {z} is said to come from {source.sop_instance_uid} frame {source.number}")
    return problems


def _along(expected: Expected) -> Floats:
    """Where each plane lies along the normal, in mm from the first."""
    first = expected.planes[0]
    return np.array([(plane.position - first.position) @ first.normal for plane in expected.planes])


def _height(expected: Expected, affine: Floats, z: int) -> float:
    first = expected.planes[0]
    return float((affine[:3, 3] + z * affine[:3, 2] - first.position) @ first.normal)


def _lost(expected: Expected, affine: Floats, shape: Sequence[int]) -> list[str]:
    """Planes that are not inside of the grid."""
    inverse = np.linalg.inv(affine)
    most = np.array(shape) - 1
    problems = []
    for number, plane in enumerate(expected.planes):
        index = plane.points().reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
        if (index < -0.6).any() or (index > most + 0.6).any():
            problems.append(f"plane {number} lies outside of the grid")
    return problems


def _wrong_slice(expected: Expected, array_CXYZ: NDArray[np.float32], affine: Floats, z: int) -> list[str]:
    """Voxels of one slice that are neither the field's value, nor, where nothing was acquired, the smallest one."""
    columns, rows = array_CXYZ.shape[1:3]
    x, y = (grid.ravel() for grid in np.meshgrid(np.arange(columns), np.arange(rows), indexing="ij"))
    points = np.stack([x, y, np.full_like(x, z)], axis=1) @ affine[:3, :3].T + affine[:3, 3]
    edge = _edge(expected, _height(expected, affine, z), points)
    masked = np.zeros(len(points), dtype=bool)
    if expected.masked is not None and not expected.regridded:
        masked = expected.masked[z][y, x]
    elif expected.masked is not None:
        edge = np.where(edge > 0, _near_padding(expected, points), edge)
    shift = 0.0 if expected.regridded else _distance(expected.planes[z], affine, z)
    problems = []
    for number, (values_XYZ, field_) in enumerate(zip(array_CXYZ, expected.fields, strict=True)):
        values = values_XYZ[:, :, z].ravel()
        tolerance = expected.tolerance + shift * float(np.linalg.norm(field_.gradient))
        right = np.abs(values - field_(points)) <= tolerance
        empty = np.abs(values - values_XYZ.min()) <= 1e-3
        inside = (edge > _EDGE) & ~masked
        outside = (edge < -_EDGE) | masked
        bad = (inside & ~right) | (outside & ~empty) | ~(right | empty)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            seen = f"{values[at]:g} at ({x[at]}, {y[at]}, {z}), where {float(field_(points[at : at + 1])[0]):g} belongs"
            problems.append(f"channel {number}: {int(bad.sum())} of {len(bad)} values of slice {z} are wrong: {seen}")
    return problems


def _near_padding(expected: Expected, points: Floats) -> Floats:
    """For points (n, 3): 0 where a padded pixel of any plane is less than a pixel away in the plane, else infinite."""
    assert expected.masked is not None
    near = np.zeros(len(points), dtype=bool)
    for plane, masked in zip(expected.planes, expected.masked, strict=True):
        column = (points - plane.position) @ plane.row / plane.spacing[1]
        row = (points - plane.position) @ plane.column / plane.spacing[0]
        for padded_row, padded_column in np.argwhere(masked):
            near |= (np.abs(row - padded_row) < 1.001) & (np.abs(column - padded_column) < 1.001)
    return np.where(near, 0.0, np.inf)


def _distance(plane: Plane, affine: Floats, z: int) -> float:
    """How far a plane's first pixel lies from where the affine puts it, where that is more than rounding."""
    apart = float(np.linalg.norm(affine[:3, 3] + z * affine[:3, 2] - plane.position))
    return apart if apart > _ROUNDING_MM else 0.0


def _edge(expected: Expected, height: float, points: Floats) -> Floats:
    """By how many pixels points lie inside of the one or two planes that they are made of."""
    along = _along(expected)
    nearest = int(np.abs(along - height).argmin())
    if not expected.regridded:
        return np.full(len(points), np.inf)
    if abs(along[nearest] - height) < _ON_SLICE_MM:
        return expected.planes[nearest].edge(points)
    for number, (below, above) in enumerate(pairwise(along)):
        if below < height < above:
            return np.minimum(expected.planes[number].edge(points), expected.planes[number + 1].edge(points))
    return np.full(len(points), -np.inf)
