"""A network is a name from the registry; its weights come and go without a change."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from imaging.config import Network, SegmentConfig, load_config
from imaging.errors import ConfigInvalid, UnknownName
from imaging.files import shipped
from imaging.networks import build_network, check_patches, load_weights, weights_of

SMALL: dict[str, dict[str, Any]] = {
    "AttentionUnet": {"channels": [4, 8, 8], "strides": [2, 2]},
    "MedNeXt": {"init_filters": 4, "kernel_size": 3, "blocks_down": [1, 1], "blocks_up": [1, 1]},
    "SegResNetDS": {"init_filters": 8, "blocks_down": [1, 1, 1], "norm": "instance"},
    "VNet": {},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {"filters": [4, 8, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]},
    "SegResNet": {"init_filters": 8},
    "SwinUNETR": {"feature_size": 12},
    "UNETR": {"img_size": [32, 32, 32], "hidden_size": 48, "num_heads": 4, "mlp_dim": 32},
    "UNet": {"channels": [4, 8], "strides": [2]},
}


def build(name: str, axes: int = 3, **options: Any) -> torch.nn.Module:
    return build_network(Network(name=name, options=options), in_channels=1, out_channels=3, spatial_dims=axes)


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


# Five halvings, and one voxel has no deviation to normalise by; VNet and MedNeXt halve four times.
SIZES = {"SwinUNETR": 64}
# One number for each axis.
FLAT: dict[str, dict[str, Any]] = {"UNETR": {"img_size": [32, 32]}, "VNet": {"dropout_dim": 2}}


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("name", KNOWN)
def test_known_network_labels_a_picture_and_a_volume_and_takes_a_step(name: str, axes: int) -> None:
    options = SMALL[name] | (FLAT.get(name, {}) if axes == 2 else {})
    size = SIZES.get(name, 32)
    network = build(name, axes, **options)
    image = torch.rand(1 if size == 64 else 2, 1, *[size] * axes)
    with torch.no_grad():
        assert network.eval()(image).shape == (image.shape[0], 3, *[size] * axes)
    network.train()
    found = network(image)
    heads = [found] if isinstance(found, torch.Tensor) else found
    torch.stack([head.square().mean() for head in heads]).sum().backward()
    for weight, parameter in network.named_parameters():
        if parameter.requires_grad:  # several devices would wait for what never comes
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), weight


@pytest.mark.parametrize("name", ["dynunet", "ResNet", ""])
def test_unknown_network_lists_the_known(name: str) -> None:
    with pytest.raises(UnknownName, match="known: AttentionUnet, BasicUNet, DynUNet") as caught:
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


# ------------------------------------------------------------------------------------------------------------- patches


def segmenter(name: str, patch: list[int], *, predicted: list[int] | None = None) -> SegmentConfig:
    options = SMALL[name] if name != "UNETR" else {k: v for k, v in SMALL[name].items() if k != "img_size"}
    overrides = [f"network.name={name}", f"network.options={json.dumps(options)}", f"train.patch={patch}",
                 f"predict.patch={predicted or patch}", "predict.flip_axes=[]"]  # fmt: skip
    config = load_config(shipped("configs") / "hippocampus_mr.yaml", overrides)
    assert isinstance(config, SegmentConfig)
    return config


@pytest.mark.parametrize(
    ("name", "patch"),
    [("DynUNet", [40, 56, 40]), ("DynUNet", [8, 12]), ("UNETR", [32, 48, 32]), ("UNETR", [32, 32]),
     ("BasicUNet", [32, 32, 35]), ("SegResNetDS", [12, 16, 20]), ("SwinUNETR", [64, 64])],
)  # fmt: skip
def test_patches_that_the_network_takes_are_taken(name: str, patch: list[int]) -> None:
    check_patches(segmenter(name, patch))


@pytest.mark.parametrize(
    ("name", "patch", "nearest"),
    [
        ("DynUNet", [40, 55, 40], "40 x 56 x 40"),
        ("DynUNet", [41, 55], "40 x 52 or 44 x 56"),
        ("SegResNet", [60, 60, 60], "56 x 56 x 56 or 64 x 64 x 64"),
        ("SwinUNETR", [48, 64, 64], "64 x 64 x 64"),
    ],
)
def test_patches_that_the_network_does_not_take_are_refused_with_the_nearest(
    name: str, patch: list[int], nearest: str
) -> None:
    with pytest.raises(ConfigInvalid, match=rf"train\.patch.*{name} does not take.*{nearest}"):
        check_patches(segmenter(name, patch))
    sizes = [[int(edge) for edge in size.split(" x ")] for size in nearest.split(" or ")]
    for size in sizes:
        check_patches(segmenter(name, size))


def test_the_patch_of_prediction_is_looked_at_too() -> None:
    with pytest.raises(ConfigInvalid, match=r"predict\.patch.*DynUNet"):
        check_patches(segmenter("DynUNet", [40, 56, 40], predicted=[40, 54, 40]))
