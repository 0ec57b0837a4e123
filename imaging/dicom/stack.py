"""A volume before its pixels are read: its slices in order, its grid, and how the one comes onto the other.

Frames: DICOM positions and cosines are in LPS mm (PS3.3 C.7.6.2.1.1); an affine that leaves here is in RAS mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from imaging.dicom.frames import Slice
from imaging.errors import UnknownName
from imaging.volume import Affine, Defect

Policy = Literal["strict", "repair"]
Floats = NDArray[np.float64]

# No scanner's pixel is smaller than this or larger than that, in mm, and no two neighbours are farther apart.
SMALLEST_MM, LARGEST_MM = 1e-3, 1e3
# Below this, deviation is the rounding of decimal strings and not worth telling.
ROUNDING_MM = 1e-3
GREY = ("MONOCHROME1", "MONOCHROME2")


def check_policy(policy: str) -> None:
    """Refuse a policy that is none; a misspelt ``strict`` must not repair.

    Raises
    ------
    UnknownName
        If it is neither ``strict`` nor ``repair``.
    """
    known = get_args(Policy)
    if policy not in known:
        raise UnknownName("policy", seen=repr(policy), expected=f"{' or '.join(known)} was expected")


@dataclass(frozen=True, slots=True, eq=False)
class Regrid:
    """How slices that do not lie on a regular grid are brought onto one.

    Attributes
    ----------
    along
        Where each slice of the stack lies along the normal, in mm from the first.
    target
        Where each slice of the regular grid lies, likewise; a slice between two is interpolated linearly.
    shift
        (N, 2): how far each slice's first pixel lies beside the grid's, in pixels along a row and down a column.
    """

    along: Floats
    target: Floats
    shift: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The slices of one volume in order, and where they lie.

    Attributes
    ----------
    slices
        In the order of Z; the sources of the grid's slices where there is a `regrid`.
    affine
        Voxel index (column, row, slice) of the regular grid to RAS+ mm.
    shape
        Voxels of the regular grid along X (columns), Y (rows) and Z.
    defects
        What was noted or repaired.
    regrid
        None where the slices are the grid.
    name
        What tells this volume from the others of the series, such as ``EchoTime=4.92``; empty where it is the only one.
    """

    slices: tuple[Slice, ...]
    affine: Affine
    shape: tuple[int, int, int]
    defects: tuple[Defect, ...]
    regrid: Regrid | None = None
    name: str = ""

    @property
    def channels(self) -> int:
        """1 for grey values, 3 for red, green and blue."""
        return 1 if self.slices[0].instance.photometric in GREY else 3

    @property
    def modality(self) -> str:
        """Modality (0008,0060); the slices of a volume have one."""
        return self.slices[0].instance.modality

    @property
    def is_inverted(self) -> bool:
        """Whether the pixels are MONOCHROME1 and stand for brightness rather than for a measured quantity.

        A unit (HU, Bq/ml, optical density, ...) belongs to the number, whichever way it is displayed.
        """
        pixels = self.slices[0].instance.pixels
        measured = self.unit != "" or pixels.lookup
        return self.slices[0].instance.photometric == "MONOCHROME1" and not measured

    @property
    def unit(self) -> str:
        """Of the values; the slices of a volume have one."""
        return self.slices[0].unit
