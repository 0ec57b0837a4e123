"""Whether `imgpipe infer --memory` keeps its budget: the peak of the whole way, stage by stage.

    python benchmarks/bench_memory.py [FOLDER] [--slices 1000] [--memory 4GB] [--classes 10 117] [--spacing 1.5]

A synthetic CT of 512 x 512 voxels a slice (`synthetic_ct.py`, 0.7 x 0.7 x 1.25 mm) is labelled by a small U-Net of
random weights, which takes the memory that such a network takes and finds nothing that means anything. The network sees
`--spacing` mm along every axis, as a real one does (TotalSegmentator: 1.5), or with `own` the series' own grid; its
labels are brought back to the series' own grid either way. Each network has a process of its own, and the whole command
counts: reading, the network, measuring, the page with its pictures, the SEG and its check.

As it goes, a line is printed for each stage: when it ended, the most that the process had in memory while it lasted,
and what it has now. At the end come the peak of the process as the kernel tells it (ru_maxrss), which is what the
budget is of, and the peak of the sum over the process and those that it started (decoders of compressed pixels), looked
at every 20 ms; memory that they share counts twice there. `--syntax jpeg-ls` and its like show the latter.

At 1.5 mm a run of 1,000 slices is a matter of minutes on 16 cores; `--classes 10` runs one network.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from measuring import machine, versions
from synthetic_ct import SYNTAXES, write

PATCH = [96, 96, 96]
# How often the sum over all processes is looked at, in seconds.
_EVERY_S = 0.02
# What a process that is measured is told first.
_WATCHED = "--watched"


def checkpoint(folder: Path, classes: int, patch: list[int], spacing_mm: float | None) -> Path:
    """A segmenter of so many classes, with the background, of random weights."""
    import torch

    from imaging.checkpoint import save_checkpoint
    from imaging.config import load_config
    from imaging.files import shipped
    from imaging.networks import build_segmenter, weights_of

    config: dict[str, Any] = yaml.safe_load((shipped("configs") / "hippocampus_mr.yaml").read_text())
    (label, *_) = config["labels"]
    config["name"], config["title"] = f"random_{classes}", "Random weights: nothing that it finds means anything"
    config["labels"] = [
        {**label, "id": number, "name": f"part_{number}", "title": f"Part {number}"} for number in range(1, classes)
    ]
    config["applies_to"] |= {"modality": ["CT"], "extent_min_mm": [1, 1, 1], "extent_max_mm": [1e5, 1e5, 1e5]}
    config["network"] = {"name": "UNet", "options": {"channels": [4, 8], "strides": [2], "norm": "BATCH"}}
    window = {"low": -1024, "high": 1000, "mean": 0, "deviation": 500}
    config["preprocess"] = {
        "orientation": "LPS", "spacing_mm": [spacing_mm] * 3, "normalise": "window", "window": window,
    }  # fmt: skip
    config["train"] = {**config["train"], "patch": patch}
    config["predict"] = {"patch": patch, "overlap": 0.25, "batch_size": 1, "precision": "32"}
    path = folder / f"random_{classes}.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path)
    torch.manual_seed(0)
    return save_checkpoint(folder / f"random_{classes}", loaded, weights_of(build_segmenter(loaded)), {}).folder


def watched(arguments: list[str]) -> None:
    """`imgpipe` with some arguments; on stderr a line of JSON for each stage that has ended."""
    from imaging.memory import in_use, rising
    from imaging.stages import StageName, taking_turns
    from pipelines.cli import main as imgpipe

    begun = time.perf_counter()

    @contextmanager
    def told(name: StageName) -> Iterator[None]:
        before = in_use()
        with rising() as rise:
            yield
        print(json.dumps({"stage": name, "most": before + rise.bytes, "now": in_use(),
                          "seconds": time.perf_counter() - begun}), file=sys.stderr, flush=True)  # fmt: skip

    with taking_turns(told):
        imgpipe(arguments)


def measured(series: Path, model: Path, memory: str | None, more: list[str]) -> dict[str, Any]:
    """One `imgpipe infer` in a process of its own: its peaks in bytes, what it said, and its files' sizes."""
    with tempfile.TemporaryDirectory() as out, tempfile.TemporaryFile("w+") as answer:
        command = [sys.executable, __file__, _WATCHED, "infer", str(series), "--model", str(model), "--out", out]
        command += ["--json", *(["--memory", memory] if memory else []), *more]
        begun = time.perf_counter()
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        tree, ended = [0], threading.Event()
        watcher = threading.Thread(target=_look, args=(process.pid, tree, ended), daemon=True)
        watcher.start()
        for line in process.stderr:
            print(_in_words(line), flush=True)
        # wait4 tells the peak of this very process, which getrusage would mix with those before.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        ended.set()
        watcher.join()
        answer.seek(0)
        said = json.load(answer)
        files = {file.name: file.stat().st_size for file in sorted(Path(out).glob("*/*"))}
    (study,) = said["studies"]
    structures = [finding["structure"] for finding in (study["report"] or {}).get("findings", ())]
    return {"peak": usage.ru_maxrss * 1024, "tree": tree[0], "seconds": time.perf_counter() - begun, "files": files,
            "found": sum(bool(one["voxels"]) for one in structures),
            "frames": sum(len(one["evidence"]) for one in structures),
            "problems": [f"{p['code']}: {p['seen']}" for p in study["problems"]]}  # fmt: skip


def _in_words(line: str) -> str:
    try:
        told = json.loads(line)
    except ValueError:
        return line.rstrip()
    return (f"  {told['seconds']:6.1f} s  {told['stage']:<8} at most {told['most'] / 1e9:5.2f} GB, "
            f"now {told['now'] / 1e9:5.2f} GB")  # fmt: skip


def _look(pid: int, most: list[int], ended: threading.Event) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while not ended.wait(_EVERY_S):
        most[0] = max(most[0], sum(_resident(one) * page for one in _with_children(pid)))


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has ended meanwhile
        return 0


def _with_children(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            told = children.read_text().split()
        except OSError:
            continue
        for child in told:
            yield from _with_children(int(child))


def main() -> None:
    """Print the lines of each network."""
    if sys.argv[1:2] == [_WATCHED]:
        watched(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "imgpipe_bench")
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--memory", default="4GB", help="the budget; 'none' for none")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 117])
    parser.add_argument("--patch", type=int, nargs=3, default=PATCH)
    parser.add_argument("--spacing", default="1.5", help="of the network's grid, in mm; 'own' for the series' own")
    parser.add_argument("--syntax", choices=sorted(set(SYNTAXES) - {"enhanced"}), default="uncompressed")
    parser.add_argument("--formats", help="as `imgpipe infer` takes them; by default its own default")
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    write(told.folder, told.syntax, told.slices)
    print(machine(), versions(["imgpipe", "torch", "numpy", "highdicom", "pydicom"]), sep="\n")
    print(f"512 x 512 x {told.slices} ({told.syntax}), network at {told.spacing} mm, tiles of {told.patch}, "
          f"random weights, budget {told.memory}", flush=True)  # fmt: skip
    for classes in told.classes:
        model = checkpoint(told.folder, classes, told.patch, None if told.spacing == "own" else float(told.spacing))
        memory = None if told.memory == "none" else told.memory
        print(f"{classes} classes", flush=True)
        one = measured(told.folder / f"{told.syntax}-{told.slices}", model, memory,
                       ["--formats", told.formats] if told.formats else [])  # fmt: skip
        files = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in one["files"].items())
        print(f"{classes} classes: peak RSS {one['peak'] / 1e9:.2f} GB, with all processes {one['tree'] / 1e9:.2f} GB, "
              f"{one['seconds']:.0f} s; {one['found']} structures found on {one['frames']} slices; "
              f"{'; '.join([files, *one['problems']])}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
