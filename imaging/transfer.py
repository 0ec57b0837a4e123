"""What a training begins with, and which part of it is trained.

Invariant: a training never begins with random weights where others were asked for. What is taken is matched by name and
shape, what is not taken is told by name, and too little is refused. Whatever was frozen or adapted, what is published
has the network's own names, so that serving knows nothing of it.
"""

from __future__ import annotations

import difflib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch.nn.utils import parametrize

from imaging.config import Fit, Lora, Start
from imaging.errors import ConfigInvalid, StartMismatch, UnknownName
from imaging.foreign import Foreign, read_foreign

# What wrappers put in front of the names of the weights that they hold.
_WRAPPERS = ("module.", "network.", "model.", "_orig_mod.")
# Where a parametrised layer keeps the matrix that it had before.
_ORIGINAL = ".parametrizations.weight.original"
_ADDED = ".parametrizations.weight.0."
_TOLD = 8

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """What a training began with, as ``metrics.json`` has it under ``training.start``.

    Attributes
    ----------
    name, kind, sha256
        The source: its own name, ``checkpoint``, ``bundle`` or ``file``, and the SHA-256 of its weights.
    network
        The network that the source names; empty where it names none.
    prefix
        What was in front of its names and was taken off.
    taken, taken_share
        How many tensors were taken, and the share of the network's own weights in them.
    left
        Names in the source that were not taken.
    random
        Names in the network that begin with random weights.
    trained_on
        Names of the cases that trained the source, where it tells them.
    """

    name: str
    kind: str
    sha256: str
    network: str
    prefix: str
    taken: int
    taken_share: float
    left: tuple[str, ...]
    random: tuple[str, ...]
    trained_on: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def adapt(network: torch.nn.Module, settings: Fit) -> tuple[torch.nn.Module, ...]:
    """Freeze what a config freezes, and add what it adds to attention; without either nothing is changed.

    Parameters
    ----------
    network
        Fresh. What is added begins as nothing: the network says what it said before.
    settings
        `freeze` and `lora`.

    Returns
    -------
    tuple of Module
        The normalisations whose running statistics stay as they are: those of which nothing is trained.

    Raises
    ------
    UnknownName
        If a pattern matches nothing; the nearest names are told.
    ConfigInvalid
        If the network has no attention to adapt, or nothing would be left to train.
    """
    if settings.lora is not None:
        _add_low_rank(network, settings.lora)
    for pattern in settings.freeze:
        for parameter in _matching(network, pattern, "train.freeze"):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ConfigInvalid(
            "train.freeze", seen="nothing is left to train", expected="some weights that are not frozen were expected"
        )
    return tuple(
        module
        for name, module in network.named_modules()
        if getattr(module, "running_mean", None) is not None and _is_held(name, module, settings)
    )


def _is_held(name: str, module: torch.nn.Module, settings: Fit) -> bool:
    own = list(module.parameters())
    if own:
        return not any(parameter.requires_grad for parameter in own)
    # One without weights of its own is frozen by its name, or with all that is not adapted.
    patterns = (*settings.freeze, *(("*",) if settings.lora is not None else ()))
    return any(fnmatchcase(f"{name}.running_mean", pattern) for pattern in patterns)


def _matching(network: torch.nn.Module, pattern: str, key: str) -> list[torch.nn.Parameter]:
    # A parameter may have several names: MONAI's DynUNet registers its blocks twice.
    known = dict(network.named_parameters(remove_duplicate=False))
    found = [parameter for name, parameter in known.items() if fnmatchcase(_plain(name), pattern)]
    if not found:
        raise UnknownName(key, seen=repr(pattern), expected=f"near: {_near(pattern, map(_plain, known))}")
    return found


def _near(pattern: str, names: Iterable[str]) -> str:
    """The names, and beginnings of names, that a pattern may have meant; without any, the first parts of all."""
    parts = {".".join(name.split(".")[:depth]) for name in names for depth in range(1, name.count(".") + 2)}
    near = difflib.get_close_matches(pattern.strip("*."), sorted(parts), n=5, cutoff=0.5)
    return ", ".join(near or sorted({part for part in parts if "." not in part}))


# ---------------------------------------------------------------------------------------------------------------- LoRA


class _LowRank(torch.nn.Module):
    """W -> W + alpha / rank * up @ down; `up` begins as zeros, and so does the addition (Hu et al., section 4.1)."""

    def __init__(self, weight: torch.Tensor, *, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.down = torch.nn.Parameter(torch.empty(rank, columns))
        self.up = torch.nn.Parameter(torch.zeros(rows, rank))
        self._scale = alpha / rank
        torch.nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))  # as a linear layer of PyTorch begins

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The matrix that is used; in the weight's own precision, so that merging later changes nothing."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self._scale * (self.up @ self.down)


def _add_low_rank(network: torch.nn.Module, settings: Lora) -> None:
    modules = dict(network.named_modules())
    linear = {name: module for name, module in modules.items() if isinstance(module, torch.nn.Linear)}
    chosen: dict[str, torch.nn.Linear] = {}
    for pattern in settings.target:
        found = {name: module for name, module in linear.items() if fnmatchcase(name, pattern)}
        if not found:
            raise _no_target(network, pattern, linear)
        chosen |= found
    network.requires_grad_(False)
    for pattern in settings.also:
        for parameter in _matching(network, pattern, "train.lora.also"):
            parameter.requires_grad_(True)
    for name, module in chosen.items():
        if settings.rank > min(module.weight.shape):
            raise ConfigInvalid("train.lora.rank", seen=f"{settings.rank} for {name}",
                                expected=f"at most {min(module.weight.shape)} was expected")  # fmt: skip
        parametrize.register_parametrization(
            module, "weight", _LowRank(module.weight, rank=settings.rank, alpha=settings.alpha)
        )


def _no_target(
    network: torch.nn.Module, pattern: str, linear: Mapping[str, torch.nn.Linear]
) -> UnknownName | ConfigInvalid:
    kind = type(network).__name__
    if linear:
        near = _near(pattern, linear)
        return UnknownName("train.lora.target", seen=repr(pattern), expected=f"linear layers of {kind}, near: {near}")
    parts = Counter(type(module).__name__ for module in network.modules() if not list(module.children()))
    told = ", ".join(f"{count} {name}" for name, count in parts.most_common(4))
    return ConfigInvalid("train.lora", seen=f"{kind} has no linear layer and no attention, but {told}",
                         expected="a network with attention (SwinUNETR, UNETR) was expected",
                         remedy="Choose such a network, or train.freeze")  # fmt: skip


def merge(network: torch.nn.Module) -> None:
    """Add what was trained beside a matrix to it, in place: the network has its own names again and says the same."""
    for module in network.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


# --------------------------------------------------------------------------------------------------------------- start


def begin(network: torch.nn.Module, start: Start, *, name: str) -> Begun:
    """Take weights into a network, by name and shape, and tell what was taken and what was not.

    Parameters
    ----------
    network
        The training's, adapted or not.
    start
        Where the weights lie, and how many of the network's must be there.
    name
        The network's in the config; told where the source names another.

    Raises
    ------
    StartUnusable
        If they cannot be read, or not safely.
    StartMismatch
        If too few of them fit; the network is then unchanged.
    """
    foreign = read_foreign(start.weights)
    own = _own_names(network)
    prefix, fitting = _best_prefix(own, foreign.tensors)
    taken = {name: own[name] for name in fitting}
    with_gradient = {name: tensor for name, tensor in own.items() if isinstance(tensor, torch.nn.Parameter)}
    # Under all its names a tensor counts once.
    whole = sum(tensor.numel() for tensor in set(with_gradient.values()))
    share = sum(tensor.numel() for tensor in {own[name] for name in taken.keys() & with_gradient}) / whole
    if not taken or share < start.least_share:
        raise _mismatch(foreign, own, fitting, share, start)
    with torch.no_grad():
        for key, tensor in fitting.items():
            own[key].copy_(tensor)
    ids = {id(tensor) for tensor in taken.values()}
    begun = Begun(
        name=foreign.name,
        kind=foreign.kind,
        sha256=foreign.sha256,
        network=foreign.network,
        prefix=prefix,
        taken=len(ids),
        taken_share=round(share, 6),
        left=tuple(name for name in foreign.tensors if not _is_in(name, prefix, fitting)),
        random=tuple(_once({name: tensor for name, tensor in own.items() if id(tensor) not in ids})),
        trained_on=foreign.trained_on,
    )
    _tell(begun, (name, type(network).__name__))
    return begun


def _is_in(name: str, prefix: str, fitting: Mapping[str, torch.Tensor]) -> bool:
    return name.startswith(prefix) and name[len(prefix) :] in fitting


def _once(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Each tensor's first name."""
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
    return list(first.values())


def _plain(name: str) -> str:
    """The name that a weight has without LoRA."""
    return name.removesuffix(_ORIGINAL) + ".weight" if name.endswith(_ORIGINAL) else name


def _own_names(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's parameters and buffers by all their names, without what LoRA added."""
    named = network.state_dict(keep_vars=True)
    return {_plain(name): tensor for name, tensor in named.items() if _ADDED not in name}


def _best_prefix(
    own: Mapping[str, torch.Tensor], foreign: Mapping[str, torch.Tensor]
) -> tuple[str, dict[str, torch.Tensor]]:
    """The prefix whose removal makes most tensors fit, the shortest of several; and those that then fit."""
    prefixes = {""}
    for name in foreign:
        prefix = ""
        while wrapper := next((item for item in _WRAPPERS if name.startswith(prefix + item)), ""):
            prefix += wrapper
            prefixes.add(prefix)
    best: tuple[str, dict[str, torch.Tensor]] = "", {}
    for prefix in sorted(prefixes, key=lambda text: (len(text), text)):
        named = {name[len(prefix) :]: tensor for name, tensor in foreign.items() if name.startswith(prefix)}
        fitting = {name: t for name, t in named.items() if name in own and own[name].shape == t.shape}
        if len(fitting) > len(best[1]):
            best = prefix, fitting
    return best


def _mismatch(
    foreign: Foreign,
    own: Mapping[str, torch.Tensor],
    fitting: Mapping[str, torch.Tensor],
    share: float,
    start: Start,
) -> StartMismatch:
    absent = [name for name in own if name not in fitting]
    seen = f"{len(fitting)} of its {len(foreign.tensors)} tensors fit, {share:.0%} of the network's weights"
    seen += f"; it is of {foreign.network}" if foreign.network else ""
    seen += f"; there are {_listed(foreign.tensors)}, and without a match {_listed(absent)}"
    expected = f"at least {start.least_share:.0%} of the network's weights were expected"
    return StartMismatch(f"start {foreign.name}", seen=seen, expected=expected)


def _tell(begun: Begun, names: tuple[str, str]) -> None:
    log.info(
        "begun with %s (%s, SHA-256 %s): %d tensors taken, %.1f %% of the weights",
        begun.name, begun.kind, begun.sha256, begun.taken, 100 * begun.taken_share,
    )  # fmt: skip
    if begun.prefix:
        log.info("names in %s begin with %s, which was taken off", begun.name, begun.prefix)
    # MONAI makes a ResNet by calling resnet10, a config by naming ResNet10.
    if begun.network and begun.network.lower() not in map(str.lower, names):
        log.warning("%s is of %s, this network is %s", begun.name, begun.network, names[0])
    if begun.left:
        log.warning("%d tensors of %s are not taken: %s", len(begun.left), begun.name, _listed(begun.left))
    if begun.random:
        log.warning("%d tensors of the network begin random: %s", len(begun.random), _listed(begun.random))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
