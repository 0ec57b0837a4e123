"""OpenVINO itself: whether it is there, what it can do here, and a network as its model.

Invariant: nothing is told to anybody. OpenVINO's tools send what was imported and converted to its makers as soon as
they are imported, unless `openvino_telemetry` is missing; so it is made missing before they are.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from imaging.engines.engine import Precision

if TYPE_CHECKING:
    from pathlib import Path

    import openvino
    import torch

# By which oneDNN, which computes for OpenVINO, is kept from using all that a processor has.
ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# Parts of its values that leave it bfloat16.
_WITH_BF16 = ("BF16", "FP16", "AMX", "AVX10", "ALL", "DEFAULT")


def installed() -> bool:
    """Whether OpenVINO can be imported."""
    return importlib.util.find_spec("openvino") is not None


def runtime() -> ModuleType:
    """The package `openvino`, which from here on sends nothing."""
    # Python takes None for a package that is not there; OpenVINO and NNCF then use their own stand-ins.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


@cache
def core() -> openvino.Core:
    """OpenVINO's own handle; one a process."""
    return runtime().Core()


def version() -> str:
    """OpenVINO's version, without its build."""
    return str(runtime().__version__).split("-", maxsplit=1)[0]


def processor() -> str:
    """The processor's name, and what it computes in."""
    name = str(core().get_property("CPU", "FULL_DEVICE_NAME")).strip()
    return f"{name}, {'bf16' if has_bf16() else 'no bf16'}"


def capped() -> str:
    """What oneDNN was told not to go beyond; empty where it was told nothing that costs bfloat16."""
    for switch in ISA_SWITCHES:
        value = os.environ.get(switch, "").upper()
        if value:
            return "" if any(part in value for part in _WITH_BF16) else f"{switch}={value}"
    return ""


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 by itself, and may.

    OpenVINO names what the processor has and does not know what oneDNN was forbidden: it then imitates bfloat16, which
    is slower than fp32 (AVX512_CORE: 2.6 times, measured), or finds no code at all (AVX2).
    """
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") and not capped()


def converted(network: torch.nn.Module, shape: tuple[int, ...]) -> openvino.Model:
    """A network as an OpenVINO model of tiles (B, C, ...) of one fixed shape.

    Parameters
    ----------
    network
        In evaluation mode, on the CPU.
    shape
        Of one batch of tiles.
    """
    import torch

    # What is traced is what the network does with tiles of this one shape, which is all that it is used for.
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: openvino.Model = runtime().convert_model(network, example_input=torch.zeros(shape), input=[shape])
    return model


def compiled(model: Path | openvino.Model, precision: Precision) -> openvino.CompiledModel:
    """A model that this processor can run.

    Raises
    ------
    RuntimeError
        If OpenVINO does not take it.
    """
    # An int8 model has its own; what of it is in no integer is computed in fp32.
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    return core().compile_model(model, "CPU", settings)
