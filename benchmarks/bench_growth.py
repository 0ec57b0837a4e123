"""How the cost of a study grows with its slices and with the classes: wall clock, processors, peak of memory, stages.

    python benchmarks/bench_growth.py [--slices N,...] [--classes K,...] [--repeats N] [--small] [--keep DIR]
                                      [--results DIR]

A synthetic CT of 512 x 512 pixels, from DICOM to a mask as NIfTI, by a small U-Net with random weights (tiles of 48^3
at 3 mm), so that what lies beside the network is seen. Each size in a process of its own with its checkpoint open;
medians. What is printed is the slope of the straight line through the logarithms: 1 is in proportion, less is a cost
that partly stays the same, more would get out of hand.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from measuring import Process
from results import Curve, Result, median_of
from segmenter_cases import Case, ct

HERE = Path(__file__).parent
NETWORK, WAY, PATCH = "small U-Net", "imgpipe, mask alone", 48
# Between these the other one stays the same.
SLICES, CLASSES = (100, 200, 400, 1000), (2, 10, 40, 117)
FIXED_SLICES, FIXED_CLASSES = 100, 10
STAGES = ("read", "prepare", "network", "restore", "write")
MIB = float(2**20)


def costs(case: Case, repeats: int, out: Path) -> dict[str, float]:
    """Medians of what one study costs, in a process that had nothing to convert."""
    command = [sys.executable, str(HERE / "segmenters.py"), WAY, case.told()]
    # A network is converted once, by torch, which stays in the memory of the process that did it.
    Process(WAY, command, quiet=True).close()
    process = Process(WAY, command, quiet=True)
    answers = []
    for _ in range(repeats):
        answer = process.ask(out)
        assert "failed" not in answer, answer
        answers.append({**{key: answer[key] for key in ("seconds", "cpu", "peak")}, **answer["stages"]})
    process.close()
    return {key: median_of(answers, key) for key in answers[0]}


def curves_of(of: str, sizes: list[int], case: Callable[[int], Case], repeats: int, out: Path) -> list[Curve]:
    """A curve for each kind of cost."""
    found: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        measured = costs(case(size), repeats, out)
        print(f"{of} {size}: {json.dumps({key: round(value, 3) for key, value in measured.items()})}", file=sys.stderr)
        named = {"whole study": measured["seconds"], "processors": measured["cpu"],
                 "peak memory": measured["peak"] / MIB}  # fmt: skip
        named |= {f"stage {name}": measured[name] for name in STAGES}
        for name, value in named.items():
            found.setdefault(name, []).append((float(size), value))
    return [Curve(name, of, "MiB" if "memory" in name else "s", tuple(points)) for name, points in found.items()]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slices", default=",".join(map(str, SLICES)), help="numbers of slices")
    parser.add_argument("--classes", default=",".join(map(str, CLASSES)), help="numbers of classes, background and all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--small", action="store_true", help="few slices and classes: a try, not figures")
    parser.add_argument("--keep", type=Path, help="a folder for studies and checkpoints, kept for the next run")
    parser.add_argument("--results", type=Path, help="a folder for the figures as JSON")
    given = parser.parse_args()
    slices = [8, 16] if given.small else [int(part) for part in given.slices.split(",")]
    classes = [2, 4] if given.small else [int(part) for part in given.classes.split(",")]
    few = min(slices[0], FIXED_SLICES)
    with tempfile.TemporaryDirectory(prefix="bench_growth_") as temporary:
        folder = (given.keep or Path(temporary)).resolve()

        def by_slices(number: int) -> Case:
            return ct(folder, NETWORK, slices=number, classes=FIXED_CLASSES, patch=PATCH, nifti=False)

        def by_classes(number: int) -> Case:
            return ct(folder, NETWORK, slices=few, classes=number, patch=PATCH, nifti=False)

        out = folder / "out"
        curves = curves_of("slices", slices, by_slices, given.repeats, out)
        curves += curves_of("classes", classes, by_classes, given.repeats, out)
    note = (f"512 x 512 pixels; slices with {FIXED_CLASSES} classes, classes with {few} slices; medians of "
            f"{given.repeats}; exponent 1 is in proportion.")  # fmt: skip
    Result("growth", note, ("torch", "openvino", "numpy"), curves=tuple(curves)).keep(given.results)


if __name__ == "__main__":
    main()
