"""Weights are taken by name and shape or refused; what is frozen stays; what is adapted can be merged away."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from imaging.config import Fit, Lora, Network, Start
from imaging.errors import ConfigInvalid, StartMismatch, UnknownName
from imaging.networks import build_classifier, build_network, load_weights, weights_of
from imaging.transfer import Begun, adapt, merge
from imaging.transfer import begin as begin_named

UNETR = {"img_size": [16, 16, 16], "hidden_size": 24, "num_heads": 2, "mlp_dim": 24, "feature_size": 4}
SWIN = {"feature_size": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
DYN = {"filters": [4, 8, 8], "kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}


def unet(name: str, options: dict[str, Any], *, seed: int = 0, channels: int = 1, classes: int = 3) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_network(Network(name=name, options=options), in_channels=channels, out_channels=classes)


def resnet(*, seed: int = 0, classes: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = Network(name="ResNet10", options={"widen_factor": 0.125})
    return build_classifier(network, spatial_dims=2, in_channels=1, classes=classes)


def begin(network: torch.nn.Module, start: Start) -> Begun:
    return begin_named(network, start, name="ResNet10")


def settings(**values: Any) -> Fit:
    return Fit(epochs=1, **values)


def saved(network: torch.nn.Module, path: Path, prefix: str = "") -> Start:
    torch.save({prefix + name: tensor for name, tensor in network.state_dict().items()}, path)
    return Start(weights=str(path))


def state(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights_of(network).items()}


def steps(network: torch.nn.Module, image: torch.Tensor, *, count: int = 2) -> None:
    """Train everything that may be trained towards larger numbers."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        output = network(image)
        (-output.float().mean()).backward()
        optimizer.step()


# --------------------------------------------------------------------------------------------------------------- start


@pytest.mark.parametrize("prefix", ["", "module.", "network.", "model.", "model.module.", "_orig_mod.network."])
def test_same_network_is_taken_whole_whatever_wrapped_it(tmp_path: Path, prefix: str) -> None:
    source, network = resnet(seed=1), resnet(seed=2)
    begun = begin(network, saved(source, tmp_path / "weights.pt", prefix))
    assert all(torch.equal(tensor, state(source)[name]) for name, tensor in state(network).items())
    assert (begun.prefix, begun.taken_share, begun.left, begun.random) == (prefix, 1.0, (), ())
    assert begun.taken == len(state(network))


def test_network_whose_own_names_look_like_a_wrapper_s_is_taken(tmp_path: Path) -> None:
    options = {"channels": [4, 8], "strides": [2]}
    source, network = unet("UNet", options, seed=1), unet("UNet", options, seed=2)
    assert all(name.startswith("model.") for name in state(source))
    assert begin(network, saved(source, tmp_path / "weights.pt")).prefix == ""
    begun = begin(unet("UNet", options, seed=3), saved(source, tmp_path / "weights.pt", "network."))
    assert (begun.prefix, begun.taken_share) == ("network.", 1.0)


def test_tensors_with_two_names_count_once(tmp_path: Path) -> None:
    source, network = unet("DynUNet", DYN, seed=1), unet("DynUNet", DYN, seed=2)
    begun = begin(network, saved(source, tmp_path / "weights.pt"))
    assert len(source.state_dict()) > begun.taken == len(state(network))
    assert (begun.taken_share, begun.left, begun.random) == (1.0, (), ())


def test_another_head_and_another_image_are_told_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = unet("DynUNet", DYN, seed=1, channels=2, classes=5)
    network = unet("DynUNet", DYN, seed=2)
    before = state(network)
    with caplog.at_level(logging.INFO):
        begun = begin(network, saved(source, tmp_path / "weights.pt"))
    changed = {name for name in before if not torch.equal(before[name], state(network)[name])}
    # The first block sees another number of channels, twice, and the head has other classes.
    assert set(begun.random) == {
        "input_block.conv1.conv.weight", "input_block.conv3.conv.weight",
        "output_block.conv.conv.weight", "output_block.conv.conv.bias",
    } & set(before)  # fmt: skip
    assert begun.random
    assert not changed & set(begun.random)
    assert set(begun.random) <= set(begun.left)
    assert 0.9 < begun.taken_share < 1
    assert f"{len(begun.random)} tensors of the network begin random: {begun.random[0]}" in caplog.text
    assert begun.sha256 in caplog.text
    assert str(tmp_path) not in caplog.text


def test_another_network_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    network = resnet()
    before = state(network)
    with pytest.raises(StartMismatch, match="0 of its") as caught:
        begin(network, saved(unet("DynUNet", DYN), tmp_path / "weights.pt"))
    assert "input_block" in caught.value.seen
    assert "layer1" in caught.value.seen
    assert all(torch.equal(before[name], tensor) for name, tensor in state(network).items())


def test_less_than_the_stated_share_is_refused(tmp_path: Path) -> None:
    source = resnet(seed=1, classes=5)
    start = saved(source, tmp_path / "weights.pt")
    share = begin(resnet(), start).taken_share
    assert 0.5 < share < 1
    with pytest.raises(StartMismatch, match="at least 100%"):
        begin(resnet(), start.model_copy(update={"least_share": 1.0}))
    assert begin(resnet(), start.model_copy(update={"least_share": share - 1e-6})).random == ("fc.weight", "fc.bias")


def test_network_that_the_source_names_is_compared(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(StartMismatch, match="it is of DynUNet"):
        begin(resnet(), Start(weights="hippocampus_mr"))


@pytest.mark.parametrize(
    ("target", "told"), [("monai.networks.nets.resnet10", False), ("ResNet", False), ("DenseNet121", True)]
)
def test_another_network_that_fits_nevertheless_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, target: str, told: bool
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "configs").mkdir()
    saved(resnet(seed=1), tmp_path / "models" / "model.pt")
    (tmp_path / "configs" / "train.json").write_text(json.dumps({"network_def": {"_target_": target}}))
    assert begin(resnet(), Start(weights=str(tmp_path))).kind == "bundle"
    assert ("this network is ResNet10" in caplog.text) == told


def test_weights_go_below_what_lora_adds(tmp_path: Path) -> None:
    source, network = unet("UNETR", UNETR, seed=1), unet("UNETR", UNETR, seed=2)
    start = saved(source, tmp_path / "weights.pt")
    adapt(network, settings(lora=Lora()))
    begun = begin(network, start)
    assert (begun.taken_share, begun.left, begun.random) == (1.0, (), ())
    merge(network)
    assert all(torch.equal(tensor, state(source)[name]) for name, tensor in state(network).items())


# -------------------------------------------------------------------------------------------------------------- freeze


def test_what_is_frozen_stays_and_the_rest_moves() -> None:
    network = resnet()
    held = adapt(network, settings(freeze=["conv1.*", "bn1.*", "layer[12].*"]))
    before = state(network)
    network.train()
    for module in held:
        module.eval()
    steps(network, torch.randn(4, 1, 32, 32))
    stayed = {name for name, tensor in state(network).items() if torch.equal(tensor, before[name])}
    frozen = {name for name in before if name.split(".")[0] in ("conv1", "bn1", "layer1", "layer2")}
    assert any("running_mean" in name for name in frozen)
    assert frozen <= stayed
    assert any("running_mean" in name for name in before.keys() - stayed), "those of other layers move on"
    # A bias in front of a normalisation has no effect, and so no gradient.
    without = ("num_batches_tracked", "downsample.0.bias")
    assert not {name for name in stayed - frozen if not name.endswith(without)}


def test_pattern_that_matches_nothing_is_refused_with_near_names() -> None:
    with pytest.raises(UnknownName, match=r"near: .*layer4") as caught:
        adapt(resnet(), settings(freeze=["layers4.*"]))
    assert caught.value.seen == "'layers4.*'"


def test_pattern_of_nothing_known_lists_the_parts() -> None:
    with pytest.raises(UnknownName, match=r"near: bn1, conv1, fc, layer1"):
        adapt(resnet(), settings(freeze=["zzzz*"]))


def test_second_name_of_a_weight_freezes_it() -> None:
    network = unet("DynUNet", DYN)
    adapt(network, settings(freeze=["skip_layers.downsample.*"]))
    assert not all(parameter.requires_grad for parameter in network.parameters())


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="nothing is left to train"):
        adapt(resnet(), settings(freeze=["*"]))


def test_without_either_everything_is_trained_and_nothing_held() -> None:
    network = resnet()
    assert adapt(network, settings()) == ()
    assert all(parameter.requires_grad for parameter in network.parameters())


# ---------------------------------------------------------------------------------------------------------------- LoRA

WITH_ATTENTION = [
    ("UNETR", UNETR, ("*.attn.qkv", "*.attn.out_proj"), (16, 16, 16)),
    ("SwinUNETR", SWIN, ("*.attn.qkv", "*.attn.proj"), (64, 32, 32)),
]


@pytest.mark.parametrize(("name", "options", "target", "size"), WITH_ATTENTION, ids=["UNETR", "SwinUNETR"])
def test_adapted_network_begins_as_it_was_and_merges_to_what_it_became(
    name: str, options: dict[str, Any], target: tuple[str, ...], size: tuple[int, ...]
) -> None:
    network = unet(name, options)
    plain = copy.deepcopy(network)
    names = set(weights_of(network))
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0))
    adapt(network, settings(lora=Lora(rank=2, alpha=8, target=target, also=("out.*",))))
    trained = {key for key, parameter in network.named_parameters() if parameter.requires_grad}
    assert all(".parametrizations.weight.0." in key or key.startswith("out.") for key in trained)
    assert any(key.startswith("out.") for key in trained)
    with torch.no_grad():
        assert torch.equal(network.eval()(image), plain.eval()(image)), "the addition begins as nothing"
    network.train()
    steps(network, image)
    with torch.no_grad():
        adapted = network.eval()(image)
        assert not torch.allclose(adapted, plain(image), atol=1e-3)
        merge(network)
        assert torch.equal(network(image), adapted)
        # Serving builds the plain network and loads the weights by its names.
        assert set(weights_of(network)) == names
        load_weights(plain, weights_of(network))
        assert torch.equal(plain(image), adapted)


def test_only_what_was_asked_for_changes() -> None:
    network = unet("UNETR", UNETR)
    before = state(network)
    adapt(network, settings(lora=Lora(rank=2, target=("vit.blocks.0.attn.qkv",))))
    image = torch.randn(1, 1, 16, 16, 16)
    steps(network, image)
    merge(network)
    changed = {name for name, tensor in state(network).items() if not torch.equal(tensor, before[name])}
    assert changed == {"vit.blocks.0.attn.qkv.weight"}
    difference = state(network)["vit.blocks.0.attn.qkv.weight"] - before["vit.blocks.0.attn.qkv.weight"]
    assert 1 <= int(torch.linalg.matrix_rank(difference, rtol=1e-4)) <= 2


def test_half_precision_merges_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    network = unet("UNETR", UNETR)
    adapt(network, settings(lora=Lora(rank=2)))
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        steps(network, image)
        with torch.no_grad():
            adapted = network.eval()(image)
            merge(network)
            assert torch.equal(network(image), adapted)


def test_network_without_attention_is_refused_with_what_it_has() -> None:
    with pytest.raises(ConfigInvalid, match=r"DynUNet has no linear layer and no attention, but \d+ Conv3d"):
        adapt(unet("DynUNet", DYN), settings(lora=Lora()))


def test_head_alone_is_no_attention() -> None:
    with pytest.raises(UnknownName, match=r"linear layers of ResNet, near: fc"):
        adapt(resnet(), settings(lora=Lora()))


def test_rank_that_is_no_saving_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="at most 24"):
        adapt(unet("UNETR", UNETR), settings(lora=Lora(rank=25)))


def test_same_seed_gives_the_same_addition() -> None:
    found = []
    for _ in range(2):
        network = unet("UNETR", UNETR)
        adapt(network, settings(lora=Lora()))
        found.append(state(network))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_frozen_and_adapted_at_once_is_refused() -> None:
    with pytest.raises(ValueError, match="not given with freeze"):
        settings(lora=Lora(), freeze=["vit.*"])
