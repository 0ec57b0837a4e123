"""How many instances a second are received and made durable, beside Orthanc, dcmtk's storescp and pynetdicom's own way.

    python benchmarks/bench_watch.py [--files N] [--size N] [--associations N,...] [--rounds N] [--without NAME;...]

One run: all receivers are up, and each round sends the same new files (synthetic CT slices with random pixels, with
other UIDs in each round) to each of them in turn, by dcmtk's storescu, in one or several associations at once.
A round counts only if the receiver holds every file afterwards. imgpipe's receiver has its store behind it: when it
acknowledges, file, name and row are on disk. Orthanc syncs each file, too (its default). storescp and
the plain handler sync nothing and lose what they acknowledged if the power fails: they are told for scale.

All run with TCP_NODELAY=1, without which dcmtk and Orthanc wait some 40 ms for each file; `--nagle` leaves the sender
as dcmtk ships it, which is what many modalities do. Everything lies on the disk of `--folder`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_scan import template
from measuring import machine, versions

OURS, ORTHANC, STORESCP, PLAIN = "imgpipe", "Orthanc", "dcmtk storescp", "pynetdicom, plain handler"
DURABLE = {OURS: "yes", ORTHANC: "files", STORESCP: "no", PLAIN: "no"}
STORESCU = "/usr/bin/storescu"
AET = "RECEIVER"


@dataclass(frozen=True)
class Running:
    """A receiver that is up: where, and how many instances it holds."""

    port: int
    held: Callable[[], int]


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program in the background, ended with the block."""
    with log.open("wb") as stream:
        running = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "TCP_NODELAY": "1"})
    try:
        yield running
    finally:
        running.terminate()
        running.wait(30)


def listening(port: int) -> None:
    """Return once somebody listens on a port."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"nobody listens on port {port}")


# The receivers -------------------------------------------------------------------------------------------------------


@contextmanager
def ours(folder: Path) -> Iterator[Running]:
    """The project's receiver with its store, in a process of its own."""
    from pipelines.store import Store

    port = free_port()
    with process([sys.executable, __file__, "--serve", OURS, "--port", str(port), "--folder", str(folder)],
                 folder / "log"):  # fmt: skip
        listening(port)
        with Store(folder / "store") as store:
            yield Running(port, lambda: int(store.database.read("SELECT count(*) AS n FROM instances")[0]["n"]))


@contextmanager
def orthanc(folder: Path) -> Iterator[Running]:
    """Orthanc as Debian ships it, without plugins."""
    port, http = free_port(), free_port()
    config = {"StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"), "DicomPort": port,
              "HttpPort": http, "DicomAet": AET, "Plugins": [], "RemoteAccessAllowed": False}  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(config))

    def held() -> int:
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/statistics", timeout=30) as answer:
            return int(json.load(answer)["CountInstances"])

    with process(["/usr/sbin/Orthanc", str(folder / "orthanc.json")], folder / "log"):
        listening(port)
        yield Running(port, held)


@contextmanager
def storescp(folder: Path) -> Iterator[Running]:
    """dcmtk's, a process for each association."""
    port = free_port()
    (folder / "files").mkdir()
    with process(["/usr/bin/storescp", "--fork", "-aet", AET, "-od", str(folder / "files"), str(port)], folder / "log"):
        listening(port)
        yield Running(port, lambda: sum(1 for _ in (folder / "files").iterdir()))


@contextmanager
def plain(folder: Path) -> Iterator[Running]:
    """The library as its documentation shows it: the data set is decoded and saved."""
    port = free_port()
    (folder / "files").mkdir()
    with process([sys.executable, __file__, "--serve", PLAIN, "--port", str(port), "--folder", str(folder)],
                 folder / "log"):  # fmt: skip
        listening(port)
        yield Running(port, lambda: sum(1 for _ in (folder / "files").iterdir()))


RECEIVERS = {OURS: ours, ORTHANC: orthanc, STORESCP: storescp, PLAIN: plain}


def serve(name: str, port: int, folder: Path) -> None:
    """Be one of the two receivers that are Python."""
    if name == OURS:
        from pipelines.receive import Listening, Receiver
        from pipelines.store import Store

        with (
            Store(folder / "store", watching=True) as store,
            Receiver(Listening(AET, port, host="127.0.0.1"), store, folder=folder),
        ):
            time.sleep(3600)
    from pynetdicom import AE, ALL_TRANSFER_SYNTAXES, AllStoragePresentationContexts, evt

    def handle(event: evt.Event) -> int:
        dataset = event.dataset
        dataset.file_meta = event.file_meta
        dataset.save_as(folder / "files" / f"{dataset.SOPInstanceUID}.dcm")
        return 0x0000

    entity = AE(AET)
    for context in AllStoragePresentationContexts:
        entity.add_supported_context(str(context.abstract_syntax), ALL_TRANSFER_SYNTAXES)
    entity.start_server(("127.0.0.1", port), evt_handlers=[(evt.EVT_C_STORE, handle)])


# The files and the rounds -------------------------------------------------------------------------------------------


def write(folder: Path, number: int, files: int, size: int, parts: int) -> list[Path]:
    """The files of one round, one folder for each association."""
    head = template()[:-4] + (size * size * 2).to_bytes(4, "little")
    pixels = np.random.default_rng(number).integers(0, 4096, (files, size, size), dtype=np.uint16)
    folders = [folder / f"part{part}" for part in range(parts)]
    for part in folders:
        part.mkdir(parents=True)
    for index in range(files):
        uids = head.replace(b"1000000", b"%d" % (1_000_000 + number))
        content = uids.replace(b"2000000", b"%d" % (2_000_000 + number * files + index)) + pixels[index].tobytes()
        (folders[index % parts] / f"{index:05d}.dcm").write_bytes(content)
    return folders


def send(running: Running, folders: Sequence[Path], files: int, *, nagle: bool) -> float:
    """Seconds until the receiver holds all that was sent."""
    before = running.held()
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    environment |= {} if nagle else {"TCP_NODELAY": "1"}
    start = time.perf_counter()
    senders = [
        subprocess.Popen([STORESCU, "-R", "-aec", AET, "+sd", "127.0.0.1", str(running.port), str(folder)],
                         env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for folder in folders
    ]  # fmt: skip
    statuses = [sender.wait(600) for sender in senders]
    seconds = time.perf_counter() - start
    held = running.held() - before
    assert not any(statuses), f"storescu ended with {statuses}"
    assert held == files, f"{held} of {files} files are there"
    return seconds


def measure(given: argparse.Namespace, names: Sequence[str], parts: int) -> dict[str, list[float]]:
    """Instances a second of each receiver in each round, after a round that warms everything."""
    rates: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench_watch_", dir=given.folder)))
        running = {}
        for number, name in enumerate(names):
            (root / f"receiver{number}").mkdir()
            running[name] = stack.enter_context(RECEIVERS[name](root / f"receiver{number}"))
        for number in range(given.rounds + 1):
            folders = write(root / "sent", number, given.files, given.size, parts)
            for name in names if number % 2 else names[::-1]:
                rate = given.files / send(running[name], folders, given.files, nagle=given.nagle)
                if number:
                    rates[name].append(rate)
            shutil.rmtree(root / "sent")
    return rates


def main() -> None:
    """Start the receivers, send, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=200, help="instances a round")
    parser.add_argument("--size", type=int, default=512, help="rows and columns; 16 bits a pixel")
    parser.add_argument("--associations", default="1,4", help="at once, with commas between")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without", default="", help="receivers to leave out, with semicolons between")
    parser.add_argument("--nagle", action="store_true", help="the sender as dcmtk ships it")
    parser.add_argument("--folder", type=Path, help="on whose disk everything lies")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.port, given.folder)
        return
    names = [name for name in RECEIVERS if name not in given.without.split(";")]
    print(f"{datetime.date.today()}; {machine()}; Python {platform.python_version()}  ")
    size, nagle = f"{given.size} x {given.size} x 16 bits", "with" if given.nagle else "without"
    print(f"{versions(['imgpipe', 'pynetdicom', 'pydicom'])}; {given.files} files a round of {size}; {given.rounds} "
          f"rounds; sender {nagle} Nagle's algorithm")  # fmt: skip
    print("\n| associations | receiver | durable | instances/s, median | min - max | imgpipe is x as fast |")
    print("| ---: | --- | --- | ---: | ---: | ---: |")
    for parts in (int(part) for part in given.associations.split(",")):
        rates = measure(given, names, parts)
        for name in names:
            median = statistics.median(rates[name])
            ratio = statistics.median(rates[OURS]) / median
            span = f"{min(rates[name]):.0f} - {max(rates[name]):.0f}"
            print(f"| {parts} | {name} | {DURABLE[name]} | {median:.0f} | {span} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
