"""How long a command takes to start, beside what it must not import: each in its own process, interleaved, medians.

    python benchmarks/bench_startup.py [REPEATS] [--results DIR]

Goal: `imgpipe --help` and `imgpipe models` under 0.4 s each on two cores. How long `imgpipe infer` takes from its start
to its end is in `bench_infer.py`, part `cold`.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
from pathlib import Path

from measuring import run_to_end
from results import Result, Row

IMGPIPE = str(Path(sys.executable).parent / "imgpipe")
BARE, TORCH, MONAI = "python, nothing imported", "python, import torch", "python, import monai.transforms"
COMMANDS = {
    BARE: [sys.executable, "-c", "pass"],
    "imgpipe --help": [IMGPIPE, "--help"],
    "imgpipe models": [IMGPIPE, "models"],
    TORCH: [sys.executable, "-c", "import torch"],
    MONAI: [sys.executable, "-c", "import monai.transforms"],
}
MOST_S = 0.4


def main() -> None:
    """Run each command in turn, after one round that warms the caches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("repeats", type=int, nargs="?", default=7)
    parser.add_argument("--results", type=Path, help="a folder for the figures as JSON")
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(given.repeats + 1):
        for name, command in COMMANDS.items():
            took = run_to_end(command).seconds
            if round_number:
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"{platform.machine()}, Python {platform.python_version()}, {given.repeats} repeats")
    for name, median in medians.items():
        print(
            f"{name:34} {median:6.3f} s   {median / medians[BARE]:6.1f} x bare Python   (min {min(seconds[name]):.3f})"
        )
    ours = [name for name in COMMANDS if name.startswith("imgpipe")]
    rows = [Row("start", name, "s", medians[name], peer, medians[peer]) for name in ours for peer in (TORCH, MONAI)]
    late = [name for name in ours if medians[name] > MOST_S]
    goal = f"NOT reached by {' and '.join(late)}" if late else "reached by both"
    note = f"Medians of {given.repeats}. Goal: at most {MOST_S} s for a verb that reads nothing, {goal}."
    Result("startup", note, ("torch", "monai", "click"), tuple(rows)).keep(given.results)


if __name__ == "__main__":
    main()
