"""`imgpipe novelty`: give a classifier's checkpoint what it needs to know strange pictures by, without a new training.

Invariant: config and weights stay as they are, byte for byte, and so does their SHA-256; what is added is measured on
the very cases that trained and validated the checkpoint, by the names that its metrics have. Its test cases, where they
are at hand, say how many are flagged that should not be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imaging.cases import ClassifiedCase, load_picture, read_cases
from imaging.checkpoint import Checkpoint, find_checkpoint, open_checkpoint, with_extras
from imaging.classifier import Classifier
from imaging.config import Novelty
from imaging.dataset_check import OnCase
from imaging.errors import ManifestInvalid, OutputNotWritable, TooFewCases
from imaging.novelty import FILE, Traits, familiar_of
from imaging.scores import share_with_interval

_SIDES = ("train", "validation", "test")


def add_novelty(
    *,
    checkpoint: str,
    data: Path,
    out: Path,
    false_flags: float = Novelty().false_flags,
    embedding: str = Novelty().embedding,
    on_case: OnCase | None = None,
) -> Checkpoint:
    """Write a copy of a checkpoint that knows strange pictures.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    data
        The manifest that it was trained on; other cases in it are left alone.
    out
        The copy's folder, a new one.
    false_flags, embedding
        As `calibrate.novelty` of a config has them.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it does not say what a picture shows.
    ManifestInvalid
        If a case that trained or validated the checkpoint is not there.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    TooFewCases
        If there are too few validation cases for the share, or the checkpoint does not tell its own cases.
    """
    settings = Novelty.model_validate({"false_flags": false_flags, "embedding": embedding})
    opened = open_checkpoint(find_checkpoint(checkpoint))
    config = opened.classifier()
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    sides = _own_cases(opened, {case.name: case for case in read_cases(data, config)}, data)
    extras, told = novelty_of(opened, sides, settings, on_case=on_case)
    # What was measured before stays as it was measured.
    return with_extras(out, opened, {**opened.metrics, "novelty": {**told, "counted": False}}, extras)


def _own_cases(
    checkpoint: Checkpoint, cases: Mapping[str, ClassifiedCase], data: Path
) -> dict[str, list[ClassifiedCase]]:
    metrics = checkpoint.metrics
    names = {"train": list(metrics.get("training", {}).get("names", ()))}
    names |= {side: list(metrics.get(side, {}).get("each", ())) for side in _SIDES[1:]}
    for side in _SIDES[:2]:
        if not names[side]:
            raise TooFewCases(f"checkpoint {checkpoint.name}", seen=f"its metrics name no case for {side}",
                              expected="a checkpoint of one training was expected",
                              remedy="Set calibrate.novelty in its config and train it anew")  # fmt: skip
        absent = [name for name in names[side] if name not in cases]
        if absent:
            raise ManifestInvalid(data, seen=f"{len(absent)} cases for {side} are not there, such as {absent[0]!r}",
                                  expected="the manifest that the checkpoint was trained on was expected",
                                  remedy="Give that manifest")  # fmt: skip
    return {side: [cases[name] for name in own if name in cases] for side, own in names.items()}


def novelty_of(
    checkpoint: Checkpoint,
    sides: Mapping[str, Sequence[ClassifiedCase]],
    settings: Novelty,
    *,
    on_case: OnCase | None = None,
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """What a checkpoint keeps of its cases, as files by name, and what its metrics tell of that.

    Returns
    -------
    files, told
        `told` has ``false_flags``, ``embedding``, the ``aspects`` that are known, how many ``cases`` said so, for the
        validation and test cases the share that is ``flagged``, and whether those are ``counted`` among the
        indeterminate ones of the checkpoint's figures.
    """
    classifier = Classifier(checkpoint)
    total, traits = sum(map(len, sides.values())), dict[str, list[Traits]]()
    for side, cases in sides.items():
        begins = sum(map(len, traits.values()))
        traits[side] = []
        for number, case in enumerate(cases, start=begins):
            if on_case:
                on_case(case.name, number, total)
            traits[side].append(classifier.ask(load_picture(case)).traits)
    familiar = familiar_of(traits["train"], traits["validation"], settings)
    if not familiar.aspects:
        raise TooFewCases("calibrate.novelty", seen=f"{len(traits['validation'])} validation cases",
                          expected=f"enough for a share of {settings.false_flags:g} were expected",
                          remedy="Add cases, or allow more false flags")  # fmt: skip
    flagged = {
        side: share_with_interval(
            np.array([bool(familiar.reasons(one)) for one in traits[side]]), [case.patient for case in sides[side]]
        ).as_dict()
        for side in _SIDES[1:]
        if traits.get(side)
    }
    told = {
        "false_flags": settings.false_flags,
        "embedding": settings.embedding,
        "aspects": list(familiar.aspects),
        "cases": {side: len(found) for side, found in traits.items()},
        "flagged": flagged,
        "counted": True,
    }
    return {FILE: familiar.to_bytes()}, told
