"""Checkpoints in a worker's memory: each once, whichever rules name it, and within a budget those used last.

Invariant: a checkpoint that is asked for is given, whatever the budget; before it is opened, those that were not used
for the longest leave until there is room, and that is told. Who is just being asked keeps its memory until it has
answered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imaging.checkpoint import Checkpoint

if TYPE_CHECKING:
    from imaging.classifier import Classifier
    from imaging.predict import Predictor

log = logging.getLogger(__name__)

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class _Held:
    name: str
    asked: Predictor | Classifier
    size: int


class Shelf:
    """Opens checkpoints and keeps them.

    Parameters
    ----------
    open_one
        Opens a checkpoint.
    most_bytes
        Of weights, by the size of their files; None is without bound.
    """

    def __init__(
        self, open_one: Callable[[Checkpoint], Predictor | Classifier], *, most_bytes: int | None = None
    ) -> None:
        self._open, self._most = open_one, most_bytes
        # In the order in which they were used.
        self._held: dict[tuple[str, str, str], _Held] = {}
        self._lock = threading.Lock()

    def __call__(self, checkpoint: Checkpoint) -> Predictor | Classifier:
        """A checkpoint, opened.

        Raises
        ------
        CheckpointCorrupt
            As opening it says.
        """
        key = (str(checkpoint.folder), checkpoint.weights_sha256, checkpoint.config.digest())
        with self._lock:
            held = self._held.pop(key, None)
            if held is None:
                size = size_of(checkpoint)
                self._make_room(size, checkpoint.name)
                held = _Held(checkpoint.name, self._open(checkpoint), size)
            self._held[key] = held
            return held.asked

    def has_room(self, checkpoint: Checkpoint) -> bool:
        """Whether it can be opened without another one's leaving."""
        with self._lock:
            return self._most is None or self._size() + size_of(checkpoint) <= self._most

    def names(self) -> list[str]:
        """What is in memory, the one that was used last at the end."""
        with self._lock:
            return [held.name for held in self._held.values()]

    def _size(self) -> int:
        return sum(held.size for held in self._held.values())

    def _make_room(self, size: int, wanted: str) -> None:
        if self._most is None:
            return
        while self._held and self._size() + size > self._most:
            held = self._held.pop(next(iter(self._held)))
            log.warning("checkpoint %s leaves memory for %s: there is room for %d MiB", held.name, wanted,
                        self._most // _MIB)  # fmt: skip
        if size > self._most:
            log.warning("checkpoint %s takes %d MiB, and there is room for %d", wanted, size // _MIB,
                        self._most // _MIB)  # fmt: skip


def size_of(checkpoint: Checkpoint) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(file.stat().st_size for file in checkpoint.folder.glob("*.safetensors"))
