"""A mask -> DICOM Segmentation, read back and compared before anybody gets it.

Invariant: what `write_seg` puts on disk holds, for every segment, the very voxels of the mask it was made from, each
in its place in the patient; else nothing is written. UIDs are functions of the content: the same mask of the same
series by the same checkpoint has the same UIDs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import highdicom as hd
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian

from imaging import config as configs
from imaging.dicom.frames import quietly
from imaging.dicom.seg_file import LONGEST, Place, pixel_bytes, read_frames, write_frames
from imaging.dicom.source import MANUFACTURER, read_source, tracking_uid, uid_of
from imaging.errors import FormatNotApplicable, MissingAttribute, OutputMismatch, OutputNotBuilt
from imaging.files import whole_file
from imaging.structures import Mask, slice_of, values_by_slice, voxels_by_slice
from imaging.volume import Affine, SeriesFacts, Volume, lps_to_ras

# Two places this close are the same: the decimal strings of DICOM hold about 1e-4 mm.
PLACE_TOLERANCE_MM = 0.01
SegType = Literal["binary", "labelmap"]
_ONE_A_VOXEL = "a label map, whose voxels belong to one segment each, cannot hold them"
# Of a voxel: what is further from a voxel may be nearer to the next.
_NEAREST = 0.5
# So much of a mask is copied at a time where it must lie in another order.
_LAYERS = 64
# What highdicom raises for sources it cannot take.
_REFUSALS = (AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class Algorithm:
    """Who made the mask.

    Attributes
    ----------
    name
        Name of the checkpoint.
    version
        Its version.
    weights_sha256, config_sha256
        SHA-256 of its weights and of its config, which says what the labels mean.
    software_version
        Version of imgpipe.
    """

    name: str
    version: str
    weights_sha256: str
    config_sha256: str
    software_version: str


def write_seg(
    path: Path,
    mask: Mask,
    volume: Volume,
    labels: Sequence[configs.Label],
    algorithm: Algorithm,
    *,
    seg_type: SegType = "binary",
) -> None:
    """Write a DICOM SEG (PS3.3 A.51) over the instances of a volume.

    Parameters
    ----------
    path
        Where it goes.
    mask
        On the volume's own grid, as `imaging.structures` has masks; segments overlap where structures do. At least one
        voxel is not 0.
    volume
        Read from DICOM: its `frames` name the source instances, one for each slice of Z.
    labels
        What the ids mean. A label without a voxel gets no segment, for an empty segment cannot be told from a lost one.
    algorithm
        Who made the mask.
    seg_type
        ``binary``: a frame for each slice of each segment, which every archive takes. ``labelmap``: a frame for each
        slice, whose values are the segments' numbers (Label Map Segmentation Storage, of 2023).

    Raises
    ------
    FormatNotApplicable
        If segments overlap and a label map is asked for.
    MissingAttribute
        If the series has no frame of reference.
    OutputNotBuilt
        If highdicom cannot derive a SEG from the source instances, or its pixels are more than an element may hold.
    OutputMismatch
        If the bytes, read back, do not hold the mask; nothing is written.
    OutputNotWritable
        If the folder cannot be written or the disk is full.
    """
    voxels = voxels_by_slice(mask, labels).sum(axis=1)
    present = [label for label, count in zip(labels, voxels, strict=True) if count]
    values = np.flatnonzero(values_by_slice(mask).any(axis=1)).tolist() if mask.ndim == 3 else []
    unknown = set(values) - {0, *(label.id for label in labels)}
    if seg_type == "labelmap" and mask.ndim != 3:
        raise FormatNotApplicable(volume.facts.subject, seen="its structures may overlap", expected=_ONE_A_VOXEL,
                                  remedy="Ask for a binary SEG")  # fmt: skip
    if unknown:
        raise OutputNotBuilt(path.name, seen=f"label ids {sorted(unknown)} without a meaning")
    if not volume.facts.frame_of_reference_uid:
        raise MissingAttribute(volume.facts.subject, seen="FrameOfReferenceUID is missing, so no SEG can refer to it")
    try:
        header = _build(mask, volume, present, algorithm, seg_type)
    except _REFUSALS as error:
        raise OutputNotBuilt(path.name, seen=f"highdicom refuses the source series ({type(error).__name__})") from error
    with whole_file(path) as stream:
        _write(stream, header, mask, volume, present, path.name)
        check_seg(stream, mask, volume, present)


def _digest(mask: Mask) -> str:
    """SHA-256 of the mask's bytes in the order of its axes, however they lie in memory."""
    digest = hashlib.sha256()
    for start in range(0, len(mask), _LAYERS):
        digest.update(np.ascontiguousarray(mask[start : start + _LAYERS]).data)
    return digest.hexdigest()


def _build(
    mask: Mask, volume: Volume, labels: Sequence[configs.Label], algorithm: Algorithm, seg_type: SegType
) -> hd.seg.Segmentation:
    """What highdicom says of a SEG, with a frame of no meaning for each slice where something was found.

    It is shown an array that takes no memory, whose slices hold one segment each that is there.
    """
    facts = volume.facts
    sources = [read_source(f.path, study_uid=facts.study_uid, series_uid=facts.series_uid) for f in volume.sources]
    identity = [algorithm.name, algorithm.version, algorithm.weights_sha256, algorithm.config_sha256]
    identity.append(algorithm.software_version)
    # A corrected PatientID is another object: an archive keeps the first of two with one UID.
    identity += [facts.study_uid, facts.series_uid, str(sources[0].PatientID)]
    identity += [frame.sop_instance_uid for frame in volume.sources]
    identity.append(_digest(mask))
    identity += ["labelmap"] if seg_type == "labelmap" else []
    with quietly():
        segmentation = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=_found(mask, labels),
            segmentation_type=hd.seg.SegmentationTypeValues[seg_type.upper()],
            segment_descriptions=[
                _describe(number, label, algorithm, facts) for number, label in enumerate(labels, start=1)
            ],
            series_instance_uid=uid_of("series", *identity),
            series_number=9001,
            sop_instance_uid=uid_of("instance", *identity),
            instance_number=1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=algorithm.name,
            software_versions=algorithm.software_version,
            device_serial_number=algorithm.weights_sha256[:16],
            content_label="SEGMENTATION",
            content_description=f"{algorithm.name} {algorithm.version}, for research use"[:64],
            series_description=f"{algorithm.name} (research)"[:64],
            transfer_syntax_uid=ExplicitVRLittleEndian,
        )
    segmentation.DimensionOrganizationSequence[0].DimensionOrganizationUID = _same_everywhere(segmentation, identity)
    segmentation.SegmentsOverlap = "YES" if _overlap(mask) else "NO"
    return segmentation


def _found(mask: Mask, labels: Sequence[configs.Label]) -> NDArray[np.uint8]:
    """(Z, Y, X) of one number a slice: the first segment that is there, 0 where none is."""
    there = voxels_by_slice(mask, labels) > 0
    first_Z = np.where(there.any(axis=0), there.argmax(axis=0) + 1, 0).astype(np.uint8)
    return np.broadcast_to(first_Z[:, None, None], mask.shape[:-4:-1])


def _overlap(mask: Mask) -> bool:
    return mask.ndim != 3 and any(bool((mask[..., z].sum(axis=0) > 1).any()) for z in range(mask.shape[-1]))


def _write(
    stream: BinaryIO, header: pydicom.Dataset, mask: Mask, volume: Volume, labels: Sequence[configs.Label], name: str
) -> None:
    """Write a SEG of what `_build` says, with the frames of a mask: by segment, in each in the order of the planes.

    Segments are numbered 1, 2, 3, ... without a hole (PS3.3 C.8.20.2), whichever labels were found.
    """
    slices = {frame.sop_instance_uid: z for z, frame in enumerate(volume.sources)}
    in_order = sorted(header.PerFrameFunctionalGroupsSequence, key=_plane)
    groups = {slices[_source(item)]: item for item in in_order}
    counts = voxels_by_slice(mask, labels)
    numbers = np.zeros(256, dtype=np.uint8)
    numbers[[label.id for label in labels]] = range(1, len(labels) + 1)
    label_map = header.SegmentationType == "LABELMAP"
    segments = [0] if label_map else range(1, len(labels) + 1)
    places = [(number, z) for number in segments for z in groups if label_map or counts[number - 1, z]]
    pixels = pixel_bytes(header, len(places))
    if pixels > LONGEST:
        raise OutputNotBuilt(name, seen=f"{len(places)} frames with {pixels} bytes of pixels",
                             expected=f"at most {LONGEST} bytes were expected, which is what DICOM can hold",
                             remedy="Ask for a label map, or for NIfTI")  # fmt: skip

    def frame(place: Place) -> NDArray[np.uint8]:
        number, z = place
        found_XY = numbers[mask[..., z]] if label_map else slice_of(mask, labels[number - 1], z).view(np.uint8)
        return np.ascontiguousarray(found_XY.T)

    write_frames(stream, header, groups, places, frame)


def _plane(group: pydicom.Dataset) -> int:
    """Which plane a frame lies on, counted along the normal (PS3.3 C.7.6.17)."""
    return int(np.atleast_1d(group.FrameContentSequence[0].DimensionIndexValues)[-1])


def _source(group: pydicom.Dataset) -> str:
    """SOPInstanceUID of what a frame was derived from."""
    return str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)


def _same_everywhere(segmentation: pydicom.Dataset, identity: Iterable[str]) -> str:
    """Replace highdicom's random dimension organization UID by one from the content."""
    uid = uid_of("dimensions", *identity)
    for index in segmentation.DimensionIndexSequence:
        index.DimensionOrganizationUID = uid
    return uid


def _describe(number: int, label: configs.Label, algorithm: Algorithm, facts: SeriesFacts) -> hd.seg.SegmentDescription:
    description = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=label.title[:64],
        segmented_property_category=_code(label.category),
        segmented_property_type=_code(label.code),
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=algorithm.name,
            version=algorithm.version,
            family=Code("123110", "DCM", "Artificial Intelligence"),
        ),
        tracking_id=label.name,
        tracking_uid=tracking_uid(facts.series_uid, facts.volume, algorithm.name, label.name),
        display_color=_cielab(label.colour),
    )
    if label.modifier is not None:
        kind = description.SegmentedPropertyTypeCodeSequence[0]
        # PS3.3 table C.8.20-4: the modifier refines the property type from inside its item.
        kind.SegmentedPropertyTypeModifierCodeSequence = [hd.sr.CodedConcept.from_code(_code(label.modifier))]
    return description


def _code(code: configs.Code) -> Code:
    return Code(code.value, code.scheme, code.meaning)


def _cielab(colour: str) -> hd.color.CIELabColor:
    return hd.color.CIELabColor.from_rgb(*(int(colour[at : at + 2], 16) for at in (1, 3, 5)))


def check_seg(stream: BinaryIO, mask: Mask, volume: Volume, labels: Sequence[configs.Label]) -> None:
    """Read a SEG back from its own bytes, frame by frame, and compare each segment with the mask it should hold.

    The way back shares nothing with the way out but pydicom: frames are placed by their own Plane Position, Plane
    Orientation and Pixel Measures.

    Parameters
    ----------
    stream
        The SEG as it will be delivered.
    mask, volume
        What was meant, on the grid of a volume with its `frames`.
    labels
        The label of each segment, in the order of the segment numbers.

    Raises
    ------
    OutputMismatch
        If a segment holds other voxels, if one lies further from its place than `PLACE_TOLERANCE_MM` and what the
        volume's defects tell, or if a frame refers to another instance than the slice it lies on.
    """
    tolerance = PLACE_TOLERANCE_MM + max((defect.error_mm or 0.0 for defect in volume.defects), default=0.0)
    dataset, frames = read_frames(stream)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    numbers = dict(enumerate(labels, start=1))
    missing = {(int(at) + 1, int(z)) for at, z in np.argwhere(voxels_by_slice(mask, labels))}
    for pixels, group in frames:
        for number, found in _segments_in(pixels, dataset.SegmentationType, shared, group):
            if number not in numbers:
                raise OutputMismatch("seg", seen=f"segment {number}", expected=f"1 to {len(labels)} were expected")
            z = _check_frame(found, _frame_affine(shared, group), mask, volume, numbers[number], tolerance)
            source = _macro(shared, group, "DerivationImageSequence").SourceImageSequence[0]
            if str(source.ReferencedSOPInstanceUID) != volume.sources[z].sop_instance_uid:
                name = numbers[number].name
                raise OutputMismatch("seg", seen=f"frames of {name} refer to other instances than they lie on")
            if (number, z) not in missing:
                raise OutputMismatch("seg", seen=f"slice {z} of {numbers[number].name} more than once")
            missing.remove((number, z))
    if missing:
        number, z = min(missing)
        raise OutputMismatch("seg", seen=f"nothing of {numbers[number].name} on slice {z}")


def _check_frame(
    found: NDArray[np.bool_], to_ras: Affine, mask: Mask, volume: Volume, label: configs.Label, tolerance: float
) -> int:
    """Compare one frame (rows, columns) of a segment with the slice of the mask that it lies on; gives that slice."""
    whole = _covered(found.shape, to_ras, volume, tolerance)
    if whole is not None and found.any() and np.array_equal(found.T, slice_of(mask, label, whole)):
        return whole
    rows, columns = np.nonzero(found)
    points = (to_ras[:3, :2] @ np.stack([columns, rows]) + to_ras[:3, 3:]).T
    affine = volume.affine
    # The voxel nearest to each point: the same set, and every point close to its voxel.
    nearest = np.rint((points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T).astype(np.int64)
    apart = float(np.linalg.norm(nearest @ affine[:3, :3].T + affine[:3, 3] - points, axis=1).max(initial=0))
    slices = np.unique(nearest[:, 2]).tolist()
    x, y, z = volume.shape
    inside = ((nearest >= 0) & (nearest < (x, y, z))).all()
    placed = np.zeros((x, y), dtype=np.bool_)
    if inside:
        placed[nearest[:, 0], nearest[:, 1]] = True
    alike = inside and len(slices) == 1 and placed.sum() == len(points)
    if apart > tolerance or not alike or not np.array_equal(placed, slice_of(mask, label, slices[0])):
        raise OutputMismatch("seg", seen=f"voxels of {label.name} lie elsewhere (up to {apart:.3f} mm)")
    return int(slices[0])


def _covered(size: tuple[int, ...], to_ras: Affine, volume: Volume, tolerance: float) -> int | None:
    """The slice that a frame of `size` (rows, columns) covers pixel by pixel; None where it covers none so.

    How far a pixel is from its voxel is a convex function of its place, so that none is further than a corner.
    """
    rows, columns = size
    corners = np.array([[0, columns - 1, 0, columns - 1], [0, 0, rows - 1, rows - 1], [0] * 4, [1] * 4])
    there = to_ras @ corners
    into = np.linalg.solve(volume.affine, there)
    nearest = np.rint(into[:3])
    z = int(nearest[2, 0])
    if (columns, rows) != volume.shape[:2] or not 0 <= z < volume.shape[2]:
        return None
    if not np.array_equal(nearest, np.vstack([corners[:2], [z] * 4])) or np.abs(into[:3] - nearest).max() >= _NEAREST:
        return None
    apart = np.linalg.norm(volume.affine[:3, :3] @ nearest + volume.affine[:3, 3:] - there[:3], axis=0)
    return z if apart.max() <= tolerance else None


def _segments_in(
    pixels: NDArray[np.integer], kind: str, shared: pydicom.Dataset, group: pydicom.Dataset
) -> list[tuple[int, NDArray[np.bool_]]]:
    """The segments that a frame holds: in a label map those whose numbers are there, else the one that it names."""
    if kind == "LABELMAP":
        return [(int(number), pixels == number) for number in np.unique(pixels[pixels > 0])]
    number = int(_macro(shared, group, "SegmentIdentificationSequence").ReferencedSegmentNumber)
    return [(number, pixels > 0)]


def _frame_affine(shared: pydicom.Dataset, group: pydicom.Dataset) -> Affine:
    """(column, row, 0, 1) of one frame to RAS mm (PS3.3 C.7.6.2.1.1, equation 1)."""
    orientation = _macro(shared, group, "PlaneOrientationSequence").ImageOrientationPatient
    spacing = _macro(shared, group, "PixelMeasuresSequence").PixelSpacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(orientation[:3], dtype=float) * float(spacing[1])
    affine[:3, 1] = np.array(orientation[3:], dtype=float) * float(spacing[0])
    affine[:3, 3] = [float(value) for value in _macro(shared, group, "PlanePositionSequence").ImagePositionPatient]
    return lps_to_ras(affine)


def _macro(shared: pydicom.Dataset, group: pydicom.Dataset, keyword: str) -> pydicom.Dataset:
    """A functional group macro's item, from the frame or, where all frames share it, from the shared groups."""
    item: pydicom.Dataset = (group if keyword in group else shared)[keyword].value[0]
    return item
