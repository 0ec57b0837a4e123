"""A config's network name -> a MONAI network.

Invariant: a name that is not in the registry is refused with the known ones; the options are MONAI's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from monai.networks import nets

from imaging.config import Network
from imaging.errors import ConfigInvalid, UnknownName

_Entry = TypeVar("_Entry")

_SEGMENTERS: dict[str, type[torch.nn.Module]] = {
    "BasicUNet": nets.BasicUNet,
    "DynUNet": nets.DynUNet,
    "SegResNet": nets.SegResNet,
    "SwinUNETR": nets.SwinUNETR,
    "UNETR": nets.UNETR,
    "UNet": nets.UNet,
}


_Maker = Callable[..., torch.nn.Module]
# What each calls the number of channels of the image, and of classes.
_CLASSIFIERS: dict[str, tuple[_Maker, str, str]] = {
    "DenseNet": (nets.DenseNet, "in_channels", "out_channels"),
    "DenseNet121": (nets.DenseNet121, "in_channels", "out_channels"),
    "EfficientNetBN": (partial(nets.EfficientNetBN, pretrained=False), "in_channels", "num_classes"),
    "ResNet10": (nets.resnet10, "n_input_channels", "num_classes"),
    "ResNet18": (nets.resnet18, "n_input_channels", "num_classes"),
    "ResNet34": (nets.resnet34, "n_input_channels", "num_classes"),
    "ResNet50": (nets.resnet50, "n_input_channels", "num_classes"),
    "SEResNet50": (nets.SEResNet50, "in_channels", "num_classes"),
}


# Where each keeps its stages, from the first to the last before the pixels are averaged (pattern of module names).
_STAGES = {
    "DenseNet": r"features\.denseblock\d+",
    "DenseNet121": r"features\.denseblock\d+",
    "EfficientNetBN": r"_blocks\.\d+",
    "ResNet10": r"layer\d",
    "ResNet18": r"layer\d",
    "ResNet34": r"layer\d",
    "ResNet50": r"layer\d",
    "SEResNet50": r"layer\d",
}


def stages_of(config: Network, network: torch.nn.Module) -> tuple[str, ...]:
    """Names of the modules that give a classifier's feature maps, in their order; none where it has no such maps."""
    pattern = _STAGES.get(config.name)
    return tuple(name for name, _ in network.named_modules() if pattern and re.fullmatch(pattern, name))


def build_classifier(config: Network, *, spatial_dims: int, in_channels: int, classes: int) -> torch.nn.Module:
    """Make the classification network a config names, with fresh weights.

    Parameters
    ----------
    config
        Name and options; the options go to MONAI's class as they are. Weights are never fetched.
    spatial_dims
        2 for pictures, 3 for volumes.
    in_channels, classes
        Channels of the image, and numbers that come out.

    Raises
    ------
    UnknownName
        If the name is not registered.
    ConfigInvalid
        If MONAI does not take the options.
    """
    make, inwards, outwards = _registered(config, _CLASSIFIERS)
    if config.options.get("pretrained"):
        raise ConfigInvalid("network.options.pretrained", seen="weights from elsewhere",
                            expected="fresh weights were expected: nothing is fetched")  # fmt: skip
    given = {"spatial_dims": spatial_dims, inwards: in_channels, outwards: classes}
    return _made(config, make, given)


def build_network(config: Network, *, in_channels: int, out_channels: int) -> torch.nn.Module:
    """Make the segmentation network a config names, with fresh weights.

    Parameters
    ----------
    config
        Name and options; the options go to MONAI's class as they are.
    in_channels, out_channels
        Channels of the image, and classes with the background.

    Raises
    ------
    UnknownName
        If the name is not registered.
    ConfigInvalid
        If MONAI does not take the options.
    """
    given = {"spatial_dims": 3, "in_channels": in_channels, "out_channels": out_channels}
    return _made(config, _registered(config, _SEGMENTERS), given)


def _registered(config: Network, registry: Mapping[str, _Entry]) -> _Entry:
    if config.name not in registry:
        raise UnknownName("network.name", seen=repr(config.name), expected=f"known: {', '.join(registry)}")
    return registry[config.name]


def _made(config: Network, make: Callable[..., torch.nn.Module], given: Mapping[str, Any]) -> torch.nn.Module:
    try:
        return make(**given, **config.options)
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise ConfigInvalid("network.options", seen=f"{config.name} does not take them: {error}") from error


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The network's parameters and buffers, each once.

    MONAI's DynUNet registers its blocks under two names; a state dictionary would hold every weight twice.
    """
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def load_weights(network: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into a network.

    Raises
    ------
    KeyError, ValueError
        If a name is missing or too many, or a shape differs; the network is then unchanged.
    """
    own = weights_of(network)
    if own.keys() != weights.keys():
        raise KeyError(
            f"{len(own.keys() ^ weights.keys())} names differ, {min(own.keys() ^ weights.keys())!r} among them"
        )
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
