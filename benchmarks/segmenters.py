"""The ways to segment a study that are measured beside each other, each in a process of its own and kept warm.

    python benchmarks/segmenters.py WAY CASE [OUT]

The first line that comes back says that all is loaded; then each line of stdin names a folder for the outputs, and is
answered with seconds, seconds of processors, those in the network, and the peak of memory. With OUT one study is
segmented into that folder, and that is all.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from measuring import answers, peak_memory, reset_peak

# What is told of a study: seconds in the network, or by stage.
Answer = dict[str, Any]
Segment = Callable[[Path], Answer]


def imgpipe(case: dict[str, str], formats: Sequence[str] | None = None) -> Segment:
    """`imgpipe infer` as the watcher keeps it: checkpoints opened once."""
    from pipelines.infer import Inference

    inference = Inference(models=[case["checkpoint"]], formats=formats)
    inference.warm_up()

    def segment(out: Path) -> Answer:
        inferred = inference([Path(case["study"])], out)
        problems = [*inferred.refused, *(problem for study in inferred.studies for problem in study.problems)]
        assert not problems, problems
        return {"network": inferred.stages["network"], "stages": dict(inferred.stages)}

    return segment


def monai(case: dict[str, str], restore: str = "scores") -> Segment:
    """The plain MONAI script, its network loaded once."""
    import monai_script

    model = monai_script.load_model(Path(case["checkpoint"]))
    plain, spent = monai_script.scores_of, [0.0]

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        scores = plain(*arguments)
        spent[0] += time.perf_counter() - begun
        return scores

    monai_script.scores_of = timed

    def segment(out: Path) -> Answer:
        spent[0] = 0.0
        monai_script.segment(Path(case["study"]), model, out, "labels" if restore == "labels" else "scores")
        return {"network": spent[0]}

    return segment


def nnunet(case: dict[str, str]) -> Segment:
    """nnU-Net v2's predictor in one process, which on few cores is its quickest way for one study after another."""
    import nnunet_model
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    folder = Path(case["nnunet"])
    nnunet_model.write(folder, json.loads(case["settings"]))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), use_folds=(0,))
    predictor.use_mirroring = bool(predictor.allowed_mirroring_axes)
    plain, spent = predictor.predict_sliding_window_return_logits, [0.0]

    def timed(*arguments: Any, **named: Any) -> Any:
        begun = time.perf_counter()
        logits = plain(*arguments, **named)
        spent[0] += time.perf_counter() - begun
        return logits

    predictor.predict_sliding_window_return_logits = timed

    def segment(out: Path) -> Answer:
        spent[0] = 0.0
        out.mkdir(parents=True, exist_ok=True)
        predictor.predict_from_files_sequential([[case["nifti"]]], [str(out / "mask")])
        return {"network": spent[0]}

    return segment


def limit(case: dict[str, str]) -> Segment:
    """The network alone: the calls that imgpipe makes of its engine for this study, on tiles that lie in memory."""
    import numpy as np

    from imaging.checkpoint import open_checkpoint
    from imaging.engines import Engines, engines_of
    from imaging.nifti import read_nifti
    from imaging.predict import Predictor

    checkpoint = open_checkpoint(Path(case["checkpoint"]))
    engines = engines_of(checkpoint)
    calls: list[tuple[int, tuple[int, ...]]] = []

    class Counted:
        """An engine that remembers how it was called."""

        def __init__(self, number: int, engine: Any) -> None:
            self._number, self._engine = number, engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def __call__(self, tiles_BCXYZ: Any) -> Any:
            calls.append((self._number, tiles_BCXYZ.shape))
            return self._engine(tiles_BCXYZ)

    counted = tuple(Counted(number, engine) for number, engine in enumerate(engines.members))
    Predictor(checkpoint, engine=Engines(counted, engines.choice))(read_nifti(Path(case["nifti"])))
    values = np.random.default_rng(0)
    tiles = {shape: values.standard_normal(shape, dtype=np.float32) for _, shape in calls}

    def segment(_: Path) -> Answer:
        begun = time.perf_counter()
        for number, shape in calls:
            engines.members[number](tiles[shape])
        told = f"{engines.choice.name} {engines.choice.precision}"
        return {"network": time.perf_counter() - begun, "engine": told, "calls": len(calls)}

    return segment


WAYS: dict[str, Callable[[dict[str, str]], Segment]] = {
    "imgpipe": imgpipe,
    "imgpipe, mask alone": partial(imgpipe, formats=("nifti",)),
    "MONAI script": monai,
    "MONAI script, labels restored": partial(monai, restore="labels"),
    "nnU-Net v2": nnunet,
    "network alone": limit,
}


def main(way: str, case: dict[str, str]) -> None:
    """Load, then answer."""
    stream = answers()
    # Some need more memory than others leave: then it is this process that ends.
    Path("/proc/self/oom_score_adj").write_text("1000")
    begun = time.perf_counter()
    try:
        segment = WAYS[way](case)
    except ImportError as error:
        stream.write(json.dumps({"missing": str(error)}) + "\n")
        return
    stream.write(json.dumps({"opened": time.perf_counter() - begun, "opened_peak": peak_memory()}) + "\n")
    for line in sys.stdin:
        reset_peak()
        begun, before = time.perf_counter(), os.times()
        try:
            told = segment(Path(line.rstrip("\n")))
        except Exception as error:  # noqa: BLE001 - whatever a peer raises is its answer
            stream.write(json.dumps({"failed": f"{type(error).__name__}: {error}"[:300]}) + "\n")
            continue
        seconds, after = time.perf_counter() - begun, os.times()
        cpu = sum(after[:4]) - sum(before[:4])
        stream.write(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak_memory(), **told}) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        WAYS[sys.argv[1]](json.loads(sys.argv[2]))(Path(sys.argv[3]))
    else:
        main(sys.argv[1], json.loads(sys.argv[2]))
