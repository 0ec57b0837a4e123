"""Whether `imgpipe infer --memory` keeps its budget: peak RSS of the whole way, in a process of its own.

    python benchmarks/bench_memory.py [FOLDER] [--slices 1000] [--memory 4GB] [--classes 10 117]

A synthetic CT of 512 x 512 voxels a slice (`synthetic_ct.py`) is segmented on its own grid by a small U-Net of random
weights: it finds nothing that means anything, and takes the memory that such a network takes. The whole command counts:
reading, the network, the report with its pictures, the SEG and its check.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import machine, versions
from synthetic_ct import write

IMGPIPE = str(Path(sys.executable).parent / "imgpipe")
PATCH, EVERY_MM = [96, 96, 96], None


def checkpoint(folder: Path, classes: int, patch: list[int]) -> Path:
    """A segmenter of so many classes, with the background, of random weights; on a CT's own grid."""
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
    config["preprocess"] = {"orientation": "LPS", "spacing_mm": [EVERY_MM] * 3, "normalise": "window", "window": window}
    config["train"] = {**config["train"], "patch": patch}
    config["predict"] = {"patch": patch, "overlap": 0.25, "batch_size": 1, "precision": "32"}
    path = folder / f"random_{classes}.yaml"
    path.write_text(yaml.safe_dump(config))
    loaded = load_config(path)
    torch.manual_seed(0)
    return save_checkpoint(folder / f"random_{classes}", loaded, weights_of(build_segmenter(loaded)), {}).folder


def measured(series: Path, model: Path, memory: str | None) -> dict[str, Any]:
    """One `imgpipe infer` in a process of its own: its peak RSS in bytes, and what it said."""
    with tempfile.TemporaryDirectory() as out:
        command = [IMGPIPE, "infer", str(series), "--model", str(model), "--out", out, "--json"]
        command += ["--memory", memory] if memory else []
        begun = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            said = json.loads(process.stdout.read())
            # wait4 tells the peak of this very process, which getrusage would mix with those before.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    (study,) = said["studies"]
    files = [entry["file"] for entry in (study["report"] or {}).get("outputs", ())]
    found = sum(bool(f["structure"]["voxels"]) for f in (study["report"] or {}).get("findings", ()))
    return {"peak": usage.ru_maxrss * 1024, "seconds": time.perf_counter() - begun, "files": files, "found": found,
            "problems": [f"{p['code']}: {p['seen']}" for p in study["problems"]]}  # fmt: skip


def main() -> None:
    """Print a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(tempfile.gettempdir()) / "imgpipe_bench")
    parser.add_argument("--slices", type=int, default=1000)
    parser.add_argument("--memory", default="4GB", help="the budget; 'none' for none")
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 117])
    parser.add_argument("--patch", type=int, nargs=3, default=PATCH)
    told = parser.parse_args()
    told.folder.mkdir(parents=True, exist_ok=True)
    write(told.folder, "uncompressed", told.slices)
    print(machine(), versions(["imgpipe", "torch", "numpy", "highdicom", "pydicom"]), sep="\n")
    print(f"512 x 512 x {told.slices}, tiles of {told.patch}, random weights, budget {told.memory}")
    for classes in told.classes:
        model = checkpoint(told.folder, classes, told.patch)
        memory = None if told.memory == "none" else told.memory
        one = measured(told.folder / f"uncompressed-{told.slices}", model, memory)
        print(f"{classes:4} classes: peak RSS {one['peak'] / 1e9:.2f} GB, {one['seconds']:.0f} s, "
              f"{one['found']} structures found; {', '.join(one['files'])} {'; '.join(one['problems'])}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
