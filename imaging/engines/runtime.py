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
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from imaging.engines.engine import Precision

if TYPE_CHECKING:
    import openvino
    import torch

# By which oneDNN, which computes for OpenVINO, is kept from using all that a processor has.
ISA_SWITCHES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# What a processor computes in a precision with, the best first, as Linux calls it; and parts of the switches' values
# that leave it that (https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html).
_ALL = ("ALL", "DEFAULT")
_AMX = ("AMX", *_ALL)
_BF16 = ("BF16", "FP16", "AVX10", *_AMX)
_INSTRUCTIONS: dict[Precision, dict[str, tuple[str, ...]]] = {
    "fp32": {"avx512f": ("AVX512", "AVX10", *_ALL), "avx2": ("AVX2", "AVX512", "AVX10", *_ALL)},
    "bf16": {"amx_bf16": _AMX, "avx512_bf16": _BF16},
    "int8": {"amx_int8": _AMX, "avx512_vnni": ("AVX512_CORE_VNNI", *_BF16), "avx_vnni": ("AVX2_VNNI", *_BF16)},
}
_CPUINFO = Path("/proc/cpuinfo")


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


@cache
def _flags() -> frozenset[str]:
    """What this processor has, as Linux tells it; empty where it does not."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return next((frozenset(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), frozenset())


def _switch() -> tuple[str, str]:
    """The first switch that is set, and its value."""
    return next(((name, os.environ[name].upper()) for name in ISA_SWITCHES if os.environ.get(name)), ("", ""))


def instructions(precision: Precision) -> str:
    """The best that this processor has for a precision, and may use; empty where it has none, or nobody knows."""
    value = _switch()[1]
    return next(
        (
            name
            for name, leaves in _INSTRUCTIONS[precision].items()
            if name in _flags() and (not value or any(part in value for part in leaves))
        ),
        "",
    )


def capped(precision: Precision) -> str:
    """What oneDNN was told not to go beyond; empty where it was told nothing that costs it a precision."""
    name, value = _switch()
    costs = value and not any(part in value for leaves in _INSTRUCTIONS[precision].values() for part in leaves)
    return f"{name}={value}" if costs else ""


def has_bf16() -> bool:
    """Whether this processor computes in bfloat16 by itself, and may.

    OpenVINO names what the processor has and does not know what oneDNN was forbidden: it then imitates bfloat16, which
    is slower than fp32 (AVX512_CORE: 2.6 times, measured), or finds no code at all (AVX2).
    """
    return "BF16" in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") and not capped("bf16")


def has_int8() -> bool:
    """Whether this processor multiplies in int8 exactly, and may: with VNNI, or AMX.

    Older ones add pairs of products in 16 bits, which saturate, so that their answers are others
    (https://uxlfoundation.github.io/oneDNN/dev_guide_int8_computations.html).
    """
    return bool(instructions("int8"))


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


def settings_of(precision: Precision) -> dict[str, Any]:
    """What OpenVINO is told when it compiles a model.

    An int8 model has its own precision; what of it is in no integer is computed in bf16 where the processor has that.
    """
    short = precision == "bf16" or (precision == "int8" and has_bf16())
    return {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16" if short else "f32"}


def compiled(model: Path | openvino.Model, precision: Precision) -> openvino.CompiledModel:
    """A model that this processor can run.

    Raises
    ------
    RuntimeError
        If OpenVINO does not take it.
    """
    return core().compile_model(model, "CPU", settings_of(precision))
