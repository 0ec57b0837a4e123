"""What benchmarks measure with: a process's peak memory, the machine it ran on, and what is installed there."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path


def peak_memory() -> int:
    """The most bytes that this process and those it started have had in memory since the last reset."""
    import resource

    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return ended + sum(_peak_of(pid) for pid in [os.getpid(), *_children()])


def reset_peak() -> None:
    """The check of the answer takes memory of its own, which the next peak must not contain (proc(5), clear_refs)."""
    for pid in (os.getpid(), *_children()):
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in _read(task / "children").split()]


def _read(path: Path) -> str:
    """A file of /proc; nothing where its thread or process has ended meanwhile."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _peak_of(pid: int) -> int:
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def machine() -> str:
    """The processor, and how many cores of it this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.release()}"


def versions(packages: Iterable[str]) -> str:
    """Those of some packages that are installed."""
    found = []
    for name in sorted(set(packages) - {""}):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
