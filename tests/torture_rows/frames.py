"""Several frames in one object."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from phantom import OBLIQUE, ORIENTATIONS
from pydicom.dataset import Dataset

from torture_rows.truth import FIELD, Truth, both, expect
from torture_rows.writing import FrameSpec, Row, Writer, item, put_on, write, write_enhanced

MULTI = Row("multi-frame")


def enhanced(frames: Sequence[FrameSpec], *, unit: str | None = None, **more: Any) -> Writer:
    """One object that is one volume."""

    def make(folder: Path) -> Truth:
        made = write_enhanced(folder, frames, **more)
        return both(expect(made.planes, made.tolerance, unit=unit))

    return make


def _stack(count: int = 5, **more: Any) -> list[FrameSpec]:
    return [FrameSpec(k, **more) for k in range(count)]


_SCRAMBLED = [FrameSpec(k) for k in (3, 0, 4, 1, 2)]
_SLOPES = [FrameSpec(k, slope=0.05 * (k + 1)) for k in (4, 2, 0, 1, 3)]
MULTI.add("enhanced_mr_shared_groups", enhanced(_stack()))
MULTI.add("enhanced_mr_per_frame_groups", enhanced(_stack(), per_frame_geometry=True))
MULTI.add("enhanced_mr_oblique", enhanced(_stack(orientation=OBLIQUE)))
MULTI.add("enhanced_mr_scrambled_frames", enhanced(_SCRAMBLED))
MULTI.add("enhanced_ct", enhanced(_stack(), modality="CT", unit="HU"))
MULTI.add("enhanced_ct_scrambled_frames", enhanced(_SCRAMBLED, modality="CT", unit="HU"))
MULTI.add("enhanced_pet_slope_of_each_frame", enhanced(_SLOPES, modality="PT", unit="BQML"))


def _scale_for_all(folder: Path) -> Truth:
    """The rescale stands in the shared groups."""

    def edit(dataset: Dataset) -> None:
        groups = dataset.PerFrameFunctionalGroupsSequence
        values = np.frombuffer(dataset.PixelData, "<i2").reshape(len(groups), -1).astype(np.int64)
        scales = [group.PixelValueTransformationSequence[0] for group in groups]
        first = float(scales[0].RescaleIntercept)
        shift = [round((float(scale.RescaleIntercept) - first) / 0.1) for scale in scales]
        dataset.PixelData = (values + np.array(shift)[:, None]).astype("<i2").tobytes()
        shared = dataset.SharedFunctionalGroupsSequence[0]
        shared.PixelValueTransformationSequence = groups[0].PixelValueTransformationSequence
        for group in groups:
            del group.PixelValueTransformationSequence

    made = write_enhanced(folder, _stack(), modality="CT", edit=edit)
    return both(expect(made.planes, made.tolerance, unit="HU"))


def _of_one_frame(folder: Path) -> Truth:
    """A stack of enhanced objects with a frame each."""
    frames = [write_enhanced(folder, [FrameSpec(k)], series=k + 1, edit=put_alike) for k in range(4)]
    return both(expect([made.planes[0] for made in frames], frames[0].tolerance))


MULTI.add("enhanced_ct_one_scale_for_all", _scale_for_all)
MULTI.add("enhanced_objects_of_one_frame", _of_one_frame)


def _two_objects(folder: Path) -> Truth:
    """One stack whose slices come in two objects, as some scanners cut long series."""
    one = write_enhanced(folder, _stack(3))
    other = write_enhanced(folder, [FrameSpec(k) for k in (3, 4, 5)], series=2, edit=put_alike)
    return both(expect([*one.planes, *other.planes], one.tolerance))


def put_alike(dataset: Dataset) -> None:
    """Make an object one of the first series."""
    dataset.SeriesInstanceUID = f"{dataset.StudyInstanceUID}.1"


MULTI.add("enhanced_stack_in_two_objects", _two_objects)


def _parted(
    parts: Sequence[Sequence[FrameSpec]], code: str, names: Sequence[str], *, order: Sequence[int] | None = None
) -> Writer:
    """One object with several volumes."""

    def make(folder: Path) -> Truth:
        frames = [(number, frame) for number, part in enumerate(parts) for frame in part]
        if order is not None:
            frames = [frames[index] for index in order]
        made = write_enhanced(folder, [frame for _, frame in frames])
        volumes = []
        for number, name in enumerate(names):
            planes = [plane for plane, (part, _) in zip(made.planes, frames, strict=True) if part == number]
            field = parts[number][0].field
            volumes.append(expect(planes, made.tolerance, codes=[code], fields=(field,), named=name))
        return both(*volumes)

    return make


def _groups(sequence: str, **values: object) -> Callable[[Dataset], None]:
    return lambda group: setattr(group, sequence, item(**values))


def _content(**values: object) -> Callable[[Dataset], None]:
    def edit(group: Dataset) -> None:
        for keyword, value in values.items():
            setattr(group.FrameContentSequence[0], keyword, value)

    return edit


def _phase(number: int, groups: Callable[[Dataset], None]) -> list[FrameSpec]:
    return _stack(4, field=FIELD.plus(40 * number), groups=groups)


def _diffusion(b_value: float, direction: Sequence[float] | None) -> Callable[[Dataset], None]:
    def edit(group: Dataset) -> None:
        group.MRDiffusionSequence = item(DiffusionBValue=b_value, DiffusionDirectionality="DIRECTIONAL")
        if direction is None:
            group.MRDiffusionSequence[0].DiffusionDirectionality = "NONE"
            return
        directions = item(DiffusionGradientOrientation=list(direction))
        group.MRDiffusionSequence[0].DiffusionGradientDirectionSequence = directions

    return edit


_ECHOES = [_phase(n, _groups("MREchoSequence", EffectiveEchoTime=te)) for n, te in ((0, 2.5), (1, 5.0))]
MULTI.add(
    "enhanced_two_stacks",
    _parted([_stack(4), _stack(4, orientation=ORIENTATIONS["sagittal"])], "mixed_slices",
            ["ImageOrientationPatient"] * 2, order=[0, 4, 1, 5, 2, 6, 3, 7]),
)  # fmt: skip
MULTI.add("enhanced_echoes", _parted(_ECHOES, "duplicate_slices", ["EchoTime=2.5", "EchoTime=5"]))
MULTI.add(
    "enhanced_echoes_interleaved",
    _parted(_ECHOES, "duplicate_slices", ["EchoTime=2.5", "EchoTime=5"], order=[0, 4, 1, 5, 6, 2, 7, 3]),
)
MULTI.add(
    "enhanced_temporal_positions",
    _parted([_phase(n, _content(TemporalPositionIndex=n + 1)) for n in range(3)], "duplicate_slices",
            [f"TemporalPositionIdentifier={n + 1}" for n in range(3)]),
)  # fmt: skip
MULTI.add(
    "enhanced_diffusion",
    _parted(
        [
            _phase(0, _diffusion(0.0, None)),
            _phase(1, _diffusion(1000.0, (1.0, 0.0, 0.0))),
            _phase(2, _diffusion(1000.0, (0.0, 1.0, 0.0))),
        ],
        "duplicate_slices",
        ["DiffusionBValue=0", "DiffusionBValue=1000", "DiffusionBValue=1000"],
    ),
)


def _with_a_hole(folder: Path) -> Truth:
    made = write_enhanced(folder, [FrameSpec(k) for k in (0, 1, 2, 4, 5)])
    return Truth((), (expect(made.planes[:3], made.tolerance, codes=["missing_slices"]),))


MULTI.add("enhanced_with_a_missing_slice", _with_a_hole, strict=["missing_slices"])


def _refused(frames: Sequence[FrameSpec], **more: Any) -> Writer:
    def make(folder: Path) -> Truth:
        write_enhanced(folder, frames, **more)
        return Truth()

    return make


def _placeless(group: Dataset) -> None:
    del group.PlanePositionSequence


def _one_group_less(dataset: Dataset) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def _shorter(dataset: Dataset) -> None:
    dataset.PixelData = dataset.PixelData[:-70]


def _nan_place(group: Dataset) -> None:
    group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, "NaN"]


MULTI.refused("enhanced_without_places", _refused(_stack(groups=_placeless)), "multi_frame")
MULTI.refused("enhanced_with_a_group_less", _refused(_stack(), edit=_one_group_less), "unreadable_dicom")
MULTI.refused("enhanced_with_a_frame_less", _refused(_stack(), edit=_shorter), "truncated_pixels")
MULTI.refused("enhanced_ct_without_a_scale", _refused(_stack(slope=None), modality="CT"), "missing_attribute")
MULTI.refused(
    "enhanced_with_a_nan_place",
    _refused([*_stack(4), replace(FrameSpec(4), groups=_nan_place)]),
    "invalid_geometry",
)


def _cine(modality: str) -> Writer:
    """Frames one after the other and no place for each."""

    def edit(dataset: Dataset, _k: int) -> None:
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
            delattr(dataset, keyword)
        dataset.NumberOfFrames = 4
        dataset.PixelData = dataset.PixelData * 4

    def make(folder: Path) -> Truth:
        write(folder, modality=modality, slices=1, edit=edit)
        return Truth()

    return make


def _mosaic(folder: Path) -> Truth:
    """2 x 2 slices tiled into one picture; its position is that of the big picture's corner."""

    def edit(dataset: Dataset, k: int) -> None:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        dataset.AcquisitionNumber = k + 1
        dataset.ImagePositionPatient = [0, 0, 0]
        tile = np.frombuffer(dataset.PixelData, "<i2").reshape(dataset.Rows, dataset.Columns)
        dataset.PixelData = np.tile(tile, (2, 2)).tobytes()
        dataset.Rows, dataset.Columns = 2 * dataset.Rows, 2 * dataset.Columns

    write(folder, slices=3, edit=edit)
    return Truth()


for _modality in ("NM", "XA", "US"):
    MULTI.refused(f"{_modality.lower()}_cine", _cine(_modality), "multi_frame")
MULTI.refused("siemens_mosaic", _mosaic, "multi_frame")
MULTI.refused(
    "classic_ct_that_declares_frames",
    lambda folder: (write(folder, modality="CT", edit=put_on(None, NumberOfFrames=3)), Truth())[1],
    "multi_frame",
)

ROWS = (MULTI,)
