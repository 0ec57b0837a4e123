"""One Volume in, one Classification out: what it shows, how probable that is, and whether that is normal.

Invariant: the checkpoint's own preprocessing goes in front of the network and nothing else; a probability is calibrated
and judged by what the checkpoint's metrics say of its validation cases, and without them nothing is judged.

Shapes: K classes; ``logits_K`` of one case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from imaging.calibrate import calibrated_probability, likeness
from imaging.checkpoint import Checkpoint, read_arrays
from imaging.config import TOGETHER, ClassifyConfig, Code, JudgedConfig
from imaging.conformal import Conformal
from imaging.engines import EngineChoice, Engines, Wanted, engines_of
from imaging.explain import Explainer, HeatMap
from imaging.gridding import affine_of_grid, classify_preprocessing
from imaging.novelty import FILE, Familiar, Traits, traits_of
from imaging.predict import Predictor, check_not_mask
from imaging.restore import restore_values
from imaging.selection import check_choice, check_fit, check_grey
from imaging.transforms import IMAGE, apply
from imaging.volume import Volume

Assessment = Literal["normal", "abnormal", "indeterminate"]
# Which targets a map is made for.
Explained = Literal["abnormal", "all", "none"]

# Pixels along an axis of the thumbnail that familiarity goes by.
_THUMBNAIL = 16
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


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The network's own numbers (K,), a thumbnail of what it was given, and what the picture is like.

    `novelty` is as in `Classification`.
    """

    logits_K: NDArray[np.float64]
    thumbnail: NDArray[np.float64]
    traits: Traits
    novelty: tuple[str, ...] | None


class Classifier:
    """A classifying checkpoint with its networks in memory; call it with a Volume.

    Parameters
    ----------
    checkpoint
        A verified checkpoint.
    device
        Of torch: ``cuda`` where there is one, else ``cpu``.
    engine
        What computes the scores, as in `imaging.predict.Predictor`; heat maps need gradients, which only torch has.

    Attributes
    ----------
    choice
        Which engine that is, and why.

    Raises
    ------
    WrongTask
        If the checkpoint does something else.
    CheckpointCorrupt
        If the weights do not fit the config's network.
    MissingPackage, EngineRefused
        If an engine was asked for by name that cannot be had.
    """

    def __init__(self, checkpoint: Checkpoint, *, device: str | None = None, engine: Wanted | Engines = "auto") -> None:
        config = checkpoint.classifier()
        self.checkpoint = checkpoint
        self._config = config
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepare = classify_preprocessing(config.preprocess)
        engines = engine if isinstance(engine, Engines) else engines_of(checkpoint, wanted=engine, device=device)
        self._engines, self.choice = engines
        self._explainer: Explainer | None = None
        kept = checkpoint.sums.get(FILE)
        self._familiar = Familiar.of_arrays(read_arrays(checkpoint.folder / FILE, kept)) if kept else None

    def __call__(self, volume: Volume) -> Classification:
        """Classify a picture or a volume.

        Raises
        ------
        NotApplicable
            If it is of another modality or kind, or beyond the checkpoint's limits.
        ConstantImage, LooksLikeMask
            If its pixels hold one value, or so few that it is no picture.
        """
        calibration = self.checkpoint.metrics.get("calibration") or {}
        answer = self.ask(volume)
        logits_1K = answer.logits_K[None]
        novelty = answer.novelty
        if is_strange(answer.thumbnail[None], calibration)[0]:
            novelty = (_UNLIKE, *(novelty or ()))
        softmax = self._config.output == "softmax"
        probability_1K = calibrated_probability(logits_1K, calibration, softmax=softmax)
        named = {item.name: float(probability_1K[0, item.id]) for item in self._config.classes}
        judgements = tuple(
            judge(target, float(target.probability(probability_1K)[0]), calibration, strange="; ".join(novelty or ()))
            for target in targets_of(self._config)
        )
        return Classification(self.checkpoint, volume, named, judgements, novelty=novelty, engine=self.choice)

    def ask(self, volume: Volume) -> Answer:
        """What the network says before any calibration; see the call for what is raised."""
        config = self._config
        check_choice(config.applies_to, volume.facts, named=True)
        check_grey(volume.facts, volume.array.shape[0])
        check_fit(config, volume.facts, volume.shape, volume.affine)
        check_not_mask(volume)
        values = self._prepared(volume)
        logits_K, embedding = self._logits(values[None].numpy())
        traits = traits_of(values.numpy(), volume.shape, volume.spacing, embedding)
        novelty = self._familiar.reasons(traits) if self._familiar else None
        return Answer(logits_K, _thumbnail(values), traits, novelty)

    def explain(self, said: Classification, *, of: Explained = "abnormal") -> Classification:
        """The same with a map of where the probabilities come from, on the image's own grid.

        Parameters
        ----------
        said
            What this classifier said of a volume.
        of
            ``abnormal`` explains what was judged abnormal, ``all`` every target, ``none`` nothing. A map of what was
            judged normal shows what spoke for it in vain, which is easily taken for a finding.

        Raises
        ------
        UnknownName, ConfigInvalid
            If the config's `explain` does not fit its network.
        """
        targets = [j.target for j in said.judgements if of == "all" or (of == "abnormal" and j.assessment == of)]
        if not targets:
            return said
        if self._explainer is None:
            from imaging.engines.torch_engine import networks_of

            networks = [network.to(self._device) for network in networks_of(self.checkpoint)]
            self._explainer = Explainer(self._config, networks)
        values = self._prepared(said.volume)[None].to(self._device)
        shape, affine = said.volume.shape, said.volume.affine
        grid = affine_of_grid(self._config.preprocess, shape, affine)
        found = self._explainer(values, [target.classes for target in targets])
        heat_maps = (
            HeatMap(target.name, restore_values(_with_slices(a.heat), grid, shape=shape, to_affine=affine), a)
            for target, a in zip(targets, found, strict=True)
        )
        return replace(said, heat_maps=tuple(heat_maps))

    def _prepared(self, volume: Volume) -> torch.Tensor:
        """What the network is given: (C, X, Y) or (C, X, Y, Z)."""
        image = apply(self._prepare, {IMAGE: volume.as_metatensor()}, subject=volume.facts.subject)[IMAGE]
        return torch.as_tensor(np.asarray(image))

    def _logits(self, image_1C: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Averaged over the flips that the config asks for, and over the members of an ensemble; and the embedding.

        That is the mean over the image of what the last stage of the first network gives, without a flip.

        Logits, not probabilities: a mean of calibrated probabilities is less sure than it should be (Ranjan and
        Gneiting, *Combining probability forecasts*, JRSS B 72 (2010) 71-91).
        """
        flips: list[tuple[int, ...]] = [()]
        for axis in self._config.predict.flip_axes:
            flips += [(*flip, axis + 2) for flip in flips]
        # The first flip of the first network is none.
        answers = [engine(np.flip(image_1C, flip))[0] for engine in self._engines for flip in flips]
        classes = len(self._config.classes)
        logits_NK = np.array([answer[:classes] for answer in answers], dtype=np.float64)
        return np.asarray(logits_NK.mean(axis=0)), answers[0][classes:].astype(np.float64)


def _with_slices(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """(X, Y) or (X, Y, Z) -> (X, Y, Z)."""
    return heat[..., None] if heat.ndim == 2 else heat


def _thumbnail(values: torch.Tensor) -> NDArray[np.float64]:
    """What the network was given, (C, ...), so small that only the coarse looks are left."""
    size = tuple(min(n, _THUMBNAIL) for n in values.shape[1:])
    small = torch.nn.functional.interpolate(values[None], size=size, mode="area")  # the mean over each pixel of it
    return np.asarray(small[0, 0].numpy(), dtype=np.float64)


def is_strange(thumbnails: NDArray[np.float64], calibration: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Which of N thumbnails look less like the validation cases than the calibration allows."""
    familiar = calibration.get("familiar")
    if not familiar:
        return np.zeros(len(thumbnails), dtype=np.bool_)
    return np.asarray(likeness(thumbnails, np.array(familiar["template"])) < familiar["least"])


_UNLIKE = "it does not look like those that the checkpoint was calibrated on"


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


def open_predictor(
    checkpoint: Checkpoint, *, device: str | None = None, engine: Wanted | Engines = "auto"
) -> Predictor | Classifier:
    """What a checkpoint is asked with, whatever its task."""
    if isinstance(checkpoint.config, ClassifyConfig):
        return Classifier(checkpoint, device=device, engine=engine)
    return Predictor(checkpoint, device=device, engine=engine)
