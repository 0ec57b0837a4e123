"""Which engine answers for a checkpoint on this machine, and why.

Invariant: torch, in the precision of the config, answers for every checkpoint. Another engine does where it is faster,
the processor has what it needs and the checkpoint has been accepted with it; what was left, and why, is always told,
and so is another version or processor than it was accepted on. What was asked for by name is refused, not replaced.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imaging.checkpoint import Checkpoint
from imaging.config import SegmentConfig
from imaging.engines import runtime
from imaging.engines.accepted import Trial, elsewhere, trial_of, trials_of
from imaging.engines.engine import Engine, EngineChoice, Precision, Wanted
from imaging.engines.kept import kept_model, key_of
from imaging.engines.openvino_engine import OpenVinoEngine
from imaging.engines.quantized import kept_int8
from imaging.errors import EngineRefused, MissingPackage, UnknownName

if TYPE_CHECKING:
    import openvino
    import torch

log = logging.getLogger(__name__)

ENGINES: tuple[Wanted, ...] = ("auto", "torch", "openvino")
# Where the drivers of a GPU that torch knows show themselves (NVIDIA, under Windows, AMD).
_GPU = tuple(map(Path, ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")))


class Engines(NamedTuple):
    """What answers for a checkpoint.

    Attributes
    ----------
    members
        One for each network of the checkpoint.
    choice
        Which engine that is, and why.
    """

    members: tuple[Engine, ...]
    choice: EngineChoice


def engines_of(
    checkpoint: Checkpoint,
    *,
    wanted: Wanted = "auto",
    device: str | None = None,
    precision: Precision | None = None,
) -> Engines:
    """The networks of a checkpoint, ready to be asked.

    Parameters
    ----------
    checkpoint
        A verified checkpoint.
    wanted
        ``auto`` takes a GPU where there is one, else OpenVINO where it is installed and the checkpoint has been
        accepted with it, else torch.
    device
        Of torch: by default ``cuda`` where there is one, else ``cpu``. OpenVINO has only the CPU.
    precision
        Of an engine that is being compared: it is then built in this, whatever the checkpoint has been accepted with.

    Raises
    ------
    UnknownName
        If there is no such engine.
    MissingPackage, EngineRefused
        If OpenVINO was asked for by name and is not installed, or the checkpoint has not been accepted with it.
    CheckpointCorrupt
        If the weights do not fit the config's network.
    """
    if wanted not in ENGINES:
        raise UnknownName("engine", seen=repr(wanted), expected=f"one of {', '.join(ENGINES)} was expected")
    if wanted == "torch":
        return _torch(checkpoint, device, precision, "asked for by name")
    if wanted == "auto" and (device not in (None, "cpu") or _has_gpu(device)):
        return _torch(checkpoint, device, precision, "it has a GPU")
    found, reason = _openvino(checkpoint, precision)
    if found is not None:
        return found
    if wanted == "auto":
        return _torch(checkpoint, device, precision, reason)
    if not runtime.installed():
        raise MissingPackage("engine openvino", seen="openvino is not installed",
                             remedy="Install imgpipe[openvino], or ask for --engine auto")  # fmt: skip
    raise EngineRefused(f"checkpoint {checkpoint.name}", seen=reason)


def _has_gpu(device: str | None) -> bool:
    """Whether torch has a GPU; it is not imported where there is no driver of any."""
    if device == "cpu" or not any(path.exists() for path in _GPU):
        return False
    import torch

    return torch.cuda.is_available()


def _torch(checkpoint: Checkpoint, device: str | None, precision: Precision | None, why: str) -> Engines:
    import torch

    from imaging.engines.torch_engine import TorchEngine, answering, has_bf16

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if precision is None:
        precision = "bf16" if checkpoint.config.predict.precision == "bf16" else "fp32"
        if precision == "bf16" and not has_bf16(where):
            precision, why = "fp32", f"{why}; this processor has no bf16"
    networks, (_, _, *tile) = answering(checkpoint), tile_shape(checkpoint)
    members = tuple(TorchEngine(network, device=where, precision=precision, tile=tile) for network in networks)
    return _told(checkpoint, Engines(members, EngineChoice("torch", precision, why)))


def _openvino(checkpoint: Checkpoint, precision: Precision | None) -> tuple[Engines | None, str]:
    """OpenVINO in the fastest precision that the processor and the checkpoint take, or why not."""
    if not runtime.installed():
        return None, "openvino is not installed"
    trials = trials_of(checkpoint)
    reasons = []
    for one in [precision] if precision else _by_speed(trials):
        trial = trial_of(trials, "openvino", one)
        reason = "" if precision else _why_not(one, trial)
        if reason:
            reasons.append(reason)
            continue
        try:
            members = _compiled(checkpoint, one)
        except RuntimeError as error:
            reasons.append(f"openvino does not take it in {one}: {_first_line(error)}")
            continue
        told = (elsewhere(trial), _unseen(trial)) if trial and not precision else ()
        why = "; ".join([*reasons, *filter(None, told)])
        return _told(checkpoint, Engines(members, EngineChoice("openvino", one, why))), ""
    return None, "; ".join(reasons)


def _by_speed(trials: Sequence[Trial]) -> list[Precision]:
    """The precisions to try, the fastest first: as measured, or in the order in which they mostly are.

    int8 is tried only where it was compared, for only there is a model of it.
    """
    mostly: tuple[Precision, ...] = ("int8", "bf16", "fp32")
    found = {one: trial_of(trials, "openvino", one) for one in mostly}
    speed = {one: trial.speed for one, trial in found.items() if trial and trial.speed}
    tried = [one for one in mostly if one != "int8" or found[one]]
    # Python's sorting keeps the order of what compares as equal; what nobody measured stays where it mostly is.
    return sorted(tried, key=lambda one: -speed[one]) if set(tried) <= speed.keys() else tried


def _why_not(precision: Precision, trial: Trial | None) -> str:
    """Why OpenVINO does not answer in a precision; empty where it does."""
    if (precision == "bf16" and not runtime.has_bf16()) or (precision == "int8" and not runtime.has_int8()):
        limit = runtime.capped(precision)
        return f"this processor has no {precision}{f' ({limit})' if limit else ''}"
    reason = trial.why_not() if trial else f"it was never compared with torch in {precision}"
    return f"not openvino in {precision}: {reason}" if reason else ""


def _unseen(trial: Trial) -> str:
    """Of which structures nothing is known; empty where all were seen."""
    return f"{trial.precision} was accepted without a case of {', '.join(trial.unseen)}" if trial.unseen else ""


def _compiled(checkpoint: Checkpoint, precision: Precision) -> tuple[Engine, ...]:
    members = range(checkpoint.config.members)
    models = (kept_int8(checkpoint, n) for n in members) if precision == "int8" else converted_models(checkpoint)
    return tuple(OpenVinoEngine(model, precision=precision) for model in models)


def converted_models(checkpoint: Checkpoint) -> Iterator[Path | openvino.Model]:
    """Each network of a checkpoint as OpenVINO's model in fp32, as kept on this machine, or converted now."""
    shape = tile_shape(checkpoint)
    networks = cache(partial(_networks, checkpoint))
    for number in range(checkpoint.config.members):
        yield kept_model(key_of(checkpoint, number, shape), partial(_converted, networks, number, shape))


def _networks(checkpoint: Checkpoint) -> tuple[torch.nn.Module, ...]:
    from imaging.engines.torch_engine import answering

    log.info("checkpoint %s is converted for openvino; this is done once", checkpoint.name)
    return answering(checkpoint)


def _converted(
    networks: Callable[[], tuple[torch.nn.Module, ...]], number: int, shape: tuple[int, ...]
) -> openvino.Model:
    return runtime.converted(networks()[number], shape)


def tile_shape(checkpoint: Checkpoint) -> tuple[int, ...]:
    """(1, C, ...): one tile, slice or picture, as the checkpoint's network is given it."""
    config = checkpoint.config
    if isinstance(config, SegmentConfig):
        return (1, len(config.scales), *config.predict.patch)
    return (1, 1, *config.preprocess.size)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Exception from")]
    return lines[0] if lines else type(error).__name__


def _told(checkpoint: Checkpoint, engines: Engines) -> Engines:
    choice = engines.choice
    log.info("checkpoint %s: %s in %s%s", checkpoint.name, choice.name, choice.precision,
             f" ({choice.why})" if choice.why else "")  # fmt: skip
    return engines
