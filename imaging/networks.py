"""A config's network name -> a MONAI network.

Invariant: a name that is not in the registry is refused with the known ones; the options are MONAI's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from monai.networks import nets
from monai.networks.blocks.transformerblock import TransformerBlock

from imaging.config import Network, SegmentConfig
from imaging.errors import ConfigInvalid, UnknownName
from imaging.weights import copy_weights

_Entry = TypeVar("_Entry")

_SEGMENTERS: dict[str, type[torch.nn.Module]] = {
    "AttentionUnet": nets.AttentionUnet,
    "BasicUNet": nets.BasicUNet,
    "DynUNet": nets.DynUNet,
    "MedNeXt": nets.MedNeXt,
    "SegResNet": nets.SegResNet,
    "SegResNetDS": nets.SegResNetDS,
    "SwinUNETR": nets.SwinUNETR,
    "UNETR": nets.UNETR,
    "UNet": nets.UNet,
    "VNet": nets.VNet,
}


# What the edges of a patch may have to be divisible by.
_POWERS = (2, 4, 8, 16, 32, 64)

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


def build_segmenter(config: SegmentConfig) -> torch.nn.Module:
    """Make the network of a segmenter, with fresh weights; see `build_network`."""
    network = config.network
    if network.name == "UNETR":
        # It has a weight for each place of its patch.
        network = network.model_copy(update={"options": {"img_size": list(config.train.patch), **network.options}})
    return build_network(
        network, in_channels=len(config.scales), out_channels=config.outputs, spatial_dims=len(config.train.patch)
    )


def check_patches(config: SegmentConfig) -> None:
    """Refuse patches that the network does not take, before anything is read or trained.

    The network is run on PyTorch's ``meta`` device, which knows shapes and computes nothing.

    Raises
    ------
    ConfigInvalid
        With the nearest sizes that it takes.
    """
    network = build_segmenter(config).to("meta")
    patches = {"train.patch": config.train.patch, "predict.patch": config.predict.patch}
    for key, patch in patches.items():
        network.train(key == "train.patch")
        problem = _problem_with(network, patch, config)
        if problem:
            fitting = _fitting_near(network, patch, config)
            raise ConfigInvalid(
                key,
                seen=f"{config.network.name} does not take {_times(patch)}: {problem}",
                expected=f"{fitting} was expected" if fitting else "another size was expected",
                remedy="Choose another patch, or other network.options",
            )


def _problem_with(network: torch.nn.Module, patch: Sequence[int], config: SegmentConfig) -> str:
    """Why a network on the meta device does not take a patch; empty where it does."""
    image = torch.zeros(config.train.batch_size, len(config.scales), *patch, device="meta")
    try:
        with torch.no_grad():
            logits = network(image)
    except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    first = logits if isinstance(logits, torch.Tensor) else logits[0]
    given = tuple(first.shape[-len(patch) :])
    return "" if given == tuple(patch) else f"it gives {_times(given)}"


def _fitting_near(network: torch.nn.Module, patch: Sequence[int], config: SegmentConfig) -> str:
    """The nearest smaller and larger sizes that it takes, all edges divisible by one power of two."""
    for step in _POWERS:
        down = tuple(max(step, edge // step * step) for edge in patch)
        up = tuple(-(-edge // step) * step for edge in patch)
        fitting = [size for size in dict.fromkeys((down, up)) if not _problem_with(network, size, config)]
        if fitting:
            return " or ".join(map(_times, fitting))
    return ""


def _times(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def build_network(config: Network, *, in_channels: int, out_channels: int, spatial_dims: int = 3) -> torch.nn.Module:
    """Make the segmentation network a config names, with fresh weights.

    Parameters
    ----------
    config
        Name and options; the options go to MONAI's class as they are.
    in_channels, out_channels
        Channels of the image, and classes with the background.
    spatial_dims
        2 for slices and pictures, 3 for volumes.

    Raises
    ------
    UnknownName
        If the name is not registered.
    ConfigInvalid
        If MONAI does not take the options.
    """
    given = {"spatial_dims": spatial_dims, "in_channels": in_channels, "out_channels": out_channels}
    return _made(config, _registered(config, _SEGMENTERS), given)


def _registered(config: Network, registry: Mapping[str, _Entry]) -> _Entry:
    if config.name not in registry:
        raise UnknownName("network.name", seen=repr(config.name), expected=f"known: {', '.join(registry)}")
    return registry[config.name]


def _made(config: Network, make: Callable[..., torch.nn.Module], given: Mapping[str, Any]) -> torch.nn.Module:
    try:
        network = make(**given, **config.options)
    except (TypeError, ValueError, LookupError, RuntimeError, AssertionError) as error:
        raise ConfigInvalid("network.options", seen=f"{config.name} does not take them: {error}") from error
    for module in network.modules():
        # MONAI makes this layer in any case. Several devices would wait for a gradient that never comes.
        if isinstance(module, TransformerBlock) and not module.with_cross_attention:
            module.norm_cross_attn.requires_grad_(False)
    return network


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
    copy_weights(weights, weights_of(network))
