"""The words of this room: an engine, and which one was chosen and why.

Shapes: B tiles, C channels, K outputs; ``tiles_BCXYZ``, or ``tiles_BCXY`` for a network that sees slices or pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

EngineName = Literal["torch", "openvino"]
Precision = Literal["fp32", "bf16", "int8"]
# What may be asked for; `auto` takes the fastest that the checkpoint has been accepted with.
Wanted = Literal["auto", "torch", "openvino"]


class Engine(Protocol):
    """One network, ready to be asked.

    Attributes
    ----------
    name, precision
        Who computes, and in what.
    batch
        How many tiles at once keep it busy; fewer take as long each or longer, more only take memory.
    """

    @property
    def name(self) -> EngineName:
        """Who computes."""

    @property
    def precision(self) -> Precision:
        """In what."""

    @property
    def batch(self) -> int:
        """How many tiles at once keep it busy."""

    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network says of some tiles.

        Parameters
        ----------
        tiles_BCXYZ
            Of the shape that the network was built for but for B, which is any number from 1 on.

        Returns
        -------
        ndarray
            Logits (B, K, X, Y, Z), of slices (B, K, X, Y). Of a classifier (B, K + E): the logits of its K classes, and
            after them an embedding of E numbers, the mean over the picture of what its last stage gives.
        """


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine answers for a checkpoint, as a report tells it.

    Attributes
    ----------
    name, precision
        Who computes, and in what.
    why
        What decided, and what was left for what reason.
    """

    name: EngineName
    precision: Precision
    why: str = ""
