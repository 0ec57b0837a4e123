"""`imgpipe accept`: compare the engines of this machine with torch in fp32, on a checkpoint's own cases.

Invariant: config, weights and metrics stay as they are; what is added is `engines.json`, and an engine is accepted by
`imaging.engines.accepted` alone, not by what was hoped for. No case that fitted the weights says anything here.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imaging.cases import ClassifiedCase, read_cases
from imaging.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, with_extras
from imaging.config import ClassifyConfig
from imaging.dataset_check import OnCase
from imaging.engines import Engine, Engines, Precision, engines_of, runtime
from imaging.engines.accepted import FILE, Side, Trial, Trials, trials_of
from imaging.engines.choice import tile_shape
from imaging.engines.quantized import as_files, files_of_all, made_by
from imaging.errors import MissingPackage, OutputNotWritable, TooFewCases
from imaging.manifest import Case, read_manifest
from pipelines.agreement import classified, segmented
from pipelines.quantize import Int8, int8_of
from pipelines.sparing import OnStep

# How often each engine is timed.
_ROUNDS = 5


def accept(
    *,
    checkpoint: str,
    data: Path,
    out: Path,
    int8: bool = False,
    on_case: OnCase | None = None,
    on_step: OnStep | None = None,
) -> tuple[Checkpoint, Trials]:
    """Write a copy of a checkpoint that says which engines may answer for it.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    data
        The manifest that it was trained on: the cases that its metrics name as validation cases are taken, or those
        that its network had not seen in a cross-validation. Of another manifest all cases are.
    out
        The copy's folder, a new one.
    int8
        Whether to make it in int8, too, on its training cases, and to compare that; the copy has it where it is good
        enough.
    on_case, on_step
        Called before each case with its name, its number from 0 and how many there are; and with each step of int8.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it does not look at images.
    MissingPackage
        If OpenVINO is not installed, or NNCF for int8.
    EngineRefused
        If int8 is asked for on a processor that has none.
    ManifestInvalid, InputRefused
        If the cases cannot be listed, or one of them cannot be read.
    TooFewCases
        If there is none that the checkpoint was not trained on, or for int8 fewer than two that it was.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    """
    opened = open_checkpoint(find_checkpoint(checkpoint))
    if not runtime.installed():
        raise MissingPackage("imgpipe accept", seen="openvino is not installed",
                             remedy="Install imgpipe[openvino]")  # fmt: skip
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    cases = cases_of(opened, data)
    engines = {one: engines_of(opened, wanted="openvino", precision=one) for one in _tried()}
    made = int8_of(opened, cases, on_case, on_step) if int8 else None
    found = compared_with_torch(opened, {"int8": made.engines, **engines} if made else engines, data, cases, on_case)
    extras = opened.further_files(but=(FILE, *(files_of_all(opened.config.members) if int8 else ())))
    if made:
        found[0] = with_calibration(found[0], made)
        extras |= {} if found[0].why_not() else as_files(made.models)
    # What was not compared now was maybe compared on another machine, or is there already.
    now = {trial.precision for trial in found}
    trials = Trials(trials=(*(trial for trial in trials_of(opened) if trial.precision not in now), *found))
    extras[FILE] = (trials.model_dump_json(indent=1, exclude_none=True) + "\n").encode()
    return with_extras(out, opened, opened.metrics, extras), trials


def _tried() -> list[Precision]:
    """What can be compared of any checkpoint on this processor."""
    return ["bf16", "fp32"] if runtime.has_bf16() else ["fp32"]


def cases_of(checkpoint: Checkpoint, data: Path) -> list[Case] | list[ClassifiedCase]:
    """The cases of a manifest, as the checkpoint's task has them."""
    config = checkpoint.config
    return read_cases(data, config) if isinstance(config, ClassifyConfig) else read_manifest(data)


def compared_with_torch(
    checkpoint: Checkpoint,
    engines: Mapping[Precision, Engines],
    data: Path,
    cases: Sequence[Any],
    on_case: OnCase | None = None,
) -> list[Trial]:
    """Each of some engines, held against torch in fp32 on the cases of a manifest that compare engines.

    Raises
    ------
    TooFewCases
        If there is none that the checkpoint was not trained on.
    """
    reference = engines_of(checkpoint, wanted="torch", device="cpu", precision="fp32")
    side, own = own_cases(checkpoint, cases)
    compare = classified if isinstance(checkpoint.config, ClassifyConfig) else segmented
    compared = compare(checkpoint, reference, engines, own, on_case)
    speeds = _speeds(checkpoint, reference, engines)
    return [
        Trial(
            engine="openvino",
            precision=one,
            version=runtime.version(),
            processor=runtime.processor(),
            instructions=runtime.instructions(one),
            data=data.resolve().name,
            side=side,
            cases=len(own),
            compared=compared[one],
            speed=speeds[one],
        )
        for one in engines
    ]


def with_calibration(trial: Trial, made: Int8) -> Trial:
    """The trial of int8 with the cases that chose its scales and layers, and the layers that were spared."""
    own = {"calibrated": made.calibrated, "chosen_by": made.chosen_by, "spared": made.spared, "made_by": made_by()}
    return trial.model_copy(update=own)


def own_cases(checkpoint: Checkpoint, cases: Sequence[Any]) -> tuple[Side, list[Any]]:
    """The cases of a manifest that compare engines, and what they were to the checkpoint.

    Raises
    ------
    TooFewCases
        If there is none that the checkpoint was not trained on.
    """
    metrics = checkpoint.metrics
    trained = set(metrics.get("training", {}).get("names", ()))
    held_out = {name for side in ("validation", "cross_validation") for name in metrics.get(side, {}).get("each", ())}
    own = [case for case in cases if case.name in held_out - trained]
    if own:
        return "validation", own
    others = [case for case in cases if case.name not in trained]
    if not others:
        raise TooFewCases(f"checkpoint {checkpoint.name}", seen="it was trained on every case of the manifest",
                          expected="cases that it was not trained on were expected",
                          remedy="Give the manifest of its training, or other cases")  # fmt: skip
    return "other", others


def _speeds(checkpoint: Checkpoint, reference: Engines, engines: Mapping[Precision, Engines]) -> dict[Precision, float]:
    """How many times as fast as torch each is on the same tiles: medians of rounds, in turn, after one to warm up."""
    asked: dict[Precision | None, Engine] = {None: reference.members[0]}
    asked |= {one: found.members[0] for one, found in engines.items()}
    shape = tile_shape(checkpoint)
    batch = max(engine.batch for engine in asked.values())
    tiles = np.random.default_rng(0).standard_normal((batch, *shape[1:]), dtype=np.float32)
    seconds: dict[Precision | None, list[float]] = {one: [] for one in asked}
    for _ in range(1 + _ROUNDS):
        for one, engine in asked.items():
            begun = time.perf_counter()
            engine(tiles)
            seconds[one].append(time.perf_counter() - begun)
    medians = {one: statistics.median(found[1:]) for one, found in seconds.items()}
    return {one: round(medians[None] / medians[one], 2) for one in engines}
