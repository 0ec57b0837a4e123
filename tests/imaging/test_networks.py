"""A network is a name from the registry; its weights come and go without a change."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from imaging.config import Network
from imaging.errors import ConfigInvalid, UnknownName
from imaging.networks import build_network, load_weights, weights_of

SMALL: dict[str, dict[str, Any]] = {
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {"filters": [4, 8, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
    "SegResNet": {"init_filters": 8},
    "SwinUNETR": {"feature_size": 12},
    "UNETR": {"img_size": [32, 32, 32], "hidden_size": 48, "num_heads": 4, "mlp_dim": 32},
    "UNet": {"channels": [4, 8], "strides": [2]},
}


def build(name: str, **options: Any) -> torch.nn.Module:
    return build_network(Network(name=name, options=options), in_channels=1, out_channels=3)


def known() -> list[str]:
    """The registered names, as the refusal of an unknown one lists them."""
    try:
        build("")
    except UnknownName as error:
        return error.expected.removeprefix("known: ").split(", ")
    raise AssertionError


KNOWN = known()


def test_small_options_are_known_for_every_network() -> None:
    assert {"DynUNet"} < set(KNOWN) <= set(SMALL)


@pytest.mark.parametrize("name", KNOWN)
def test_known_network_labels_a_volume(name: str) -> None:
    with torch.no_grad():
        size = 64 if name == "SwinUNETR" else 32  # five halvings, and one voxel has no deviation to normalise by
        logits = build(name, **SMALL[name]).eval()(torch.zeros(1, 1, size, size, size))
    assert logits.shape == (1, 3, size, size, size)


@pytest.mark.parametrize("name", ["dynunet", "ResNet", ""])
def test_unknown_network_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownName, match="known: BasicUNet, DynUNet") as caught:
        build(name)
    assert caught.value.seen == repr(name)


@pytest.mark.parametrize(
    "change",
    [
        {"filter": [4, 8, 8]},
        {"filters": [4, 8]},
        {"filters": []},
        {"filters": [4, -8, 8]},
        {"filters": "many"},
        {"kernel_size": [3, 3]},
        {"upsample_kernel_size": [2]},
        {"upsample_kernel_size": []},
        {"norm_name": "nothing"},
        {"deep_supervision": True, "deep_supr_num": 9},
        {"spatial_dims": 2},
        {"out_channels": 7},
    ],
    ids=str,
)
def test_options_that_the_network_does_not_take_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=r"network\.options.*DynUNet"):
        build("DynUNet", **(SMALL["DynUNet"] | change))


def test_weights_hold_every_tensor_once() -> None:
    network = build("DynUNet", **SMALL["DynUNet"])
    pointers = [tensor.data_ptr() for tensor in weights_of(network).values()]
    assert len(pointers) == len(set(pointers)) < len(network.state_dict())


def test_loaded_weights_give_the_same_output() -> None:
    first, second = (build("DynUNet", **SMALL["DynUNet"]).eval() for _ in range(2))
    image = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        assert not torch.equal(first(image), second(image))
        load_weights(second, weights_of(first))
        assert torch.equal(first(image), second(image))


@pytest.mark.parametrize("fault", ["missing", "too_many", "shape"])
def test_weights_that_do_not_fit_leave_the_network_as_it_was(fault: str) -> None:
    network = build("DynUNet", **SMALL["DynUNet"])
    before = {name: tensor.clone() for name, tensor in weights_of(network).items()}
    weights = {name: torch.full_like(tensor, 7) for name, tensor in before.items()}
    last = list(weights)[-1]
    if fault == "missing":
        del weights[last]
    elif fault == "too_many":
        weights["another"] = torch.zeros(1)
    else:
        weights[last] = torch.zeros(99)
    with pytest.raises((KeyError, ValueError)):
        load_weights(network, weights)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(network).items())
