"""Series on disk together with the planes that are truly in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from phantom import AXIAL, PATIENT_ID, STUDY_UID, Edit, Floats, Orientation, header, write_series
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, EnhancedPETImageStorage
from pydicom.valuerep import DSfloat

from torture_rows.truth import FIELD, Case, Field, Plane, Truth

SERIES_UID = f"{STUDY_UID}.1"
ORIGIN = np.array([-31.5, 12.25, 40.0])

# Stores values (rows, columns) or (rows, columns, channels) in a dataset and gives what quantisation can take from one.
Store = Callable[[Dataset, Floats], float]
Writer = Callable[[Path], Truth]


@dataclass(frozen=True)
class Written:
    """What lies on the disk, in the order in which it was written."""

    planes: tuple[Plane, ...]
    paths: tuple[Path, ...]
    tolerance: float


class Row:
    """Collects the cases of one row of the table."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cases: list[Case] = []

    def add(self, name: str, write: Writer, *, strict: Sequence[str] = (), repair: Sequence[str] = ()) -> None:
        """A case whose refusals differ by policy."""
        self.cases.append(Case(name, self.name, write, frozenset(strict), frozenset(repair)))

    def refused(self, name: str, write: Writer, *codes: str) -> None:
        """A case with the same refusals under both policies."""
        self.add(name, write, strict=codes, repair=codes)


def nothing(_dataset: Dataset, _k: int) -> None:
    """No edit."""


def put_on(k_changed: int | None, **values: object) -> Edit:
    """An edit that sets attributes of slice `k_changed`, or of every slice; None removes one."""

    def edit(dataset: Dataset, k: int) -> None:
        if k_changed is not None and k != k_changed:
            return
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)

    return edit


def plane_of(dataset: Dataset, number: int = 1) -> Plane:
    """The plane that a header describes; the picture's own axes where it has no position."""
    cosines = np.array(dataset.get("ImageOrientationPatient", [*AXIAL[0], *AXIAL[1]]), dtype=float)
    spacing = dataset.get("PixelSpacing", [1.0, 1.0])
    return Plane(
        frozenset([(str(dataset.SOPInstanceUID), number)]),
        np.array(dataset.get("ImagePositionPatient", [0, 0, 0]), dtype=float),
        cosines[:3],
        cosines[3:],
        (float(spacing[0]), float(spacing[1])),
        int(dataset.Rows),
        int(dataset.Columns),
    )


def write(
    folder: Path,
    *,
    fields: Sequence[Field] = (FIELD,),
    store: Store | None = None,
    edit: Edit = nothing,
    series_uid: str = SERIES_UID,
    **phantom: Any,
) -> Written:
    """Write a series and keep the truth before `edit` lies about it.

    Parameters
    ----------
    fields
        One for each channel.
    store
        How the values are stored; as `write_series` does it where not given.
    edit
        As in `write_series`, after the pixels.
    series_uid
        Several calls with one series UID and different numbers of `series` make one series.
    phantom
        As `write_series` takes it.
    """
    planes: list[Plane] = []
    worst = [0.0]

    def wrapped(dataset: Dataset, k: int) -> None:
        dataset.SeriesInstanceUID = series_uid
        plane = plane_of(dataset)
        planes.append(plane)
        if store is not None or tuple(fields) != (FIELD,):
            channels = [field(plane.points()) for field in fields]
            values = channels[0] if len(channels) == 1 else np.stack(channels, axis=-1)
            worst[0] = max(worst[0], (store or put)(dataset, values))
        edit(dataset, k)

    made = write_series(folder, edit=wrapped, **phantom)
    return Written(tuple(planes), made.paths, worst[0] or made.tolerance)


def integers(
    values: NDArray[np.int64], *, allocated: int, stored: int, high: int, signed: bool, rest: int = 0
) -> NDArray[np.generic]:
    """Whole numbers as they lie in a file: `stored` bits up to bit `high`, and `rest` in the others."""
    low, top = (-(2 ** (stored - 1)), 2 ** (stored - 1) - 1) if signed else (0, 2**stored - 1)
    assert low <= values.min() and values.max() <= top, "the values do not fit into the stored bits"
    mask = (2**stored - 1) << (high + 1 - stored)
    bits = ((values.astype(np.int64) & (2**stored - 1)) << (high + 1 - stored)) | (rest & ~mask & (2**allocated - 1))
    numbers: NDArray[np.generic] = bits.astype(np.uint64).astype(f"<u{allocated // 8}")
    return numbers


def put(
    dataset: Dataset,
    values: Floats,
    *,
    allocated: int = 16,
    stored: int | None = None,
    high: int | None = None,
    signed: bool = True,
    slope: float | None = 0.1,
    rest: int = 0,
    centre: int | None = None,
    intercept: float | None = None,
    turn: Callable[[NDArray[np.int64]], NDArray[np.int64]] = lambda whole: whole,
) -> float:
    """Store values by a slope and an intercept that centres them; gives the quantisation error.

    Parameters
    ----------
    slope
        None writes neither slope nor intercept.
    rest
        What lies in the bits that are not stored.
    centre
        The stored number of the mean; the middle of the stored bits where not given.
    intercept
        The same for all slices, where given.
    turn
        Applied to the stored numbers, as MONOCHROME1 asks for.
    """
    stored = stored or allocated
    high = stored - 1 if high is None else high
    if centre is None:
        centre = 0 if signed else 2 ** (stored - 1)
    if slope is None:
        intercept = 0.0
    elif intercept is None:
        intercept = float(np.rint(values.mean() - slope * centre))
    if slope is not None:
        dataset.RescaleSlope = DSfloat(slope, auto_format=True)
        dataset.RescaleIntercept = DSfloat(intercept, auto_format=True)
    else:
        for keyword in ("RescaleSlope", "RescaleIntercept", "RescaleType"):
            if keyword in dataset:
                delattr(dataset, keyword)
    whole = turn(np.rint((values - intercept) / (slope or 1.0)).astype(np.int64))
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, high
    dataset.PixelRepresentation = int(signed)
    raw = integers(whole, allocated=allocated, stored=stored, high=high, signed=signed, rest=rest).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    return 0.5 * (slope or 1.0) + 1e-2


@dataclass(frozen=True)
class FrameSpec:
    """One frame of an enhanced object: the `k`-th place of its stack."""

    k: int
    field: Field = FIELD
    orientation: Orientation = AXIAL
    slope: float | None = 0.1
    groups: Callable[[Dataset], None] = lambda _: None


_ENHANCED = {"MR": EnhancedMRImageStorage, "CT": EnhancedCTImageStorage, "PT": EnhancedPETImageStorage}
_UNITS = {"MR": "US", "CT": "HU", "PT": "BQML"}


def item(**values: object) -> Items:
    """A sequence of one item."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return Items([dataset])


def write_enhanced(
    folder: Path,
    frames: Sequence[FrameSpec],
    *,
    modality: str = "MR",
    spacing: float = 2.5,
    per_frame_geometry: bool = False,
    series: int = 1,
    edit: Callable[[Dataset], None] = lambda _: None,
    save: Callable[[Dataset, Path], None] | None = None,
) -> Written:
    """Write one enhanced multi-frame object; its frames lie in the file in the order in which they are given.

    Parameters
    ----------
    per_frame_geometry
        Whether spacing and orientation stand with each frame rather than with all.
    edit
        Called with the whole before it is saved.
    save
        How it is saved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    dataset = header(modality, STUDY_UID, series, 0, PATIENT_ID)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = _ENHANCED[modality]
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames, dataset.InstanceNumber = 5, 7, len(frames), 1
    if modality == "PT":
        del dataset.Units  # which enhanced PET has in its Rescale Type
    dataset.SharedFunctionalGroupsSequence = Items([Dataset()])
    shared = dataset.SharedFunctionalGroupsSequence[0]
    alone = len({frame.orientation for frame in frames}) == 1 and not per_frame_geometry
    planes, groups, pixels = [], [], []
    tolerance = 0.0
    for number, frame in enumerate(frames, start=1):
        group = Dataset()
        _place(shared if alone else group, frame, spacing)
        row, column = (np.array(cosine, dtype=float) for cosine in frame.orientation)
        position = ORIGIN + frame.k * spacing * np.cross(row, column)
        group.PlanePositionSequence = item(ImagePositionPatient=[DSfloat(v, auto_format=True) for v in position])
        group.FrameContentSequence = item(StackID="1", InStackPositionNumber=frame.k + 1, DimensionIndexValues=[number])
        plane = Plane(frozenset([(str(dataset.SOPInstanceUID), number)]), position, row, column, (1.3, 0.7), 5, 7)
        one = Dataset()
        tolerance = max(tolerance, put(one, frame.field(plane.points()), slope=frame.slope))
        if frame.slope is not None:
            group.PixelValueTransformationSequence = item(
                RescaleSlope=one.RescaleSlope, RescaleIntercept=one.RescaleIntercept, RescaleType=_UNITS[modality]
            )
        frame.groups(group)
        planes.append(plane)
        groups.append(group)
        pixels.append(one.PixelData)
    dataset.PerFrameFunctionalGroupsSequence = Items(groups)
    dataset.DimensionIndexSequence = item(
        DimensionOrganizationUID=f"{STUDY_UID}.7", DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111
    )
    dataset.PixelData = b"".join(pixels)
    path = folder / f"enhanced_{series}.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what tests break on purpose
        edit(dataset)
        if save is not None:
            save(dataset, path)
        else:
            dataset.save_as(path)
    return Written(tuple(planes), (path,), tolerance)


def _place(group: Dataset, frame: FrameSpec, spacing: float) -> None:
    group.PixelMeasuresSequence = item(PixelSpacing=[1.3, 0.7], SliceThickness=spacing)
    cosines = [DSfloat(v, auto_format=True) for cosine in frame.orientation for v in cosine]
    group.PlaneOrientationSequence = item(ImageOrientationPatient=cosines)
