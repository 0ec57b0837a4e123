"""`imgpipe export`: a checkpoint's networks for other programs.

Invariant: what is written was asked, read back from its file, and says what torch in fp32 says, or nothing is written;
a model in int8 says what the one says that was compared with torch, and the figures go with it. Preprocessing is no
part of a network: the checkpoint's config goes with it, and a MONAI bundle has it as MONAI's transforms.
"""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imaging.checkpoint import CARD, CONFIG, Checkpoint, find_checkpoint, open_checkpoint, read_verified
from imaging.dataset_check import OnCase
from imaging.engines import Engines, Precision, engines_of, runtime
from imaging.engines.accepted import Trial, trial_of, trials_of
from imaging.engines.choice import tile_shape
from imaging.engines.quantized import as_files, files_of, files_of_all
from imaging.engines.torch_engine import TorchEngine, answering
from imaging.errors import ExportImpossible, MissingPackage, OutputMismatch, OutputNotWritable
from imaging.files import sha256_of, staged_folder, write_whole
from pipelines.accept import cases_of, compared_with_torch, with_calibration
from pipelines.bundle import write_bundle
from pipelines.quantize import int8_of
from pipelines.sparing import OnStep

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
        torch's own weights, and of int8.
    int8
        How int8 was compared with torch.
    """

    folder: Path
    files: tuple[str, ...]
    difference: float | None
    int8: Trial | None = None


def export(
    *,
    checkpoint: str,
    to: Target,
    out: Path,
    int8: bool = False,
    data: Path | None = None,
    on_case: OnCase | None = None,
    on_step: OnStep | None = None,
) -> Exported:
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
    int8
        Whether OpenVINO's models shall compute in int8: those of the checkpoint, where it was accepted with them.
    data
        The manifest that the checkpoint was trained on: its training cases make the models in int8 anew, and its
        validation cases compare them with torch.
    on_case, on_step
        Called before each case with its name, its number from 0 and how many there are; and with each step of int8.

    Raises
    ------
    UnknownCheckpoint, CheckpointCorrupt, WrongTask
        If there is no such checkpoint, it is not what its checksums say, or it does not look at images.
    ExportImpossible
        If a bundle cannot say what the checkpoint does, or int8 is asked for in another form than OpenVINO's, or
        without a manifest of a checkpoint that has none; or a manifest is given for anything else.
    MissingPackage
        If OpenVINO, which reads both kinds of model back, is not installed, or onnx, by which torch writes the one, or
        NNCF for int8.
    ManifestInvalid, InputRefused, TooFewCases, EngineRefused
        As `pipelines.quantize.int8_of` and `pipelines.accept.compared_with_torch` have it.
    OutputMismatch
        If a model, read back, does not say what torch says.
    OutputNotWritable
        If the folder is there already, or cannot be written.
    """
    opened = open_checkpoint(find_checkpoint(checkpoint))
    _check(out, to, int8=int8, data=data)
    made = _in_int8(opened, data, on_case, on_step) if int8 else None
    difference = None
    with staged_folder(out) as stage:
        if to == "monai-bundle":
            write_bundle(opened, stage)
        elif made:
            _write_int8(opened, made, stage)
        else:
            difference = _write_models(opened, stage, _as_openvino if to == "openvino" else _as_onnx)
        names = sorted(str(path.relative_to(stage)) for path in stage.rglob("*") if path.is_file())
    return Exported(out, tuple(names), difference, made.trial if made else None)


def _check(out: Path, to: Target, *, int8: bool, data: Path | None) -> None:
    """Refuse what cannot be written here, before anything is."""
    if out.exists():
        raise OutputNotWritable(out, seen="it is there already", expected="a new folder was expected")
    for package in _NEEDED[to]:
        if importlib.util.find_spec(package) is None:
            raise MissingPackage(f"imgpipe export --to {to}", seen=f"{package} is not installed",
                                 remedy=f"Install imgpipe[{to}]")  # fmt: skip
    if int8 and to != "openvino":
        raise ExportImpossible(f"imgpipe export --to {to} --int8", seen="int8 has the form of OpenVINO alone",
                               expected="--to openvino was expected", remedy="Export to openvino")  # fmt: skip
    if data is not None and not int8:
        raise ExportImpossible(f"imgpipe export --to {to} --data", seen="only int8 looks at cases",
                               expected="--int8 was expected", remedy="Leave --data out, or add --int8")  # fmt: skip


class _Int8(NamedTuple):
    """The files of models in int8, the same ready to be asked, and how they were compared with torch."""

    files: Mapping[str, bytes]
    engines: Engines
    trial: Trial


def _in_int8(checkpoint: Checkpoint, data: Path | None, on_case: OnCase | None, on_step: OnStep | None) -> _Int8:
    """Those of the checkpoint; with a manifest, made anew."""
    if data is not None:
        cases = cases_of(checkpoint, data)
        made = int8_of(checkpoint, cases, on_case, on_step)
        (trial,) = compared_with_torch(checkpoint, {"int8": made.engines}, data, cases, on_case)
        return _Int8(as_files(made.models), made.engines, with_calibration(trial, made))
    trial_of_own = trial_of(trials_of(checkpoint), "openvino", "int8")
    if trial_of_own is None or trial_of_own.why_not():
        raise ExportImpossible(f"checkpoint {checkpoint.name} in int8", seen="it has no model in int8",
                               expected="the manifest that it was trained on was expected",
                               remedy="Give that with --data")  # fmt: skip
    names = files_of_all(checkpoint.config.members)
    files = {name: read_verified(checkpoint.folder / name, checkpoint.sums[name]) for name in names}
    return _Int8(files, engines_of(checkpoint, wanted="openvino", precision="int8"), trial_of_own)


def _write_int8(checkpoint: Checkpoint, made: _Int8, stage: Path) -> None:
    """Write models in int8, each held against the one that was compared.

    Raises
    ------
    OutputMismatch
        If one, read back, says something else.
    """
    shape = tile_shape(checkpoint)
    tile = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    for name, content in made.files.items():
        write_whole(stage / name, content)
    for number, engine in enumerate(made.engines.members):
        _difference(stage / files_of(number)[0], tile, engine(tile), "int8")
    _write_about(checkpoint, stage, {"int8": made.trial.model_dump(mode="json", exclude_none=True)})


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
        differences.append(_difference(files[-1], tile, expected, "fp32"))
    _write_about(checkpoint, stage, {"difference": max(differences)})
    return max(differences)


def _write_about(checkpoint: Checkpoint, stage: Path, found: Mapping[str, Any]) -> None:
    """What models are of, what was found of them, and the checksums of all that is there."""
    for name in (CONFIG, CARD):
        write_whole(stage / name, read_verified(checkpoint.folder / name, checkpoint.sums[name]))
    about = {
        "checkpoint": checkpoint.name,
        "version": checkpoint.config.version,
        "weights_sha256": checkpoint.weights_sha256,
        "input": list(tile_shape(checkpoint)),
        **found,
        "sha256": {path.name: sha256_of(path) for path in sorted(stage.iterdir())},
    }
    write_whole(stage / ABOUT, json.dumps(about, indent=1) + "\n")


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


def _difference(path: Path, tile: NDArray[np.float32], expected: NDArray[np.float32], precision: Precision) -> float:
    """How far a model's file is from what was expected of it, as a share of the greatest logit.

    Raises
    ------
    OutputMismatch
        If that is more than rounding.
    """
    said: Any = runtime.compiled(path, precision)(tile)[0]
    difference = float(np.abs(said - expected).max() / np.abs(expected).max())
    if not difference <= _ROUNDING:
        raise OutputMismatch(path, seen=f"its logits differ from those expected by {difference:.2g} of the greatest")
    return difference
