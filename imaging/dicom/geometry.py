"""The instances of a series -> slices in order, an affine, and every defect named.

Invariant: position along the slices' normal decides the order, InstanceNumber never does; and a series that is not one
regular stack is refused by name, so that the affine is true for every voxel to within the error told. Imports no torch.

Frames: DICOM positions and cosines are in LPS mm (PS3.3 C.7.6.2.1.1); the affine that leaves here is in RAS mm.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imaging.dicom.scan import Instance, Series
from imaging.errors import (
    ColourImage,
    DuplicateSlices,
    GantryTilt,
    InvalidGeometry,
    InvertedGrey,
    Localizer,
    MissingAttribute,
    MissingSlices,
    MixedSlices,
    MultiFrame,
    NotAnImage,
    SecondaryCapture,
    SharedInstanceUid,
    TooFewSlices,
    VariableSpacing,
)
from imaging.volume import Affine, Defect, lps_to_ras

# PS3.4 annex B.5: the Secondary Capture storage classes share this root.
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"

# Cosines are written with about six digits; more than this is not rounding (PS3.3 C.7.6.2.1.1 asks for orthonormal).
COSINE_TOLERANCE = 1e-3
# Pixel spacings this close are one spacing; over 1,000 pixels they differ by 0.1 mm.
SPACING_TOLERANCE_MM = 1e-4
# Positions this close along the normal are one position.
SAME_POSITION_MM = 1e-2
# A slice may lie this share of the spacing from its place on the regular grid and still be told as jitter, not as
# another geometry; what is found is told in mm.
JITTER_SHARE = 0.02
# Below this, deviation is the rounding of decimal strings and not worth telling.
ROUNDING_MM = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Stack:
    """The slices of one volume in order, and where they lie.

    Attributes
    ----------
    instances
        In the order of Z.
    affine
        Voxel index (column, row, slice) to RAS+ mm.
    defects
        What was noted.
    """

    instances: tuple[Instance, ...]
    affine: Affine
    defects: tuple[Defect, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along X (columns), Y (rows) and Z (slices)."""
        return self.instances[0].columns, self.instances[0].rows, len(self.instances)


def stack(series: Series) -> Stack:
    """Order a series' slices and compute its affine.

    Parameters
    ----------
    series
        The instances of one series in any order.

    Returns
    -------
    Stack
        A regular grid: orthogonal, and one distance between all slices.

    Raises
    ------
    SeriesRefused
        By the name of what keeps it from being one regular grid of grey values.
    MissingAttribute, InvalidGeometry
        If orientation, position or spacing are missing, or mean nothing.
    """
    _check_kind(series)
    _check_same(series)
    row_cosine, column_cosine, normal = _directions(series)
    positions = np.array([_position(series, instance) for instance in series.instances])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    positions, along = positions[order], along[order]
    _check_regular(series, positions, along, normal)
    spacing_rows, spacing_columns = _spacing(series)
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    # C.7.6.2.1.1 equation (1): a step along a row goes by the distance between columns, and the reverse.
    affine[:3, 0] = row_cosine * spacing_columns
    affine[:3, 1] = column_cosine * spacing_rows
    affine[:3, 2] = normal * float(step @ normal)
    affine[:3, 3] = positions[0]
    ordered = tuple(series.instances[index] for index in order)
    return Stack(ordered, lps_to_ras(affine), _unevenness(ordered, affine))


def _check_kind(series: Series) -> None:
    """Refuse what is not a stack of grey slices, by what it is."""
    for instance in series.instances:
        if not instance.rows or not instance.columns:
            raise NotAnImage(series.facts.subject, seen=f"{instance.modality or 'an object'} without pixels")
        if instance.sop_class_uid.startswith(_SECONDARY_CAPTURE):
            raise SecondaryCapture(series.facts.subject, seen="Secondary Capture storage class")
        if "LOCALIZER" in instance.image_type:
            raise Localizer(series.facts.subject, seen="Image Type LOCALIZER")
        if instance.frames != 1:
            raise MultiFrame(series.facts.subject, seen=f"{instance.frames} frames in one instance")
        if instance.samples != 1 or instance.photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise ColourImage(series.facts.subject, seen=instance.photometric or "no Photometric Interpretation")
        if instance.photometric == "MONOCHROME1":
            raise InvertedGrey(series.facts.subject, seen="MONOCHROME1")


_ONCE: dict[str, Callable[[Instance], object]] = {
    "SOPClassUID": lambda instance: instance.sop_class_uid,
    "Modality": lambda instance: instance.modality,
    "FrameOfReferenceUID": lambda instance: instance.frame_of_reference_uid,
    "Rows and Columns": lambda instance: (instance.rows, instance.columns),
}


def _check_same(series: Series) -> None:
    """Refuse a series whose slices differ in what a volume has once; cosines and spacings are compared as numbers."""
    uids = {instance.sop_instance_uid for instance in series.instances}
    if len(uids) < len(series.instances):
        seen = f"{len(series.instances)} instances with {len(uids)} SOPInstanceUIDs"
        raise SharedInstanceUid(series.facts.subject, seen=seen)
    for name, value in _ONCE.items():
        values = {value(instance) for instance in series.instances}
        if len(values) > 1:
            raise MixedSlices(series.facts.subject, seen=f"{len(values)} values of {name}")
    for keyword in ("orientation", "spacing"):
        found = [getattr(instance, keyword) for instance in series.instances]
        if None in found:
            attribute = "ImageOrientationPatient" if keyword == "orientation" else "PixelSpacing"
            raise MissingAttribute(
                series.facts.subject, seen=f"{attribute} is missing or malformed in {found.count(None)} slices"
            )
        values_NV = np.array(found)
        if not np.isfinite(values_NV).all():
            raise InvalidGeometry(series.facts.subject, seen=f"{keyword} that is not finite")
        spread = float(np.ptp(values_NV, axis=0).max())
        if spread > (COSINE_TOLERANCE if keyword == "orientation" else SPACING_TOLERANCE_MM):
            raise MixedSlices(series.facts.subject, seen=f"{keyword} that differs by up to {spread:.4g}")


def _directions(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors in LPS along a row, down a column, and their normal."""
    cosines = np.array([instance.orientation for instance in series.instances], dtype=np.float64).mean(axis=0)
    row, column = cosines[:3], cosines[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not np.isfinite(cosines).all() or max(abs(length - 1) for length in lengths) > COSINE_TOLERANCE:
        raise InvalidGeometry(series.facts.subject, seen="direction cosines that are not unit vectors")
    if abs(row @ column) > COSINE_TOLERANCE:
        raise InvalidGeometry(series.facts.subject, seen="direction cosines that are not orthogonal")
    row = row / lengths[0]
    # What rounding left of the row in the column is taken out, so that the grid is exactly orthogonal.
    column = column - (column @ row) * row
    column = column / np.linalg.norm(column)
    return row, column, np.cross(row, column)


def _position(series: Series, instance: Instance) -> tuple[float, ...]:
    if instance.position is None:
        raise MissingAttribute(series.facts.subject, seen="ImagePositionPatient is missing or malformed")
    if not np.isfinite(instance.position).all():
        raise InvalidGeometry(series.facts.subject, seen="a position that is not finite")
    return instance.position


def _spacing(series: Series) -> tuple[float, float]:
    rows, columns = np.array([instance.spacing for instance in series.instances], dtype=np.float64).mean(axis=0)
    if not (np.isfinite(rows) and np.isfinite(columns) and min(rows, columns) > 0 and max(rows, columns) < 1e3):
        raise InvalidGeometry(series.facts.subject, seen=f"a pixel spacing of {rows:g} x {columns:g} mm")
    return float(rows), float(columns)


def _check_regular(
    series: Series, positions: NDArray[np.float64], along: NDArray[np.float64], normal: NDArray[np.float64]
) -> None:
    """Refuse slices that do not lie above each other at one distance.

    Parameters
    ----------
    series
        For the message.
    positions, along
        First pixel of each slice in LPS mm (N, 3), and its place along the normal in mm (N,), both in ascending order.
    normal
        Unit vector in LPS.
    """
    if len(along) < 2:
        raise TooFewSlices(series.facts.subject, seen="one slice")
    gaps = np.diff(along)
    doubles = int((gaps < SAME_POSITION_MM).sum())
    if doubles:
        raise DuplicateSlices(series.facts.subject, seen=f"{doubles} of {len(along)} slices lie where another one lies")
    _check_gaps(series, along, gaps)
    sideways = positions - positions[0] - np.outer(along - along[0], normal)
    shear = float(np.linalg.norm(sideways[-1]))
    height = float(along[-1] - along[0])
    spacing = height / (len(along) - 1)
    if float(np.linalg.norm(sideways, axis=1).max()) > max(JITTER_SHARE * spacing, ROUNDING_MM):
        angle = np.degrees(np.arctan2(shear, height))
        raise GantryTilt(
            series.facts.subject, seen=f"the last slice lies {shear:.2f} mm beside the first ({angle:.1f} degrees)"
        )


def _unevenness(ordered: Sequence[Instance], affine_lps: Affine) -> tuple[Defect, ...]:
    """Tell how far the slices' own corners lie from where the one affine puts them.

    This is the whole error of taking the slices as one grid: jitter of positions, rounding of cosines, and cosines and
    spacings that differ from slice to slice within the tolerances.
    """
    error = 0.0
    for index, instance in enumerate(ordered):
        assert instance.orientation is not None and instance.spacing is not None and instance.position is not None
        along_row = np.array(instance.orientation[:3]) * instance.spacing[1]
        down_column = np.array(instance.orientation[3:]) * instance.spacing[0]
        for column in (0, instance.columns - 1):
            for row in (0, instance.rows - 1):
                own = np.array(instance.position) + along_row * column + down_column * row
                error = max(error, float(np.linalg.norm((affine_lps @ [column, row, index, 1])[:3] - own)))
    if error <= ROUNDING_MM:
        return ()
    detail = f"voxels lie up to {error:.3f} mm from where the slices' own attributes put them"
    return (Defect("uneven_positions", "noted", detail, error_mm=error),)


def _check_gaps(series: Series, along: NDArray[np.float64], gaps: NDArray[np.float64]) -> None:
    """Refuse gaps that are a multiple of the commonest distance as missing slices, others as variable spacing."""
    typical = float(np.median(gaps))
    tolerance = JITTER_SHARE * typical
    steps = np.maximum(np.rint(gaps / typical), 1)
    if bool((np.abs(gaps - steps * typical) > np.maximum(tolerance, ROUNDING_MM) * steps).any()):
        raise VariableSpacing(series.facts.subject, seen=f"distances from {gaps.min():.3f} to {gaps.max():.3f} mm")
    if bool((steps > 1).any()):
        first = int(np.argmax(steps > 1))
        missing = int((steps - 1).sum())
        raise MissingSlices(
            series.facts.subject,
            seen=f"{missing} slices are missing, the first after {along[first]:.2f} mm along the normal",
            expected=f"one every {typical:.3f} mm was expected",
        )
    even = np.linspace(along[0], along[-1], len(along))
    if float(np.abs(along - even).max()) > max(tolerance, ROUNDING_MM):
        raise VariableSpacing(
            series.facts.subject, seen=f"distances that drift from {gaps.min():.3f} to {gaps.max():.3f} mm"
        )
