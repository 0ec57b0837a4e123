"""How fast a network is in each engine and precision, and how long a compiled model takes to be read back or made.

    python benchmarks/bench_engines.py [CHECKPOINT...] [--repeats N] [--keep DIR]

CHECKPOINT is a shipped checkpoint's name or a folder; by default those that ship and look at images, and two larger
networks with random weights. `tile`: milliseconds for each of some tiles that lie in memory, in a process for each
engine, all in turn; int8 where the checkpoint has it (`imgpipe accept --int8`). `ready`: seconds until OpenVINO could
answer, each time in a new process: from the model on disk, as imgpipe keeps it; from what OpenVINO made of it, read
back by `import_model`; and by OpenVINO's own cache (`CACHE_DIR`). What is read was read just before, so that it lies in
the file cache. Medians, and ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measuring import Process, answers, machine, run_to_end, versions

from imaging.checkpoint import find_checkpoint, open_checkpoint

SHIPPED, RANDOM = ("hippocampus_mr", "chest_xray"), ("DynUNet", "SegResNet")
ENGINES = ("torch fp32", "openvino fp32", "openvino bf16", "openvino int8")
WAYS = ("compiled", "read back", "CACHE_DIR")
TILES = 8


def main() -> None:
    """Measure each checkpoint."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoints", nargs="*")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="a folder for random checkpoints, used again")
    given = parser.parse_args()
    print(f"{machine()}; {versions(['openvino', 'torch', 'nncf'])}; medians of {given.repeats}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.keep or Path(scratch)
        places = [str(find_checkpoint(name)) for name in given.checkpoints or SHIPPED]
        if not given.checkpoints:
            from segmenter_cases import random_checkpoint

            places += [str(random_checkpoint(folder, name, classes=10, patch=96)) for name in RANDOM]
        for place in places:
            by_tile(place, given.repeats)
            until_ready(place, given.repeats, Path(scratch))


def by_tile(place: str, repeats: int) -> None:
    """Print how long each engine takes for a tile."""
    processes = {name: Process(name, [sys.executable, __file__, "--serve", place, name]) for name in ENGINES}
    there = {name: process for name, process in processes.items() if "opened" in process.begun}
    took: dict[str, list[float]] = {name: [] for name in there}
    for turn in range(1 + repeats):
        for name, process in there.items():
            seconds = process.ask("tiles")["seconds"]
            if turn:
                took[name].append(seconds)
    for process in processes.values():
        process.close()
    medians = {name: statistics.median(seconds) for name, seconds in took.items()}
    for name, median in medians.items():
        speed = medians[ENGINES[0]] / median
        print(f"{Path(place).name:24} tile   {name:14} {1000 * median:9.1f} ms  {speed:6.2f} times as fast as torch")


def serve(place: str, name: str) -> None:
    """Answer each line with the seconds that a tile took."""
    import numpy as np

    from imaging.engines import engines_of
    from imaging.engines.choice import tile_shape

    stream = answers()
    checkpoint = open_checkpoint(Path(place))
    wanted, precision = name.split()
    if precision == "int8" and not any("int8" in file for file in checkpoint.sums):
        stream.write(json.dumps({"missing": "int8"}) + "\n")
        return
    engine = engines_of(checkpoint, wanted=wanted, device="cpu" if wanted == "torch" else None,
                        precision=precision).members[0]  # type: ignore[arg-type]  # fmt: skip
    tiles = np.random.default_rng(0).standard_normal((TILES, *tile_shape(checkpoint)[1:]), dtype=np.float32)
    engine(tiles[: engine.batch])
    stream.write(json.dumps({"opened": True}) + "\n")
    for _ in sys.stdin:
        begun = time.perf_counter()
        for at in range(0, TILES, engine.batch):
            engine(tiles[at : at + engine.batch])
        stream.write(json.dumps({"seconds": (time.perf_counter() - begun) / TILES}) + "\n")


def until_ready(place: str, repeats: int, scratch: Path) -> None:
    """Print how long OpenVINO takes until it could answer."""
    kept = scratch / f"{Path(place).name}-{time.monotonic_ns()}"
    kept.mkdir()
    run_to_end([sys.executable, __file__, "--ready", place, "make", str(kept)])
    took: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(1 + repeats):
        for way in WAYS:
            with tempfile.TemporaryFile("w+") as said:
                run_to_end([sys.executable, __file__, "--ready", place, way, str(kept)], stdout=said)
                said.seek(0)
                seconds = json.loads(said.read().splitlines()[-1])
            if turn:
                took[way].append(seconds)
    compiled = statistics.median(took[WAYS[0]])
    for way, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{Path(place).name:24} ready  {way:14} {1000 * median:9.1f} ms  {median / compiled:6.2f} x compiled")
    sizes = {path.name: path.stat().st_size / 2**20 for path in kept.glob("*") if path.is_file()}
    print(f"{Path(place).name:24} on disk, MiB: " + ", ".join(f"{name} {size:.1f}" for name, size in sizes.items()))


def ready(place: str, way: str, kept: Path) -> None:
    """Be ready in one way, and print how long that took; or make what is read back."""
    from imaging.engines import runtime
    from imaging.engines.choice import converted_models

    precision = "bf16" if runtime.has_bf16() else "fp32"
    core = runtime.core()
    model, blob, cache = kept / "model.xml", kept / "blob", kept / "cache"
    settings = runtime.settings_of(precision)
    core.get_property("CPU", "FULL_DEVICE_NAME")  # its plugin is loaded
    if way == "make":
        source = next(iter(converted_models(open_checkpoint(Path(place)))))
        runtime.runtime().save_model(core.read_model(source), model, compress_to_fp16=False)
        blob.write_bytes(core.compile_model(model, "CPU", settings).export_model().getvalue())
        core.compile_model(model, "CPU", settings | {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SPEED"})
        return
    begun = time.perf_counter()
    if way == "compiled":
        compiled = core.compile_model(model, "CPU", settings)
    elif way == "read back":
        compiled = core.import_model(blob.read_bytes(), "CPU", settings)
    else:
        compiled = core.compile_model(
            model, "CPU", settings | {"CACHE_DIR": str(cache), "CACHE_MODE": "OPTIMIZE_SPEED"}
        )
    compiled.create_infer_request()
    print(time.perf_counter() - begun)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:4])
    elif sys.argv[1:2] == ["--ready"]:
        ready(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main()
