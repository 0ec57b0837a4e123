"""`imgpipe train` for a fusion: ask the checkpoints, fit, calibrate, measure, publish.

Invariant: the training cases fit, the validation cases calibrate, and the test cases do neither; what the checkpoints
themselves were fitted on is none of them. Each set of parts that may be there is calibrated and measured as itself, on
all cases that have these parts and with the others hidden.

The run folder::

    config.yaml  split.json  data.json  versions.json  environment.json
    predictions.csv     each case with its side, its log-odds by part, and what each set of parts said of it
    checkpoint/         the published fusion
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import isotonic_of, temperature_of, threshold_for
from imaging.channels import read_image
from imaging.checkpoint import (
    Checkpoint,
    FusionCheckpoint,
    NetworkCheckpoint,
    TextCheckpoint,
    find_checkpoint,
    open_checkpoint,
    open_text,
    save_fusion,
)
from imaging.classifier import Classifier
from imaging.codes import shipped_codes
from imaging.config import FuseConfig, FusedImage, FusedText, find_config, load_any
from imaging.config.fuse import TEXT
from imaging.conformal import Conformal, conformal_of
from imaging.errors import ConfigInvalid, FusionMismatch, ImagingError, ManifestInvalid, TooFewCases, UnknownName
from imaging.files import write_whole
from imaging.fusion_cases import FusionCase, check_unlearnt, read_fusion_cases, split_fusion
from imaging.judgement import assess
from imaging.logistic import covariance_of_calibration, log_odds, logistic
from imaging.manifest import cases_of
from imaging.scores import auc, bootstrap_scores, scores_with_intervals, share_with_interval
from imaging.stacking import (
    LEAST_CASES,
    Case,
    Floats,
    Pattern,
    calibrated_log_odds,
    fit_stacked,
    having,
    images_in,
    log_odds_of,
    name_of,
    patterns_of,
    table_of,
)
from imaging.tasks.fuse import fit_network
from imaging.text.intake import read_text
from imaging.text.reading import TextReader
from pipelines.run_folder import data_digest, open_run, versions

_PREDICTIONS = "predictions.csv"
_DIGITS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FusionRun:
    """What a training of a fusion left behind: the run folder, and the published checkpoint in it."""

    folder: Path
    checkpoint: FusionCheckpoint


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """The cases of one side: as rows, their truth and their numbers."""

    cases: Sequence[FusionCase]
    truth_N: NDArray[np.bool_]
    values_NF: Floats
    there_NP: NDArray[np.bool_]

    @classmethod
    def of(cls, config: FuseConfig, cases: Sequence[FusionCase]) -> _Side:
        truth_N = np.array([case.abnormal for case in cases], dtype=np.bool_)
        return cls(cases, truth_N, *table_of(config, [case.case for case in cases]))


def train_fusion(
    *, config: Path, overrides: Sequence[str] = (), fold: int | None = None, out: Path | None = None
) -> FusionRun:
    """Train a fusion and publish it as a checkpoint.

    Parameters
    ----------
    config
        A config file with ``task: fuse``, or the name of a shipped one.
    overrides
        ``KEY=VALUE`` on top of it; ``data.root`` names the manifest.
    fold
        Which fold calibrates; overrides ``data.fold``.
    out
        The run folder; by default ``runs/<name>_fold<fold>``.

    Raises
    ------
    ConfigInvalid, ManifestInvalid
        If the config or the manifest cannot be used.
    FusionMismatch
        If a checkpoint is not the one whose weights the config names.
    LearntCases
        If a case has trained one of the checkpoints.
    PatientLeak
        If a given split puts cases of one patient, picture or text on two sides.
    TooFewCases
        If a set of parts has too few cases to be fitted or calibrated.
    """
    extra = [f"data.fold={fold}"] if fold is not None else []
    resolved = load_any(find_config(config), [*overrides, *extra])
    if not isinstance(resolved, FuseConfig):
        raise ConfigInvalid(config, seen=f"task: {resolved.task!r}", expected="task: fuse was expected")
    if resolved.data.root is None:
        raise ConfigInvalid("data.root", seen="not given", expected="the manifest's CSV was expected",
                            remedy="Add data.root=PATH to the command")  # fmt: skip
    shipped_codes().check("judged.code", resolved.judged.code)
    folder = out or Path("runs") / f"{resolved.name}_fold{resolved.data.fold}"
    listed = read_fusion_cases(Path(resolved.data.root), resolved)
    resolved, cases = asked_cases(resolved, listed)
    split = split_fusion(cases, resolved)
    sides = {side: _Side.of(resolved, members) for side, members in cases_of(split, cases).items() if members}
    for side in ("train", "validation"):
        check_enough(resolved, sides, side)
    open_run(folder, resolved, split, {case.name: _content(case) for case in cases}, resume=False)
    checkpoint, rows = publish(resolved, sides, folder)
    write_whole(folder / _PREDICTIONS, rows)
    return FusionRun(folder, checkpoint)


def asked_cases(config: FuseConfig, cases: Sequence[FusionCase]) -> tuple[FuseConfig, list[FusionCase]]:
    """The cases with what each checkpoint says of them, and the config with the hashes of these checkpoints.

    A part whose log-odds the manifest tells is not asked again. Its checkpoint is opened all the same, to look whether
    it has learnt these cases; but for a text's whose hash the config states, which need not be at hand then.
    """
    images, found = [], list(cases)
    for part in config.images:
        checkpoint = open_checkpoint(find_checkpoint(part.checkpoint or part.name))
        images.append(part.model_copy(update={"weights_sha256": _same(part, checkpoint)}))
        check_unlearnt(found, part.name, checkpoint.metrics.get("training", {}).get("names", ()))
        found = _asked(part, checkpoint, found)
    update: dict[str, Any] = {"images": tuple(images)}
    if config.text is not None and (config.text.weights_sha256 is None or _to_read(found)):
        reader = open_text(find_checkpoint(config.text.checkpoint or config.text.name))
        update["text"] = config.text.model_copy(update={"weights_sha256": _same(config.text, reader)})
        check_unlearnt(found, config.text.name, reader.metrics.get("training", {}).get("names", ()))
        found = _read(config.text, reader, found) if _to_read(found) else found
    return config.model_copy(update=update), found


def _to_read(cases: Sequence[FusionCase]) -> bool:
    """Whether there is a text whose log-odds are not told."""
    return any(case.text is not None and TEXT not in case.case.logits for case in cases)


def _same(part: FusedImage | FusedText, checkpoint: NetworkCheckpoint) -> str:
    if checkpoint.name != part.name:
        raise FusionMismatch(f"part {part.name}", seen=f"the checkpoint is called {checkpoint.name}")
    if part.weights_sha256 not in {None, checkpoint.weights_sha256}:
        raise FusionMismatch(f"part {part.name}", seen=f"weights of SHA-256 {checkpoint.weights_sha256[:12]}",
                             expected=f"{(part.weights_sha256 or '')[:12]} was expected")  # fmt: skip
    return checkpoint.weights_sha256


def _asked(part: FusedImage, checkpoint: Checkpoint, cases: Sequence[FusionCase]) -> list[FusionCase]:
    """Cases whose picture a checkpoint has been asked about; one that is strange to it has no such part."""
    if all(part.name in case.case.logits or case.image is None for case in cases):
        return list(cases)
    classifier, found, left_out = Classifier(checkpoint), [], 0
    for case in cases:
        if part.name in case.case.logits or case.image is None:
            found.append(case)
            continue
        try:
            said = classifier(read_image(case.image))
        except ImagingError as error:
            raise ManifestInvalid(f"case {case.name}", seen=f"its picture was refused: {error.code}") from error
        judged = {judgement.target.name: judgement for judgement in said.judgements}
        if part.target not in judged:
            raise UnknownName(f"target of {part.name}", seen=repr(part.target), expected=f"known: {', '.join(judged)}")
        judgement = judged[part.target]
        left_out += judgement.strange
        inside = min(max(judgement.probability, 1e-6), 1 - 1e-6)
        logits = {**case.case.logits, **({} if judgement.strange else {part.name: log_odds(inside)})}
        found.append(replace(case, case=Case(logits, case.case.facts)))
    if left_out:
        log.warning("%s: %d pictures are strange to it, and count as missing", part.name, left_out)
    return found


def _read(part: FusedText, checkpoint: TextCheckpoint, cases: Sequence[FusionCase]) -> list[FusionCase]:
    """Cases whose text a checkpoint has read; one that is strange to it has no such part.

    A text that is refused is told by its case, and never quoted.
    """
    if part.role not in checkpoint.config.applies_to.roles:
        roles = " and ".join(f"{role}s" for role in checkpoint.config.applies_to.roles)
        raise FusionMismatch(f"part {part.name}", seen=f"it reads {roles}", expected=f"{part.role}s were expected",
                             remedy="Take another text checkpoint, or another role")  # fmt: skip
    reader, found, left_out = TextReader(checkpoint), [], 0
    for case in cases:
        if TEXT in case.case.logits or case.text is None:
            found.append(case)
            continue
        try:
            said = reader(read_text(case.text, role=part.role))
        except ImagingError as error:
            raise ManifestInvalid(f"case {case.name}", seen=f"its text was refused: {error.code}") from error
        if said.assessment is None:
            raise FusionMismatch(
                f"part {part.name}", seen="it judges no texts", expected="one with classes was expected"
            )
        left_out += said.logit is None
        own = {} if said.logit is None else {TEXT: said.logit}
        found.append(replace(case, case=Case({**case.case.logits, **own}, case.case.facts)))
    if left_out:
        log.warning("%s: %d texts are strange to it, and count as missing", part.name, left_out)
    return found


def check_enough(config: FuseConfig, sides: Mapping[str, _Side], side: str) -> None:
    """Refuse a side on which a set of parts has too few cases of a kind.

    Raises
    ------
    TooFewCases
        With the set and what there is.
    """
    cases = sides[side]
    for pattern in patterns_of(config):
        chosen_N = having(config, cases.there_NP, pattern)
        ill = int((cases.truth_N & chosen_N).sum())
        least = min(ill, int(chosen_N.sum()) - ill)
        if least < LEAST_CASES:
            raise TooFewCases(f"{side} cases with {name_of(pattern)}", seen=f"{least} of a kind",
                              expected=f"at least {LEAST_CASES} normal and abnormal ones were expected",
                              remedy="Add cases that have these parts, change data.folds and data.test_fraction, or"
                              " leave a part out of the config")  # fmt: skip


def _content(case: FusionCase) -> str:
    """SHA-256 of what the training knows of a case."""
    told = [case.owner, case.abnormal, sorted(case.case.logits.items()), sorted(case.case.facts.items())]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def publish(config: FuseConfig, sides: Mapping[str, _Side], folder: Path) -> tuple[FusionCheckpoint, str]:
    """Fit, calibrate and measure; gives the checkpoint and predictions.csv."""
    train, fit = sides["train"], fit_stacked if config.train.method == "stacked" else fit_network
    weights = fit(config, train.values_NF, train.there_NP, train.truth_N)
    calibration = {
        name_of(pattern): _calibrated(config, weights, sides["validation"], pattern) for pattern in patterns_of(config)
    }
    said = {side: _said(config, weights, calibration, cases) for side, cases in sides.items()}
    metrics: dict[str, Any] = {"calibration": calibration}
    for side in ("validation", "test"):
        if side in sides:
            metrics[side] = measured(config, calibration, sides[side], said[side])
    metrics["training"] = {
        "cases": len(train.cases),
        "names": [case.name for case in train.cases],
        "config_sha256": config.digest(),
        **data_digest(folder),
        "versions": versions(),
    }
    return save_fusion(folder / "checkpoint", config, weights, metrics), _rows(config, sides, said)


def _calibrated(config: FuseConfig, weights: Mapping[str, Floats], side: _Side, pattern: Pattern) -> dict[str, Any]:
    """What the validation cases say of one set of parts; see `imaging.report.fusion`."""
    settings = config.calibrate
    chosen_N = having(config, side.there_NP, pattern)
    truth_N = side.truth_N[chosen_N]
    raw_N = log_odds_of(config, weights, side.values_NF[chosen_N], pattern)
    found: dict[str, Any] = {
        "temperature": round(temperature_of(raw_N[:, None], truth_N[:, None], softmax=False), _DIGITS)
    }
    if settings.isotonic:
        found["isotonic"] = isotonic_of(raw_N / found["temperature"], truth_N)
    logit_N = calibrated_log_odds(raw_N, found)
    probability_N = logistic(logit_N)
    owners = [case.owner for case, there in zip(side.cases, chosen_N, strict=True) if there]
    found |= {
        "cases": int(chosen_N.sum()),
        "prior": round(float(truth_N.mean()), _DIGITS),
        "covariance": covariance_of_calibration(logit_N, truth_N, owners).tolist(),
        "sensitivity": settings.sensitivity,
        "threshold": threshold_for(truth_N, probability_N, sensitivity=settings.sensitivity),
    }
    if settings.error_rate is not None:
        bounds = conformal_of(truth_N, probability_N, error_rate=settings.error_rate, by_class=settings.by_class)
        found["conformal"] = bounds.as_dict()
    return found


def _said(
    config: FuseConfig, weights: Mapping[str, Floats], calibration: Mapping[str, Mapping[str, Any]], side: _Side
) -> dict[Pattern, Floats]:
    """For each set of parts the probability of each case (N,); NaN where it does not have them."""
    found = {}
    for pattern in patterns_of(config):
        chosen_N = having(config, side.there_NP, pattern)
        probability_N = np.full(len(side.cases), np.nan)
        raw_N = log_odds_of(config, weights, side.values_NF[chosen_N], pattern)
        probability_N[chosen_N] = logistic(calibrated_log_odds(raw_N, calibration[name_of(pattern)]))
        found[pattern] = probability_N
    return found


def measured(
    config: FuseConfig,
    calibration: Mapping[str, Mapping[str, Any]],
    side: _Side,
    said: Mapping[Pattern, Floats],
) -> dict[str, Any]:
    """The figures of one side's cases.

    Returns
    -------
    dict
        ``cases``, ``patients``; under ``patterns`` for each set of parts ``cases``, ``scores`` with intervals over
        patients, the shares ``indeterminate`` and ``wrong`` (called what it is not); and ``gain``: how much greater the
        AUC of all parts is than that of the pictures alone, on the cases that have all.
    """
    owners = np.array([case.owner for case in side.cases])
    patterns = {}
    for pattern, probability_N in said.items():
        own = calibration[name_of(pattern)]
        known_N = ~np.isnan(probability_N)
        if not known_N.any():
            continue
        truth_N, told_N, patients = side.truth_N[known_N], probability_N[known_N], owners[known_N].tolist()
        scores = scores_with_intervals(truth_N, told_N, np.full(len(told_N), own["threshold"]), patients)
        bounds = Conformal.from_dict(own["conformal"]) if "conformal" in own else None
        answers = [assess(p, own["threshold"], bounds, goal="")[0] for p in told_N.tolist()]
        wrong = [answer == ("normal" if ill else "abnormal") for answer, ill in zip(answers, truth_N, strict=True)]
        patterns[name_of(pattern)] = {
            "cases": int(known_N.sum()),
            "scores": {name: figure.as_dict() for name, figure in scores.items()},
            "indeterminate": share_with_interval(
                np.array([answer == "indeterminate" for answer in answers]), patients
            ).as_dict(),
            "wrong": share_with_interval(np.array(wrong), patients).as_dict(),
        }
    return {
        "cases": len(side.cases),
        "patients": len(set(owners.tolist())),
        "patterns": patterns,
        "gain": _gain(config, side, said, owners),
    }


def _gain(
    config: FuseConfig, side: _Side, said: Mapping[Pattern, Floats], owners: NDArray[Any]
) -> dict[str, float | None] | None:
    every, pictures = said[config.parts], said[images_in(config, config.parts)]
    known_N = ~np.isnan(every)
    if not known_N.any():
        return None
    truth_N, every, pictures = side.truth_N[known_N], every[known_N], pictures[known_N]

    def measure(drawn: NDArray[np.int64]) -> dict[str, float]:
        return {"gain": auc(truth_N[drawn], every[drawn]) - auc(truth_N[drawn], pictures[drawn])}

    return bootstrap_scores(measure, owners[known_N].tolist())["gain"].as_dict()


def _rows(config: FuseConfig, sides: Mapping[str, _Side], said: Mapping[str, Mapping[Pattern, Floats]]) -> str:
    """``case``, ``split``, ``label``, ``logit_<part>``, ``probability_<parts>``; a cell is empty where nothing is."""
    text, parts = io.StringIO(), config.parts_asked
    writer = csv.writer(text, lineterminator="\n")
    patterns = patterns_of(config)
    heading = [*(f"logit_{part}" for part in parts), *(f"probability_{name_of(pattern)}" for pattern in patterns)]
    writer.writerow(["case", "split", "label", *heading])
    for side, cases in sides.items():
        for number, case in enumerate(cases.cases):
            logits = [case.case.logits.get(part) for part in parts]
            told = [float(said[side][pattern][number]) for pattern in patterns]
            cells = ["" if value is None or np.isnan(value) else round(value, _DIGITS) for value in (*logits, *told)]
            writer.writerow([case.name, side, int(case.abnormal), *cells])
    return text.getvalue()
