"""A map finds what the network goes by, in its own place on the image's own grid, whatever was cut off or filled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classified import toy_config
from monai.networks.nets import resnet10
from monai.visualize import GradCAMpp
from torch.utils.flop_counter import FlopCounterMode

from imaging.checkpoint import find_checkpoint, open_checkpoint
from imaging.classifier import Classifier
from imaging.config import ClassifyConfig, ClassifyPreprocess, Explain
from imaging.errors import ConfigInvalid, UnknownName
from imaging.explain import Explainer
from imaging.gridding import affine_of_grid, classify_preprocessing
from imaging.heat_map import Attribution
from imaging.networks import build_classifier, load_weights
from imaging.png import read_png
from imaging.restore import restore_values
from imaging.transforms import IMAGE, apply
from imaging.volume import Volume

RESNET = ["network.name=ResNet10", "network.options={conv1_t_size: 3, conv1_t_stride: 1, widen_factor: 0.125}"]


class BrightSpot(torch.nn.Module):
    """Two logits: of nothing, and of the brightest place. One feature map, a quarter as fine as the grid."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        pool = torch.nn.AvgPool2d(4) if axes == 2 else torch.nn.AvgPool3d(4)
        self.layer1 = torch.nn.Sequential(pool, torch.nn.ReLU())
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        highest = (self.scale * self.layer1(image)).flatten(1).logsumexp(1)
        return torch.stack([torch.zeros_like(highest), highest], dim=1)


def config_of(folder: Path, *overrides: str, **explain: Any) -> ClassifyConfig:
    config = toy_config(folder, *overrides)
    return config.model_copy(update={"explain": Explain(**explain)})


def network_of(config: ClassifyConfig, *, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    axes = len(config.preprocess.size)
    network = build_classifier(config.network, spatial_dims=axes, in_channels=1, classes=len(config.classes))
    for module in network.modules():  # as after training: no feature of a fresh network has another than its start
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network.eval()


def picture_of(config: ClassifyConfig, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 1, *config.preprocess.size, generator=torch.Generator().manual_seed(seed))


def explained(explainer: Explainer, image: torch.Tensor, group: tuple[int, ...] = (1,)) -> Attribution:
    (found,) = explainer(image, [group])
    return found


# ---------------------------------------------------------------------------------------------------------- its place

FILMS = [
    ((60, 40, 1), (20, 20), "LPS", (22, 10)),
    ((40, 60, 1), (24, 20), "LPS", (8, 30)),
    ((33, 57, 1), (20, 24), "LPS", (12, 22)),
]
VOLUMES = [
    ((30, 24, 20), (16, 16, 16), "LPS", (14, 6, 8)),
    ((24, 20, 30), (16, 20, 16), "PIR", (8, 8, 12)),
]


@pytest.mark.parametrize("aspect", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("shape", "size", "towards", "corner"), [*FILMS, *VOLUMES], ids=str)
@pytest.mark.parametrize("method", ["grad_cam_pp", "integrated_gradients"])
def test_bright_square_is_found_in_its_own_place(
    tmp_path: Path, aspect: str, shape: Any, size: Any, towards: str, corner: Any, method: Any
) -> None:
    axes, edge = len(size), 8
    config = config_of(tmp_path, method=method, layer="layer1" if method == "grad_cam_pp" else None)
    fitted = ClassifyPreprocess(size=size, aspect=aspect, orientation="RAS")
    config = config.model_copy(update={"preprocess": fitted})
    array = np.random.default_rng(0).random(shape).astype(np.float32)
    square = np.zeros(shape, dtype=bool)
    square[tuple(slice(at, at + edge) for at in corner)] = True
    array[square] += 5
    volume = Volume(array[None], affine_towards(towards))
    values = torch.as_tensor(np.asarray(apply(classify_preprocessing(fitted), {IMAGE: volume.as_metatensor()})[IMAGE]))
    heat = explained(Explainer(config, [BrightSpot(axes)]), values[None]).heat
    grid = affine_of_grid(fitted, shape, volume.affine)
    restored = restore_values(heat[..., None] if axes == 2 else heat, grid, shape=shape, to_affine=volume.affine)
    hottest = np.unravel_index(int(np.nan_to_num(restored, nan=-1).argmax()), shape)
    assert square[hottest], f"the greatest value lies at {hottest}"
    weights = np.nan_to_num(restored) ** 2
    centre = [float((weights * np.indices(shape)[axis]).sum() / weights.sum()) for axis in range(axes)]
    cell = max(np.array(shape[:axes]) / (np.array(size) / 4))
    assert np.allclose(centre, [at + (edge - 1) / 2 for at in corner], atol=0.75 * cell)
    assert np.isnan(restored).any() == (aspect == "crop")


def affine_towards(towards: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, direction in enumerate(towards):
        patient_axis = "RLAPSI".index(direction) // 2
        affine[patient_axis, axis] = 1 if direction in "RAS" else -1
    affine[:3, 3] = 5, -7, 9
    return affine


@pytest.mark.parametrize("aspect", ["crop", "pad", "stretch"])
@pytest.mark.parametrize(("shape", "size", "towards", "corner"), [*FILMS, *VOLUMES], ids=str)
def test_way_back_undoes_the_way_in(aspect: str, shape: Any, size: Any, towards: str, corner: Any) -> None:
    """A picture that is linear in place comes back as it was, except for the outermost cells, which are held."""
    axes = len(size)
    config = ClassifyPreprocess(size=size, aspect=aspect, normalise="range", range=(0, 1000))
    ramp = (100 + sum(number * axis for number, axis in zip((1, 3, 5), np.indices(shape), strict=True))).astype("f4")
    volume = Volume(ramp[None], affine_towards(towards))
    gridded = np.asarray(apply(classify_preprocessing(config), {IMAGE: volume.as_metatensor()})[IMAGE])[0] * 1000
    grid = affine_of_grid(config, shape, volume.affine)
    back = restore_values(gridded[..., None] if axes == 2 else gridded, grid, shape=shape, to_affine=volume.affine)
    seen = np.isfinite(back)
    inner = tuple(slice(n // 3, -(n // 3)) for n in shape[:axes])
    assert seen[inner].all()
    assert np.abs(back - ramp)[inner].max() < 1.5
    assert seen.all() == (aspect != "crop")


def test_what_was_cut_off_is_exactly_what_was_not_seen() -> None:
    config = ClassifyPreprocess(size=(10, 10), aspect="crop")
    grid = affine_of_grid(config, (31, 20, 1), np.eye(4))
    back = restore_values(np.ones((10, 10, 1), dtype=np.float32), grid, shape=(31, 20, 1), to_affine=np.eye(4))
    assert np.isfinite(back).all(axis=(1, 2)).nonzero()[0].tolist() == list(range(5, 25))


# --------------------------------------------------------------------------------------------------------- the methods


def test_integrated_gradients_add_up_to_what_they_explain(tmp_path: Path) -> None:
    config = config_of(tmp_path, method="integrated_gradients", steps=128)
    found = explained(Explainer(config, [network_of(config)]), picture_of(config))
    assert found.gap is not None
    assert found.gap < 0.02
    assert found.steps == 128


class Steep(torch.nn.Module):
    """Two logits, the second of which jumps where the picture is a little brighter than `place` of its own."""

    def __init__(self, picture: torch.Tensor, *, sharp: float, place: float = 0.63) -> None:
        super().__init__()
        least = picture.amin()
        self.middle = float(least + place * (picture.mean() - least))
        self.sharp = torch.nn.Parameter(torch.tensor(sharp))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        jump = torch.sigmoid(self.sharp * (image.flatten(1).mean(1) - self.middle))
        return torch.stack([torch.zeros_like(jump), 3 * jump], dim=1)


@pytest.mark.parametrize("sharp", [30.0, 120.0])
def test_steps_are_doubled_until_the_gradients_add_up(tmp_path: Path, sharp: float) -> None:
    config = config_of(tmp_path, method="integrated_gradients", steps=8)
    image = picture_of(config)
    explainer = Explainer(config, [Steep(image, sharp=sharp)])
    found = explained(explainer, image)
    assert found.gap is not None and found.steps in (16, 32, 64, 128, 256)
    assert found.gap <= 0.05 < explainer._in_steps(image, (1,), found.steps // 2)[1], "half as many were too few"


def test_steps_end_where_they_do_not_help(tmp_path: Path) -> None:
    """A jump of no width is on no step: the gap is told as it is."""
    config = config_of(tmp_path, method="integrated_gradients", steps=100)
    image = picture_of(config)
    found = explained(Explainer(config, [Steep(image, sharp=1e6)]), image)
    assert found.steps == 512 and found.gap is not None and found.gap > 0.9


def test_integrated_gradients_of_a_linear_network_are_its_weights_times_the_image(tmp_path: Path) -> None:
    config = config_of(tmp_path, method="integrated_gradients")
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2))
    image = picture_of(config)
    weights = (network[1].weight[1] - network[1].weight[0]).detach().reshape(16, 16)
    expected = (weights * (image[0, 0] - image.min())).clamp(min=0)
    found = explained(Explainer(config, [network]), image)
    assert np.allclose(found.heat, (expected / expected.max()).numpy(), atol=1e-5)
    assert found.gap == pytest.approx(0, abs=1e-4)


def test_grad_cam_is_monai_s(tmp_path: Path) -> None:
    """With sigmoid the log-odds are the logit, which is what MONAI explains by itself."""
    config = config_of(tmp_path, *RESNET, "output=sigmoid", "preprocess.size=[32, 32]", layer="layer2")
    network = network_of(config)
    image = picture_of(config)
    found = explained(Explainer(config, [network]), image)
    expected = GradCAMpp(network_of(config), "layer2", postprocessing=lambda values: values)(image, class_idx=1)
    assert np.allclose(found.heat, (expected / expected.max())[0, 0].detach().numpy(), atol=1e-3)


def test_softmax_explains_one_class_against_the_others(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, "preprocess.size=[32, 32]")
    explainer = Explainer(config, [network_of(config)])
    one, other = explainer(picture_of(config), [(1,), (0,)])
    assert not np.allclose(one.heat, other.heat, atol=0.05)


def test_map_changes_with_random_weights(tmp_path: Path) -> None:
    """Adebayo et al., Sanity Checks for Saliency Maps, NeurIPS 2018: a map that does not is a picture of edges."""
    checkpoint = open_checkpoint(find_checkpoint("chest_xray"))
    config, network = checkpoint.classifier(), network_of(checkpoint.classifier())
    load_weights(network, checkpoint.load_weights())
    image = picture_of(config)
    trained = explained(Explainer(config, [network]), image).heat
    fresh = explained(Explainer(config, [network_of(config, seed=1)]), image).heat
    again = explained(Explainer(config, [network]), image).heat
    assert np.array_equal(trained, again)
    assert abs(np.corrcoef(trained.ravel(), fresh.ravel())[0, 1]) < 0.5


def test_flips_of_the_prediction_are_explained_too(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, "preprocess.size=[32, 32]", "predict.flip_axes=[0]")
    explainer = Explainer(config, [network_of(config)])
    image = picture_of(config)
    there, mirrored = explained(explainer, image).heat, explained(explainer, image.flip(2)).heat
    assert np.allclose(there, mirrored[::-1], atol=1e-4)


def test_members_of_an_ensemble_are_averaged(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, "preprocess.size=[32, 32]")
    networks = [network_of(config, seed=seed) for seed in (0, 1)]
    image = picture_of(config)
    each = [explained(Explainer(config, [network]), image).heat for network in networks]
    mean = (each[0] + each[1]) / 2
    assert np.allclose(explained(Explainer(config, networks), image).heat, mean / mean.max(), atol=1e-5)


def test_the_network_itself_is_left_as_it_was(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, "preprocess.size=[32, 32]")
    network = network_of(config)
    explained(Explainer(config, [network]), picture_of(config))
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())


def test_nothing_that_was_raised_leaves_an_empty_map(tmp_path: Path) -> None:
    config = config_of(tmp_path, layer="layer1")
    network = BrightSpot(2)
    network.scale.data.zero_()
    found = explained(Explainer(config, [network]), picture_of(config))
    assert not found.heat.any()


# ---------------------------------------------------------------------------------------------------- layers and costs


@pytest.mark.parametrize(
    ("name", "options", "size", "layer", "cells"),
    [
        ("ResNet10", {"conv1_t_stride": 1, "no_max_pool": True, "widen_factor": 0.125}, (28, 28), "layer3", (7, 7)),
        ("ResNet18", {"widen_factor": 0.125}, (112, 160), "layer4", (7, 10)),
        ("ResNet18", {"widen_factor": 0.125}, (40, 40, 40), "layer3", (5, 5, 5)),
        ("DenseNet", {"init_features": 4, "growth_rate": 4, "block_config": [1, 1]}, (64, 64), "features.denseblock2",
         (8, 8)),
        ("EfficientNetBN", {"model_name": "efficientnet-b0"}, (64, 64), "_blocks.5", (2, 2)),
    ],
)  # fmt: skip
def test_layer_is_the_last_stage_that_is_not_too_coarse(
    tmp_path: Path, name: str, options: dict[str, Any], size: Any, layer: str, cells: Any
) -> None:
    config = config_of(tmp_path, f"network={{name: {name}, options: {options}}}", f"preprocess.size={list(size)}")
    explainer = Explainer(config, [network_of(config)])
    assert (explainer.method, explainer.layer, explainer.cells) == ("grad_cam_pp", layer, cells)


def test_network_without_known_stages_is_explained_by_its_pixels(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    config = config.model_copy(update={"network": config.network.model_copy(update={"name": "Another"})})
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(256, 2))
    assert Explainer(config, [network]).method == "integrated_gradients"
    config = config.model_copy(update={"explain": Explain(method="grad_cam_pp")})
    with pytest.raises(ConfigInvalid, match="no feature maps"):
        Explainer(config, [network])


def test_unknown_layer_is_refused_with_near_ones(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, layer="layer5")
    with pytest.raises(UnknownName, match="layer4"):
        Explainer(config, [network_of(config)])


def test_layer_without_a_feature_map_is_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, *RESNET, layer="fc")
    with pytest.raises(ConfigInvalid, match="no feature map"):
        Explainer(config, [network_of(config)])


def test_grad_cam_costs_less_than_two_predictions() -> None:
    torch.manual_seed(0)
    network = resnet10(spatial_dims=2, n_input_channels=1, num_classes=2).eval()
    checkpoint = open_checkpoint(find_checkpoint("chest_xray"))
    config = checkpoint.classifier()
    config = config.model_copy(
        update={
            "network": config.network.model_copy(update={"name": "ResNet10"}),
            "preprocess": ClassifyPreprocess(size=(96, 96)),
        }
    )
    explainer, image = Explainer(config, [network]), torch.randn(1, 1, 96, 96)

    with FlopCounterMode(display=False) as once, torch.inference_mode():
        network(image)
    with FlopCounterMode(display=False) as explaining:
        explained(explainer, image)
    assert once.get_total_flops() > 0
    assert explaining.get_total_flops() < 2 * once.get_total_flops()


# ------------------------------------------------------------------------------------------------------ the classifier


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return Classifier(open_checkpoint(find_checkpoint("chest_xray")))


def test_only_what_is_abnormal_is_explained_unless_asked(classifier: Classifier, data: Path) -> None:
    ill = classifier(read_png(data / "pneumoniamnist/images/pneumonia_4.png"))
    well = classifier(read_png(data / "pneumoniamnist/images/normal_1.png"))
    assert (ill.judgements[0].assessment, well.judgements[0].assessment) == ("abnormal", "normal")
    assert [found.target for found in classifier.explain(ill).heat_maps] == ["pneumonia"]
    assert not classifier.explain(well).heat_maps
    assert [found.target for found in classifier.explain(well, of="all").heat_maps] == ["pneumonia"]
    assert not classifier.explain(ill, of="none").heat_maps


def test_map_lies_on_the_image_s_own_grid(classifier: Classifier, data: Path) -> None:
    small = read_png(data / "pneumoniamnist/images/pneumonia_4.png")
    wide = replace(small, array=np.pad(small.array.repeat(4, 1).repeat(4, 2), ((0, 0), (20, 10), (0, 0), (0, 0))))
    (found,) = classifier.explain(classifier(wide), of="all").heat_maps
    assert found.heat_XYZ.shape == wide.shape == (142, 112, 1)
    assert np.isfinite(found.heat_XYZ).all(axis=(1, 2)).nonzero()[0].tolist() == list(range(15, 127))
    assert found.seen == pytest.approx(112 / 142)
    assert found.attribution.cells == (7, 7)
