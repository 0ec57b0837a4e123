"""How long a command takes to start, beside what it must not import: each in its own process, interleaved, medians.

    python benchmarks/bench_startup.py [REPEATS]

Goal: `imgpipe --help` and `imgpipe models` under 0.4 s each on two cores.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

IMGPIPE = str(Path(sys.executable).parent / "imgpipe")
COMMANDS = {
    "python, nothing imported": [sys.executable, "-c", "pass"],
    "imgpipe --help": [IMGPIPE, "--help"],
    "imgpipe models": [IMGPIPE, "models"],
    "python, import torch": [sys.executable, "-c", "import torch"],
    "python, import monai.transforms": [sys.executable, "-c", "import monai.transforms"],
}


def main(repeats: int) -> None:
    """Run each command in turn, `repeats` times, after one round that warms the caches."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_number in range(repeats + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if round_number:
                seconds[name].append(time.perf_counter() - start)
    floor = statistics.median(seconds["python, nothing imported"])
    print(f"{platform.machine()}, Python {platform.python_version()}, {repeats} repeats")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:34} {median:6.3f} s   {median / floor:6.1f} x bare Python   (min {min(values):.3f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
