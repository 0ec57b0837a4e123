"""The OpenVINO engine: one network on a CPU, several tiles at a time.

Invariant: it needs neither torch nor MONAI. Each tile is computed by itself, so that what it says of a tile does not
depend on the tiles beside it.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imaging.engines.engine import EngineName, Precision
from imaging.engines.runtime import compiled, runtime

if TYPE_CHECKING:
    import openvino


class OpenVinoEngine:
    """One network in OpenVINO; see `imaging.engines.Engine`.

    Parameters
    ----------
    model
        Of one tile at a time, from a file or in memory.
    precision
        What to compute in.

    Raises
    ------
    RuntimeError
        If OpenVINO does not take the model on this processor.
    """

    name: EngineName = "openvino"

    def __init__(self, model: Path | openvino.Model, *, precision: Precision) -> None:
        self.precision: Precision = precision
        self._compiled = compiled(model, precision)
        # As many tiles at once as OpenVINO sees fit for the cores: each then has its own, and need not wait for others.
        self.batch = int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._queue = runtime().AsyncInferQueue(self._compiled, self.batch)
        self._shape = tuple(self._compiled.output(0).shape)[1:]
        self._into: NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._queue.set_callback(self._take)
        self._one_caller = Lock()

    def _take(self, request: openvino.InferRequest, number: int) -> None:
        self._into[number] = request.get_output_tensor(0).data[0]

    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network says of some tiles; see `imaging.engines.Engine`."""
        tiles = np.ascontiguousarray(tiles_BCXYZ, dtype=np.float32)
        with self._one_caller:
            logits = self._into = np.empty((len(tiles), *self._shape), dtype=np.float32)
            for number in range(len(tiles)):
                self._queue.start_async(tiles[number : number + 1], number, share_inputs=True)
            self._queue.wait_all()
        return logits
