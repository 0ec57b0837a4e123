"""Studies through the whole way of the watcher: how many an hour, how long each takes, where time and memory go.

    python benchmarks/bench_queue.py rate    [--studies N] [--at-once 1,2] [--rounds N]
    python benchmarks/bench_queue.py latency [--studies N] [--every S]
    python benchmarks/bench_queue.py memory  [--studies N] [--folder DIR]

A study is the project's own hippocampus crop (32 slices, MR) under new UIDs; it is sent by C-STORE to `imgpipe watch`,
read, segmented by the shipped hippocampus checkpoint, written, verified and delivered to an outbox.

- `rate`: all studies are sent, then timed from the first that is begun to the last that is delivered, so that the queue
  is never empty; each number of studies in hand (`--at-once`) has a watcher and a store of its own in each round, in
  turns. The shares say how much of the wall clock each lane of the worker (`pipelines/turns.py`) was busy.
- `latency`: studies come at a steady pace; from the last image to the result's delivery, with the quiet time in it that
  the watcher waits for more (`--quiet`).
- `memory`: many studies, a few of them waiting; the resident memory of the watcher (which receives) and of its worker,
  fitted by a line over the studies done, the first tenth left out. With `--folder` it can be broken off and goes on
  from where it was: what is there counts. Each start of a watcher has a line of its own, and the slope is common.

The sender does what a modality does: where it gets no answer, or the association is lost, it associates anew and sends
what was not acknowledged. How often that was so is printed at the end; a refusal ends the measurement.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from bench_watch import free_port, listening, process
from measuring import machine, versions
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from pynetdicom import AE, evt

from pipelines.association import at_once, status_of
from pipelines.turns import LANES

CROP = Path(__file__).parents[1] / "tests/data/hippocrop_study1"
AET, MODEL, ROOT = "IMGPIPE", "hippocampus_mr", "1.2.826.0.1.3680043.10.1503.7"
# How often memory is looked at, in studies; blocks of a bootstrap; the share of a run that warms up.
_EACH, _BLOCKS, _WARMING = 5, 20, 0.1
# How many associations a study may take before the receiver is given up; the studies that took one more, once for each.
_TRIES = 10
AGAIN: list[int] = []


def slices_of(number: int, slices: int) -> list[Dataset]:
    """The files of the n-th study."""
    files = sorted(CROP.glob("*.dcm"), key=lambda file: int(file.stem))[:slices]
    made = []
    for place, file in enumerate(files):
        image = dcmread(file)
        image.StudyInstanceUID, image.SeriesInstanceUID = f"{ROOT}.{number}", f"{ROOT}.{number}.1"
        image.FrameOfReferenceUID = f"{ROOT}.{number}.2"
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.{number}.1.{place + 1}"
        image.PatientID = f"BENCH{number}"
        made.append(image)
    return made


def send(port: int, number: int, slices: int) -> None:
    """One study, in one association or in as many as it takes."""
    left = slices_of(number, slices)
    for failed in range(_TRIES):
        left = left[stored(port, left) :]
        if not left:
            return
        AGAIN.append(number)
        time.sleep(min(failed, 5))
    raise RuntimeError(f"study {number}: {len(left)} images are not acknowledged after {_TRIES} associations")


def stored(port: int, images: Sequence[Dataset]) -> int:
    """How many images are acknowledged in one association; the next one has no answer."""
    entity = AE("BENCH")
    entity.add_requested_context(images[0].SOPClassUID, images[0].file_meta.TransferSyntaxUID)
    association = entity.associate("127.0.0.1", port, ae_title=AET, evt_handlers=[(evt.EVT_CONN_OPEN, at_once)])
    if not association.is_established:
        return 0
    try:
        for place, image in enumerate(images):
            status = status_of(association.send_c_store(image))
            if status is None:
                return place
            if status != 0:
                raise SystemExit(f"an image is refused with status {status:04X}")
    except RuntimeError:  # pynetdicom's word for an association that is gone
        return place
    finally:
        if association.is_established:
            association.release()
    return len(images)


class Watched:
    """A watcher that runs, seen through its database.

    Parameters
    ----------
    root
        Holds its store and its outbox.
    port
        Where it listens.
    pid
        Its process.
    """

    def __init__(self, root: Path, port: int, pid: int) -> None:
        self._path, self.port, self.pid = root / "store" / "store.sqlite", port, pid

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What its database says."""
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=60)) as db:
            return db.execute(query).fetchall()

    def done(self) -> int:
        """How many studies were delivered, in however many versions."""
        [[count]] = self.rows("SELECT count(DISTINCT study_uid) FROM jobs WHERE state = 'done'")
        [[bad]] = self.rows("SELECT count(*) FROM jobs WHERE state IN ('failed', 'quarantined')")
        assert not bad, self.rows("SELECT reason FROM jobs WHERE reason IS NOT NULL LIMIT 1")
        return int(count)

    def until(self, is_so: Callable[[], bool], seconds: float = 3600) -> None:
        """Wait for something."""
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, "it takes too long"
            time.sleep(0.2)

    def memory(self) -> tuple[int, int]:
        """Resident bytes of the watcher, and of its workers together."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        return _resident(self.pid), sum(_resident(int(child)) for child in children)


def _resident(pid: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
    return 0


@contextmanager
def watched(root: Path, *, at_once: int, quiet: float) -> Iterator[Watched]:
    """A watcher in a process of its own, whose worker is warm."""
    port = free_port()
    verb = [sys.executable, "-c", "from pipelines.cli import main; main()", "watch"]
    command = [*verb, "--listen", f"{AET}:{port}", "--outbox", root / "out", "--store", root / "store",
               "--model", MODEL, "--quiet", quiet, "--at-once", at_once]  # fmt: skip
    root.mkdir(exist_ok=True)
    with process([str(part) for part in command], root / "log") as running:
        listening(port)
        yield Watched(root, port, running.pid)


def rate_of(root: Path, at_once: int, studies: int, slices: int) -> tuple[float, dict[str, float]]:
    """Studies an hour, and the share of the wall clock that each lane was busy."""
    with watched(root, at_once=at_once, quiet=2) as watcher:
        send(watcher.port, 0, slices)  # the worker starts, and its first study is not like the others
        watcher.until(lambda: watcher.done() == 1)
        for number in range(1, studies + 1):
            send(watcher.port, number, slices)
        watcher.until(lambda: watcher.done() == studies + 1)
        [[begun]] = watcher.rows("SELECT min(julianday(at)) FROM events WHERE code = 'running' AND job > 1")
        [[ended]] = watcher.rows("SELECT max(julianday(at)) FROM events WHERE code = 'done'")
        [[worked]] = watcher.rows("SELECT max(julianday(at)) FROM events WHERE code = 'verifying'")
        busy: defaultdict[str, float] = defaultdict(float)
        for (detail,) in watcher.rows("SELECT detail FROM events WHERE code = 'stages_passed' AND job > 1"):
            for name, seconds in json.loads(detail).items():
                busy[LANES[name]] += seconds  # type: ignore[index]
    seconds = (worked - begun) * 86400
    return studies / (ended - begun) / 24, {lane: spent / seconds for lane, spent in busy.items()}


def rate(given: argparse.Namespace) -> None:
    """Print studies an hour by how many are in hand."""
    numbers = [int(part) for part in given.at_once.split(",")]
    rates, shares = defaultdict(list), defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench_queue_", dir=given.folder) as folder:
        for number in range(given.rounds):
            for at_once in numbers if number % 2 else numbers[::-1]:
                speed, busy = rate_of(Path(folder) / f"{number}_{at_once}", at_once, given.studies, given.slices)
                rates[at_once].append(speed)
                shares[at_once].append(busy)
    print("| in hand | studies/h, median | min - max | x as many | read and prepare | network | report and write |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for at_once in numbers:
        found = rates[at_once]
        cells = [
            f"{statistics.median(busy[lane] for busy in shares[at_once]):.0%}" for lane in ("in", "network", "out")
        ]
        ratio = statistics.median(found) / statistics.median(rates[numbers[0]])
        print(f"| {at_once} | {statistics.median(found):.0f} | {min(found):.0f} - {max(found):.0f} | {ratio:.2f} | "
              + " | ".join(cells) + " |")  # fmt: skip


def latency(given: argparse.Namespace) -> None:
    """Print how long it takes from a study's last image to its result in the outbox."""
    with (
        tempfile.TemporaryDirectory(prefix="bench_queue_", dir=given.folder) as folder,
        watched(Path(folder) / "watched", at_once=2, quiet=given.quiet) as watcher,
    ):
        send(watcher.port, 0, given.slices)
        watcher.until(lambda: watcher.done() == 1)
        paced(watcher, range(1, given.studies + 1), given.every, given.slices)
        watcher.until(lambda: watcher.done() == given.studies + 1)
        took = [86400 * row[0] for row in watcher.rows(
            "SELECT julianday(max(events.at)) - (SELECT julianday(max(received_at)) FROM instances WHERE"
            " instances.study_uid = jobs.study_uid) FROM jobs JOIN events ON events.job = jobs.id"
            " WHERE events.code = 'done' AND jobs.id > 1 GROUP BY jobs.id"
        )]  # fmt: skip
    assert len(took) == given.studies
    p50, p95, p99 = np.percentile(took, [50, 95, 99])
    print(f"{given.studies} studies, one every {given.every:g} s; quiet time {given.quiet:g} s, which is in it\n")
    print("| last image to result delivered | p50 | p95 | p99 | longest |\n| --- | ---: | ---: | ---: | ---: |")
    print(f"| seconds | {p50:.2f} | {p95:.2f} | {p99:.2f} | {max(took):.2f} |")


def paced(watcher: Watched, numbers: Sequence[int], every: float, slices: int) -> None:
    """Send studies at a steady pace."""
    start = time.monotonic()
    for place, number in enumerate(numbers):
        time.sleep(max(0.0, start + place * every - time.monotonic()))
        send(watcher.port, number, slices)


def memory(given: argparse.Namespace) -> None:
    """Print how memory grows with the studies done."""
    with tempfile.TemporaryDirectory(prefix="bench_queue_") as temporary:
        root = given.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        samples = root / "memory.jsonl"
        run = len({json.loads(line)["run"] for line in samples.read_text().splitlines()}) if samples.exists() else 0
        with watched(root / "watched", at_once=2, quiet=1) as watcher, samples.open("a") as log:
            begun = watcher.done()
            known = int(watcher.rows("SELECT count(*) FROM studies")[0][0])
            faults: list[BaseException] = []
            threading.Thread(
                target=_keep_coming, args=(watcher, known, given.studies, given.slices, faults), daemon=True
            ).start()
            while watcher.done() < given.studies:
                _sample(watcher, log, run)
                next_ = min(given.studies, watcher.done() + _EACH)
                watcher.until(lambda enough=next_: bool(faults) or watcher.done() >= enough)  # type: ignore[misc]
                if faults:
                    raise faults[0]
        print(f"{given.studies - begun} studies in this run, {given.studies} in all\n")
        tell_slopes(samples)


def _keep_coming(watcher: Watched, first: int, studies: int, slices: int, faults: list[BaseException]) -> None:
    """Send the next study whenever few wait, so that what is measured is the way and not the queue."""
    try:
        for number in range(first, studies):
            while number - watcher.done() > 8:
                time.sleep(0.1)
            send(watcher.port, number, slices)
    except BaseException as error:  # noqa: BLE001 raised by who waits for the studies
        faults.append(error)


def _sample(watcher: Watched, log: Any, run: int) -> None:
    watching, working = watcher.memory()
    log.write(json.dumps({"run": run, "done": watcher.done(), "watcher": watching, "worker": working}) + "\n")
    log.flush()


def tell_slopes(samples: Path) -> None:
    """Print a line for each process."""
    found = [json.loads(line) for line in samples.read_text().splitlines()]
    print("| process | samples | first - last, MiB | MiB per 1,000 studies (95 %) |\n| --- | ---: | ---: | ---: |")
    for name, title in (("watcher", "watcher and receiver"), ("worker", "worker")):
        parts = []
        for run in sorted({sample["run"] for sample in found}):
            mine = [sample for sample in found if sample["run"] == run and sample[name]]
            mine = mine[int(len(mine) * _WARMING) :]
            parts.append(np.array([[sample["done"], sample[name] / 2**20] for sample in mine]).reshape(-1, 2))
        whole = np.concatenate(parts)
        low, high = interval(parts)
        print(f"| {title} | {len(whole)} | {whole[0, 1]:.0f} - {whole[-1, 1]:.0f} | "
              f"{1000 * slope(parts):+.1f} ({1000 * low:+.1f} to {1000 * high:+.1f}) |")  # fmt: skip


def slope(parts: Sequence[NDArray[np.float64]]) -> float:
    """Of a line for each part, all of one slope (least squares)."""
    centred = np.concatenate([part - part.mean(axis=0) for part in parts if len(part) > 1])
    return float((centred[:, 0] * centred[:, 1]).sum() / (centred[:, 0] ** 2).sum())


def interval(parts: Sequence[NDArray[np.float64]]) -> tuple[float, float]:
    """95 % of the slopes with blocks of neighbouring samples drawn anew, since neighbours are alike."""
    rng = np.random.default_rng(0)
    slopes = []
    for _ in range(1000):
        drawn = []
        for part in parts:
            blocks = np.array_split(part, min(_BLOCKS, max(2, len(part) // 2)))
            drawn.append(np.concatenate([blocks[place] for place in rng.integers(0, len(blocks), len(blocks))]))
        slopes.append(slope(drawn))
    low, high = np.percentile(slopes, [2.5, 97.5])
    return float(low), float(high)


def main() -> None:
    """Measure one of the three."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=["rate", "latency", "memory"])
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--slices", type=int, default=32, help="of each study, of the crop's 32")
    parser.add_argument("--at-once", default="1,2", help="studies in hand, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--every", type=float, default=4.0, help="seconds between studies")
    parser.add_argument("--quiet", type=float, default=2.0, help="seconds after which a study is complete")
    parser.add_argument("--folder", type=Path, help="where everything lies; memory goes on with what is there")
    given = parser.parse_args()
    print(f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}  ")
    print(f"{versions(['imgpipe', 'torch', 'monai', 'openvino', 'pynetdicom'])}; {MODEL}, {given.slices} slices\n")
    {"rate": rate, "latency": latency, "memory": memory}[given.what](given)
    print(f"\n{len(AGAIN)} associations were made anew for what was not acknowledged")


if __name__ == "__main__":
    main()
