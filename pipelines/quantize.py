"""A checkpoint's networks in int8: on which tiles of which cases their scales and layers are chosen.

Invariant: only cases that trained the checkpoint choose, by tiles as inference cuts, scales and mirrors them: some the
scales, others the layers that int8 leaves alone. What says afterwards how good the result is are other cases.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase, load_picture
from imaging.checkpoint import Checkpoint
from imaging.classifier import Classifier
from imaging.dataset_check import OnCase
from imaging.engines import Engine, EngineChoice, Engines, engines_of, runtime
from imaging.engines.choice import converted_models
from imaging.engines.engine import EngineName, Precision
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.quantized import installed
from imaging.errors import EngineRefused, MissingPackage, TooFewCases
from imaging.manifest import Case
from imaging.predict import Predictor
from imaging.samples import load_case
from imaging.volume import Volume
from pipelines.sparing import OnStep, mixed

if TYPE_CHECKING:
    import openvino

# How many are looked at, and how many of them may be of one case.
_TILES, _OF_A_CASE = 120, 10
_SEED = 0


class Int8(NamedTuple):
    """A checkpoint's networks in int8.

    Attributes
    ----------
    models
        One for each network.
    engines
        The same, ready to be asked.
    calibrated, chosen_by
        Names of the cases that chose their scales, and of those that chose the layers.
    spared
        Of each network the layers that stay as they are.
    """

    models: tuple[openvino.Model, ...]
    engines: Engines
    calibrated: tuple[str, ...]
    chosen_by: tuple[str, ...]
    spared: tuple[tuple[str, ...], ...]


def int8_of(
    checkpoint: Checkpoint,
    cases: Sequence[Case] | Sequence[ClassifiedCase],
    on_case: OnCase | None = None,
    on_step: OnStep | None = None,
) -> Int8:
    """Quantize the networks of a checkpoint on cases that trained it.

    Parameters
    ----------
    checkpoint
        A verified checkpoint.
    cases
        Of its training's manifest; those that its metrics do not name as training cases are left alone.
    on_case
        Called before each case with its name, its number from 0 and how many there may be.
    on_step
        Called before each quantization with what is done.

    Raises
    ------
    MissingPackage
        If NNCF is not installed.
    EngineRefused
        If the processor has no int8 whose answers could be compared.
    TooFewCases
        If fewer than two of the cases trained the checkpoint.
    """
    subject = f"checkpoint {checkpoint.name} in int8"
    if not installed():
        raise MissingPackage(subject, seen="nncf is not installed", remedy="Install imgpipe[int8]")
    if not runtime.has_int8():
        limit = runtime.capped("int8")
        raise EngineRefused(subject, seen=f"this processor has no int8{f' ({limit})' if limit else ''}",
                            expected="one with VNNI or AMX was expected",
                            remedy="Compare int8 on a machine that has it")  # fmt: skip
    trained = set(checkpoint.metrics.get("training", {}).get("names", ()))
    own = sorted((case for case in cases if case.name in trained), key=lambda case: case.name)
    if len(own) < len(("scales", "layers")):
        raise TooFewCases(subject, seen=f"{len(own) or 'none'} of the manifest's cases trained it",
                          expected="two cases of its training were expected, for they choose scales and layers of int8",
                          remedy="Give the manifest of its training")  # fmt: skip
    random.Random(_SEED).shuffle(own)
    half = len(own) // 2
    tiles, calibrated = _tiles_of(checkpoint, own[:half], on_case)
    others, chosen_by = _tiles_of(checkpoint, own[half:], on_case)
    made = tuple(
        mixed(checkpoint, model, tiles=tiles, others=others, on_step=on_step) for model in converted_models(checkpoint)
    )
    members = tuple(OpenVinoEngine(one.model, precision="int8") for one in made)
    return Int8(
        models=tuple(one.model for one in made),
        engines=Engines(members, EngineChoice("openvino", "int8")),
        calibrated=calibrated,
        chosen_by=chosen_by,
        spared=tuple(one.spared for one in made),
    )


def _tiles_of(
    checkpoint: Checkpoint, cases: Sequence[Case | ClassifiedCase], on_case: OnCase | None
) -> tuple[list[NDArray[np.float32]], tuple[str, ...]]:
    """What the first network is asked of one case after another, until there is enough; and of which cases."""
    engines = engines_of(checkpoint, wanted="openvino", precision="fp32")
    listening = _Listening(engines.members[0])
    asked = Engines((listening,), engines.choice)
    ask = Predictor(checkpoint, engine=asked) if checkpoint.config.task == "segment" else Classifier(
        checkpoint, engine=asked
    )  # fmt: skip
    tiles: list[NDArray[np.float32]] = []
    names = []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        ask(_volume(checkpoint, case))
        tiles += listening.taken()
        names.append(case.name)
        if len(tiles) >= _TILES:
            break
    return tiles[:_TILES], tuple(sorted(names))


def _volume(checkpoint: Checkpoint, case: Case | ClassifiedCase) -> Volume:
    if isinstance(case, ClassifiedCase):
        return load_picture(case)
    config = checkpoint.segmenter()
    return load_case(case, values=config.mask_values, channels=len(config.scales))[0]


class _Listening:
    """An engine that keeps some of the tiles that it is asked for, each as likely as any other.

    Vitter, *Random sampling with a reservoir*, ACM TOMS 11 (1985) 37-57, algorithm R.
    """

    def __init__(self, engine: Engine) -> None:
        self.name: EngineName = engine.name
        self.precision: Precision = engine.precision
        self.batch = engine.batch
        self._engine = engine
        self._kept: list[NDArray[np.float32]] = []
        self._seen = 0
        self._random = random.Random(_SEED)

    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """See `imaging.engines.Engine`."""
        for tile_CXYZ in tiles_BCXYZ:
            self._seen += 1
            place = len(self._kept) if len(self._kept) < _OF_A_CASE else self._random.randrange(self._seen)
            if place < _OF_A_CASE:
                self._kept[place : place + 1] = [np.array(tile_CXYZ)[np.newaxis]]
        return self._engine(tiles_BCXYZ)

    def taken(self) -> list[NDArray[np.float32]]:
        """The tiles (1, C, ...) that were kept since the last time."""
        kept, self._kept, self._seen = self._kept, [], 0
        return kept
