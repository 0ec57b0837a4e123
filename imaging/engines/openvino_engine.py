"""The OpenVINO engine: one network on a CPU, several tiles at a time.

Invariant: it needs neither torch nor MONAI. Each tile is computed by itself, so that what it says of a tile does not
depend on the tiles beside it.
"""

from __future__ import annotations

from contextlib import ExitStack
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
        self._requests = [self._compiled.create_infer_request() for _ in range(self.batch)]
        self._shape = tuple(self._compiled.output(0).shape)[1:]
        # Where requests write between calls: nowhere. Pages that nobody touched take no memory.
        self._nowhere = runtime().Tensor(np.empty((1, *self._shape), dtype=np.float32), shared_memory=True)
        self._one_caller = Lock()

    def __call__(self, tiles_BCXYZ: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network says of some tiles; see `imaging.engines.Engine`."""
        tiles = np.ascontiguousarray(tiles_BCXYZ, dtype=np.float32)
        logits = np.empty((len(tiles), *self._shape), dtype=np.float32)
        with self._one_caller, ExitStack() as begun:
            for request in self._requests[: len(tiles)]:
                begun.callback(self._end, request)
            for number in range(len(tiles)):
                request = self._requests[number % self.batch]
                if number >= self.batch:
                    request.wait()
                # Read and written where they lie: an answer of many classes is not copied.
                request.set_output_tensor(runtime().Tensor(logits[number : number + 1], shared_memory=True))
                request.start_async(tiles[number : number + 1], share_inputs=True)
        return logits

    def _end(self, request: openvino.InferRequest) -> None:
        """Wait for a request, which then holds on to no answer."""
        try:
            request.wait()
        finally:
            request.set_output_tensor(self._nowhere)
