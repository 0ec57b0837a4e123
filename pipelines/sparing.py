"""Which layers of a network int8 leaves alone, so that what it says stays what the network says in fp32.

Invariant: layers are chosen by tiles of cases that trained the checkpoint and chose no scale. What is good enough is
the rule by which engines are accepted, with some room to spare; other cases say afterwards whether it is kept.

Errors of layers add as squares, nearly: each layer by itself in int8 says what it costs in agreement. Those that cost
most of it for the time that they save are given back first, as few as will do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imaging.calibrate import calibrated_probability, probability_of
from imaging.checkpoint import Checkpoint
from imaging.config import SegmentConfig
from imaging.engines import Engine
from imaging.engines.accepted import LARGEST_DIFFERENCE, LEAST_DICE
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.quantized import multiplications_of, quantized

if TYPE_CHECKING:
    import openvino

# What share of the difference that the rule allows may be there on the tiles.
_ROOM = 0.9
# How many tiles choose the scales where a layer is looked at by itself, and by how many it is looked at.
_FEW = 24

# Above this a region that is judged on its own is there.
_HALF = 0.5

Tile = NDArray[np.float32]
# Called with what is done now.
OnStep = Callable[[str], None]


class Mixed(NamedTuple):
    """A network in int8 but for some layers.

    Attributes
    ----------
    model
        The network.
    spared
        Names of the layers that stay as they are, the most harmful first.
    """

    model: openvino.Model
    spared: tuple[str, ...]


class Difference(NamedTuple):
    """How far an engine's answers are from those of another on some tiles.

    Attributes
    ----------
    mean
        Mean difference of a probability.
    share
        Of what the rule allows: 1 is at its bound. NaN where no structure is on any tile: nothing is as good as that.
    """

    mean: float
    share: float


def mixed(
    checkpoint: Checkpoint,
    model: Path | openvino.Model,
    *,
    tiles: Sequence[Tile],
    others: Sequence[Tile],
    on_step: OnStep | None = None,
) -> Mixed:
    """A network in int8 wherever that is harmless.

    Where all layers may be in int8 they are. Otherwise each is looked at by itself, and then the fewest are found that
    have to stay, by bisection: one quantization a layer on a few tiles, and on all tiles as many as the number of
    layers has binary digits. Where nothing but sparing all is enough, none is spared: that will not be accepted.

    Parameters
    ----------
    checkpoint
        Whose network it is; it says what a logit means.
    model
        In fp32.
    tiles
        (1, C, ...) each; they choose the scales.
    others
        Of other cases; they choose the layers.
    on_step
        Called before each quantization.
    """
    reference = OpenVinoEngine(model, precision="fp32")
    layers = multiplications_of(model)
    number = count(1)

    def tried(
        spared: Sequence[str], scaling: Sequence[Tile], choosing: Sequence[Tile]
    ) -> tuple[openvino.Model, Difference]:
        if on_step:
            on_step(f"int8: quantization {next(number)} of at most {1 + len(layers) + len(layers).bit_length()}")
        made = quantized(model, scaling, spared)
        return made, difference(checkpoint, reference, OpenVinoEngine(made, precision="int8"), choosing)

    whole, found = tried((), tiles, others)
    if found.share <= _ROOM:
        return Mixed(whole, ())
    few = tuple(each[:: -(-len(each) // _FEW)] for each in (tiles, others))
    # What of it is not in int8 has a difference of its own.
    rest = difference(checkpoint, reference, OpenVinoEngine(model, precision="int8"), few[1]).mean
    harm = {name: tried([other for other in layers if other != name], *few)[1].mean ** 2 - rest**2 for name in layers}
    order = sorted(layers, key=lambda name: -harm[name] / layers[name])
    best, low, high = Mixed(whole, ()), 1, len(order)
    while low < high:
        middle = (low + high) // 2
        made, found = tried(order[:middle], tiles, others)
        if found.share <= _ROOM:
            best, high = Mixed(made, tuple(order[:middle])), middle
        else:
            low = middle + 1
    return best


def difference(checkpoint: Checkpoint, reference: Engine, engine: Engine, tiles: Sequence[Tile]) -> Difference:
    """How far an engine's answers are from the reference's, by the rule of the checkpoint's task.

    For a segmenter that is the Dice of the structure that agrees least, over the voxels of all tiles together; for a
    classifier the greatest difference of a probability.
    """
    config, batch = checkpoint.config, max(reference.batch, engine.batch)
    means, largest = [], 0.0
    # For each structure how many voxels both give it, and how many each does together.
    both_S = either_S = np.zeros(len(config.labels) if isinstance(config, SegmentConfig) else 0, dtype=np.int64)
    for start in range(0, len(tiles), batch):
        asked_BC = np.concatenate(tiles[start : start + batch])
        for logits in zip(reference(asked_BC), engine(asked_BC), strict=True):
            first, second = (_probabilities(checkpoint, each_K) for each_K in logits)
            apart = np.abs(first - second)
            means.append(float(apart.mean()))
            largest = max(largest, float(apart.max()))
            if isinstance(config, SegmentConfig):
                one_S, other_S = _structures(config, first), _structures(config, second)
                both_S = both_S + (one_S & other_S).sum(axis=1)
                either_S = either_S + one_S.sum(axis=1) + other_S.sum(axis=1)
    if not isinstance(config, SegmentConfig):
        return Difference(float(np.mean(means)), largest / LARGEST_DIFFERENCE)
    seen_S = either_S > 0
    lost = float(np.max(1 - 2 * both_S[seen_S] / either_S[seen_S])) if seen_S.any() else float("nan")
    return Difference(float(np.mean(means)), lost / (1 - LEAST_DICE))


def _probabilities(checkpoint: Checkpoint, logits_K: NDArray[np.float32]) -> NDArray[np.float64]:
    """(N, K): of a tile's voxels, or of the one picture, as the checkpoint calibrates its classes."""
    config = checkpoint.config
    if isinstance(config, SegmentConfig):
        rows_NK = np.moveaxis(logits_K, 0, -1).reshape(-1, config.outputs).astype(np.float64)
        return probability_of(rows_NK, softmax=not config.overlapping, temperature=1.0)
    classes = checkpoint.classifier()
    logits_NK = logits_K[None, : len(classes.classes)].astype(np.float64)
    calibration = checkpoint.metrics.get("calibration") or {}
    return calibrated_probability(logits_NK, calibration, softmax=classes.output == "softmax")


def _structures(config: SegmentConfig, probability_NK: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Where each structure is found, (S, N)."""
    if config.overlapping:
        return np.asarray(probability_NK.T > _HALF)
    # Output 0 is the background.
    return np.asarray(probability_NK.argmax(axis=1) == np.arange(1, config.outputs)[:, None])
