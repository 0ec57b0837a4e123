"""The instances of a series -> slices: one for each frame, with its own place and scale.

Invariant: what is no picture of the patient in the scanner's frame (reports, localizers, screenshots, results) is set
aside by what it is, and told; it is never stacked. Single frames and the frames of enhanced multi-frame objects come
out alike. Imports no torch.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pydicom
from pydicom.uid import UID

from imaging.dicom.attributes import MOMENTS, Instance
from imaging.dicom.scan import Series
from imaging.dicom.values import plain
from imaging.errors import (
    InputRefused,
    Localizer,
    MultiFrame,
    NotAnImage,
    SecondaryCapture,
    SeriesRefused,
    UnreadableDicom,
)

_FILTERS = threading.RLock()
# As of `INFLATING`: a process forked in the meantime would wait for ever.
os.register_at_fork(before=_FILTERS.acquire, after_in_parent=_FILTERS.release, after_in_child=_FILTERS.release)
# PS3.4 annex B.5: the Secondary Capture storage classes share this root.
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
# Results of other software that come as pixels: segmentations, parametric maps, doses.
_RESULTS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.481.2")
# Where the Frame Type of an enhanced object stands (PS3.3 C.8.13, C.8.15).
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")


@dataclass(frozen=True, slots=True)
class Slice:
    """One frame of one instance.

    Attributes
    ----------
    instance
        Where it lies.
    number
        Frame number, from 1.
    position, orientation, spacing
        As `Instance` has them, of this frame.
    slope, intercept
        Rescale of this frame; None where malformed.
    is_rescaled
        Whether the header gives them.
    unit
        What the values are then in; empty where nothing says.
    moment
        What tells it from another frame at the same place.
    """

    instance: Instance
    number: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, ...] | None
    slope: float | None
    intercept: float | None
    is_rescaled: bool
    unit: str
    moment: tuple[tuple[str, str], ...]


def slices_of(series: Series) -> tuple[list[Slice], list[InputRefused]]:
    """Tell the pictures of a series from the rest.

    Returns
    -------
    slices
        One for each frame that can be a picture or a part of one.
    refused
        One refusal for each kind of object that was set aside, with how many there were, and one for each multi-frame
        object that could not be taken apart.
    """
    slices: list[Slice] = []
    refused: list[InputRefused] = []
    aside: dict[tuple[type[SeriesRefused], str], int] = {}
    for instance in series.instances:
        reason = _aside(instance)
        if reason is not None:
            aside[reason] = aside.get(reason, 0) + 1
        elif instance.has_groups:
            try:
                slices += _grouped(instance)
            except InputRefused as error:
                refused.append(error)
        else:
            slices.append(_single(instance))
    kinds = [kind(series.facts.subject, seen=f"{count} x {seen}") for (kind, seen), count in aside.items()]
    return slices, [*kinds, *refused]


@contextmanager
def quietly() -> Iterator[None]:
    """Without pydicom's warnings, which quote header values; one thread at a time, for the filters are everybody's."""
    with _FILTERS, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def read_dataset(instance: Instance, *, only: list[str] | None = None) -> pydicom.Dataset:
    """Everything but the pixels of one file, for what lies in sequences; also of a file without a meta header.

    `only` names the attributes of the top level that are wanted, where the rest may be large.

    pydicom raises whatever a malformed file leads it to, and warns with header values, also when a value is looked at
    later: who calls it handles the one, and does all of it `quietly`.
    """
    dataset = pydicom.dcmread(instance.path, stop_before_pixels=True, force=True, specific_tags=only)
    if not instance.has_meta:
        dataset.file_meta.TransferSyntaxUID = UID(instance.pixels.transfer_syntax)
    return dataset


def _aside(instance: Instance) -> tuple[type[SeriesRefused], str] | None:
    """Why an instance is no picture of the patient, by what it is."""
    name, frames = instance.class_name, instance.frames
    kinds: tuple[tuple[bool, type[SeriesRefused], str], ...] = (
        (
            not (instance.rows and instance.columns and instance.pixels.tag),
            NotAnImage,
            f"{instance.modality or 'an object'} without pixels",
        ),
        (_is_capture(instance.sop_class_uid), SecondaryCapture, name),
        (instance.sop_class_uid in _RESULTS, NotAnImage, f"{name}, a result and not a picture"),
        ("LOCALIZER" in instance.image_type, Localizer, "Image Type LOCALIZER"),
        ("MOSAIC" in instance.image_type, MultiFrame, "Siemens mosaic, many slices tiled into one picture"),
        (
            frames != 1 and not instance.has_groups,
            MultiFrame,
            f"{name} with {frames} frames and no place for each",
        ),
    )
    return next(((kind, seen) for holds, kind, seen in kinds if holds), None)


def _is_capture(sop_class_uid: str) -> bool:
    return sop_class_uid == _SECONDARY_CAPTURE or sop_class_uid.startswith(f"{_SECONDARY_CAPTURE}.")


def _single(instance: Instance) -> Slice:
    return Slice(
        instance,
        1,
        instance.position,
        instance.orientation,
        instance.spacing,
        instance.pixels.slope,
        instance.pixels.intercept,
        instance.pixels.rescaled,
        _unit(instance, instance.pixels.rescale_type),
        instance.moment,
    )


def _unit(instance: Instance, rescale_type: str) -> str:
    """Rescale Type unless it is ``US`` (unspecified), else Units; HU for CT that says nothing (PS3.3 C.8.2.1.1.3)."""
    told = "" if rescale_type == "US" else rescale_type
    return told or instance.pixels.units or ("HU" if instance.modality == "CT" and not rescale_type else "")


def _grouped(instance: Instance) -> list[Slice]:
    """The frames of an object by its functional groups (PS3.3 C.7.6.16).

    Raises
    ------
    UnreadableDicom
        If the groups cannot be read, or do not fit the frames.
    MultiFrame
        If they place no frame in the patient.
    """
    try:
        with quietly():
            dataset = read_dataset(instance)
            shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or []), pydicom.Dataset())
            slices = [
                _frame(instance, number, shared, group)
                for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1)
            ]
    except Exception as error:  # pydicom and malformed groups raise whatever they meet; all of it means one thing here
        seen = f"the functional groups cannot be read ({type(error).__name__})"
        raise UnreadableDicom(instance.path, seen=seen) from error
    if len(slices) != instance.frames:
        raise UnreadableDicom(instance.path, seen=f"{len(slices)} functional groups for {instance.frames} frames")
    if all(item.position is None for item in slices) and len(slices) > 1:
        raise MultiFrame(instance.path, seen=f"{instance.class_name} whose frames have no Plane Position (Patient)")
    return slices


def _frame(instance: Instance, number: int, shared: pydicom.Dataset, group: pydicom.Dataset) -> Slice:
    def macro(sequence: str, keyword: str) -> Any:
        for source in (group, shared):
            if source.get(sequence):
                return source[sequence][0].get(keyword)
        return None

    def floats(value: Any, count: int) -> tuple[float, ...] | None:
        return tuple(float(part) for part in value) if value is not None and len(value) == count else None

    slope, intercept = (macro("PixelValueTransformationSequence", f"Rescale{part}") for part in ("Slope", "Intercept"))
    half = (slope is None) != (intercept is None)  # one without the other leaves the scale unknown

    values = {
        "EchoTime": macro("MREchoSequence", "EffectiveEchoTime"),
        "DiffusionBValue": macro("MRDiffusionSequence", "DiffusionBValue"),
        "DiffusionGradientOrientation": _gradient(group, shared),
        "TemporalPositionIdentifier": macro("FrameContentSequence", "TemporalPositionIndex"),
        "NominalPercentageOfCardiacPhase": macro("CardiacSynchronizationSequence", "NominalPercentageOfCardiacPhase"),
        "TriggerTime": macro("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),
        "AcquisitionNumber": macro("FrameContentSequence", "FrameAcquisitionNumber"),
        "ImageType": _image_type(group, shared),
        "AcquisitionTime": macro("FrameContentSequence", "FrameAcquisitionDateTime"),
    }
    return Slice(
        instance,
        number,
        floats(macro("PlanePositionSequence", "ImagePositionPatient"), 3),
        floats(macro("PlaneOrientationSequence", "ImageOrientationPatient"), 6),
        floats(macro("PixelMeasuresSequence", "PixelSpacing"), 2),
        None if half else float(1 if slope is None else slope),
        None if half else float(0 if intercept is None else intercept),
        slope is not None and intercept is not None,
        _unit(instance, str(macro("PixelValueTransformationSequence", "RescaleType") or "")),
        tuple(
            (keyword, plain(keyword, str(values[keyword]))) for keyword in MOMENTS if values.get(keyword) is not None
        ),
    )


def _gradient(group: pydicom.Dataset, shared: pydicom.Dataset) -> str | None:
    """Diffusion Gradient Orientation (0018,9089), which lies a sequence deeper (PS3.3 C.8.13.5.9)."""
    for source in (group, shared):
        for diffusion in source.get("MRDiffusionSequence") or []:
            for direction in diffusion.get("DiffusionGradientDirectionSequence") or []:
                return "\\".join(f"{float(part):g}" for part in direction.get("DiffusionGradientOrientation") or [])
    return None


def _image_type(group: pydicom.Dataset, shared: pydicom.Dataset) -> str | None:
    """Frame Type (0008,9007), which plays Image Type's part for a frame."""
    for sequence in _FRAME_TYPES:
        for source in (group, shared):
            if source.get(sequence):
                item = source[sequence][0]
                parts = [*(item.get("FrameType") or []), item.get("ComplexImageComponent") or ""]
                return "\\".join(str(part) for part in parts if part)
    return None
