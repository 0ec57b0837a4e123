"""The patches that a segmenter is trained on: a place in a preprocessed volume, and the random transforms around it.

Invariant: what is drawn depends on the case, the config and the generator alone; no more of a volume is copied than the
patch and what a turn or a stretch may bring into it from around.

Shapes: ``image_CXYZ`` and ``label_1XYZ`` on the network's grid; patches have the axes of ``train.patch``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose, Transform
from numpy.typing import NDArray
from torch.nn import functional

from imaging.config import IGNORED, Augmentation, Train
from imaging.transforms import IMAGE, LABEL, apply, random_transform

# So many voxels of a structure stand for all of them, as in nnU-Net.
_PLACES = 10_000

Sample = dict[str, Any]
Places = Mapping[int, NDArray[np.int64]]


def places_of(label_1XYZ: torch.Tensor, *, seed: Sequence[int]) -> Places:
    """Where a case's structures lie.

    Parameters
    ----------
    label_1XYZ
        Label ids on the network's grid.
    seed
        Of the choice among the voxels of a large structure.

    Returns
    -------
    mapping
        For each label id that is there voxel indices (N, 3), at most 10,000 of them.
    """
    generator = np.random.default_rng(seed)
    labels_XYZ = label_1XYZ[0].numpy()
    flat = np.flatnonzero(labels_XYZ)
    values = labels_XYZ.reshape(-1)[flat]
    found = {}
    for label in np.unique(values).tolist():
        own = flat[values == label]
        own = generator.choice(own, _PLACES, replace=False) if len(own) > _PLACES else own
        found[int(label)] = np.stack(np.unravel_index(own, labels_XYZ.shape), axis=1)
    return found


class Patches:
    """Draws patches by a config; call it with a preprocessed case.

    The share `foreground` of the patches is centred on a voxel of a structure, as far as the volume reaches: first one
    of the case's structures is drawn, each alike, then one of its voxels. The others lie anywhere in the volume, every
    place alike (Isensee et al., Nature Methods 18:203, 2021, where a third of each batch is drawn so). A volume that is
    smaller than the patch is filled with 0 on both sides; what was filled in is background in the mask, or, with the
    padding ``ignored``, holds `IGNORED`.

    A patch of two axes is of a slice, which lies across the volume's last axis and is drawn in the same way.

    Parameters
    ----------
    settings
        Patch, share and random transforms: names of MONAI's without the ``d``, with their options; a spatial one moves
        image and label together (the label by nearest neighbour), the others touch the image only.

    Raises
    ------
    UnknownName
        If a random transform is not registered.
    ConfigInvalid
        If MONAI does not take its options.
    """

    def __init__(self, settings: Train) -> None:
        self._patch, self.foreground = settings.patch, settings.foreground
        self._filling = {IMAGE: 0, LABEL: IGNORED if settings.padding == "ignored" else 0}
        transforms: list[Transform] = []
        needed = np.array(settings.patch)
        for item in reversed(settings.augment):
            size = tuple(needed.tolist())
            transforms.insert(0, random_transform(item, keys=(IMAGE, LABEL), axes=len(size), size=size))
            needed = _edges_before(item, needed)
        self._augment = Compose(transforms)
        self._margin: list[int] = ((needed - settings.patch) // 2).tolist()

    def __call__(self, sample: Sample, places: Places, seed: np.random.SeedSequence, *, subject: object) -> Sample:
        """One patch.

        Parameters
        ----------
        sample
            ``image`` (C, X, Y, Z) and ``label`` (1, X, Y, Z); both are left as they are.
        places
            As `places_of` gives them; nobody asks for them where `foreground` is 0.
        seed
            What the draw depends on.
        subject
            The case, for messages.
        """
        generator = np.random.default_rng(seed.spawn(1)[0])
        size = sample[LABEL].shape[1:]
        first = self._first(size, self._centre(places, generator), generator)
        around = {key: self._around(sample[key], first, self._filling[key]) for key in (IMAGE, LABEL)}
        self._augment.set_random_state(seed=int(seed.generate_state(1)[0]))
        moved = apply(self._augment, around, subject=subject)
        return {key: moved[key][self._middle(moved[key].shape[1:])] for key in (IMAGE, LABEL)}

    def _centre(self, places: Places, generator: np.random.Generator) -> list[int] | None:
        """A voxel of a structure, or None where the patch may lie anywhere."""
        if generator.random() >= self.foreground or not places:
            return None
        voxels = places[sorted(places)[generator.integers(len(places))]]
        centre: list[int] = voxels[generator.integers(len(voxels))].tolist()
        return centre

    def _first(self, size: Sequence[int], centre: Sequence[int] | None, generator: np.random.Generator) -> list[int]:
        """The patch's first voxel in the volume; 0 along an axis where the volume is smaller."""
        parts = [*self._patch, 1][:3]
        room = [max(0, edge - part) for edge, part in zip(size, parts, strict=True)]
        if centre is None:
            return [int(generator.integers(most + 1)) for most in room]
        return [min(max(0, place - part // 2), most) for place, part, most in zip(centre, parts, room, strict=True)]

    def _around(self, values: torch.Tensor, first: Sequence[int], filling: int) -> torch.Tensor:
        """The patch with its margin; beyond the volume (filled up to the patch's size) its last voxels go on."""
        values = torch.as_tensor(values)
        if len(self._patch) == 2:
            values = values[..., first[2]]
        inside: list[slice] = [slice(None)]
        filled: list[int] = []
        held: list[int] = []
        axes = len(self._patch)
        for edge, part, start, margin in zip(values.shape[1:], self._patch, first[:axes], self._margin, strict=True):
            low, high = start - margin, start + part + margin
            inside.append(slice(max(0, low), min(edge, high)) if edge >= part else slice(None))
            missing = max(0, part - edge)
            filled = [missing // 2, missing - missing // 2, *filled]
            held = [max(0, -low), max(0, high - max(edge, part)), *held]
        copied = values[tuple(inside)].float()[None]
        return functional.pad(functional.pad(copied, filled, value=filling), held, mode="replicate")[0].clone()

    def _middle(self, size: Sequence[int]) -> tuple[slice, ...]:
        starts = [(edge - part) // 2 for edge, part in zip(size, self._patch, strict=True)]
        return slice(None), *(slice(start, start + part) for start, part in zip(starts, self._patch, strict=True))


def _edges_before(item: Augmentation, edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """How large an image a random transform must be given to leave the middle `edges` without a gap; same parity."""
    options, half = item.options, edges / 2
    reach = half.copy()
    if item.name == "RandRotate90":
        axes = list(options.get("spatial_axes", (0, 1)))
        reach[axes] = reach[axes].max()
    elif item.name != "RandFlip":
        # MONAI's affine grids are scaled, then moved, sheared, turned; an elastic one is bent before all of these.
        reach = reach + max(map(_greatest, _list(options.get("magnitude_range"))), default=0.0)
        reach = reach * [1 + max(0.0, _upper(value)) for value in _padded(options.get("scale_range"), len(half))]
        reach = reach + [_greatest(value) for value in _padded(options.get("translate_range"), len(half))]
        reach = _sheared(reach, _list(options.get("shear_range")))
        reach = _turned(reach, _list(options.get("rotate_range")))
    margin = np.ceil(np.round(reach - half, 6)).astype(np.int64)
    grown: NDArray[np.int64] = edges + 2 * margin
    return grown


def _turned(reach: NDArray[np.float64], angles: Sequence[Any]) -> NDArray[np.float64]:
    """How far from its middle a box of this half size reaches, when turned by at most these angles about its axes."""
    axes = len(reach)
    turning = [axis for axis, angle in enumerate(angles) if _greatest(angle)]
    if not turning:
        return reach
    bound = np.eye(axes)
    if len(turning) > 1:
        bound[:] = 1
    else:
        one, other = [axis for axis in range(axes) if axes == 2 or axis != turning[0]]
        bound[one, other] = bound[other, one] = math.sin(min(_greatest(angles[turning[0]]), math.pi / 2))
    # A row of a rotation has the length 1, so no corner gets further than the diagonal of the axes that take part.
    diagonal = np.sqrt((bound > 0) @ reach**2)
    return np.minimum(bound @ reach, diagonal)


def _sheared(reach: NDArray[np.float64], factors: Sequence[Any]) -> NDArray[np.float64]:
    """How far it reaches when sheared: MONAI lists the factors row by row, without the diagonal, and multiplies."""
    axes = len(reach)
    places = [(row, column) for row in range(axes) for column in range(axes) if row != column]
    bound = np.eye(axes)
    for place, factor in zip(places, factors, strict=False):
        step = np.eye(axes)
        step[place] = _greatest(factor)
        bound = step @ bound
    sheared: NDArray[np.float64] = bound @ reach
    return sheared


def _list(value: Any) -> list[Any]:
    """A range for each axis: MONAI takes one number, or a number or a pair (lowest, highest) for each."""
    if value is None:
        return []
    return list(value) if isinstance(value, Sequence) else [value]


def _padded(value: Any, axes: int) -> list[Any]:
    given = _list(value)[:axes]
    return [*given, *[0.0] * (axes - len(given))]


def _greatest(value: Any) -> float:
    return float(np.abs(np.asarray(value, dtype=np.float64)).max())


def _upper(value: Any) -> float:
    """The upper end of a range; a lone number stands for both ends."""
    return abs(float(value)) if np.ndim(value) == 0 else float(np.max(value))
