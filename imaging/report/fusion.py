"""What picture, words and facts say of one thing, each alone and together: always three numbers.

Invariant: a number of a part is that part's own; one that there is not is None, and `missing` says why. A text of the
role `report` was written by somebody who had seen the picture: what is fused with it is told and never judged by. A
fusion is only asked about the very checkpoints that it was trained with, by the SHA-256 of their weights.

Without a trained fusion log-odds are added, as is right for witnesses who err independently of each other:
``fused = prior + sum(logit_i - prior_i)``, all in log-odds, where ``prior_i`` is the share of the abnormal among the
cases that calibrated part i, and ``prior`` the one that is stated (Bordley, *A multiplicative formula for aggregating
probability assessments*, Management Science 28 (1982) 1137-1148). Picture and words are seldom independent, so this is
too sure of itself; it has no threshold, and the assessment is that of the picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import FusionCheckpoint, NetworkCheckpoint
from imaging.config import TOGETHER, Class, ClassifyConfig, FusedImage, FusedText
from imaging.config.fuse import FACTS, TEXT
from imaging.conformal import Conformal
from imaging.errors import FusionMismatch
from imaging.judgement import Assessment, Classification, Judgement, Target, assess, targets_of
from imaging.logistic import covariance_of_calibration, interval_of, log_odds, logistic
from imaging.report.report import FusionEntry, Score
from imaging.stacking import (
    Case,
    Pattern,
    calibrated_log_odds,
    images_in,
    log_odds_of,
    name_of,
    pattern_of,
    table_of,
)
from imaging.text.document import Document, Role

# Probabilities in metrics.json have five digits: no log-odds are further from 0 than those of half a unit of the last.
_LEAST = 5e-6


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """What one checkpoint said of the thing that is judged.

    Attributes
    ----------
    model, weights_sha256
        Who said it.
    logit
        Calibrated log-odds.
    prior
        The share of the abnormal among the cases that calibrated it; None where its checkpoint does not tell them.
    covariance_22
        How far its calibration may be off (`imaging.logistic.covariance_of_calibration`); None likewise.
    role
        Of a text.
    """

    model: str
    weights_sha256: str
    logit: float
    prior: float | None
    covariance_22: NDArray[np.float64] | None
    role: Role | None = None

    def score(self) -> Score:
        """As the report has it."""
        return _score(self.logit, self.covariance_22, f"{'text' if self.role else 'image'} {self.model}")


class Reading(Protocol):
    """What a fusion asks of a reading of a text: `imaging.text.answer.TextReading`."""

    @property
    def document(self) -> Document:
        """What was read."""

    @property
    def checkpoint(self) -> NetworkCheckpoint:
        """Who read it."""

    @property
    def logit(self) -> float | None:
        """Calibrated log-odds of an abnormal study; None where it does not judge."""


@dataclass(frozen=True, slots=True)
class Pictured:
    """What a checkpoint made of a picture: its part, or None and why there is none, and its own assessment."""

    model: str
    target: Target
    part: Part | None
    why_not: str
    assessment: Assessment
    reason: str


def judged_whole(config: ClassifyConfig) -> str | None:
    """The target that stands for an abnormal picture as a whole, by its name; None where no single one does.

    With softmax it is what is judged; with sigmoid a class of its own for any finding, or the only class.
    """
    judged = [target.name for target in targets_of(config) if target.abnormal]
    if config.output == "softmax" or len(judged) == 1:
        return judged[0] if judged else None
    return TOGETHER if TOGETHER in judged else None


def pictured(said: Classification, judgement: Judgement) -> Pictured:
    """What a classifier said of a target, as one part; nothing that is strange to it enters a fusion."""
    target, checkpoint = judgement.target, said.checkpoint
    told = (target, None, judgement.reason, judgement.assessment, judgement.reason)
    if judgement.strange:
        return Pictured(checkpoint.name, *told)
    order = [item.name for item in checkpoint.classifier().classes]
    prior, covariance_22 = calibration_of(checkpoint.metrics, order, target.classes)
    logit = log_odds(min(max(judgement.probability, _LEAST), 1 - _LEAST))
    part = Part(checkpoint.name, checkpoint.weights_sha256, logit, prior, covariance_22)
    return Pictured(checkpoint.name, target, part, "", judgement.assessment, judgement.reason)


def text_part(reading: Reading, *, classes: Sequence[Class]) -> Part | None:
    """What a text's checkpoint said of it, as one part; None where it does not judge texts.

    Parameters
    ----------
    reading
        What it said.
    classes
        Of its config, by their ids.
    """
    if reading.logit is None:
        return None
    checkpoint, ill = reading.checkpoint, [item.id for item in classes if item.abnormal]
    prior, covariance_22 = calibration_of(checkpoint.metrics, [item.name for item in classes], ill)
    return Part(checkpoint.name, checkpoint.weights_sha256, reading.logit, prior, covariance_22, reading.document.role)


def calibration_of(
    metrics: Mapping[str, Any], order: Sequence[str], chosen: Sequence[int]
) -> tuple[float | None, NDArray[np.float64] | None]:
    """The share of cases with one of some classes among those that calibrated a checkpoint, and how sure that makes it.

    Parameters
    ----------
    metrics
        Of the checkpoint: each validation (or cross-validated) case with its classes and calibrated probabilities. A
        case counts as a patient of its own, for they are not told.
    order
        The names of all classes by their ids.
    chosen
        Ids of some.

    Returns
    -------
    prior, covariance
        See `Part`; None where no case is told.
    """
    each = (metrics.get("validation") or metrics.get("cross_validation") or {}).get("each") or {}
    if not each:
        return None, None
    names = {order[number] for number in chosen}
    truth_N = np.array([bool(names.intersection(case["classes"])) for case in each.values()])
    probability_N = np.array([sum(case["probability"][number] for number in chosen) for case in each.values()])
    inside_N = np.clip(probability_N, _LEAST, 1 - _LEAST)
    logit_N = np.log(inside_N) - np.log1p(-inside_N)
    return float(truth_N.mean()), covariance_of_calibration(logit_N, truth_N, list(each))


class Fusion:
    """A trained fusion in memory.

    Parameters
    ----------
    checkpoint
        A verified one.
    """

    def __init__(self, checkpoint: FusionCheckpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self._weights = checkpoint.load_weights()

    def check(self, parts: Sequence[Part]) -> None:
        """Refuse parts of other checkpoints than it was trained with; one that it does not know is no concern of it.

        Raises
        ------
        FusionMismatch
            If a checkpoint has its name and not its weights, or none of those that look at pictures is among them.
        """
        known: dict[str, FusedImage | FusedText] = {part.name: part for part in self.config.images}
        known |= {self.config.text.name: self.config.text} if self.config.text else {}
        for part in parts:
            trained = known.get(part.model)
            if trained is not None and trained.weights_sha256 != part.weights_sha256:
                raise FusionMismatch(f"fusion {self.checkpoint.name}",
                                     seen=f"{part.model} has weights of SHA-256 {part.weights_sha256[:12]}",
                                     expected=f"{(trained.weights_sha256 or 'none')[:12]} was expected")  # fmt: skip
        if parts and not any(part.model in known for part in parts):
            names = ", ".join(sorted({part.model for part in parts}))
            raise FusionMismatch(f"fusion {self.checkpoint.name}", seen=f"only {names}",
                                 expected=f"one of {', '.join(sorted(known))} was expected")  # fmt: skip

    def case_of(self, images: Sequence[Part], text: Part | None, facts: Mapping[str, str]) -> Case:
        """What it is asked about: of the parts those that it knows, of a text only the role that it was trained on."""
        asked = {part.name for part in self.config.images}
        logits = {part.model: part.logit for part in images if part.model in asked}
        if text is not None and self.takes(text):
            logits[TEXT] = text.logit
        return Case(logits, facts)

    def takes(self, text: Part) -> bool:
        """Whether it was trained on what this checkpoint says of texts of this role."""
        settings = self.config.text
        return settings is not None and (settings.name, settings.role) == (text.model, text.role)

    def calibration(self, pattern: Pattern) -> Mapping[str, Any]:
        """What its validation cases said of a set of parts."""
        found: Mapping[str, Any] = self.checkpoint.metrics["calibration"][name_of(pattern)]
        return found

    def logit(self, case: Case, pattern: Pattern) -> float:
        """Calibrated log-odds of a case by some of its parts."""
        values_1F, _ = table_of(self.config, [case])
        raw_1 = log_odds_of(self.config, self._weights, values_1F, pattern)
        return float(calibrated_log_odds(raw_1, self.calibration(pattern))[0])

    def score(self, case: Case, pattern: Pattern, source: str) -> Score:
        """The same as the report has it."""
        covariance_22 = np.array(self.calibration(pattern)["covariance"])
        return _score(self.logit(case, pattern), covariance_22, source)


def added(parts: Sequence[Part], *, prior: float | None = None) -> tuple[Score, float] | None:
    """Log-odds added up, and the prior that they rest on; see the head of this module.

    Parameters
    ----------
    parts
        Two at least, whose priors are known; None is given otherwise.
    prior
        The share of the abnormal among those who are asked about; None takes the first part's.
    """
    priors = [part.prior for part in parts if part.prior is not None and 0 < part.prior < 1]
    if len(parts) < 2 or len(priors) < len(parts):
        return None
    stated = priors[0] if prior is None else prior
    logit = log_odds(stated) + sum(part.logit - log_odds(own) for part, own in zip(parts, priors, strict=True))
    variance = 0.0
    for part in parts:
        at_2 = np.array([1.0, part.logit])
        variance += float(at_2 @ part.covariance_22 @ at_2) if part.covariance_22 is not None else 0.0
    known = all(part.covariance_22 is not None for part in parts)
    covariance_22 = np.diag([variance, 0.0]) if known else None
    return _score(logit, covariance_22, "fused"), stated


def fuse_trained(
    fusion: Fusion, pictures: Sequence[Pictured], text: Part | None, facts: Mapping[str, str], *, no_text: str
) -> FusionEntry:
    """What a trained fusion says of a study.

    Parameters
    ----------
    fusion
        The fusion.
    pictures
        What the checkpoints said that look at pictures, each of the target that the fusion names.
    text
        What the text's checkpoint said; None where there is no text or it says nothing, and `no_text` then says why.
    facts
        Of the study, by the names that the config has.

    Raises
    ------
    FusionMismatch
        See `Fusion.check`.
    """
    config = fusion.config
    wanted = {(part.name, part.target) for part in config.images}
    known = [one for one in pictures if (one.model, one.target.name) in wanted]
    images = [one.part for one in known if one.part is not None]
    fusion.check([*images, *([text] if text else [])])
    circular = text is not None and text.role == "report"
    case = fusion.case_of(images, text, facts)
    pattern = pattern_of(config, case)
    seen = images_in(config, pattern)
    image = (
        images[0].score() if len(seen) == 1 else fusion.score(case, seen, "image " + ", ".join(seen)) if seen else None
    )
    fused = fusion.score(case, pattern, "fused") if len(pattern) > 1 else None
    decided = images_in(config, pattern) if circular else pattern
    assessment, reason = _assessed(fusion, case, decided, known, circular=circular)
    calibration = fusion.calibration(pattern) if pattern else {}
    return FusionEntry(
        name=config.judged.name,
        title=config.judged.title,
        code=config.judged.code,
        image=image,
        text=text.score() if text else None,
        text_role=text.role if text else None,
        fused=fused,
        method=config.train.method,
        model=fusion.checkpoint.name,
        prior=calibration.get("prior"),
        missing=_missing(fusion, known, pattern, text, no_text),
        assessment=assessment,
        assessment_reason=reason,
        error_rate=config.calibrate.error_rate,
        calibration=f"{fusion.calibration(decided)['cases']} validation cases with {' and '.join(decided)}"
        if decided
        else "",
    )


def _assessed(
    fusion: Fusion, case: Case, decided: Pattern, known: Sequence[Pictured], *, circular: bool
) -> tuple[Assessment, str]:
    strange = [one for one in known if one.part is None]
    if strange:
        return "indeterminate", strange[0].why_not
    if not decided:
        return "indeterminate", "None of the parts that the fusion knows is there but the report itself."
    calibration = fusion.calibration(decided)
    if calibration["threshold"] is None:
        return "indeterminate", "The fusion has no threshold for these parts."
    conformal = calibration.get("conformal")
    probability = float(logistic(np.array([fusion.logit(case, decided)]))[0])
    bounds = Conformal.from_dict(conformal) if conformal else None
    found, reason = assess(probability, calibration["threshold"], bounds, goal=f"{calibration['sensitivity']:.0%}")
    return found, f"{reason} {_CIRCULAR}" if circular else reason


_CIRCULAR = "The report was written of this picture: it takes no part in the assessment."


def _missing(
    fusion: Fusion, known: Sequence[Pictured], pattern: Pattern, text: Part | None, no_text: str
) -> tuple[str, ...]:
    """Why each part that the fusion knows is not there."""
    told = []
    why = {one.model: one.why_not for one in known if one.part is None}
    for part in fusion.config.parts:
        if part in pattern:
            continue
        if part == FACTS:
            told.append(f"facts: none of {', '.join(fact.name for fact in fusion.config.facts)} is told")
        elif part != TEXT:
            told.append(f"image {part}: {why.get(part, 'no picture of the study was given to it')}")
        elif text is None:
            told.append(f"text: {no_text}")
        else:
            told.append(f"text: the fusion was not trained with {text.role}s read by {text.model}")
    return tuple(told)


def fuse_added(picture: Pictured, text: Part | None, *, prior: float | None = None, no_text: str) -> FusionEntry:
    """What picture and words say where no fusion has been trained: added log-odds; see `fuse_trained`.

    Parameters
    ----------
    picture, text, no_text
        What a checkpoint said of one picture, and of the text.
    prior
        See `added`.
    """
    parts = [part for part in (picture.part, text) if part is not None]
    found = added(parts, prior=prior)
    missing = [] if picture.part else [f"image {picture.model}: {picture.why_not}"]
    missing += [] if text else [f"text: {no_text}"]
    if found is None and len(parts) > 1:
        missing.append("fused: a checkpoint does not tell the share of the abnormal that it was calibrated on")
    circular = text is not None and text.role == "report"
    note = _CIRCULAR if circular else "Added log-odds have no threshold: the assessment is that of the picture."
    return FusionEntry(
        name=picture.target.name,
        title=picture.target.title,
        code=picture.target.code,
        image=picture.part.score() if picture.part else None,
        text=text.score() if text else None,
        text_role=text.role if text else None,
        fused=found[0] if found else None,
        method="log_odds",
        prior=found[1] if found else None,
        missing=tuple(missing),
        assessment=picture.assessment,
        assessment_reason=f"{picture.reason} {note}" if text else picture.reason,
        calibration="each part on its own validation cases; that they err independently is assumed" if found else "",
    )


def fusion_entries(
    said: Sequence[Classification],
    text: Part | None,
    facts: Mapping[str, str],
    *,
    fusion: Fusion | None = None,
    prior: float | None = None,
    no_text: str = "none came with the study",
) -> tuple[FusionEntry, ...]:
    """Everything that is told of a study in three numbers.

    A fusion that was trained gives one entry of what it judges; every other classifier one of the target that stands
    for an abnormal picture as a whole, where it has one, if there is a text beside it.

    Parameters
    ----------
    said
        What the classifiers said of the study's series; of several series that one looked at, the likeliest is taken.
    text, facts, no_text
        See `fuse_trained`.
    fusion
        A trained one; None where there is none.
    prior
        See `added`.

    Raises
    ------
    FusionMismatch
        See `Fusion.check`.
    """
    every = [pictured(one, judgement) for one in said for judgement in one.judgements]
    pictures = {(one.model, one.target.name): one for one in sorted(every, key=_likely)}
    entries, trained = [], set()
    if fusion is not None:
        wanted = [(part.name, part.target) for part in fusion.config.images]
        entries.append(
            fuse_trained(fusion, [pictures[key] for key in wanted if key in pictures], text, facts, no_text=no_text)
        )
        # A text that it was not trained with is told beside each picture, added.
        trained = {model for model, _ in wanted if text is None or fusion.takes(text)}
    for checkpoint in {one.checkpoint.name: one.checkpoint for one in said}.values():
        whole = judged_whole(checkpoint.classifier())
        if whole is not None and text is not None and checkpoint.name not in trained:
            entries.append(fuse_added(pictures[checkpoint.name, whole], text, prior=prior, no_text=no_text))
    return tuple(entries)


def _likely(one: Pictured) -> float:
    return one.part.logit if one.part else -np.inf


def _score(logit: float, covariance_22: NDArray[np.float64] | None, source: str) -> Score:
    low, high = interval_of(logit, covariance_22) if covariance_22 is not None else (None, None)
    return Score(
        probability=round(float(logistic(np.array([logit]))[0]), 5),
        low=None if low is None else round(low, 5),
        high=None if high is None else round(high, 5),
        logit=round(logit, 5),
        source=source,
    )
