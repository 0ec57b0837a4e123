"""One Volume in, one Classification out: what it shows, how probable that is, and whether that is normal.

Invariant: the checkpoint's own preprocessing goes in front of the network and nothing else; a probability is calibrated
and judged by what the checkpoint's metrics say of its validation cases, and without them nothing is judged.

Shapes: K classes; ``logits_K`` of one case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from imaging.calibrate import calibrated_probability
from imaging.checkpoint import Checkpoint, read_arrays
from imaging.config import Size3
from imaging.engines import Engines, Wanted, engines_of
from imaging.errors import AnswerNotNumbers
from imaging.explain import Explainer
from imaging.gridding import affine_of_grid, classify_preprocessing
from imaging.heat_map import HeatMap
from imaging.judgement import Classification, Explained, is_strange, judge, targets_of
from imaging.memory import Budget, rising
from imaging.novelty import FILE, Familiar, Traits, traits_of
from imaging.predict import check_not_mask
from imaging.restore import restore_values
from imaging.selection import check_choice, check_fit, check_grey
from imaging.transforms import IMAGE, apply
from imaging.volume import Volume

# Pixels along an axis of the thumbnail that familiarity goes by.
_THUMBNAIL = 16
_UNLIKE = "it does not look like those that the checkpoint was calibrated on"


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
    budget
        What the process may have in memory at once; None for as much as it takes.

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

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | None = None,
        engine: Wanted | Engines = "auto",
        budget: Budget | None = None,
    ) -> None:
        config = checkpoint.classifier()
        self.checkpoint = checkpoint
        self._config = config
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepare = classify_preprocessing(config.preprocess)
        engines = engine if isinstance(engine, Engines) else engines_of(checkpoint, wanted=engine, device=device)
        self._engines, self.choice = engines
        self._budget, self._network_bytes = budget, 0
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
        MemoryTooSmall
            If it does not fit into the budget.
        AnswerNotNumbers
            If a network answers with NaN or infinity.
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
        self.check_room(volume.shape, subject=volume.facts.subject, channels=volume.array.shape[0])
        values = self._prepared(volume)
        logits_K, embedding = self._logits(values[None].numpy())
        traits = traits_of(values.numpy(), volume.shape, volume.spacing, embedding)
        novelty = self._familiar.reasons(traits) if self._familiar else None
        return Answer(logits_K, _thumbnail(values), traits, novelty)

    def check_room(self, shape: Size3, *, subject: str, channels: int = 1, unread: int = 0) -> None:
        """Refuse what cannot be classified within the budget, before memory is taken for it.

        What the gradients of an explanation take is not counted; its maps are.

        Parameters
        ----------
        shape, channels
            Of the picture or volume.
        subject
            What a refusal is about.
        unread
            How many times it is yet to be read.

        Raises
        ------
        MemoryTooSmall
            If it does not fit, with the smallest budget that would do.
        """
        if self._budget is None:
            return
        if not self._network_bytes:
            tile = np.zeros((1, 1, *self._config.preprocess.size), dtype=np.float32)
            with rising() as rise:
                self._logits(tile)
            self._network_bytes = rise.bytes + tile.nbytes
        voxels, grid = math.prod(shape), math.prod(self._config.preprocess.size)
        # Turned it is a copy; while it is resized there are two arrays, of which one is smaller.
        preparing = channels * (2 * voxels + 4 * grid)
        maps = len(targets_of(self._config)) * voxels
        needed = 4 * (channels * voxels * unread + preparing + maps) + self._network_bytes
        self._budget.check(needed, subject, "classifying it")

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
        if not np.isfinite(logits_NK).all():
            raise AnswerNotNumbers(self.checkpoint.name, seen="its network answered with NaN or infinity")
        return np.asarray(logits_NK.mean(axis=0)), answers[0][classes:].astype(np.float64)


def _with_slices(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """(X, Y) or (X, Y, Z) -> (X, Y, Z)."""
    return heat[..., None] if heat.ndim == 2 else heat


def _thumbnail(values: torch.Tensor) -> NDArray[np.float64]:
    """What the network was given, (C, ...), so small that only the coarse looks are left."""
    size = tuple(min(n, _THUMBNAIL) for n in values.shape[1:])
    small = torch.nn.functional.interpolate(values[None], size=size, mode="area")  # the mean over each pixel of it
    return np.asarray(small[0, 0].numpy(), dtype=np.float64)
