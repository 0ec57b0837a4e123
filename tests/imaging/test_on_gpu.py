"""What is computed on a device is what is computed on the host. Torch's CPU stands for a GPU where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from imaging.blending import blocks_of
from imaging.config import Predict, SegmentConfig, load_config
from imaging.engines.torch_engine import TorchEngine
from imaging.errors import AnswerNotNumbers, GpuMemoryTooSmall
from imaging.files import shipped
from imaging.on_gpu import OnGpu
from imaging.predict import MeanProbability
from imaging.restore import OwnGrid
from imaging.tiles import layout_of

Array = np.ndarray[Any, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LABELS = 2


def config_of(predict: Predict, *, overlapping: bool) -> SegmentConfig:
    config = load_config(shipped("configs") / "hippocampus_mr.yaml")
    assert isinstance(config, SegmentConfig)
    return config.model_copy(update={"predict": predict, "overlapping": overlapping})


def network_of(seed: int, axes: int, outputs: int) -> torch.nn.Module:
    """Random weights, and an answer that depends on where in its tile a voxel lies, as that of every padding does."""
    torch.manual_seed(seed)
    layer = (torch.nn.Conv2d, torch.nn.Conv3d)[axes - 2]
    return torch.nn.Sequential(layer(1, 6, 5, padding=2), torch.nn.Tanh(), layer(6, outputs, 3, padding=1))


def on_host(engines: list[TorchEngine], config: SegmentConfig, image: Array, grid: OwnGrid) -> tuple[Any, ...]:
    means = MeanProbability(config)
    labels, regions = np.zeros(grid.shape, np.uint8), np.zeros((LABELS, *grid.shape), np.bool_)
    for block in blocks_of(engines, image, layout_of(config.predict, grid.size), outputs=config.outputs,
                           overlapping=config.overlapping, batch_size=2):  # fmt: skip
        means.add(block, grid.size)
        if config.overlapping:
            grid.add_regions(block, regions)
        else:
            grid.add_labels(block, labels)
    return labels, regions, means.found()


@given(
    size=st.tuples(*[st.integers(6, 18)] * 3),
    patch=st.sampled_from([(8, 8, 8), (6, 9, 12), (8, 8)]),
    flips=st.sampled_from([(), (2,), (0, 1)]),
    members=st.integers(1, 2),
    overlapping=st.booleans(),
    spacing=st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 1.7])] * 3),
    turned=st.permutations([0, 1, 2]),
)
@settings(max_examples=12, deadline=None)
def test_device_gives_what_the_host_gives(
    size: tuple[int, int, int], patch: tuple[int, ...], flips: tuple[int, ...], members: int, overlapping: bool,
    spacing: tuple[float, ...], turned: list[int],
) -> None:  # fmt: skip
    config = config_of(Predict(patch=patch, overlap=0.5, precision="32", flip_axes=flips), overlapping=overlapping)
    engines = [
        TorchEngine(network_of(seed, len(patch), config.outputs), device=DEVICE, precision="fp32", tile=patch)
        for seed in range(members)
    ]
    image = np.random.default_rng(1).normal(0, 2, (1, *size)).astype(np.float32)
    own = np.zeros((4, 4))
    own[turned, range(3)], own[3, 3] = np.array(spacing)[turned] * [1, -1, 1], 1
    own[turned[1], 3] = size[turned[1]] - 1  # the axis that runs backwards begins at the far end
    shape = tuple(int(np.ceil(size[axis] / spacing[axis])) + 1 for axis in turned)
    grid = OwnGrid(np.eye(4), size, shape=(shape[0], shape[1], shape[2]), to_affine=own)
    labels, regions, means = on_host(engines, config, image, grid)
    found, found_regions = np.zeros_like(labels), np.zeros_like(regions)
    found_means = OnGpu(engines, config).label(image, grid, found, found_regions, subject="series 1.2")
    assert labels.any() or regions.any()
    # Rounding may decide what lies at the very border of two classes.
    assert (found != labels).mean() <= 2e-3
    assert (found_regions != regions).mean() <= 2e-3
    assert found_means == pytest.approx(means, abs=1e-4)


def engine_of(network: torch.nn.Module) -> TorchEngine:
    return TorchEngine(network, device=DEVICE, precision="fp32")


def label(engine: TorchEngine) -> None:
    config = config_of(Predict(patch=(8, 8, 8), precision="32"), overlapping=False)
    image, grid = np.ones((1, 8, 8, 8), np.float32), OwnGrid(np.eye(4), (8, 8, 8), shape=(8, 8, 8), to_affine=np.eye(4))
    OnGpu([engine], config).label(image, grid, np.zeros((8, 8, 8), np.uint8), np.zeros((0, 8, 8, 8), np.bool_),
                                  subject="series 1.2")  # fmt: skip


def test_network_that_answers_with_no_number_is_refused() -> None:
    network = network_of(0, 3, 3)
    with torch.no_grad():
        network[2].bias[1] = torch.nan
    with pytest.raises(AnswerNotNumbers, match="NaN"):
        label(engine_of(network))


def test_device_that_runs_out_of_memory_is_told() -> None:
    class Large(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv3d(1, 3, 1)

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(GpuMemoryTooSmall, match="nvidia-smi"):
        label(engine_of(Large()))


def test_full_precision_is_full_on_a_gpu_too() -> None:
    seen: list[bool] = []

    class Looking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Conv3d(1, 3, 1)

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return self.layer(tiles)

    before = torch.backends.cudnn.allow_tf32
    label(engine_of(Looking()))
    assert seen and not any(seen)
    assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; run it on a machine that has one")
def test_gpu_says_the_same_each_time_and_what_the_cpu_says(data: Any) -> None:
    from imaging.checkpoint import find_checkpoint, open_checkpoint
    from imaging.engines import engines_of
    from imaging.nifti import read_nifti
    from imaging.predict import Predictor

    checkpoint = open_checkpoint(find_checkpoint("hippocampus_mr"))
    volume = read_nifti(data / "hippocampus" / "imagesTr" / "hippocampus_001.nii.gz")
    gpu = Predictor(checkpoint)
    assert gpu.choice.name == "torch"
    first, again = gpu(volume), gpu(volume)
    assert np.array_equal(first.mask_XYZ, again.mask_XYZ)
    assert first.mean_probability == again.mean_probability
    cpu = Predictor(checkpoint, engine=engines_of(checkpoint, wanted="torch", device="cpu", precision="fp32"))(volume)
    for structure in (1, 2):
        one, other = first.mask_XYZ == structure, cpu.mask_XYZ == structure
        assert 2 * (one & other).sum() / (one.sum() + other.sum()) >= 0.998
