"""Key slices as pictures: the slice as a grey PNG, the masks as outlines drawn along the pixels' edges.

Invariant: a picture shows one slice of the series' own grid, unresampled, in true proportions and in the radiological
convention (the patient's right on the viewer's left), with the directions written on its edges. The outline is computed
from the same mask that is measured.

Shapes: ``image_YX`` is a displayed slice, rows downwards.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imaging.config import Label
from imaging.heat_map import HeatMap
from imaging.judgement import Classification
from imaging.predict import Prediction
from imaging.report.heat import Heat, colour_png
from imaging.structures import Mask, slice_of, voxels_by_slice
from imaging.volume import Volume, orientation_of

# At most twice so many voxels tell the window of a picture: 128 MiB of float32.
_SAMPLED = 2**24
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


@dataclass(frozen=True, slots=True)
class Outline:
    """A structure's border on one slice, as an SVG path in pixels."""

    title: str
    colour: str
    path: str


@dataclass(frozen=True, slots=True)
class Picture:
    """One key slice.

    Attributes
    ----------
    index
        Along Z, from 0.
    of
        Number of slices.
    series_uid, volume, sop_instance_uid
        Where it comes from; empty for NIfTI.
    png
        The grey slice as a data URI.
    columns, rows
        Its size in pixels.
    width_mm, height_mm
        Its size in the patient.
    left, right, top, bottom
        The patient directions at its edges; empty where nobody knows them.
    outlines
        One for each structure on it.
    heat
        What raised the probability of a finding there; None where no map is drawn.
    """

    index: int
    of: int
    series_uid: str
    volume: str
    sop_instance_uid: str
    png: str
    columns: int
    rows: int
    width_mm: float
    height_mm: float
    left: str
    right: str
    top: str
    bottom: str
    outlines: tuple[Outline, ...]
    heat: Heat | None = None


def key_pictures(
    prediction: Prediction | Classification, *, most: int = 6, slices: Sequence[int] | None = None
) -> tuple[Picture, ...]:
    """The slices that show a prediction best.

    Of what was classified as a whole the middle one, then for each heat map the slice of its greatest value. For each
    structure the slice where it is largest, then slices spread evenly over all that was found; without any
    finding, the middle slice.

    Parameters
    ----------
    prediction
        Volume, and its mask if it has one.
    most
        How many pictures at the most.
    slices
        Show these instead, along Z from 0.
    """
    volume = prediction.volume
    window = window_of(volume)
    if isinstance(prediction, Classification):
        plain = _picture(volume, None, volume.shape[2] // 2, window, ())
        return (plain, *(_heated(prediction, heat_map, window) for heat_map in prediction.heat_maps))
    labels = prediction.checkpoint.segmenter().labels
    indices = _key_slices(prediction.found, labels, most) if slices is None else slices
    return tuple(_picture(volume, prediction.found, index, window, labels) for index in indices)


def overview(volume: Volume, *, longest: int = 288) -> Picture:
    """The middle slice of a volume, or the one picture that it is, made smaller if it has more pixels than `longest`.

    For a page that shows many: the other pictures here are never resampled.
    """
    return _picture(volume, None, volume.shape[2] // 2, window_of(volume), (), longest=longest)


def window_of(volume: Volume) -> tuple[float, float]:
    """The values that a picture of a volume shows as black and as white: all but half a percent at either end.

    Of a volume of more than twice `_SAMPLED` voxels, some of them tell, spread evenly over it: the percentiles of all
    would be taken of a copy.
    """
    values = volume.array[0].ravel(order="K")
    # An odd step comes by every column, whatever power of two a row's length is.
    step = values.size // _SAMPLED | 1
    low, high = np.percentile(values[::step], [0.5, 99.5])
    return float(low), float(high)


def comparison(prediction: Prediction, truth: NDArray[Any]) -> tuple[Picture, Picture]:
    """The slice on which a prediction and a manual mask differ in most voxels: with the one, and with the other.

    Parameters
    ----------
    prediction
        Mask and volume.
    truth
        The manual one on the same grid, as `imaging.structures` has masks.
    """
    differ = prediction.found != truth
    index = int(differ.sum(axis=tuple(range(differ.ndim - 1))).argmax())
    manual = (
        replace(prediction, mask_XYZ=truth.astype(np.uint8))
        if prediction.regions_KXYZ is None
        else replace(prediction, regions_KXYZ=truth)
    )
    found, meant = (key_pictures(shown, slices=(index,)) for shown in (prediction, manual))
    return found[0], meant[0]


def _key_slices(mask: Mask, labels: Sequence[Label], most: int) -> list[int]:
    sizes = voxels_by_slice(mask, labels)
    found = np.flatnonzero(sizes.any(axis=0))
    if not len(found):
        return [mask.shape[-1] // 2]
    largest = [int(size_Z.argmax()) for size_Z in sizes if size_Z.any()]
    spread = np.linspace(found[0], found[-1], most + 2)[1:-1].round().astype(int).tolist()
    return sorted(list(dict.fromkeys([*largest, *spread]))[:most])


def _picture(
    volume: Volume,
    mask: Mask | None,
    index: int,
    window: tuple[float, float],
    labels: Sequence[Label],
    *,
    longest: int | None = None,
) -> Picture:
    (low, high), placed = window, "no_patient_position" not in {defect.code for defect in volume.defects}
    across, down = _axes_of(volume)
    towards = orientation_of(volume.affine)
    towards = towards[across] + towards[down]
    flips = tuple(direction in "RAS" for direction in towards)
    image_YX = _displayed(volume, volume.array[0, :, :, index])
    structures = () if mask is None else tuple((item, slice_of(mask, item, index)) for item in labels)
    grey = np.clip((image_YX - low) / max(high - low, 1e-12) * 255, 0, 255).astype(np.uint8)
    right, bottom = (_OPPOSITE[d] if flip else d for d, flip in zip(towards, flips, strict=True))
    rows, columns = grey.shape
    return Picture(
        index=index,
        of=volume.shape[2],
        series_uid=volume.facts.series_uid,
        volume=volume.facts.volume,
        sop_instance_uid=volume.sources[index].sop_instance_uid if volume.sources else "",
        png=_png(grey, longest),
        columns=columns,
        rows=rows,
        width_mm=columns * volume.spacing[across],
        height_mm=rows * volume.spacing[down],
        # A film does not tell which of its sides is the patient's right.
        left=_OPPOSITE[right] if placed else "",
        right=right if placed else "",
        top=_OPPOSITE[bottom] if placed else "",
        bottom=bottom if placed else "",
        outlines=tuple(
            Outline(label.title, label.colour, outline_path(_displayed(volume, found_XY)))
            for label, found_XY in structures
            if found_XY.any()
        ),
    )


def _heated(prediction: Classification, heat_map: HeatMap, window: tuple[float, float]) -> Picture:
    """The slice of a heat map's greatest value, coloured; of a blank map the middle one."""
    volume, made = prediction.volume, heat_map.attribution
    highest_Z = np.nan_to_num(heat_map.heat_XYZ, nan=0.0).max(axis=(0, 1))
    blank = not highest_Z.any()
    index = volume.shape[2] // 2 if blank else int(highest_Z.argmax())
    heat_YX = _displayed(volume, heat_map.heat_XYZ[:, :, index])
    seen_YX = np.isfinite(heat_YX)
    heat = Heat(
        name=heat_map.target,
        title=next(j.target.title for j in prediction.judgements if j.target.name == heat_map.target),
        png=colour_png(heat_YX),
        unseen="" if seen_YX.all() else outline_path(seen_YX),
        method=made.method,
        cells=made.cells,
        blank=blank,
    )
    return replace(_picture(volume, None, index, window, ()), heat=heat)


def _axes_of(volume: Volume) -> tuple[int, int]:
    """Which of X and Y runs across a picture, and which down: R-L across where there is one, S-I upright likewise."""
    ranks = ["RLAPSI".index(direction) // 2 for direction in orientation_of(volume.affine)[:2]]
    return (0, 1) if ranks[0] < ranks[1] else (1, 0)


def _displayed(volume: Volume, slice_XY: NDArray[Any]) -> NDArray[Any]:
    """(X, Y) of a volume -> rows downwards towards P or I, columns rightwards towards L or P."""
    across, down = _axes_of(volume)
    towards = orientation_of(volume.affine)
    steps = (slice(None, None, -1 if towards[axis] in "RAS" else 1) for axis in (across, down))
    return slice_XY.transpose(across, down)[tuple(steps)].T


def _png(grey: NDArray[np.uint8], longest: int | None = None) -> str:
    """A data URI; where it has more pixels than `longest` along an edge, made smaller in proportion."""
    stream, image = io.BytesIO(), Image.fromarray(grey)
    if longest:
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    image.save(stream, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def outline_path(mask_YX: NDArray[np.bool_]) -> str:
    """The edges between a mask's pixels and the rest as an SVG path; pixel (row, column) is the unit square there."""
    padded = np.pad(mask_YX, 1).astype(np.int8)
    parts = []
    # A horizontal edge lies above row r where the mask changes from row r-1 to r; each run of edges is one stroke.
    for row, start, length in _runs(np.diff(padded, axis=0)[:, 1:-1] != 0):
        parts.append(f"M{start} {row}h{length}")
    for column, start, length in _runs((np.diff(padded, axis=1)[1:-1, :] != 0).T):
        parts.append(f"M{column} {start}v{length}")
    return "".join(parts)


def _runs(edges: NDArray[np.bool_]) -> list[tuple[int, int, int]]:
    """(line, start, length) of each run of True along the lines of an array."""
    changes = np.diff(np.pad(edges, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, ends = np.argwhere(changes == 1), np.argwhere(changes == -1)
    return [(int(line), int(start), int(end - start)) for (line, start), (_, end) in zip(starts, ends, strict=True)]
