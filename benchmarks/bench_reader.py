"""How long a CT series takes to become a float32 volume in HU, beside what else reads it.

    python benchmarks/bench_reader.py [--only SERIES,...] [--readers NAME,...] [--slices N] [--repeats N] [--keep DIR]

The series are synthetic: a body of smooth organs with a scanner's noise, 512 x 512 int16, with a rescale that is no
whole number, written into a temporary folder (or into `--keep`, where the next run finds them). Every process imports
first, then reads once to warm what is warmed once (told as "first"), then in turn with the others (A B C A B C ...).
Each volume that comes back is compared with the truth by its size, mean, deviation and extremes; one that differs is
told, and its time counts for nothing. Memory is the peak of the process and of those it started (a page that two of
them share counts twice); `imports` is what was there before the first read.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Process, answers, machine, peak_memory, reset_peak, versions
from readers import READERS, Array
from synthetic_ct import INTERCEPT, PICTURES, SIZE, SLOPE, SYNTAXES, picture, write

OURS = "imgpipe"
# What peers decode with, where it is installed.
CODECS = ("numpy", "imagecodecs", "python-gdcm", "pylibjpeg", "pylibjpeg-openjpeg", "pyjpegls")
# Times slower than imgpipe that a peer must be, by series; the floor bounds the other way.
_CODEC_TARGETS = {"monai-pydicom": 4.0, "dicomsdl": 1.0}
TARGETS: dict[str, dict[str, float]] = {
    "uncompressed": {"monai-pydicom": 20.0, "simpleitk": 8.0, "dcm2niix": 2.5},
    "rle": _CODEC_TARGETS,
    "jpeg-lossless": _CODEC_TARGETS,
    "jpeg-ls": _CODEC_TARGETS,
    "jpeg-2000": dict.fromkeys(("monai-pydicom", "simpleitk", "pydicom", "dicomsdl", "dcm2niix", "highdicom"), 1.0),
}
MOST_FLOORS, MOST_VOLUMES = 3.0, 1.5


def summary(array: Array) -> list[float]:
    """What is equal for the same volume, however its axes run: size, mean, deviation, extremes."""
    flat = array.ravel(order="K")  # of most volumes no copy, whichever way they lie
    parts = [part.astype(np.float64) for part in np.array_split(flat, max(1, flat.size >> 20))]
    mean = sum(float(part.sum()) for part in parts) / flat.size
    deviation = (sum(float(np.square(part - mean).sum()) for part in parts) / flat.size) ** 0.5
    return [float(flat.size), mean, deviation, float(flat.min()), float(flat.max())]


def truth(slices: int) -> list[float]:
    """The same of what was written."""
    return summary(np.stack([picture(k % PICTURES) * SLOPE + INTERCEPT for k in range(slices)]).astype(np.float32))


def work(name: str) -> None:
    """Read a folder for each line of stdin, and answer with a line of JSON."""
    stream = answers()
    try:
        read = READERS[name][0]()
    except ImportError as error:
        stream.write(json.dumps({"missing": str(error)}) + "\n")
        return
    imports = peak_memory()
    stream.write(json.dumps({"imports": imports}) + "\n")
    for line in sys.stdin:
        start = time.perf_counter()
        try:
            answer = read(Path(line.rstrip("\n")))
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is its answer
            stream.write(json.dumps({"failed": f"{type(error).__name__}: {error}"[:200]}) + "\n")
            continue
        seconds, peak = time.perf_counter() - start, peak_memory()
        array = answer if isinstance(answer, np.ndarray) else answer()
        stream.write(json.dumps({"seconds": seconds, "peak": peak, "summary": summary(array)}) + "\n")
        del array, answer
        reset_peak()


@dataclass(frozen=True)
class Result:
    """What came of one reader on one series."""

    seconds: Sequence[float]
    first: float
    peak: float
    imports: float
    trouble: str = ""

    @property
    def median(self) -> float:
        """Seconds; infinite where there was trouble."""
        return statistics.median(self.seconds) if self.seconds and not self.trouble else float("inf")


def measure(folder: Path, readers: Sequence[str], repeats: int, expected: Sequence[float]) -> dict[str, Result]:
    """Every reader once, then in turn `repeats` times; one that fails is not asked again."""
    processes = [Process(name, [sys.executable, __file__, "--worker", name]) for name in readers]
    told: dict[str, list[dict[str, Any]]] = {name: [] for name in readers}
    trouble: dict[str, str] = {}
    for process in processes:
        if "missing" in process.begun:
            trouble[process.name] = f"not installed ({process.begun['missing']})"
    for _ in range(repeats + 1):
        for process in processes:
            if process.name in trouble:
                continue
            answer = process.ask(folder)
            if "failed" in answer:
                trouble[process.name] = answer["failed"]
            elif process.name != "floor" and not np.allclose(answer["summary"], expected, rtol=1e-4, atol=1e-2):
                seen = ", ".join(f"{value:.6g}" for value in answer["summary"])
                trouble[process.name] = f"other values: {seen}"
            told[process.name].append(answer)
    for process in processes:
        process.close()
    results = {}
    for process in processes:
        good = [answer for answer in told[process.name] if "seconds" in answer]
        results[process.name] = Result(
            [answer["seconds"] for answer in good[1:]],
            good[0]["seconds"] if good else 0.0,
            max((answer["peak"] for answer in good), default=0.0),
            float(process.begun.get("imports", 0)),
            trouble.get(process.name, ""),
        )
    return results


def report(series: str, results: dict[str, Result], volume: float) -> None:
    """One series' table, in Markdown."""
    ours = results.get(OURS)
    lowest = results.get("floor")
    print(f"\n### {series}\n")
    print(
        "| reader | median s | min - max | first | x imgpipe | x floor | peak MiB | x volume | imports MiB | target |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    for name, result in results.items():
        if result.trouble:
            print(f"| {name} | {result.trouble.replace('|', '/').splitlines()[0]} |  |  |  |  |  |  |  |  |")
            continue
        cells = [name, f"{result.median:.3f}", f"{min(result.seconds):.3f} - {max(result.seconds):.3f}"]
        cells += [f"{result.first:.2f}", f"{result.median / ours.median:.2f}" if ours else ""]
        cells += [f"{result.median / lowest.median:.1f}" if lowest else "", f"{result.peak / 2**20:.0f}"]
        cells += [f"{result.peak / volume:.2f}", f"{result.imports / 2**20:.0f}"]
        cells += ["; ".join(judged(series, name, results, volume))]
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


def judged(series: str, name: str, results: dict[str, Result], volume: float) -> list[str]:
    """Each target that a row is about, with whether it was reached."""
    ours = results.get(OURS)
    if ours is None or ours.trouble:
        return []

    def verdict(reached: bool, text: str) -> str:
        return f"{'reached' if reached else 'NOT reached'}: {text}"

    told = []
    if name == OURS:
        told.append(verdict(ours.peak <= MOST_VOLUMES * volume, f"peak at most {MOST_VOLUMES} x the float32 volume"))
        if series == "uncompressed" and "floor" in results:
            times = ours.median / results["floor"].median
            told.append(verdict(times <= MOST_FLOORS, f"within {MOST_FLOORS:g} x of the floor"))
    wanted = TARGETS.get(series, {}).get(name)
    if wanted is not None:
        text = f"imgpipe at least {wanted:g} x as fast" if wanted > 1 else "imgpipe not slower"
        told.append(verdict(results[name].median >= wanted * ours.median, text))
    return told


def main() -> None:
    """Write the series, measure, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(SYNTAXES), help="series, with commas between")
    parser.add_argument("--readers", default=",".join(READERS), help="readers, with commas between")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="a folder for the series, kept for the next run")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(given.worker)
        return
    series, readers = given.only.split(","), given.readers.split(",")
    unknown = (set(series) - set(SYNTAXES)) | (set(readers) - set(READERS))
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(SYNTAXES)} and {', '.join(READERS)}")
    packages = [READERS[name][1] for name in readers]
    volume = given.slices * SIZE * SIZE * 4.0
    print(
        f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}; {versions([*packages, *CODECS])}  "
    )
    print(
        f"{given.slices} synthetic slices of {SIZE} x {SIZE} int16, slope {SLOPE}, intercept {INTERCEPT}; "
        f"warm cache, {given.repeats} repeats in turn; the float32 volume is {volume / 2**20:.0f} MiB"
    )
    expected = truth(given.slices)
    with tempfile.TemporaryDirectory(prefix="bench_reader_") as temporary:
        for name in series:
            folder = given.keep or Path(temporary)
            write(folder, name, given.slices)
            path = folder / f"{name}-{given.slices}"
            report(name, measure(path, readers, given.repeats, expected), volume)
            if not given.keep:
                shutil.rmtree(path)
                (folder / f"{name}-{given.slices}.done").unlink()


if __name__ == "__main__":
    main()
