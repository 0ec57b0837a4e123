"""int8 models: NNCF makes them of a converted network and tiles, and a checkpoint keeps them among its files.

Invariant: a model in int8 depends on the cases that its scales were chosen on, which are not in the checkpoint. So it
is never made on the way: it comes with the checkpoint, under its checksums, or there is none.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import io
import logging
import math
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import Checkpoint, read_verified
from imaging.engines import runtime
from imaging.errors import CheckpointCorrupt

if TYPE_CHECKING:
    import openvino


# OpenVINO's names of the layers that NNCF quantizes the weights of.
_WEIGHING = ("Convolution", "ConvolutionBackpropData", "GroupConvolution", "GroupConvolutionBackpropData", "MatMul")


def files_of(member: int) -> tuple[str, str]:
    """The files of one network's model in a checkpoint, and in what is exported of it."""
    return f"openvino_int8_{member}.xml", f"openvino_int8_{member}.bin"


def files_of_all(members: int) -> tuple[str, ...]:
    """The files of the models of so many networks."""
    return tuple(name for member in range(members) for name in files_of(member))


def installed() -> bool:
    """Whether NNCF can be imported."""
    return importlib.util.find_spec("nncf") is not None


def made_by() -> str:
    """What makes them."""
    return f"nncf {importlib.metadata.version('nncf')}"


def quantized(
    model: Path | openvino.Model, tiles: Sequence[NDArray[np.float32]], spared: Sequence[str] = ()
) -> openvino.Model:
    """A converted network that computes in int8 wherever that is of use.

    Weights have a scale for each output channel, activations one with an offset for each tensor, from the least and the
    greatest value that the tiles give there; then biases are moved so that the means stay (NNCF's ``mixed`` preset:
    symmetric weights, asymmetric activations, which leaky activations need). Normalisation over a tile stays as it is,
    and so do the layers that give the logits: on training cases of hippocampus_mr that left half of the difference from
    fp32, and took no longer.

    Parameters
    ----------
    model
        In fp32, from a file or in memory; it stays as it is.
    tiles
        (1, C, ...) each, as the network is given them when it serves.
    spared
        Names of layers that stay as they are.
    """
    runtime.runtime()  # so that nothing is sent
    kind = logging.getLoggerClass()
    import nncf

    # It would have all loggers that are made from now on be of its own kind.
    logging.setLoggerClass(kind)
    read = _read(model)
    # It tells of its steps on stdout, which is for the result alone; `nncf.set_log_level` would quieten everybody.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    with redirect_stdout(io.StringIO()):
        found: openvino.Model = nncf.quantize(
            read, nncf.Dataset(list(tiles)), preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU, subset_size=len(tiles),
            ignored_scope=nncf.IgnoredScope(types=["MVN"], names=[*_giving_logits(read), *spared],
                                            validate=False),
        )  # fmt: skip
    return found


def multiplications_of(model: Path | openvino.Model) -> dict[str, int]:
    """How many multiplications of one tile each layer has that int8 is for, by its name."""
    read = _read(model)
    logits = _giving_logits(read)
    # A weight is used once for each place of the output; of a layer that widens, of the input.
    return {
        node.get_friendly_name(): math.prod(node.input_value(1).get_shape())
        * math.prod((node.get_input_shape(0) if "Backprop" in node.get_type_name() else node.get_output_shape(0))[2:])
        for node in read.get_ordered_ops()
        if node.get_type_name() in _WEIGHING and node.get_friendly_name() not in logits
    }


def _read(model: Path | openvino.Model) -> openvino.Model:
    return runtime.core().read_model(model) if isinstance(model, Path) else model


def _giving_logits(model: openvino.Model) -> list[str]:
    """Names of the layers with weights behind which there is no other on the way to the outputs."""
    found: list[str] = []
    seen: set[str] = set()
    ahead = [result.input_value(0).get_node() for result in model.get_results()]
    while ahead:
        node = ahead.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() in _WEIGHING:
            found.append(name)
            continue
        ahead += [node.input_value(number).get_node() for number in range(node.get_input_size())]
    return sorted(found)


def as_files(models: Sequence[openvino.Model]) -> dict[str, bytes]:
    """The files of the models of a checkpoint's networks, by name."""
    content: dict[str, bytes] = {}
    with TemporaryDirectory() as folder:
        for member, model in enumerate(models):
            names = files_of(member)
            runtime.runtime().save_model(model, Path(folder) / names[0], compress_to_fp16=False)
            content |= {name: (Path(folder) / name).read_bytes() for name in names}
    return content


def kept_int8(checkpoint: Checkpoint, member: int) -> openvino.Model:
    """The int8 model of one network of a checkpoint, read with its checksums.

    Raises
    ------
    CheckpointCorrupt
        If the checkpoint has none, or it is not what the checksums say.
    """
    names = files_of(member)
    absent = [name for name in names if name not in checkpoint.sums]
    if absent:
        raise CheckpointCorrupt(checkpoint.folder / absent[0], seen="is not there, though int8 was accepted")
    xml, weights = (read_verified(checkpoint.folder / name, checkpoint.sums[name]) for name in names)
    model: openvino.Model = runtime.core().read_model(xml, weights)
    return model
