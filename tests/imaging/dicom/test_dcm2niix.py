"""Real series as dcm2niix has them, up to flips of axes: the shape, the place and the value of every voxel.

`tests/data/dcm2niix.json` says which version made it, and how.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from imaging.dicom import read_stack, scan, stacks
from imaging.volume import Volume

DATA = Path(__file__).parents[2] / "data"
IMAGES: dict[str, dict[str, Any]] = json.loads((DATA / "dcm2niix.json").read_text())["images"]


def volumes(folder: Path) -> Iterator[Volume]:
    for study in scan(folder).studies:
        for series in study.series:
            found, refused = stacks(series)
            assert refused == []
            yield from (read_stack(series, stack) for stack in found)


def on_its_grid(volume: Volume, image: dict[str, Any]) -> NDArray[np.float32]:
    """The volume's voxels in the order of dcm2niix's, whose affine says by which flips."""
    onto = np.linalg.inv(volume.affine) @ np.array(image["affine"])
    steps, origin = np.rint(onto[:3, :3]).astype(int), np.rint(onto[:3, 3]).astype(int)
    # A voxel of one is a voxel of the other, to a thousandth of one over the whole grid.
    assert np.abs(onto[:3, :3] - steps).max() * max(volume.shape) < 1e-3
    assert np.abs(onto[:3, 3] - origin).max() < 1e-3
    assert (np.abs(steps) == np.eye(3)).all()
    flipped = [axis for axis in range(3) if steps[axis, axis] < 0]
    assert origin.tolist() == [volume.shape[axis] - 1 if axis in flipped else 0 for axis in range(3)]
    array: NDArray[np.float32] = volume.array[0]
    return np.flip(array, tuple(flipped))


def of(image: dict[str, Any]) -> Volume:
    """The volume that holds the same as an image: by its values, where a series has several at one place."""
    found = list(volumes(DATA / image["folder"]))
    assert len(found) == sum(other["folder"] == image["folder"] for other in IMAGES.values())
    return min(found, key=lambda volume: abs(float(volume.array.mean()) - image["mean"]))


@pytest.mark.parametrize("name", IMAGES)
def test_shape_place_and_values_are_dcm2niixs(name: str) -> None:
    image = IMAGES[name]
    volume = of(image)
    assert volume.shape == tuple(image["shape"])
    array = on_its_grid(volume, image)
    stored = np.rint((array.astype(np.float64) - image["intercept"]) / image["slope"]).astype(image["stored_dtype"])
    assert hashlib.sha256(np.ascontiguousarray(stored).tobytes()).hexdigest() == image["sha256_stored"]
    largest = max(abs(image["min"]), abs(image["max"]))
    for at, value in image["points"].items():
        # dcm2niix keeps the slope as float32, and the reader the values.
        assert array[tuple(int(part) for part in at.split(","))] == pytest.approx(value, abs=largest * 2e-7)


def test_a_voxel_moved_by_one_would_be_seen() -> None:
    """The comparison above fails for the volume's neighbour in each direction."""
    image = IMAGES["hippocrop_study1_2913632465_.nii"]
    array = on_its_grid(of(image), image)
    for axis in range(3):
        moved = np.roll(array, 1, axis).astype(image["stored_dtype"])
        assert hashlib.sha256(np.ascontiguousarray(moved).tobytes()).hexdigest() != image["sha256_stored"]
