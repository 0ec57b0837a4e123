"""The checkpoints of a call on a device of a node: those, by their checksums, that the call was made with.

Invariant: a node whose checkpoints would say something else says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.errors import (
    CheckpointCorrupt,
    CheckpointNotOnNode,
    EncoderUnusable,
    MissingPackage,
    NodeUnfit,
    UnknownCheckpoint,
)
from imaging.files import sha256_of
from imaging.report.findings import refusals_of
from imaging.text.encoder import folder_of
from pipelines.infer import Inference
from pipelines.store.content import job_name

if TYPE_CHECKING:
    from pipelines.asking import Source
    from pipelines.reporting import StudyResult


def told_of(inference: Inference) -> dict[str, str]:
    """Each checkpoint by its name, with what tells it from any other; of one that reads texts whether it can."""
    chosen = inference.chosen
    told = {
        name: f"weights {weights[:12]}, config {config[:12]}, all files {files[:12]}"
        for name, weights, config, files in chosen.digests()
    }
    for one in chosen.texts:
        try:
            folder_of(one.config.encoder)
        except (MissingPackage, EncoderUnusable) as error:
            told[one.name] += f", {error.code}"
    return told


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """How the checkpoints of a call are opened on a node; see `pipelines.cluster.seat.Opening`.

    Attributes
    ----------
    options
        Of `pipelines.infer.Inference`.
    told, setup
        Of the checkpoints as the call opened them.
    """

    options: Mapping[str, Any]
    told: Mapping[str, str]
    setup: str

    def open(self) -> Warm:
        """Open them, and read their weights.

        Raises
        ------
        CheckpointNotOnNode
            If one is missing, damaged, or another one.
        NodeUnfit
            If this is another version of imgpipe.
        """
        try:
            inference = Inference(**self.options)
        except (UnknownCheckpoint, CheckpointCorrupt) as error:
            raise CheckpointNotOnNode("node", seen=f"{error.code}: {error.subject}: {error.seen}") from error
        here = told_of(inference)
        for name, expected in self.told.items():
            if here.get(name) != expected:
                raise CheckpointNotOnNode("node", seen=f"{name}: {here.get(name, 'is missing, or damaged')}",
                                          expected=f"{expected} was expected")  # fmt: skip
        if inference.setup != self.setup:
            raise NodeUnfit("node", seen="another version of imgpipe, or further checkpoints that ship")
        inference.warm_up()
        return Warm(inference)


class Warm:
    """A `Reporter` with the checkpoints in memory."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference

    def job_of(self, source: Source) -> str:
        """The digest of all that decides the result of a study; see `pipelines.cluster.seat.Reporter`."""
        return job_of(source, self._inference.setup)

    def report(self, source: Source, out: Path) -> StudyResult:
        """Report on a study into a folder of `out`."""
        return self._inference.report(source, out)


def job_of(source: Source, setup: str) -> str:
    """The digest of all that decides the result of a study.

    Raises
    ------
    OSError
        If a file cannot be read.
    """
    return job_name(
        setup,
        source.entry.model_dump(mode="json"),
        # A study is the same wherever its files lie and whatever they are called.
        sorted(map(sha256_of, source.files)),
        [[file.name, sha256_of(file)] for file in source.pictures],
        [[document.role, document.sha256] for document in source.documents],
        [refusal.model_dump(mode="json") for refusal in refusals_of(source.refused)],
    )
