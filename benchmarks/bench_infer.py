"""How long `imgpipe infer` takes, cold and warm, beside a plain MONAI script, nnU-Net v2 and the network alone.

    python benchmarks/bench_infer.py [--only PART,...] [--repeats N] [--small] [--keep DIR] [--results DIR]
                                     [--nnunet-python PYTHON]

PARTs: `cold` (processes from their start to their end, on the demo study), `warm` (checkpoints opened before, on the
demo study and a NIfTI file), `network` (the network's part alone, on volumes that lie on its grid already) and `ct` (a
synthetic CT of 512 x 512 x 300 with 10 classes: time and peak of memory). Each way runs in a process of its own, all in
turn (A B C A B C ...), after one round that warms the file cache and the cache of compiled models; medians.

The peers do the same work with the same weights, patch, overlap and flips: `monai_script.py`; nnU-Net's own predictor
with a plain U-Net of as many levels and channels and random weights, on NIfTI, since it reads no DICOM; and the calls
that imgpipe makes of its engine, on tiles that lie in memory: the limit. nnU-Net is left out, and that is told, where
PYTHON (an environment of its own with `nnunetv2`) is not given. What imgpipe writes beside the mask (a page, an SR, a
report) is in its time, except where "mask alone" says otherwise.

Goals: the network's part at least 8 times as fast as the MONAI script's on a U-Net and 4 times on the shipped network,
and within 1.3 of the limit; a whole study, warm, 5 times; the peak of memory on the CT at most a third.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import Ended, Process, run_to_end
from results import Result, Row, median_of
from segmenter_cases import Case, ct, demo, hippocampus, tiles

HERE = Path(__file__).parent
OURS, MASK, MONAI, LABELS = "imgpipe", "imgpipe, mask alone", "MONAI script", "MONAI script, labels restored"
NNUNET, LIMIT = "nnU-Net v2", "network alone"
_NO_NNUNET = f"{NNUNET}: no --nnunet-python"
MIB = float(2**20)
# Of the network's part against the MONAI script: on a U-Net, and on any other network.
LEAST_NETWORK = {"BasicUNet": 8.0, "DynUNet": 8.0, "SegResNet": 4.0}
LEAST_SHIPPED, MOST_OF_LIMIT, LEAST_WARM, LEAST_COLD, LEAST_MEMORY = 4.0, 1.3, 5.0, 2.0, 3.0


class Bench:
    """Measures, and gathers rows.

    Parameters
    ----------
    nnunet
        The Python that has nnU-Net; None leaves it out.
    folder
        For studies, checkpoints and outputs.
    """

    def __init__(self, nnunet: str | None, folder: Path) -> None:
        self.rows: list[Row] = []
        self.stages: dict[str, dict[str, float]] = {}
        self.engines: dict[str, str] = {}
        # What could not be measured, each reason once.
        self.left_out: dict[str, None] = {}
        self._nnunet, self._folder = nnunet, folder

    def warm(self, case: Case, ways: Sequence[str], repeats: int, *, first: bool = True) -> dict[str, dict[str, float]]:
        """Medians of each way by what was measured; `first` is a round that does not count."""
        told = json.loads(case.told()) | {"nnunet": str(self._folder / "nnunet" / case.checkpoint.name)}
        processes = []
        for way in ways:
            python = self._nnunet if way == NNUNET else sys.executable
            if python is None:
                self.left_out[_NO_NNUNET] = None
            elif way != NNUNET or "settings" in told:
                command = [python, str(HERE / "segmenters.py"), way, json.dumps(told)]
                processes.append(Process(way, command, quiet=True))
        answers: dict[str, list[dict[str, Any]]] = {process.name: [] for process in processes}
        for repeat in range(repeats + first):
            for process in processes:
                if process.name not in answers:
                    continue
                answer = process.ask(self._folder / "out" / process.name.replace(" ", "_"))
                if "failed" in answer or "missing" in process.begun:
                    reason = process.begun.get("missing", answer.get("failed"))
                    self.left_out[f"{process.name} on {case.name}: {reason}"] = None
                    del answers[process.name]
                elif repeat or not first:
                    answers[process.name].append(answer)
        for process in processes:
            process.close()
        for answer in (answers.get(OURS) or answers.get(MASK) or [])[-1:]:
            self.stages[f"{case.name}, warm"] = answer["stages"]
        for answer in answers.get(LIMIT, [])[-1:]:
            self.engines[case.name] = f"{answer['engine']}, {answer['calls']} calls"
        keys = ("seconds", "cpu", "peak", "network")
        return {way: {key: median_of(said, key) for key in keys} for way, said in answers.items() if said}

    def whole(self, case: Case, found: dict[str, dict[str, float]], *, goals: bool, memory: bool = False) -> None:
        """Rows of whole studies."""
        for ours in (OURS, MASK):
            for peer in (MONAI, LABELS, NNUNET):
                if ours not in found or peer not in found:
                    continue
                mine, theirs, name = found[ours], found[peer], ours.replace("imgpipe", "whole study, warm")
                least = LEAST_WARM if goals and peer == MONAI else None
                self.rows.append(Row(case.name, name, "s", mine["seconds"], peer, theirs["seconds"], least))
                self.rows.append(Row(case.name, f"{name}, processors", "s", mine["cpu"], peer, theirs["cpu"]))
                least = LEAST_MEMORY if memory and peer == MONAI else None
                self.rows.append(Row(case.name, f"{name}, peak memory", "MiB", mine["peak"] / MIB, peer,
                                     theirs["peak"] / MIB, least))  # fmt: skip

    def network(self, case: Case, found: dict[str, dict[str, float]], least: float | None) -> None:
        """Rows of the network's part."""
        mine = found.get(OURS) or found.get(MASK)
        if mine is None:
            return
        for peer in (MONAI, NNUNET):
            if peer in found:
                goal = least if peer == MONAI else None
                self.rows.append(Row(case.name, "network", "s", mine["network"], peer, found[peer]["network"], goal))
        if LIMIT in found:
            limit = found[LIMIT]["network"]
            self.rows.append(Row(case.name, "network", "s", mine["network"], LIMIT, limit, most=MOST_OF_LIMIT))

    def cold(self, case: Case, repeats: int) -> None:
        """Rows of processes from their start to their end."""
        out, ended = self._folder / "cold", dict[str, list[Ended]]()
        commands = {
            OURS: [str(Path(sys.executable).parent / "imgpipe"), "infer", str(case.study), "--model",
                   str(case.checkpoint), "--out", str(out / "imgpipe"), "--json"],
            MONAI: [sys.executable, str(HERE / "monai_script.py"), str(case.study), str(case.checkpoint),
                    str(out / "monai")],
        }  # fmt: skip
        if self._nnunet is None:
            self.left_out[_NO_NNUNET] = None
        else:
            settings = json.loads(case.told()) | {"nnunet": str(self._folder / "nnunet" / case.checkpoint.name)}
            single = [self._nnunet, str(HERE / "segmenters.py"), NNUNET, json.dumps(settings), str(out / "nnunet")]
            commands[NNUNET] = single
        for repeat in range(repeats + 1):
            for way, command in commands.items():
                took = run_to_end(command)
                if repeat:
                    ended.setdefault(way, []).append(took)
        found = {
            way: {key: median_of([vars(one) for one in said], key) for key in ("seconds", "cpu", "peak")}
            for way, said in ended.items()
        }
        for peer in (MONAI, NNUNET):
            if peer in found:
                mine, theirs, least = found[OURS], found[peer], LEAST_COLD if peer == MONAI else None
                name = "whole study, cold"
                self.rows += [
                    Row(case.name, name, "s", mine["seconds"], peer, theirs["seconds"], least),
                    Row(case.name, f"{name}, processors", "s", mine["cpu"], peer, theirs["cpu"]),
                    Row(case.name, f"{name}, peak memory", "MiB", mine["peak"] / MIB, peer, theirs["peak"] / MIB),
                ]
        self.stages[f"{case.name}, cold"] = self._cold_stages(commands[OURS], found[OURS]["seconds"])

    @staticmethod
    def _cold_stages(command: Sequence[str], seconds: float) -> dict[str, float]:
        """Of one more run, what its `--json` says; the rest of the median is start and imports."""
        with tempfile.TemporaryFile("w+") as said:
            run_to_end(command, stdout=said)
            said.seek(0)
            stages: dict[str, float] = json.load(said)["stages_s"]
        return {"start": max(seconds - sum(stages.values()), 0.0), **stages}


def cold(bench: Bench, folder: Path, repeats: int, small: bool) -> int:
    """The demo study; each part gives how often it was measured."""
    bench.cold(demo(folder), repeats)
    return repeats


def warm(bench: Bench, folder: Path, repeats: int, small: bool) -> int:
    """Studies that ship."""
    for case in (demo(folder), hippocampus(folder)):
        found = bench.warm(case, (OURS, MASK, MONAI, NNUNET, LIMIT), repeats)
        bench.whole(case, found, goals=True)
        bench.network(case, found, LEAST_SHIPPED)
    return repeats


def network(bench: Bench, folder: Path, repeats: int, small: bool) -> int:
    """Volumes on the network's grid."""
    repeats = 1 if small else min(repeats, 3)
    for name, least in LEAST_NETWORK.items():
        case = tiles(folder, name, **({"edge": 40, "patch": 32} if small else {}))
        bench.network(case, bench.warm(case, (MASK, MONAI, LIMIT), repeats), least)
    return repeats


def synthetic(bench: Bench, folder: Path, repeats: int, small: bool) -> int:
    """The large CT. A first round would take minutes, and what it warms is small beside a study like this."""
    case = ct(folder, "BasicUNet", **({"slices": 12, "patch": 32} if small else {"slices": 300}))
    # But a network is converted once, by torch, whose memory shall not count.
    Process(MASK, [sys.executable, str(HERE / "segmenters.py"), MASK, case.told()], quiet=True).close()
    # Masks of random weights are noise, which no SEG or page is made for.
    found = bench.warm(case, (MASK, MONAI, LABELS, NNUNET), 1, first=False)
    bench.whole(case, found, goals=True, memory=True)
    bench.network(case, found, None)
    return 1


PARTS: dict[str, Callable[[Bench, Path, int, bool], int]] = {
    "cold": cold, "warm": warm, "network": network, "ct": synthetic,
}  # fmt: skip


def run(part: str, given: argparse.Namespace, folder: Path) -> Result:
    """Measure one part."""
    bench = Bench(given.nnunet_python, folder)
    print(f"{part} ...", file=sys.stderr, flush=True)
    repeats = PARTS[part](bench, folder, given.repeats, given.small)
    said = [f"Medians of {repeats}." if repeats > 1 else "Measured once."]
    said += ["Synthetic, with random weights."] if part in ("network", "ct") else []
    engines = "; ".join(f"{name}: {engine}" for name, engine in bench.engines.items())
    said += [f"Engines: {engines}."] if engines else []
    said += [f"Left out: {'; '.join(bench.left_out)}."] if bench.left_out else []
    packages = ("torch", "monai", "openvino", "numpy")
    return Result("infer", " ".join(said), packages, tuple(bench.rows), stages=bench.stages, part=part)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--small", action="store_true", help="smaller volumes: a try, not figures")
    parser.add_argument("--keep", type=Path, help="a folder for studies and checkpoints, kept for the next run")
    parser.add_argument("--results", type=Path, help="a folder for the figures as JSON")
    parser.add_argument("--nnunet-python", help="the Python of an environment with nnunetv2")
    given = parser.parse_args()
    unknown = set(given.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: known are {', '.join(PARTS)}")
    with tempfile.TemporaryDirectory(prefix="bench_infer_") as temporary:
        for part in given.only.split(","):
            run(part, given, (given.keep or Path(temporary)).resolve()).keep(given.results)


if __name__ == "__main__":
    main()
