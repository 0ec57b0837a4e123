"""`imgpipe calibrate`: another calibration for a checkpoint that is there already, without training it anew.

Invariant: the weights stay as they are, byte for byte, and so does everything that made them and every file that tells
of them alone; what is chosen anew is chosen on the very cases that validated the checkpoint, by the names that its
metrics have, and its config says so. Engines were accepted by the probabilities that they gave: where these become
others, the copy has been accepted with none.

A checkpoint of one training is asked about its held-out cases again, and says what a training with such a config would
have said. Of a cross-validation the networks of the other folds are not at hand: what they said of each case is in its
metrics, which is enough for an error rate; a temperature or a threshold would need the networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase, read_cases
from imaging.checkpoint import CONFIG, NetworkCheckpoint, find_checkpoint, open_network, save_checkpoint
from imaging.config import ClassifyConfig, JudgedConfig, NetworkConfig, SegmentConfig, find_config, load_network
from imaging.config.load import with_values
from imaging.conformal import Conformal
from imaging.dataset_check import OnCase
from imaging.engines import accepted
from imaging.errors import ConfigInvalid, ManifestInvalid, OutputNotWritable, TooFewCases, WrongTask
from imaging.manifest import Split
from imaging.novelty import FILE
from imaging.text.cases import TextCase
from pipelines.calibration import Applied, conformal_by_target, judged_by
from pipelines.measure_classifier import promises
from pipelines.novelty import novelty_of
from pipelines.publishing import publish_measured
from pipelines.run_folder import differing_keys
from pipelines.sides import Classified, Texts, list_for

_SIDES = ("train", "validation", "test")
# What decides no weight, and may be another.
_FREE = ("calibrate.", "applies_to.", "explain.", "card.", "title.", "version.", "tune.", "data.root.")
# Of these, what needs no network of another fold.
_OF_FOLDS = ("calibrate.error_rate.", "calibrate.by_class.", "calibrate.novelty.", *_FREE[1:])
# Probabilities in metrics.json have five digits: the bounds give way by half a unit of the last.
_HALF = 5e-6


def calibrate(
    *,
    checkpoint: str,
    data: Path,
    out: Path,
    config: Path | None = None,
    overrides: Sequence[str] = (),
    on_case: OnCase | None = None,
) -> NetworkCheckpoint:
    """Write a copy of a checkpoint with another calibration.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    data
        The manifest that it was trained on; other cases in it are left alone.
    out
        The copy's folder, a new one.
    config
        A config file, or the name of a shipped one, that says how it shall be calibrated; by default its own.
    overrides
        ``KEY=VALUE`` on top of that.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it judges no cases.
    ConfigInvalid
        If the config would have made other weights, or asks for what the checkpoint's metrics cannot say.
    ManifestInvalid
        If a case that trained or validated the checkpoint is not there.
    TooFewCases
        If there are too few validation cases, or the checkpoint does not tell its own cases.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    """
    opened = open_network(find_checkpoint(checkpoint))
    if isinstance(opened.config, SegmentConfig):
        raise WrongTask(f"checkpoint {opened.name}", seen="its task is segment",
                        expected="one that judges cases was expected")  # fmt: skip
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    asked = load_network(find_config(config) if config else opened.folder / CONFIG, overrides)
    _check(opened, asked)
    asked = with_values(asked, {"data.root": str(data), "members": opened.config.members})
    assert not isinstance(asked, SegmentConfig)  # its keys are those of the checkpoint's
    own = _own_cases(opened, asked, data)
    made = _of_folds if "cross_validation" in opened.metrics else _of_one
    return made(opened, asked, own, out, on_case)


def _check(checkpoint: NetworkCheckpoint, asked: NetworkConfig) -> None:
    """Refuse a config that would have made other weights."""
    folds = "cross_validation" in checkpoint.metrics
    published = asked.without_paths().model_dump()
    differing = differing_keys(
        checkpoint.config.model_dump(), published, but=(*(_OF_FOLDS if folds else _FREE), "members.")
    )
    if differing:
        expected = "those of the checkpoint were expected: " + (
            "of a cross-validation only an error rate and novelty can be chosen anew"
            if folds
            else "they made its weights"
        )
        raise ConfigInvalid(f"checkpoint {checkpoint.name}", seen=f"other values for {', '.join(sorted(differing))}",
                            expected=expected, remedy="Leave them as they are, or train it anew")  # fmt: skip


def _own_cases(
    checkpoint: NetworkCheckpoint, config: JudgedConfig, data: Path
) -> dict[str, list[ClassifiedCase] | list[TextCase]]:
    """Who trained, validated and tested it; of a fold's network the others' cases that it has seen are its own."""
    metrics = checkpoint.metrics
    names = {"train": list(metrics.get("training", {}).get("names", ()))}
    names |= {side: list(metrics.get(side, {}).get("each", ())) for side in _SIDES[1:]}
    trained = set(names["train"])
    names["validation"] += [name for name in metrics.get("cross_validation", {}).get("each", ()) if name not in trained]
    found = read_cases(data, config) if isinstance(config, ClassifyConfig) else list_for(config).cases
    cases: dict[str, Any] = {case.name: case for case in found}
    for side in _SIDES[:2]:
        if not names[side]:
            raise TooFewCases(f"checkpoint {checkpoint.name}", seen=f"its metrics name no case for {side}",
                              expected="a checkpoint with held-out cases of its own was expected",
                              remedy="Train it anew with such a config")  # fmt: skip
        absent = [name for name in names[side] if name not in cases]
        if absent:
            raise ManifestInvalid(data, seen=f"{len(absent)} cases for {side} are not there, such as {absent[0]!r}",
                                  expected="the manifest that the checkpoint was trained on was expected",
                                  remedy="Give that manifest")  # fmt: skip
    return {side: [cases[name] for name in own if name in cases] for side, own in names.items()}


def _told(config: JudgedConfig, data: Path) -> dict[str, str]:
    """What the metrics say of it: the config's digest, and the name of the data."""
    return {"config_sha256": config.digest(), "data": data.resolve().name}


def _no_longer_true(checkpoint: NetworkCheckpoint, config: JudgedConfig) -> tuple[str, ...]:
    """The files that told of the old calibration, too."""
    assert not isinstance(checkpoint.config, SegmentConfig)
    was, now = checkpoint.config.calibrate, config.calibrate
    same = (was.temperature, was.isotonic) == (now.temperature, now.isotonic)
    return (FILE,) if same else (FILE, accepted.FILE)


def _of_one(
    checkpoint: NetworkCheckpoint, config: JudgedConfig, sides: Mapping[str, Any], out: Path, on_case: OnCase | None
) -> NetworkCheckpoint:
    split = Split(*(tuple(case.name for case in sides[side]) for side in _SIDES))
    cases = Classified(config, split, sides) if isinstance(config, ClassifyConfig) else Texts(config, split, sides)
    told = {"training": checkpoint.metrics["training"], "calibrated": _told(config, Path(str(config.data.root)))}
    scratch = out.with_name(f".{out.name}.unmeasured")
    return publish_measured(
        cases,
        checkpoint.load_weights(),
        told,
        folder=out,
        scratch=scratch,
        beside=checkpoint.further_files(but=_no_longer_true(checkpoint, config)),
        on_case=on_case,
    )[0]


def _of_folds(
    checkpoint: NetworkCheckpoint, config: JudgedConfig, sides: Mapping[str, Any], out: Path, on_case: OnCase | None
) -> NetworkCheckpoint:
    metrics = {**checkpoint.metrics, "calibrated": _told(config, Path(str(config.data.root)))}
    own = {case.name: case.patient for cases in sides.values() for case in cases}
    metrics |= _with_error_rate(config, metrics, own)
    extras = checkpoint.further_files(but=(FILE,))
    metrics.pop("novelty", None)
    if config.calibrate.novelty is not None:
        kept, found = novelty_of(checkpoint, config, sides, on_case=on_case)
        extras |= kept
        metrics["novelty"] = {**found, "counted": False}
    return save_checkpoint(out, config, checkpoint.load_weights(), metrics, extras)


def _with_error_rate(config: JudgedConfig, metrics: Mapping[str, Any], patients: Mapping[str, str]) -> dict[str, Any]:
    """The calibration with the error rate of the config, and what it makes of the held-out cases of each fold.

    The bounds for the cases of one fold come from those of the other folds, as their thresholds did.
    """
    told, calibration = metrics["cross_validation"], dict(metrics["calibration"])
    calibration.pop("conformal", None)
    each = told["each"]
    fold_of = {name: number for number, fold in enumerate(told["folds"]) for name in fold["names"]}
    fold_N = np.array([fold_of[name] for name in each])
    classes = [item.name for item in config.classes]
    truth_NK = np.array([[name in case["classes"] for name in classes] for case in each.values()])
    probability_NK = np.array([case["probability"] for case in each.values()])

    def with_bounds(own: Mapping[str, Any], chosen_N: NDArray[np.bool_]) -> dict[str, Any]:
        if config.calibrate.error_rate is None:
            return dict(own)
        return {**own, "conformal": _widened(conformal_by_target(config, truth_NK[chosen_N], probability_NK[chosen_N]))}

    parts, order = [], []
    for number, fold in enumerate(told["folds"]):
        inside_N = fold_N == number
        own = {**calibration, "thresholds": fold["thresholds"]}
        parts.append(judged_by(config, probability_NK[inside_N], with_bounds(own, ~inside_N)))
        order += np.flatnonzero(inside_N).tolist()
    names = list(each)
    found = promises(config, truth_NK[order], Applied.joined(parts), [patients[names[at]] for at in order])
    return {
        "calibration": with_bounds(calibration, np.ones(len(each), dtype=np.bool_)),
        "cross_validation": {**told, **found},
    }


def _widened(bounds: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    found = {name: Conformal.from_dict(own) for name, own in bounds.items()}
    return {
        name: replace(
            own, abnormal_from=max(own.abnormal_from - _HALF, 0.0), normal_to=min(own.normal_to + _HALF, 1.0)
        ).as_dict()
        for name, own in found.items()
    }
