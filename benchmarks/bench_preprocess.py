"""How long it takes to bring a CT to the network's grid, and its labels back, beside MONAI, SimpleITK and SciPy.

    python benchmarks/bench_preprocess.py [--slices N] [--classes K] [--repeats N] [--small] [--results DIR]

In: 512 x 512 x 300 at 0.7 x 0.7 x 1.25 mm in memory, to 1.5 mm, linearly: MONAI's `Spacing` (whose grid imgpipe's is,
voxel by voxel: the greatest difference is printed), SimpleITK's `Resample`, SciPy's `zoom`. Out: probabilities of ten
classes on the network's grid to labels on the image's own: MONAI's `Invertd` of the probabilities and then the argmax,
as its tutorials have it, and SimpleITK class by class. Each in a process of its own, in turn, after one round that does
not count; medians. Goals: 3 times as fast as MONAI on the way in.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Process, answers, peak_memory, reset_peak
from numpy.typing import NDArray
from results import Result, Row, median_of

EDGE, PIXEL_MM, SLICE_MM, NETWORK_MM = 512, 0.703125, 1.25, 1.5
OURS, MONAI, SITK, SCIPY = "imgpipe", "MONAI", "SimpleITK", "SciPy"
MIB = float(2**20)
Array = NDArray[np.float32]


def image_of(slices: int, edge: int) -> tuple[Array, NDArray[np.float64]]:
    """A smooth picture with noise (1, X, Y, Z), and its affine, which runs to the left and to the back as CT does."""
    x, y, z = np.ogrid[:edge, :edge, :slices]
    noise = np.random.default_rng(0).standard_normal((edge, edge, slices), dtype=np.float32)
    values = (200 * np.sin(x / 20) * np.cos(y / 30) + 3 * z + 10 * noise).astype(np.float32)
    return values[None], np.diag([-PIXEL_MM, -PIXEL_MM, SLICE_MM, 1.0])


def probabilities_of(shape: tuple[int, ...], classes: int) -> Array:
    """Blobs of each class (K, X, Y, Z)."""
    x, y, z = np.ogrid[: shape[0], : shape[1], : shape[2]]
    scores = [np.sin(x / (5 + k)) + np.cos(y / (7 + k)) + np.sin(z / (6 + k) + k) for k in range(classes)]
    odds = np.exp(np.stack(scores).astype(np.float32))
    return np.asarray(odds / odds.sum(0), dtype=np.float32)


class Ours:
    """imgpipe's two ways."""

    def __init__(self, image: Array, affine: NDArray[np.float64]) -> None:
        from imaging.config import Preprocess

        self._image, self._affine = image, affine
        self._config = Preprocess(orientation="RAS", spacing_mm=(NETWORK_MM,) * 3)

    def into(self) -> Array:
        """To the network's grid."""
        from imaging.resampling import to_network_grid

        array, self.target = to_network_grid(self._image, self._affine, self._config)
        return array

    def out(self, probability: Array) -> NDArray[Any]:
        """Labels on the own grid."""
        from imaging.restore import restore_labels

        shape = self._image.shape[1], self._image.shape[2], self._image.shape[3]
        return restore_labels(probability, self.target, shape=shape, to_affine=self._affine)


class Monai:
    """MONAI's transforms of a dictionary, and `Invertd`."""

    def __init__(self, image: Array, affine: NDArray[np.float64]) -> None:
        import torch
        from monai.data import MetaTensor
        from monai.transforms import Compose, Orientationd, Spacingd

        self._sample = {"image": MetaTensor(torch.from_numpy(image), affine=torch.from_numpy(affine))}
        self._before = Compose([
            Orientationd("image", axcodes="RAS", labels=None),
            Spacingd("image", pixdim=(NETWORK_MM,) * 3, mode="bilinear", padding_mode="border"),
        ])  # fmt: skip

    def into(self) -> Array:
        """To the network's grid."""
        self._there: Any = self._before(self._sample)
        return np.asarray(self._there["image"].as_tensor().numpy())

    def out(self, probability: Array) -> NDArray[Any]:
        """Labels on the own grid."""
        import torch
        from monai.data import MetaTensor
        from monai.transforms import AsDiscreted, Compose, Invertd

        pred = MetaTensor(torch.from_numpy(probability), meta=self._there["image"].meta)
        after = Compose([Invertd("pred", self._before, orig_keys="image", nearest_interp=False, to_tensor=True),
                         AsDiscreted("pred", argmax=True)])  # fmt: skip
        done: Any = after({**self._there, "pred": pred})
        return np.asarray(done["pred"].as_tensor().numpy())[0]


class Sitk:
    """SimpleITK's resampling filter; its arrays run Z, Y, X."""

    def __init__(self, image: Array, affine: NDArray[np.float64]) -> None:
        import SimpleITK as sitk  # noqa: N813 - as its own documentation calls it

        self._sitk: Any = sitk
        # Mirroring costs nothing and is left out.
        self._image = self._of(image[0], np.abs(affine.diagonal()[:3]))

    def _of(self, values: Array, spacing: NDArray[np.float64]) -> Any:
        made = self._sitk.GetImageFromArray(np.ascontiguousarray(values.T))
        made.SetSpacing([float(step) for step in spacing])
        return made

    def into(self) -> Array:
        """To the network's grid."""
        sizes, spacings = self._image.GetSize(), self._image.GetSpacing()
        size = [int(np.ceil((n - 1) * step / NETWORK_MM + 1)) for n, step in zip(sizes, spacings, strict=True)]
        nearest = self._sitk.Transform(), self._sitk.sitkLinear, self._image.GetOrigin(), [NETWORK_MM] * 3
        done = self._sitk.Resample(self._image, size, *nearest, self._image.GetDirection())
        return np.asarray(self._sitk.GetArrayViewFromImage(done)).T[None]

    def out(self, probability: Array) -> NDArray[Any]:
        """Labels on the own grid."""
        labels, greatest = np.zeros(self._image.GetSize(), np.uint8), np.zeros(0, np.float32)
        for label, values in enumerate(probability):
            part = self._of(values, np.array([NETWORK_MM] * 3))
            here = self._sitk.GetArrayFromImage(self._sitk.Resample(part, self._image)).T
            if label == 0:
                greatest = here
                continue
            labels[here > greatest] = label
            np.maximum(greatest, here, out=greatest)
        return labels


class Scipy:
    """`scipy.ndimage.zoom` of order 1."""

    def __init__(self, image: Array, affine: NDArray[np.float64]) -> None:
        self._image, self._zoom = image[0], np.abs(affine.diagonal()[:3]) / NETWORK_MM

    def into(self) -> Array:
        """To the network's grid."""
        from scipy.ndimage import zoom

        return np.asarray(zoom(self._image, self._zoom, order=1))[None]


WAYS: dict[str, Callable[[Array, NDArray[np.float64]], Any]] = {OURS: Ours, MONAI: Monai, SITK: Sitk, SCIPY: Scipy}


def work(name: str, slices: int, edge: int, classes: int) -> None:
    """Answer ``into`` and ``out`` with seconds and the memory taken beside what was there, at least a MiB."""
    stream = answers()
    try:
        way = WAYS[name](*image_of(slices, edge))
        array = way.into()
    except ImportError as error:
        stream.write(json.dumps({"missing": str(error)}) + "\n")
        return
    ours = Ours(*image_of(slices, edge))
    difference = float(np.abs(ours.into() - array).max()) if name == MONAI else 0.0
    probability = probabilities_of(ours.into().shape[1:], classes)
    del ours, array
    stream.write(json.dumps({"difference": difference}) + "\n")
    for line in sys.stdin:
        reset_peak()
        before, begun = peak_memory(), time.perf_counter()
        done = way.into() if line.strip() == "into" else way.out(probability)
        seconds = time.perf_counter() - begun
        peak = max(peak_memory() - before, 2**20)
        stream.write(json.dumps({"seconds": seconds, "peak": peak}) + "\n")
        del done


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="a smaller volume: a try, not figures")
    parser.add_argument("--results", type=Path, help="a folder for the figures as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    slices, edge = (40, 128) if given.small else (given.slices, EDGE)
    if given.worker:
        work(given.worker, slices, edge, given.classes)
        return
    shared = ["--slices", str(slices), "--classes", str(given.classes), *(["--small"] if given.small else [])]
    case, rows, missing, difference = f"CT, {edge} x {edge} x {slices}", list[Row](), list[str](), 0.0
    processes = [Process(name, [sys.executable, __file__, *shared, "--worker", name], quiet=True) for name in WAYS]
    for process in list(processes):
        if "difference" not in process.begun:
            missing.append(f"{process.name}: {process.begun}")
            processes.remove(process)
        difference = max(difference, process.begun.get("difference", 0.0))
    for line, what in (("into", "to the network's grid"), ("out", f"labels of {given.classes} classes back")):
        asked = [process for process in processes if line == "into" or hasattr(WAYS[process.name], "out")]
        found: dict[str, list[dict[str, float]]] = {process.name: [] for process in asked}
        for repeat in range(given.repeats + 1):
            for process in asked:
                answer = process.ask(line)
                if repeat:
                    found[process.name].append(answer)
        mine = {key: median_of(found[OURS], key) for key in ("seconds", "peak")}
        for name in (process.name for process in asked if process.name != OURS):
            least = 3.0 if (line, name) == ("into", MONAI) else None
            rows.append(Row(case, what, "s", mine["seconds"], name, median_of(found[name], "seconds"), least))
            memory = mine["peak"] / MIB, name, median_of(found[name], "peak") / MIB
            rows.append(Row(case, f"{what}, memory beside what was there", "MiB", *memory))
    for process in processes:
        process.close()
    left_out = f" Left out: {'; '.join(missing)}." if missing else ""
    note = (f"Medians of {given.repeats}. On the way in no voxel of this picture with values up to 1,200 differs from "
            f"MONAI's by more than {difference:.2g}.{left_out}")  # fmt: skip
    Result("preprocess", note, ("monai", "torch", "simpleitk", "scipy", "numpy"), tuple(rows)).keep(given.results)


if __name__ == "__main__":
    main()
