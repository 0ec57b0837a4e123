"""What follows from the probabilities of a picture, a text or a whole study: normal, abnormal, or neither.

Invariant: a probability is judged by what the checkpoint's metrics say of its validation cases, and without them
nothing is judged. Imports no torch: whoever reports on what was said need not be able to say it.

Shapes: N cases, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import likeness
from imaging.checkpoint import Checkpoint
from imaging.config import TOGETHER, Code, JudgedConfig
from imaging.conformal import Conformal
from imaging.engines import EngineChoice
from imaging.heat_map import HeatMap
from imaging.volume import Volume

Assessment = Literal["normal", "abnormal", "indeterminate"]
# Which targets a map is made for.
Explained = Literal["abnormal", "all", "none"]

# What stands for several abnormal classes at once (SNOMED CT).
_ABNORMAL = Code(value="263654008", meaning="Abnormal")


@dataclass(frozen=True, slots=True)
class Target:
    """Something that a case is judged by.

    Attributes
    ----------
    name, title, category, code
        A class's own, or those of all abnormal classes together.
    classes
        Ids of the classes whose probabilities add up to it.
    abnormal
        Whether it is abnormal where it is there; what is neither is measured and not judged.
    """

    name: str
    title: str
    category: Code
    code: Code
    classes: tuple[int, ...]
    abnormal: bool

    def probability(self, probability_NK: NDArray[np.float64]) -> NDArray[np.float64]:
        """Its probability in each of N cases."""
        summed: NDArray[np.float64] = np.minimum(probability_NK[:, list(self.classes)].sum(axis=1), 1.0)
        return summed

    def truth(self, truth_NK: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether it is there in each of N cases."""
        return np.asarray(truth_NK[:, list(self.classes)].any(axis=1), dtype=np.bool_)


def targets_of(config: JudgedConfig) -> tuple[Target, ...]:
    """What a config's cases are judged by.

    With sigmoid each class is one. With softmax the abnormal classes together are the one that is judged; of more than
    two classes each is measured beside it.
    """
    single = tuple(Target(c.name, c.title, c.category, c.code, (c.id,), c.abnormal) for c in config.classes)
    if config.output == "sigmoid":
        return single
    abnormal = [item for item in single if item.abnormal]
    unjudged = tuple(Target(t.name, t.title, t.category, t.code, t.classes, False) for t in single)
    if not abnormal or len(abnormal) == len(single):
        return unjudged
    if len(abnormal) == 1:
        return (abnormal[0], *(item for item in unjudged if item.name != abnormal[0].name and len(single) > 2))
    classes = tuple(number for item in abnormal for number in item.classes)
    return (Target(TOGETHER, "Abnormal", abnormal[0].category, _ABNORMAL, classes, True), *unjudged)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was said of one target.

    Attributes
    ----------
    target
        Of what.
    probability
        Calibrated, where the checkpoint has a calibration.
    threshold
        From which on it is abnormal; None where the checkpoint has none.
    assessment, reason
        What follows, and why.
    strange
        Whether the picture is unlike all that the checkpoint knows, so that the number means nothing.
    """

    target: Target
    probability: float
    threshold: float | None
    assessment: Assessment
    reason: str
    strange: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Classification:
    """What one checkpoint said of one volume.

    Attributes
    ----------
    checkpoint
        Who said it.
    volume
        Of what.
    probability
        Of each class by its name.
    judgements
        One for each target.
    heat_maps
        Where that comes from, for those targets that were explained.
    novelty
        Why the volume is unlike those that trained the checkpoint, empty where it is like them; None where the
        checkpoint does not know what these were like.
    engine
        What computed it.
    """

    checkpoint: Checkpoint
    volume: Volume
    probability: dict[str, float]
    judgements: tuple[Judgement, ...]
    heat_maps: tuple[HeatMap, ...] = ()
    novelty: tuple[str, ...] | None = None
    engine: EngineChoice | None = None


def is_strange(thumbnails: NDArray[np.float64], calibration: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which of N thumbnails look less like the validation cases than the calibration allows."""
    familiar = calibration.get("familiar")
    if not familiar:
        return np.zeros(len(thumbnails), dtype=np.bool_)
    return np.asarray(likeness(thumbnails, np.array(familiar["template"])) < familiar["least"])


def judge(
    target: Target, probability: float, calibration: Mapping[str, Any], *, strange: str = "", of: str = "picture"
) -> Judgement:
    """What follows from a calibrated probability.

    Parameters
    ----------
    target, probability
        Of what, and how probable it is.
    calibration
        The checkpoint's: ``thresholds`` by target, ``margin``, and ``sensitivity`` that the threshold was chosen for,
        and ``conformal`` by target, where an error rate was asked for; empty where it has none.
    strange
        Why the case looks like nothing that the checkpoint knows; empty where it does not.
    of
        What the case is, for people.
    """
    threshold = (calibration.get("thresholds") or {}).get(target.name)
    if strange:
        # Before all else: of a case that it does not know no number means anything, whatever it is a number of.
        reason = f"The {of} is strange to the checkpoint: {strange}."
        return Judgement(target, probability, threshold, "indeterminate", reason, strange=True)
    if not target.abnormal:
        return Judgement(
            target, probability, threshold, "indeterminate", "Its presence alone is neither normal nor not."
        )
    if threshold is None:
        return Judgement(target, probability, None, "indeterminate", "The checkpoint has no threshold for it.")
    margin = calibration.get("margin", 0.0)
    if abs(probability - threshold) < margin:
        reason = f"Within {margin:g} of the threshold {threshold:.3f}: too close to call."
        return Judgement(target, probability, threshold, "indeterminate", reason)
    conformal = (calibration.get("conformal") or {}).get(target.name)
    bounds = Conformal.from_dict(conformal) if conformal else None
    goal = f"{calibration.get('sensitivity', 0):.0%}"
    return Judgement(target, probability, threshold, *assess(probability, threshold, bounds, goal=goal))


def assess(probability: float, threshold: float, bounds: Conformal | None, *, goal: str) -> tuple[Assessment, str]:
    """Normal, abnormal or indeterminate, and why.

    The threshold keeps the sensitivity, the bounds keep the error rate; where they say different things nobody is told
    either, so that both promises hold.

    Parameters
    ----------
    probability, threshold
        Calibrated, and from which on it is abnormal.
    bounds
        Of a conformal prediction; None where no error rate was asked for.
    goal
        The sensitivity that the threshold was chosen for, for people.
    """
    by_threshold: Assessment = "abnormal" if probability >= threshold else "normal"
    where = "At or above" if by_threshold == "abnormal" else "Below"
    reason = f"{where} the threshold {threshold:.3f}, chosen on validation cases for a sensitivity of at least {goal}."
    if bounds is None:
        return by_threshold, reason
    answer, rate = bounds.answer(probability), f"an error rate of {bounds.error_rate:.0%}"
    if answer == by_threshold:
        return by_threshold, f"{reason} Nothing else is left open at {rate}."
    if answer == "both":
        return "indeterminate", f"Neither normal nor abnormal can be left out at {rate}."
    if answer == "neither":
        return "indeterminate", f"It is like neither the normal nor the abnormal validation cases, at {rate}."
    return "indeterminate", f"{reason} At {rate} only {answer} is left open."
