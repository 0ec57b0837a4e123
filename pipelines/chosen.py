"""The checkpoints of a call, told apart by what they do: look at pictures, read texts, bring both together.

Invariant: what is named is used or refused; where none of a kind is named, those of that kind that ship are used, and
one of them that is not what its checksums say is left out and told. No weights are read here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from imaging.checkpoint import (
    CARD,
    Checkpoint,
    FusionCheckpoint,
    TextCheckpoint,
    find_checkpoint,
    open_checkpoints,
    open_fusion,
    open_shipped,
    open_text,
    open_texts,
    task_of,
)
from imaging.errors import CheckpointCorrupt, DuplicateName, ImagingError


@dataclass(frozen=True, slots=True)
class Chosen:
    """The checkpoints of a call.

    Attributes
    ----------
    images, images_named
        Those that look at pictures, and whether they were named: then they are asked what their rule does not choose.
    texts
        Those that read texts.
    fusion
        One that was trained to bring the others together; None where none is named.
    unusable
        Shipped ones that were left out.
    """

    images: tuple[Checkpoint, ...]
    images_named: bool
    texts: tuple[TextCheckpoint, ...] = ()
    fusion: FusionCheckpoint | None = None
    unusable: tuple[ImagingError, ...] = ()

    def digests(self) -> list[list[str]]:
        """Of each that is asked its name, the SHA-256 of its weights, and digests of its config and of all its files.

        Thresholds, and what strange cases are known by, lie beside weights and config and decide as much as these; the
        model card decides nothing.
        """
        fusion = () if self.fusion is None else (self.fusion,)
        asked = (*self.images, *self.texts, *fusion)
        return [[one.name, one.weights_sha256, one.config.digest(), _digest_of(one.sums)] for one in asked]


def _digest_of(sums: Mapping[str, str]) -> str:
    """Of the files of a checkpoint but its card."""
    deciding = sorted((name, digest) for name, digest in sums.items() if name != CARD)
    return hashlib.sha256(json.dumps(deciding).encode()).hexdigest()


def choose(names: Sequence[str]) -> Chosen:
    """Open the named checkpoints, or those that ship.

    Parameters
    ----------
    names
        Of shipped checkpoints, or paths of folders.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt
        If a named one is not there, or not what its checksums say.
    DuplicateName
        If two of them have one name, or there are two fusions: a study is fused once.
    """
    folders = dict.fromkeys(find_checkpoint(name).resolve() for name in names)
    by_task: dict[str, list[str]] = {}
    for folder in folders:
        by_task.setdefault(task_of(folder), []).append(str(folder))
    fusions = [open_fusion(find_checkpoint(name)) for name in by_task.pop("fuse", [])]
    if len(fusions) > 1:
        raise DuplicateName("fusion", seen=f"{len(fusions)} fusions are named, and a study is fused once")
    texts = [open_text(find_checkpoint(name)) for name in by_task.pop("text", [])]
    named = [name for names in by_task.values() for name in names]
    fusion = fusions[0] if fusions else None
    if not named and not texts:
        # Together, so that each is verified once, and told once where it is damaged.
        shipped, unusable = open_shipped()
        images = [one for one in shipped if isinstance(one, Checkpoint)]
        texts = [one for one in shipped if isinstance(one, TextCheckpoint)]
        return Chosen(tuple(images), False, tuple(texts), fusion, tuple(unusable))
    images, unusable = open_checkpoints(named)
    unread: list[CheckpointCorrupt] = []
    if not texts:
        texts, unread = open_texts()
    return Chosen(tuple(images), bool(named), tuple(texts), fusion, (*unusable, *unread))
