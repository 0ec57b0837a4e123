"""What raised a classifier's probability, as values: on the network's grid, and on the image's own.

Invariant: a map says how it was made and how coarse that is. `imaging.explain` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["grad_cam_pp", "integrated_gradients"]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """What raised the log-odds of one thing, on the network's grid.

    Attributes
    ----------
    heat
        0 to 1, a share of its own greatest value; 0 where nothing raised them, and where something lowered them.
    method
        How it was made.
    layer, cells
        Whose feature map it rests on, and how many cells that has along each axis; empty for integrated gradients,
        whose cells are those of the network's grid.
    gap
        How far the attributions of integrated gradients are from adding up to what they explain, as a share of it.
    steps
        In how many steps they were integrated.
    """

    heat: NDArray[np.float32]
    method: Method
    layer: str
    cells: tuple[int, ...]
    gap: float | None
    steps: int | None


@dataclass(frozen=True, slots=True, eq=False)
class HeatMap:
    """An attribution on the image's own grid.

    Attributes
    ----------
    target
        The name of what it explains.
    heat_XYZ
        As `Attribution.heat`; NaN where the network saw nothing.
    attribution
        What it was made from.
    """

    target: str
    heat_XYZ: NDArray[np.float32]
    attribution: Attribution

    @property
    def seen(self) -> float:
        """The share of the image that the network saw."""
        return float(np.isfinite(self.heat_XYZ).mean())
