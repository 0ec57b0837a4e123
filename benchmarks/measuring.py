"""What benchmarks measure with: processes, their time and memory, the machine, and what is installed there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO


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


@dataclass(frozen=True)
class Ended:
    """What a process took from its start to its end: seconds of wall clock and of processors, and the most bytes.

    The bytes are those of the largest process, where it started others.
    """

    seconds: float
    cpu: float
    peak: float


def run_to_end(command: Sequence[str], *, stdout: IO[Any] | None = None) -> Ended:
    """Run a command; what it says goes to `stdout`, if anywhere.

    Raises
    ------
    RuntimeError
        If it fails, with the end of what it said.
    """
    with tempfile.TemporaryFile() as said:
        begun = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=stdout or said, stderr=said, env=environment()
        )
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            tail = said.read().decode(errors="replace")[-400:]
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {tail}")
    return Ended(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024.0)


def environment() -> dict[str, str]:
    """That of a process that is measured: every library takes as many threads as it does by itself."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


class Process:
    """A process that is asked line by line, and answers each line with one of JSON; the first one comes unasked."""

    def __init__(self, name: str, command: Sequence[str], *, quiet: bool = False) -> None:
        self.name = name
        errors = subprocess.DEVNULL if quiet else None
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1,
            env=environment(),
        )  # fmt: skip
        self.begun: dict[str, Any] = self._answer()

    def ask(self, line: object) -> dict[str, Any]:
        """Have it do what the line says."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
        except BrokenPipeError:
            return {"failed": f"ended with {self._process.wait()}"}
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"failed": f"ended with {self._process.wait()}"}
        return answer

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


def answers() -> TextIO:
    """Where such a process answers; whatever else it prints goes to stderr, and becomes no answer."""
    stream = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return stream
