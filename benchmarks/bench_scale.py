"""What many studies take: seconds of a core by stage of a warm study, and what that makes of a day and of an archive.

    python benchmarks/bench_scale.py [--repeats 5] [--price 0.05] [--slices 100] [--study PATH MODEL]...

The MR study that ships with the tests, a NIfTI case of hippocampus_mr, and a synthetic CT of so many slices with ten
classes and random weights (`segmenter_cases.py`), which is what a study of the trunk costs; 0 slices leave it out.

Each study is read in a process of its own with one thread, its checkpoint opened once; the first time is not counted,
and the table has medians. One thread, because many studies are read beside each other: a core that waits for another
thread reads none. `--price` is yours: what a core costs for an hour. Of a GPU, run it on a machine with one and read
the line of wall clock: one study at a time.

    core seconds of a study  = processor time of the process, all threads
    studies an hour of a core = 3600 / core seconds
    cost of a study           = price * core seconds / 3600
    cores for D studies a day = D * core seconds / 86400 * peak / use
    hours for an archive of A = A * core seconds / 3600 / (cores * use)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measuring import machine, peak_memory, versions
from segmenter_cases import ct

ROOT = Path(__file__).parent.parent
STUDIES = (
    ("tests/data/hippocrop_study1", "hippocampus_mr"),
    ("tests/data/hippocampus/imagesTr/hippocampus_001.nii.gz", "hippocampus_mr"),
)
# The busiest hour of a hospital beside its mean one, and the share of a core's time that is counted on: assumptions.
PEAK, USE = 3.0, 0.7
DAY, ARCHIVE, CORES = 1_000, 10_000_000, (64, 1_024)


def measure(study: Path, model: str, repeats: int) -> dict[str, Any]:
    """Read a study again and again in this process; gives medians."""
    from pipelines.infer import Inference

    inference = Inference(models=[model])
    inference.warm_up()
    walls, cores, stages = [], [], []
    for number in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            wall, core = time.perf_counter(), time.process_time()
            inferred = inference([study], Path(folder))
            if number:
                walls.append(time.perf_counter() - wall)
                cores.append(time.process_time() - core)
                stages.append(inferred.stages)
        problems = [*inferred.refused, *(problem for one in inferred.studies for problem in one.problems)]
        assert not problems, problems
    names = dict.fromkeys(name for one in stages for name in one)
    return {
        "study": study.name,
        "model": inference.checkpoints[0].name,
        "wall_s": statistics.median(walls),
        "core_s": statistics.median(cores),
        "stages_s": {name: statistics.median(one.get(name, 0.0) for one in stages) for name in names},
        "peak_bytes": peak_memory(),
    }


def told(found: dict[str, Any], price: float | None) -> str:
    """A study's figures, and what they make of many."""
    core = found["core_s"]
    lines = [f"{found['study']} by {found['model']}: {core:.3f} core s, {found['wall_s']:.3f} s of wall clock, "
             f"peak {found['peak_bytes'] / 2**20:.0f} MiB"]  # fmt: skip
    lines.append("  stages: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in found["stages_s"].items()))
    lines.append(f"  {3600 / core:,.0f} studies an hour of a core; one place (a core, or a GPU): "
                 f"{3600 / found['wall_s']:,.0f} an hour")  # fmt: skip
    cores = math.ceil(DAY * core / 86400 * PEAK / USE)
    lines.append(f"  {DAY:,} studies a day: {DAY * core / 3600:,.2f} core hours a day, {cores} core(s)")
    for many in CORES:
        hours = ARCHIVE * core / 3600 / (many * USE)
        lines.append(f"  {ARCHIVE:,} studies: {ARCHIVE * core / 3600:,.0f} core hours; on {many:,} cores "
                     f"{hours:,.0f} h ({hours / 24:,.1f} days)")  # fmt: skip
    if price is not None:
        each = price * core / 3600
        lines.append(f"  at {price:g} a core hour: {each:.6f} a study, {each * DAY:,.2f} a day of {DAY:,}, "
                     f"{each * ARCHIVE:,.0f} the archive of {ARCHIVE:,}")  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure each study in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--price", type=float, help="of a core for an hour, in your currency")
    parser.add_argument("--slices", type=int, default=100, help="of the synthetic CT; 0: without it")
    parser.add_argument("--study", nargs=2, action="append", default=[], metavar=("PATH", "MODEL"))
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        ((path, model),) = options.study
        print(json.dumps(measure(Path(path), model, options.repeats)))
        return
    print(f"{machine()}; {versions(['imgpipe', 'torch', 'openvino', 'numpy'])}")
    print(f"one thread, median of {options.repeats}; peak {PEAK:g} x the mean, {USE:.0%} of a core counted on")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        studies = [(str(ROOT / path), model) for path, model in STUDIES]
        if options.slices:
            case = ct(Path(folder), "BasicUNet", slices=options.slices)
            studies.append((str(case.study), str(case.checkpoint)))
        for path, model in (*studies, *options.study):
            command = [sys.executable, __file__, "--here", "--repeats", str(options.repeats), "--study", path, model]
            ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            print(told(json.loads(ran.stdout.splitlines()[-1]), options.price), flush=True)


if __name__ == "__main__":
    main()
