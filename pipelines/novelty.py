"""What a checkpoint knows strange pictures or texts by, measured on the very cases that trained and validated it.

Invariant: what is usual is the training cases', and from where on a case is strange the validation cases'; its test
cases, where they are at hand, say how many are flagged that should not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.cases import Classed, ClassifiedCase, load_picture
from imaging.checkpoint import NetworkCheckpoint, TextCheckpoint
from imaging.classifier import Classifier
from imaging.config import JudgedConfig, TextConfig
from imaging.dataset_check import OnCase
from imaging.errors import TooFewCases
from imaging.novelty import FILE, Traits, familiar_of
from imaging.scores import share_with_interval
from imaging.text.cases import TextCase
from imaging.text.familiar import COUNTS
from imaging.text.reading import TextModel

# How many texts are read at a time, so that somebody who waits is told.
_TOGETHER = 128


def novelty_of(
    checkpoint: NetworkCheckpoint,
    config: JudgedConfig,
    sides: Mapping[str, Sequence[Any]],
    *,
    on_case: OnCase | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What a checkpoint keeps of its cases, as files by name, and what its metrics tell of that.

    Parameters
    ----------
    checkpoint
        Who is asked.
    config
        What trained it, with `calibrate.novelty`; it knows where an encoder lies.
    sides
        Its cases for ``train``, ``validation`` and, where there are any, ``test``; those without a class are left out.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Returns
    -------
    files, told
        `told` has ``false_flags``, ``embedding``, the ``aspects`` that are known, how many ``cases`` said so, and for
        the validation and test cases the share that is ``flagged``.

    Raises
    ------
    TooFewCases
        If there are too few validation cases for the share.
    """
    settings = config.calibrate.novelty
    assert settings is not None
    classed = {side: [case for case in cases if case.classes] for side, cases in sides.items()}
    if isinstance(checkpoint, TextCheckpoint):
        assert isinstance(config, TextConfig)
        traits, beside = _of_texts(TextModel(checkpoint, encoder=config.encoder), classed, on_case)
    else:
        traits, beside = _of_pictures(Classifier(checkpoint), classed, on_case), {}
    familiar = familiar_of(traits["train"], traits["validation"], settings)
    if not familiar.aspects:
        raise TooFewCases("calibrate.novelty", seen=f"{len(traits['validation'])} validation cases",
                          expected=f"enough for a share of {settings.false_flags:g} were expected",
                          remedy="Add cases, or allow more false flags")  # fmt: skip
    flagged = {
        side: share_with_interval(
            np.array([bool(familiar.reasons(one)) for one in traits[side]]), [case.patient for case in classed[side]]
        ).as_dict()
        for side in ("validation", "test")
        if traits.get(side)
    }
    told = {
        "false_flags": settings.false_flags,
        "embedding": settings.embedding,
        "aspects": list(familiar.aspects),
        "cases": {side: len(found) for side, found in traits.items()},
        "flagged": flagged,
    }
    return {FILE: familiar.to_bytes(beside)}, told


def _of_pictures(
    classifier: Classifier, sides: Mapping[str, Sequence[ClassifiedCase]], on_case: OnCase | None
) -> dict[str, list[Traits]]:
    told = _teller(sides, on_case)
    traits: dict[str, list[Traits]] = {}
    for side, cases in sides.items():
        traits[side] = []
        for case in cases:
            told(case)
            traits[side].append(classifier.ask(load_picture(case)).traits)
    return traits


def _of_texts(
    model: TextModel, sides: Mapping[str, Sequence[TextCase]], on_case: OnCase | None
) -> tuple[dict[str, list[Traits]], dict[str, NDArray[Any]]]:
    told = _teller(sides, on_case)
    vocabulary = model.vocabulary([case.text for case in sides["train"]])
    traits: dict[str, list[Traits]] = {}
    for side, cases in sides.items():
        traits[side] = []
        for at in range(0, len(cases), _TOGETHER):
            some = cases[at : at + _TOGETHER]
            for case in some:
                told(case)
            traits[side] += model.traits([case.text for case in some], vocabulary, own=side == "train")
    return traits, {COUNTS: vocabulary.counts_V}


class _Teller:
    """Counts the cases of all sides together."""

    def __init__(self, total: int, on_case: OnCase | None) -> None:
        self._total, self._on_case, self._number = total, on_case, 0

    def __call__(self, case: Classed) -> None:
        if self._on_case:
            self._on_case(case.name, self._number, self._total)
        self._number += 1


def _teller(sides: Mapping[str, Sequence[Any]], on_case: OnCase | None) -> _Teller:
    return _Teller(sum(map(len, sides.values())), on_case)
