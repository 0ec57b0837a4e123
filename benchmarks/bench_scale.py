"""What many studies take: seconds of a warm study, and what that makes of 1,000 a day and of an archive of 10 million.

    python benchmarks/bench_scale.py [--repeats 3] [--slices 300] [--study NAME PATH MODEL]... \
        [--price 0.05] [--gpu-price 3] [--gpu NAME] [--stages NAME GPU FILE]...

The MR study that ships with the tests, a NIfTI case of hippocampus_mr, and a synthetic CT of so many slices with ten
classes and random weights (`segmenter_cases.py`), which is what a study of the trunk costs; 0 slices leave it out.

Each study is read in a process of its own with one thread, its checkpoint opened once; the first time is not counted,
and the table has medians. One thread, because many studies are read beside each other: a core that waits for another
thread reads none.

On a machine with a GPU, `--gpu NAME` measures the same by wall clock, with as many threads as there are: one study
after another, as on a cluster. Or FILE is what `imgpipe infer STUDIES --json` has printed there: a study is then the
sum of its `stages_s` but `open`, divided by the studies. The first one makes the GPU ready, too: give it many.

Prices are yours: what a core, or a machine with a GPU for each GPU, costs for an hour.

    seconds of a study       = of a core: processor time, all threads; of a GPU: wall clock of one study at a time
    studies an hour          = 3600 / seconds
    cost of a study          = price * seconds / 3600
    needed for D a day       = D * seconds / 86400 * peak / use, at least 1
    hours of an archive of A = A * seconds / 3600
    needed for A in T days   = hours / (24 * T * use)
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measuring import environment, machine, peak_memory, versions
from segmenter_cases import ct

ROOT = Path(__file__).parent.parent
STUDIES = (
    ("demo study (DICOM MR, 35 x 51 x 32)", "tests/data/hippocrop_study1", "hippocampus_mr"),
    ("hippocampus (NIfTI MR, 35 x 51 x 35)", "tests/data/hippocampus/imagesTr/hippocampus_001.nii.gz",
     "hippocampus_mr"),
)  # fmt: skip
# The busiest hour of a hospital beside its mean one, and the share of a device's time that is counted on: assumptions.
PEAK, USE = 3.0, 0.7
DAY, ARCHIVE, ARCHIVE_DAYS = 1_000, 10_000_000, 30
HEADS = (
    "study", "read by", "s a study", "of it network", "studies an hour", f"needed for {DAY:,} a day",
    f"{ARCHIVE / 1e6:g} million studies, hours", f"needed for these in {ARCHIVE_DAYS} days",
)  # fmt: skip


@dataclass(frozen=True)
class Figures:
    """What a study takes of a device.

    Attributes
    ----------
    study, device
        As the table calls them.
    seconds
        Of the device, for one study.
    network
        The network's share of the stages.
    price
        Of the device for an hour; None where nobody has said it.
    """

    study: str
    device: str
    seconds: float
    network: float
    price: float | None

    def row(self) -> list[str]:
        """As the table has it, without what it costs."""
        hours = ARCHIVE * self.seconds / 3600
        daily = max(1, math.ceil(DAY * self.seconds / 86400 * PEAK / USE))
        archive = max(1, math.ceil(hours / (24 * ARCHIVE_DAYS * USE)))
        return [self.study, self.device, f"{self.seconds:.3g}", f"{self.network:.0%}", f"{3600 / self.seconds:,.0f}",
                f"{daily:,}", f"{hours:,.0f}", f"{archive:,}"]  # fmt: skip

    def costs(self) -> list[str]:
        """What a study, a day's and an archive's cost."""
        if self.price is None:
            return ["", "", ""]
        each = self.price * self.seconds / 3600
        return [f"{each:.6f}", f"{each * DAY:.3g}", f"{each * ARCHIVE:,.0f}"]


def measure(study: Path, model: str, repeats: int) -> dict[str, float]:
    """Read a study again and again in this process; gives medians."""
    from pipelines.infer import Inference

    inference = Inference(models=[model])
    inference.warm_up()
    walls, cores, shares = [], [], []
    for number in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            wall, core = time.perf_counter(), time.process_time()
            inferred = inference([study], Path(folder))
            if number:
                walls.append(time.perf_counter() - wall)
                cores.append(time.process_time() - core)
                shares.append(inferred.stages["network"] / sum(inferred.stages.values()))
        problems = [*inferred.refused, *(problem for one in inferred.studies for problem in one.problems)]
        assert not problems, problems
    return {"wall_s": statistics.median(walls), "core_s": statistics.median(cores),
            "network": statistics.median(shares), "peak_bytes": peak_memory()}  # fmt: skip


def measured_apart(name: str, path: str, model: str, options: argparse.Namespace) -> Figures:
    """The figures of a study that is read in a process of its own; says how it went on stderr."""
    repeats = options.repeats
    command = [sys.executable, __file__, "--here", "--repeats", str(repeats), "--study", name, path, model]
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    several = environment() if options.gpu else {**os.environ, **one}
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=several)
    found = json.loads(ran.stdout.splitlines()[-1])
    print(f"{name}: {found['core_s']:.3f} core s, {found['wall_s']:.3f} s of wall clock, "
          f"peak {found['peak_bytes'] / 2**20:.0f} MiB", file=sys.stderr)  # fmt: skip
    if options.gpu:
        return Figures(name, options.gpu, found["wall_s"], found["network"], options.gpu_price)
    return Figures(name, "a core", found["core_s"], found["network"], options.price)


def from_stages(name: str, device: str, file: Path, price: float | None) -> Figures:
    """The figures of what `imgpipe infer --json` has printed on another machine."""
    told = json.loads(file.read_text(encoding="utf-8"))
    assert told["exit_status"] == 0, f"{file}: some studies were not read"
    stages = {stage: seconds for stage, seconds in told["stages_s"].items() if stage != "open"}
    seconds = sum(stages.values())
    print(f"{name}: {len(told['studies'])} studies by {device} in {seconds:.2f} s", file=sys.stderr)
    return Figures(name, device, seconds / len(told["studies"]), stages["network"] / seconds, price)


def table(rows: list[Figures], options: argparse.Namespace) -> str:
    """All of it as the page has it."""
    priced = {one.device: one.price for one in rows if one.price is not None}
    heads = [*HEADS, *(("a study costs", f"{DAY:,} cost", f"{ARCHIVE / 1e6:g} million cost") if priced else ())]
    how = "One study at a time" if options.gpu else "One thread a study"
    lines = [
        f"Measured on {datetime.date.today():%Y-%m-%d} with {machine()}; "
        f"{versions(['imgpipe', 'torch', 'openvino', 'numpy'])}. {how}; medians of {options.repeats}, warm; "
        f"the busiest hour has {PEAK:g} times the mean one, and {USE:.0%} of a device's time is counted on.",
        "",
        *(["At " + ", ".join(f"{price:g} for an hour of {device}" for device, price in priced.items()) + ":", ""]
          if priced else []),
        "| " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * (len(heads) - 2),
        *("| " + " | ".join([*one.row(), *(one.costs() if priced else [])]) + " |" for one in rows),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure each study in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--price", type=float, help="of a core for an hour, in your currency")
    parser.add_argument("--gpu-price", type=float, help="of a machine with GPUs for an hour, for each of them")
    parser.add_argument("--slices", type=int, default=300, help="of the synthetic CT; 0: without it")
    parser.add_argument("--study", nargs=3, action="append", default=[], metavar=("NAME", "PATH", "MODEL"))
    parser.add_argument("--gpu", metavar="NAME", help="of this machine; measure it, not a core")
    parser.add_argument("--stages", nargs=3, action="append", default=[], metavar=("NAME", "GPU", "FILE"),
                        help="what `imgpipe infer --json` has printed where there is a GPU")  # fmt: skip
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        ((_, path, model),) = options.study
        print(json.dumps(measure(Path(path), model, options.repeats)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        studies = [(name, str(ROOT / path), model) for name, path, model in STUDIES]
        if options.slices:
            case = ct(Path(folder), "BasicUNet", slices=options.slices)
            studies.append((case.name, str(case.study), str(case.checkpoint)))
        for name, path, model in (*studies, *options.study):
            rows.append(measured_apart(name, path, model, options))
    for name, device, file in options.stages:
        rows.append(from_stages(name, device, Path(file), options.gpu_price))
    print(table(rows, options))


if __name__ == "__main__":
    main()
