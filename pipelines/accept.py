"""`imgpipe accept`: compare the engines of this machine with torch in fp32, on a checkpoint's own cases.

Invariant: config, weights and metrics stay as they are; what is added is `engines.json`, and an engine is accepted by
`imaging.engines.accepted` alone, not by what was hoped for. No case that fitted the weights says anything here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase, load_picture, read_cases
from imaging.checkpoint import (
    CARD,
    CONFIG,
    METRICS,
    WEIGHTS,
    Checkpoint,
    find_checkpoint,
    open_checkpoint,
    read_verified,
    with_extras,
)
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig
from imaging.dataset_check import OnCase
from imaging.engines import Engines, Precision, engines_of, runtime
from imaging.engines.accepted import FILE, Compared, Trial, Trials, trials_of
from imaging.errors import MissingPackage, OutputNotWritable, TooFewCases
from imaging.manifest import Case, read_manifest
from imaging.predict import Predictor
from imaging.samples import load_case
from imaging.scores import auc
from imaging.structures import structure_of, truth_of

Side = Literal["validation", "test", "other"]


def accept(*, checkpoint: str, data: Path, out: Path, on_case: OnCase | None = None) -> tuple[Checkpoint, Trials]:
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
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it does not look at images.
    MissingPackage
        If OpenVINO is not installed.
    ManifestInvalid, InputRefused
        If the cases cannot be listed, or one of them cannot be read.
    TooFewCases
        If there is none that the checkpoint was not trained on.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    """
    opened = open_checkpoint(find_checkpoint(checkpoint))
    if not runtime.installed():
        raise MissingPackage("imgpipe accept", seen="openvino is not installed",
                             remedy="Install imgpipe[openvino]")  # fmt: skip
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    tried: list[Precision] = ["bf16", "fp32"] if runtime.has_bf16() else ["fp32"]
    reference = engines_of(opened, wanted="torch", device="cpu", precision="fp32")
    engines = {one: engines_of(opened, wanted="openvino", precision=one) for one in tried}
    if isinstance(opened.config, ClassifyConfig):
        side, cases = own_cases(opened, read_cases(data, opened.config))
        compared = _classified(opened, reference, engines, cases, on_case)
    else:
        side, cases = own_cases(opened, read_manifest(data))
        compared = _segmented(opened, reference, engines, cases, on_case)
    # What this processor cannot compute in was maybe compared on another one.
    earlier = [trial for trial in trials_of(opened) if trial.precision not in tried]
    found = [_trial(one, by_name, data, side, len(cases)) for one, by_name in compared.items()]
    trials = Trials(trials=(*earlier, *found))
    extras = {name: read_verified(opened.folder / name, digest) for name, digest in opened.sums.items()
              if name not in (CONFIG, WEIGHTS, METRICS, CARD)}  # fmt: skip
    extras[FILE] = (trials.model_dump_json(indent=1, exclude_none=True) + "\n").encode()
    return with_extras(out, opened, opened.metrics, extras), trials


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


def _trial(precision: Precision, compared: dict[str, Compared], data: Path, side: Side, cases: int) -> Trial:
    return Trial(
        engine="openvino",
        precision=precision,
        version=runtime.version(),
        processor=runtime.processor(),
        data=data.resolve().name,
        side=side,
        cases=cases,
        compared=compared,
        accepted=not any(one.why_not() for one in compared.values()),
    )


def _segmented(
    checkpoint: Checkpoint,
    reference: Engines,
    engines: Mapping[Precision, Engines],
    cases: Sequence[Case],
    on_case: OnCase | None,
) -> dict[Precision, dict[str, Compared]]:
    """By precision and structure."""
    config = checkpoint.segmenter()
    torch, others = Predictor(checkpoint, engine=reference), {
        one: Predictor(checkpoint, engine=found) for one, found in engines.items()
    }  # fmt: skip
    # (with torch's mask, with the truth, torch's with the truth) of each case.
    figures: dict[Precision, dict[str, list[tuple[float, float, float]]]] = {
        one: {label.name: [] for label in config.labels} for one in engines
    }
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        image, mask = load_case(case, values=config.mask_values, channels=len(config.scales))
        truth, expected = truth_of(mask.array[0], config), torch(image).found
        for one, predictor in others.items():
            found = predictor(image).found
            for label in config.labels:
                masks = [structure_of(each, label) for each in (found, expected, truth)]
                figures[one][label.name].append(
                    (overlap(masks[0], masks[1]), overlap(masks[0], masks[2]), overlap(masks[1], masks[2]))
                )
    return {one: {name: _of_masks(np.array(rows)) for name, rows in each.items()} for one, each in figures.items()}


def overlap(mask_XYZ: NDArray[np.bool_], other_XYZ: NDArray[np.bool_]) -> float:
    """Dice of two masks; 1 where both are empty, for then they agree."""
    total = int(mask_XYZ.sum()) + int(other_XYZ.sum())
    return 2 * int((mask_XYZ & other_XYZ).sum()) / total if total else 1.0


def _of_masks(figures_N3: NDArray[np.float64]) -> Compared:
    with_torch, dice, of_torch = figures_N3.mean(axis=0).round(5).tolist()
    return Compared(dice_with_torch=with_torch, least_dice_with_torch=round(float(figures_N3[:, 0].min()), 5),
                    dice=dice, dice_of_torch=of_torch)  # fmt: skip


def _classified(
    checkpoint: Checkpoint,
    reference: Engines,
    engines: Mapping[Precision, Engines],
    cases: Sequence[ClassifiedCase],
    on_case: OnCase | None,
) -> dict[Precision, dict[str, Compared]]:
    """By precision and class."""
    names = [item.name for item in checkpoint.classifier().classes]
    classifiers = [Classifier(checkpoint, engine=found) for found in (reference, *engines.values())]
    rows = []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        picture = load_picture(case)
        rows.append([[said.probability[name] for name in names] for said in (one(picture) for one in classifiers)])
    truth_NK = np.array([[name in case.classes for name in names] for case in cases], dtype=np.bool_)
    probability_NEK = np.array(rows)
    return {
        one: {
            name: _of_probabilities(truth_NK[:, k], probability_NEK[:, 0, k], probability_NEK[:, number, k])
            for k, name in enumerate(names)
        }
        for number, one in enumerate(engines, start=1)
    }


def _of_probabilities(
    truth_N: NDArray[np.bool_], torch_N: NDArray[np.float64], engine_N: NDArray[np.float64]
) -> Compared:
    both = bool(truth_N.any()) and not bool(truth_N.all())
    return Compared(
        difference=round(float(np.abs(torch_N - engine_N).max()), 5),
        auc=round(auc(truth_N, engine_N), 5) if both else None,
        auc_of_torch=round(auc(truth_N, torch_N), 5) if both else None,
    )
