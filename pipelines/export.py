"""`imgpipe export`: a checkpoint's networks for other programs.

Invariant: what is written was asked, read back from its file, and says what torch in fp32 says, or nothing is written.
Preprocessing is no part of a network: the checkpoint's config goes with it, and a MONAI bundle has it as MONAI's
transforms.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import CARD, CONFIG, Checkpoint, find_checkpoint, open_checkpoint, read_verified
from imaging.engines import runtime
from imaging.engines.choice import tile_shape
from imaging.engines.torch_engine import TorchEngine, answering
from imaging.errors import MissingPackage, OutputMismatch, OutputNotWritable
from imaging.files import sha256_of, staged_folder, write_whole
from pipelines.bundle import write_bundle

if TYPE_CHECKING:
    import torch

Target = Literal["openvino", "onnx", "monai-bundle"]
ABOUT = "export.json"
# OpenVINO reads both kinds of model back.
_NEEDED: dict[Target, tuple[str, ...]] = {"openvino": ("openvino",), "onnx": ("openvino", "onnx"), "monai-bundle": ()}
# Of the greatest logit; fp32 on both sides, summed in another order.
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    folder
        Where it lies.
    files
        Their names.
    difference
        The greatest difference of a logit from torch's, as a share of the greatest logit; None of a bundle, which holds
        torch's own weights.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float | None


def export(*, checkpoint: str, to: Target, out: Path) -> Exported:
    """Write a checkpoint's networks for another program.

    Parameters
    ----------
    checkpoint
        A shipped checkpoint's name, or a folder.
    to
        ``openvino`` and ``onnx`` write a model for each network, which takes tiles (B, C, ...) of fixed edges and gives
        logits (B, K, ...), of a classifier with its embedding behind them. ``monai-bundle`` writes a bundle that MONAI
        runs by itself.
    out
        A new folder.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it does not look at images.
    ExportImpossible
        If a bundle cannot say what the checkpoint does.
    MissingPackage
        If OpenVINO, which reads both kinds of model back, is not installed, or onnx, by which torch writes the one.
    OutputMismatch
        If a model, read back, does not say what torch says.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    """
    opened = open_checkpoint(find_checkpoint(checkpoint))
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    for package in _NEEDED[to]:
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(f"imgpipe export --to {to}", seen=f"{package} is not installed",
                                 remedy=f"Install imgpipe[{to}]")  # fmt: skip
    with staged_folder(out) as stage:
        if to == "monai-bundle":
            write_bundle(opened, stage)
            difference = None
        else:
            difference = _write_models(opened, stage, _as_openvino if to == "openvino" else _as_onnx)
        names = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
    return Exported(out, tuple(names), difference)


def _write_models(
    checkpoint: Checkpoint, stage: Path, write: Callable[[torch.nn.Module, tuple[int, ...], Path], Path]
) -> float:
    import torch

    shape, differences, files = tile_shape(checkpoint), [], []
    tile = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for number, network in enumerate(answering(checkpoint)):
        stem = checkpoint.name if checkpoint.config.members == 1 else f"{checkpoint.name}_{number}"
        expected = TorchEngine(network, device=torch.device("cpu"), precision="fp32")(tile)
        files.append(write(network.to(memory_format=torch.contiguous_format), shape, stage / stem))  # type: ignore[call-overload]
        differences.append(_difference(files[-1], tile, expected))
    for name in (CONFIG, CARD):
        write_whole(stage / name, read_verified(checkpoint.folder / name, checkpoint.sums[name]))
    about = {
        "checkpoint": checkpoint.name,
        "version": checkpoint.config.version,
        "weights_sha256": checkpoint.weights_sha256,
        "input": list(shape),
        "difference": max(differences),
        "sha256": {path.name: sha256_of(path) for path in sorted(stage.iterdir())},
    }
    write_whole(stage / ABOUT, json.dumps(about, indent=1) + "\n")
    return max(differences)


def _as_openvino(network: torch.nn.Module, shape: tuple[int, ...], stem: Path) -> Path:
    path = stem.with_name(f"{stem.name}.xml")
    runtime.runtime().save_model(runtime.converted(network, shape), path, compress_to_fp16=False)
    return path


def _as_onnx(network: torch.nn.Module, shape: tuple[int, ...], stem: Path) -> Path:
    """By torch's older exporter: the newer one needs onnxscript, too."""
    import torch

    path = stem.with_name(f"{stem.name}.onnx")
    free = {"tiles": {0: "batch"}, "logits": {0: "batch"}}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.zeros(shape),), str(path), input_names=["tiles"], output_names=["logits"],
                          dynamic_axes=free, opset_version=18, dynamo=False)  # fmt: skip
    return path


def _difference(path: Path, tile: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How far a model's file is from torch, as a share of the greatest logit.

    Raises
    ------
    OutputMismatch
        If that is more than rounding.
    """
    said: Any = runtime.compiled(path, "fp32")(tile)[0]
    difference = float(np.abs(said - expected).max() / np.abs(expected).max())
    if not difference <= _ROUNDING:
        raise OutputMismatch(path, seen=f"its logits differ from torch's by {difference:.2g} of the greatest")
    return difference
