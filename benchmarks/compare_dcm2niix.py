"""Whether the reader and dcm2niix agree on real series: shape, place of every voxel, and values.

    python benchmarks/compare_dcm2niix.py FOLDER... [--dcm2niix PROGRAM] [--reference reference.json]

Each series under the folders is read (policy repair) and given to dcm2niix by itself. A volume of one is held against
the volumes of the other on its own grid: axes may be swapped and flipped, and nothing else. What is printed of a volume
is how far the corners of the two grids lie apart, and the largest difference of values; where the reader resampled or
refused, it says so, and a resampled volume is compared where both measured. `-p n` makes dcm2niix give Philips' values
by the rescale of the standard, as the reader does, and not by the maker's private one. With `--reference` the volumes
are also held against the shape, affine and sample voxels that a JSON file lists.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from imaging.dicom import Series, read_stack, scan, stacks
from imaging.errors import ImagingError
from imaging.volume import Volume

Floats = NDArray[np.float64]
# Both write affines that went through float32 or decimal strings.
_SAME_MM = 0.01
_OPTIONS = ["-z", "n", "-b", "n", "-p", "n", "-f", "%s_%p_%z"]


@dataclass(frozen=True, slots=True)
class Other:
    """A volume of dcm2niix: (X, Y, Z) or (X, Y, Z, 3)."""

    name: str
    array: NDArray[np.generic]
    affine: Floats


def dcm2niix(program: str, series: Series) -> list[Other]:
    """What dcm2niix makes of one series; 4D images come out as their volumes."""
    with TemporaryDirectory(prefix="compare_") as folder:
        sources, results = Path(folder, "in"), Path(folder, "out")
        sources.mkdir()
        results.mkdir()
        for number, path in enumerate(sorted({instance.path for instance in series.instances})):
            (sources / f"{number:06}.dcm").symlink_to(path.resolve())
        subprocess.run([program, *_OPTIONS, "-o", str(results), str(sources)], capture_output=True, check=False)
        return [volume for path in sorted(results.glob("*.nii")) for volume in _volumes(path)]


def _volumes(path: Path) -> Iterator[Other]:
    image = nib.Nifti1Image.from_filename(path)
    if image.get_data_dtype().fields:
        stored = np.asanyarray(image.dataobj)
        colour = np.stack([stored[name] for name in "RGB"], axis=-1)
        yield Other(path.name, colour, image.affine)
        return
    # In float64: what is asked is whether the same number was meant.
    array = image.get_fdata(dtype=np.float64)
    for number in range(array.shape[3] if array.ndim == 4 else 1):
        name = f"{path.name}[{number}]" if array.ndim == 4 else path.name
        yield Other(name, array[..., number] if array.ndim == 4 else array, image.affine)


def corners(shape: tuple[int, ...], affine: Floats) -> Floats:
    """(8, 3) RAS mm of a grid's corner voxels."""
    index = np.array(list(itertools.product(*((0, size - 1) for size in shape[:3]))))
    points: Floats = index @ affine[:3, :3].T + affine[:3, 3]
    return points


def way(volume: Volume, shape: tuple[int, ...], affine: Floats) -> tuple[tuple[int, ...], tuple[int, ...], float]:
    """How a volume's axes are swapped and flipped onto another grid, and how far the corners then lie apart in mm.

    The distance is infinite where the shapes do not fit.
    """
    best: tuple[tuple[int, ...], tuple[int, ...], float] = ((0, 1, 2), (), np.inf)
    meant = corners(shape, affine)
    for order in itertools.permutations(range(3)):
        if tuple(volume.shape[axis] for axis in order) != shape[:3]:
            continue
        for flipped in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in range(4)):
            onto = np.zeros((4, 4))
            onto[3, 3] = 1
            for axis, source in enumerate(order):
                onto[source, axis] = -1 if axis in flipped else 1
                onto[source, 3] = shape[axis] - 1 if axis in flipped else 0
            apart = float(np.linalg.norm(corners(shape, volume.affine @ onto) - meant, axis=1).max())
            if apart < best[2]:
                best = (order, flipped, apart)
    return best


def turned(volume: Volume, order: tuple[int, ...], flipped: tuple[int, ...]) -> NDArray[np.generic]:
    """The volume's voxels with its axes swapped, then flipped; colour comes last."""
    array = np.transpose(volume.array, (*(axis + 1 for axis in order), 0))
    array = np.flip(array, flipped)
    return array[..., 0] if array.shape[3] == 1 else array


def difference(volume: Volume, other: Other) -> tuple[float, float]:
    """Distance of the corners in mm, and the largest difference of values as a share of the largest value."""
    order, flipped, apart = way(volume, other.array.shape, other.affine)
    ours = turned(volume, order, flipped)
    if apart > _SAME_MM or ours.shape != other.array.shape:
        return apart, np.inf
    theirs = other.array.astype(np.float64)
    largest = max(float(np.abs(theirs).max()), 1e-30)
    return apart, float(np.abs(ours.astype(np.float64) - theirs).max()) / largest


def linear(array: NDArray[np.float32], at: Floats) -> Floats:
    """Values at (3, N) voxel coordinates inside an array, linear between voxels."""
    lower = np.minimum(np.floor(at).astype(np.int64), np.array(array.shape)[:, None] - 2)
    share = at - lower
    values = np.zeros(at.shape[1])
    for corner in itertools.product((0, 1), repeat=3):
        weight = np.prod([share[axis] if up else 1 - share[axis] for axis, up in enumerate(corner)], axis=0)
        values += weight * array[tuple(lower[axis] + up for axis, up in enumerate(corner))]
    return values


def resampled(volume: Volume, other: Other) -> str:
    """Two grids of one body: their values where both have any, by linear interpolation of the other's."""
    onto = np.linalg.inv(other.affine) @ volume.affine
    index = np.indices(volume.shape).reshape(3, -1)
    at = onto[:3, :3] @ index + onto[:3, 3:]
    inside = ((at >= 0) & (at <= np.array(other.array.shape[:3])[:, None] - 1)).all(axis=0)
    theirs = linear(other.array.astype(np.float32), at[:, inside])
    ours = volume.array[0].reshape(-1)[inside]
    seen = (ours > ours.min()) & (theirs > theirs.min())  # not what lies beyond the slices
    apart = np.abs(ours[seen] - theirs[seen])
    return (
        f"other grid: on the {seen.mean():.0%} of it that both measured, |difference| median {np.median(apart):.3g}, "
        f"90 % below {np.percentile(apart, 90):.3g}, correlation {np.corrcoef(ours[seen], theirs[seen])[0, 1]:.4f}"
    )


def told(apart: float, share: float) -> str:
    """Agreement in words; a float32 holds 2**-24 of a value, and its scaling in float32 a few of those."""
    if not np.isfinite(apart):
        return "another shape"
    if apart > _SAME_MM:
        return f"same shape, corners {apart:.3f} mm apart"
    if not np.isfinite(share):
        return "same place, other channels"
    values = "voxels equal" if share == 0 else f"voxels differ by up to {share:.1e} of the largest"
    return f"affine agrees ({apart:.5f} mm), {values}"


def compare(program: str, series: Series) -> Iterator[str]:
    """One line for each volume of either."""
    others = dcm2niix(program, series)
    found, refused = stacks(series)
    facts = series.facts
    yield f"{facts.modality} {facts.number} {facts.description!r}: {len(series.instances)} files"
    for stack in found:
        try:
            volume = read_stack(series, stack)
        except ImagingError as error:
            yield f"  refused   {error.code}: {error.seen}"
            continue
        ranked = sorted(((*difference(volume, other), other.name) for other in others), key=lambda item: item[1::-1])
        how = f"{told(*ranked[0][:2])} [{ranked[0][2]}]" if ranked else "dcm2niix gives nothing"
        if volume.resampled:
            how = "; ".join(f"{resampled(volume, other)} [{other.name}]" for other in others)
        notes = ", ".join(f"{defect.code} {defect.action}" for defect in volume.defects)
        grid = "resampled" if volume.resampled else "as stored"
        yield f"  {'x'.join(map(str, volume.shape)):13} {grid}  {stack.name}  {how}"
        if notes:
            yield f"            told: {notes}"
    for reason in refused:
        yield f"  refused   {reason.code}: {reason.seen}"
    for other in others:
        yield f"  dcm2niix  {'x'.join(map(str, other.array.shape)):13} {other.name}"


def against(volume: Volume, entry: dict[str, Any]) -> tuple[float, str]:
    """The volume beside one entry of a reference: by how much its sample voxels differ, and that in words."""
    shape, affine = tuple(entry["shape"]), np.array(entry["affine"])
    order, flipped, apart = way(volume, shape, affine)
    turned_XYZ = turned(volume, order, flipped).astype(np.float64)
    ours = np.array([turned_XYZ[tuple(map(int, at.split(",")))] for at in entry["points"]])
    theirs = np.array(list(entry["points"].values()))
    largest = max(abs(entry["max"]), abs(entry["min"]))
    share = float(np.abs(ours - theirs).max()) / largest
    factor = float(ours @ theirs / max(float(ours @ ours), 1e-30))
    scaled = float(np.abs(ours * factor - theirs).max()) / largest
    if share > 1e-3 > scaled:
        return scaled, f"{told(apart, scaled)} after a factor of {factor:.6g}; {len(theirs)} sample voxels"
    return share, f"{told(apart, share)}; {len(theirs)} sample voxels"


def referenced(folders: list[Path], reference: Path) -> Iterator[str]:
    """One line for each entry of a reference: the volume that lies nearest to it."""
    volumes = []
    for series in _all_series(folders):
        for stack in stacks(series)[0]:
            try:
                volumes.append((f"{series.facts.description!r} {stack.name}", read_stack(series, stack)))
            except ImagingError as error:
                yield f"  refused   {error.code}: {error.seen}"
    for name, entry in json.loads(reference.read_text()).items():
        apart = [(way(item, tuple(entry["shape"]), np.array(entry["affine"]))[2], told) for told, item in volumes]
        near = [item for (mm, _), item in zip(apart, volumes, strict=True) if mm <= _SAME_MM]
        lines = [(*against(item, entry), label) for label, item in near]
        best = "{1}  {2}".format(*min(lines)) if lines else "no volume of its shape"
        yield f"{name} {'x'.join(map(str, entry['shape']))}: {best}"


def _all_series(folders: list[Path]) -> list[Series]:
    return [series for folder in folders for study in scan(folder).studies for series in study.series]


def main() -> None:
    """Compare all series under the folders of the command line."""
    parser = argparse.ArgumentParser(description="Hold the reader against dcm2niix.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--dcm2niix", default="dcm2niix", help="the program, from `pip install dcm2niix`")
    parser.add_argument("--reference", type=Path, help="a JSON file of shapes, affines and sample voxels")
    given = parser.parse_args()
    version = subprocess.run([given.dcm2niix, "--version"], capture_output=True, text=True, check=False).stdout
    print(f"dcm2niix {' '.join(version.split()[-1:])} {' '.join(_OPTIONS)}")
    for series in _all_series(given.folders):
        print(*compare(given.dcm2niix, series), sep="\n")
    if given.reference:
        print(f"\nbeside {given.reference.name}", *referenced(given.folders, given.reference), sep="\n")


if __name__ == "__main__":
    main()
