"""Images without a position in the patient (CR, DX, MG, single XA, US, ... frames) -> 2D volumes of one slice.

Invariant: the axes of such a volume are the picture's own and say nothing of the patient; where its scale comes from is
always told. Imports no torch.
"""

from __future__ import annotations

import numpy as np

from imaging.dicom.attributes import Projection
from imaging.dicom.frames import Slice
from imaging.dicom.stack import LARGEST_MM, SMALLEST_MM, Policy, Stack
from imaging.errors import InvalidGeometry, MissingAttribute
from imaging.volume import Defect, lps_to_ras

# Modalities whose images are slices of the body: without a position they are broken, not projections.
CROSS_SECTIONAL = frozenset(("CT", "MR", "PT"))


def is_planar(item: Slice) -> bool:
    """Whether a frame is a picture of its own rather than a slice that lost its place."""
    alone = item.instance.frames == 1 and item.instance.projection is not None
    return item.position is None and alone and item.instance.modality not in CROSS_SECTIONAL


def planar_stack(item: Slice, subject: str, policy: Policy, *, alone: bool) -> Stack:
    """Make a volume of one projection image.

    Parameters
    ----------
    item
        The frame.
    subject
        For messages.
    policy
        ``strict`` refuses an image that does not say its scale.
    alone
        Whether it is the only image of its series; else its Instance Number tells it from the others.

    Raises
    ------
    MissingAttribute
        Under ``strict``, if nothing says the distance between pixels.
    InvalidGeometry
        If that distance is no length.
    """
    projection = item.instance.projection
    assert projection is not None
    (rows_mm, columns_mm), origin = _spacing(item, projection, subject, policy)
    affine = np.diag([columns_mm, rows_mm, 1.0, 1.0])
    detail = "the image has no position in the patient; its axes run along its rows and down its columns"
    defects = [Defect("no_patient_position", "noted", detail, error_mm=None), origin]
    if projection.intent == "FOR PROCESSING":
        detail = "Presentation Intent Type is FOR PROCESSING: raw detector values, not what a reader would look at"
        defects.append(Defect("for_processing", "noted", detail))
    if projection.voi:
        detail = "the header gives a window or VOI LUT; the values are those before it"
        defects.append(Defect("voi_not_applied", "noted", detail))
    name = "" if alone else f"InstanceNumber={projection.number or item.instance.sop_instance_uid}"
    shape = (item.instance.columns, item.instance.rows, 1)
    return Stack((item,), lps_to_ras(affine), shape, tuple(defects), None, name)


def _spacing(item: Slice, projection: Projection, subject: str, policy: Policy) -> tuple[tuple[float, float], Defect]:
    """Distance between rows and between columns in mm, and where it comes from (PS3.3 section 10.7.1.3)."""
    pixel, imager = item.spacing, projection.imager_spacing
    if pixel is not None and (imager is None or pixel != imager or projection.calibration):
        how = f"calibrated by {projection.calibration.lower()}" if projection.calibration else "not said how calibrated"
        return _checked(pixel, subject), Defect("spacing_origin", "noted", f"Pixel Spacing, {how}")
    if imager is not None:
        factor = projection.magnification or 1.0
        if factor > 1.0:
            scaled = tuple(value / factor for value in imager)
            detail = f"Imager Pixel Spacing at the detector, divided by the estimated magnification {factor:g}"
            return _checked(scaled, subject), Defect("spacing_origin", "noted", detail, error_mm=None)
        detail = "Imager Pixel Spacing at the detector; the patient, nearer to the source, is smaller than it says"
        return _checked(imager, subject), Defect("spacing_origin", "noted", detail, error_mm=None)
    if policy == "strict":
        raise MissingAttribute(subject, seen="neither PixelSpacing nor ImagerPixelSpacing says the size of a pixel")
    detail = "nothing says the size of a pixel; each counts as 1 mm, and no length or area means anything"
    return (1.0, 1.0), Defect("unknown_spacing", "repaired", detail, error_mm=None)


def _checked(spacing: tuple[float, ...], subject: str) -> tuple[float, float]:
    rows, columns = spacing
    if not (np.isfinite(spacing).all() and min(spacing) > SMALLEST_MM and max(spacing) < LARGEST_MM):
        raise InvalidGeometry(subject, seen=f"a pixel spacing of {rows:g} x {columns:g} mm")
    return rows, columns
