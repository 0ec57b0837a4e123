"""The mutation fuzzer: broken DICOM files go through the reader in processes of their own, under limits.

    python tests/fuzz.py --mutants 20000 --seed 1 --jobs 2 --out fuzz_failures

Each mutant is one file of the corpus (`pydicom`, `pydicom-data`, tests/data), or a small series of which one file or
all are broken. It is read as a user would read it: scan, stacks, read_stack, under both policies. Anything but volumes
and named refusals is a failure: another exception, a process that dies, more than 5 s under one policy, more than 1 GB
in the reader and its decoding processes together. Mutant number N of a seed is the same on every machine; `--only N`
runs that one alone. What failed lies in the folder of `--out`, with its files and what it did.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from corpus import as_slice, corpus
from mutations import mutate, neighbour

if TYPE_CHECKING:
    from imaging.dicom.attributes import Instance

SECONDS = 5.0
MEGABYTES = 1024.0
# A process that grows beyond this many times the limit is ended at once, for the sake of the machine.
_STOP_AT = 4.0
# Reading through a debugger or a loaded machine takes longer than the reader: what was slow is timed once more, alone.
_TRIES = 2
# Files above this are taken in proportion less often, for most of what they cost is reading good pixels.
_ORDINARY = 100_000
_SERIES_OF_FILES = 5  # of a series are enough to have an order, a gap and a duplicate
_SERIES = ("98892003/MR1", "98892003/MR700", "98892001/CT5N", "77654033/CT2", "data/hippocrop_study1")

Read = Callable[[Path, str], list[str]]


# ------------------------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True, slots=True)
class Mutant:
    """Broken files, by the name that each gets."""

    origin: str
    mutations: tuple[str, ...]
    files: tuple[tuple[str, bytes], ...]

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        for name, content in self.files:
            (folder / name).write_bytes(content)


@cache
def seeds() -> tuple[tuple[tuple[str, tuple[Path, ...]], ...], tuple[float, ...]]:
    """What is mutated, and how often each is taken; a folder of `_SERIES` is one."""
    own = Path(__file__).parent / "data"
    files = corpus() | {f"data/{path.relative_to(own)}": path for path in sorted(own.rglob("*.dcm"))}
    found: list[tuple[str, tuple[Path, ...]]] = []
    weights: list[float] = []
    for name, path in files.items():
        if "TINY_ALPHA/PT" not in name and not name.startswith("data/hippocrop_"):  # fifty times the same
            found.append((name, (path,)))
            weights.append(1 / max(1, path.stat().st_size / _ORDINARY))
    for folder in _SERIES:
        members = [path for name, path in files.items() if name.rpartition("/")[0].endswith(folder)]
        found.append((folder, tuple(members[:_SERIES_OF_FILES])))
        weights.append(8)
    return tuple(found), tuple(weights)


def mutant(seed: int, number: int) -> Mutant:
    """One mutant, always the same for the same seed and number."""
    rng = random.Random(f"{seed}/{number}")
    names, weights = seeds()
    origin, paths = rng.choices(names, weights)[0]
    broken = range(len(paths)) if rng.random() < 0.2 else (rng.randrange(len(paths)),)
    files: list[tuple[str, bytes]] = []
    done: list[str] = []
    for index, path in enumerate(paths):
        content = path.read_bytes()
        if index in broken:
            content, mutations = mutate(content, rng)
            done += mutations
        files.append((f"{index:03}{path.suffix}", content))
    if len(paths) == 1 and rng.random() < 0.5:
        # One slice is no volume: most files of the corpus are read to their pixels only beside another one.
        beside = neighbour(files[0][1])
        files += [] if beside is None else [(f"001{paths[0].suffix}", beside)]
    return Mutant(origin, tuple(done), tuple(files))


def read_folder(folder: Path, policy: str) -> list[str]:
    """Read a folder as a user would; gives ``read`` for each volume and the code of each refusal.

    Then, whether or not it belongs to a volume, the first and the last frame of every file, as ``frame read`` or the
    code: what the reader sets aside as no picture of the patient goes through the decoders all the same.
    """
    from imaging.dicom import read_stack, scan, stacks
    from imaging.errors import ImagingError

    try:
        found = scan(folder)
    except ImagingError as error:
        return [error.code]
    met = [error.code for error in found.refused] + ["stray"] * len(found.strays)
    for series in (series for study in found.studies for series in study.series):
        whole, refused = stacks(series, policy="strict" if policy == "strict" else "repair")
        met += [error.code for error in refused]
        for stack in whole:
            try:
                read_stack(series, stack)
                met.append("read")
            except ImagingError as error:
                met.append(error.code)
        met += [code for instance in series.instances for code in _read_frames(instance)]
    return met


def _read_frames(instance: Instance) -> Iterator[str]:
    from imaging.dicom.stored import FrameReader, check_stored
    from imaging.errors import ImagingError

    if not (instance.rows and instance.columns and instance.pixels.tag):
        return
    reader = FrameReader()
    for number in sorted({1, max(1, instance.frames)}):
        item = as_slice(instance, number)
        try:
            check_stored(item)
            reader(item)
            yield "frame read"
        except ImagingError as error:
            yield f"frame {error.code}"


# -------------------------------------------------------------------------------------------------------- the process


def _processes() -> list[int]:
    """This process and what it started."""
    own, found = os.getpid(), [os.getpid()]
    for pid in (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()):
        with suppress(OSError, IndexError, ValueError):
            # The name in brackets may hold anything; the parent's id is the second word behind it.
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == own:
                found.append(pid)
    return found


def _forget_peaks() -> None:
    """Let the kernel count the largest resident size anew (proc(5), clear_refs 5)."""
    for pid in _processes():
        with suppress(OSError):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _peak() -> float:
    """The largest resident sizes since then in MB, of all together; of what has died, the largest there ever was."""
    total = 0
    for pid in _processes():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return max(total, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 1024


def worker(seed: int, reader: str) -> None:
    """Read the mutants whose numbers come on stdin; one line of JSON on stdout for each."""
    read = _reader(reader)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    with TemporaryDirectory(prefix="fuzz_") as home:
        for line in sys.stdin:
            number = int(line)
            folder = Path(home, str(number))
            mutant(seed, number).write(folder)
            for policy in ("repair", "strict"):
                os.write(answers, json.dumps(_one(read, folder, policy)).encode() + b"\n")
            shutil.rmtree(folder)


def _one(read: Read, folder: Path, policy: str) -> dict[str, object]:
    _forget_peaks()
    start = time.perf_counter()
    try:
        met, fault = read(folder, policy), ""
    except Exception:
        met, fault = ["exception"], traceback.format_exc()
    return {"policy": policy, "met": met, "fault": fault, "s": time.perf_counter() - start, "mb": _peak()}


def _reader(name: str) -> Read:
    """`read_folder`, or a function of another file (``file.py:function``), by which the fuzzer itself is tested."""
    if not name:
        return read_folder
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("reader", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Read = getattr(module, function)
    return found


# --------------------------------------------------------------------------------------------------------- the parent


@dataclass(frozen=True, slots=True)
class Failure:
    """What a mutant did that it must not."""

    number: int
    kind: str
    detail: str


@dataclass(slots=True)
class Summary:
    """What all mutants together did."""

    mutants: int = 0
    met: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[float, int] = (0.0, -1)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [f"{self.mutants} mutants in {self.seconds:.0f} s, each under two policies"]
        lines += [f"{count:8}  {code}" for code, count in self.met.most_common()]
        lines.append(f"slowest {self.slowest[0]:.2f} s (mutant {self.slowest[1]}), ")
        lines[-1] += f"largest {self.largest[0]:.0f} MB (mutant {self.largest[1]})"
        lines += [f"FAILED {item.number} {item.kind}: {item.detail.strip().splitlines()[-1]}" for item in self.failures]
        lines.append(f"{len(self.failures)} failures")
        return "\n".join(lines)


class _Broken(Exception):
    """The worker has to go: it died, hangs or grows; kind and detail."""


class _Worker:
    """A worker process as the parent sees it."""

    def __init__(self, fuzzer: Fuzzer) -> None:
        self._fuzzer = fuzzer
        command = [sys.executable, str(Path(__file__)), "--worker", "--seed", str(fuzzer.seed)]
        alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, "--reader", fuzzer.reader], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True, env=os.environ | alone,
        )  # fmt: skip
        self._buffer = b""
        self._is_new = True

    def run(self, number: int) -> list[dict[str, object]]:
        """One mutant's two answers; `_Broken` where there is none."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(b"%d\n" % number)
        answers = []
        for _ in range(2):
            # A new process imports everything first, which is not the mutant's fault.
            allowance = self._fuzzer.startup if self._is_new else 0.0
            answers.append(json.loads(self._line(time.monotonic() + allowance + 2 * self._fuzzer.seconds)))
            self._is_new = False
        return answers

    def _line(self, until: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._buffer:
            if time.monotonic() > until:
                raise _Broken("hang", f"no answer within {2 * self._fuzzer.seconds:g} s")
            if self._resident() > _STOP_AT * self._fuzzer.megabytes:
                raise _Broken("memory", f"more than {_STOP_AT * self._fuzzer.megabytes:.0f} MB")
            if select.select([self._process.stdout], [], [], 0.05)[0]:
                part = os.read(self._process.stdout.fileno(), 65536)
                if not part:
                    raise _Broken("crash", f"the process ended with status {self._process.wait()}")
                self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _resident(self) -> float:
        with suppress(OSError):
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
            return pages * resource.getpagesize() / 2**20
        return 0.0

    def close(self) -> None:
        """End it and its decoding processes, which share its session."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()


@dataclass(frozen=True, slots=True)
class Fuzzer:
    """Which mutants, read by whom, under what limits; `startup` is how long a process may take to import the reader."""

    seed: int = 1
    reader: str = ""
    seconds: float = SECONDS
    megabytes: float = MEGABYTES
    startup: float = 60.0

    def run(self, numbers: Iterable[int], jobs: int = 1) -> Summary:
        """Read mutants by number, in `jobs` processes."""
        summary, lock, start = Summary(), threading.Lock(), time.monotonic()
        shared = iter(list(numbers))

        def take() -> Iterator[int]:
            while True:
                with lock:
                    number = next(shared, None)
                if number is None:
                    return
                yield number

        with ThreadPoolExecutor(jobs) as threads:
            for done in [threads.submit(self._work, take(), summary, lock) for _ in range(jobs)]:
                done.result()
        summary.seconds = time.monotonic() - start
        summary.failures.sort(key=lambda item: item.number)
        return summary

    def _work(self, numbers: Iterator[int], summary: Summary, lock: threading.Lock) -> None:
        current = _Worker(self)
        try:
            for number in numbers:
                for tried in range(1, _TRIES + 1):
                    answers, failure = self._judged(current, number)
                    if failure is None:
                        break
                    current.close()
                    current = _Worker(self)
                    if failure.kind not in ("hang", "memory") or tried == _TRIES:
                        break
                with lock:
                    self._count(summary, number, answers, failure)
        finally:
            current.close()

    def _judged(self, current: _Worker, number: int) -> tuple[list[dict[str, object]], Failure | None]:
        try:
            answers = current.run(number)
        except _Broken as broken:
            return [], Failure(number, *broken.args)
        for answer in answers:
            policy, seconds, megabytes = answer["policy"], float(str(answer["s"])), float(str(answer["mb"]))
            if answer["fault"]:
                return answers, Failure(number, "exception", f"{policy}\n{answer['fault']}")
            if seconds > self.seconds:
                return answers, Failure(number, "hang", f"{policy}: {seconds:.1f} s")
            if megabytes > self.megabytes:
                return answers, Failure(number, "memory", f"{policy}: {megabytes:.0f} MB")
        return answers, None

    @staticmethod
    def _count(summary: Summary, number: int, answers: list[dict[str, object]], failure: Failure | None) -> None:
        summary.mutants += 1
        for answer in answers:
            met = answer["met"]
            assert isinstance(met, list)
            summary.met.update(set(met))
            summary.slowest = max(summary.slowest, (float(str(answer["s"])), number))
            summary.largest = max(summary.largest, (float(str(answer["mb"])), number))
        if failure is not None:
            summary.failures.append(failure)


def store(failures: Sequence[Failure], seed: int, folder: Path) -> None:
    """Keep what failed: the files, and what they are and did."""
    for failure in failures:
        place = folder / f"{seed}_{failure.number}_{failure.kind}"
        if place.exists():
            shutil.rmtree(place)
        broken = mutant(seed, failure.number)
        broken.write(place)
        about = f"{broken.origin}\n{' '.join(broken.mutations)}\n\n{failure.kind}\n{failure.detail}\n"
        (place / "about.txt").write_text(about)


def main() -> int:
    """The command line; 1 where a mutant failed."""
    parser = argparse.ArgumentParser(description="Read broken DICOM files; anything but a volume or a refusal fails.")
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--only", type=int, help="run this mutant alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("fuzz_failures"), help="where failing mutants are kept")
    parser.add_argument("--reader", default="", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        worker(given.seed, given.reader)
        return 0
    numbers = range(given.first, given.first + given.mutants) if given.only is None else [given.only]
    summary = Fuzzer(given.seed, given.reader).run(numbers, given.jobs)
    store(summary.failures, given.seed, given.out)
    sys.stdout.write(f"{summary}\n")
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
