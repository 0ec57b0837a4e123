"""The rules give nnU-Net's networks, what is counted is what is kept, and budgets hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss

from imaging.config import Network
from imaging.dataset_check import CaseFacts
from imaging.errors import ConfigInvalid
from imaging.networks import build_network
from imaging.plan import Budget, Grid, Topology, epochs_for, plan_network, target_grid, topology_for, training_bytes

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]


def case(size: Size, spacing: Spacing) -> CaseFacts:
    return CaseFacts("c", "c", size, spacing, "RAS", 0.0, 1.0, np.zeros(1, np.float32), {1: 1}, 1.0)


def built(topology: Topology, *, classes: int) -> torch.nn.Module:
    options = {
        "filters": list(topology.filters),
        "kernel_size": [list(kernel) for kernel in topology.kernels],
        "strides": [list(stride) for stride in topology.strides],
        "upsample_kernel_size": [list(stride) for stride in topology.strides[1:]],
        "norm_name": ["instance", {"affine": True}],
        "deep_supervision": True,
        "deep_supr_num": topology.supervised,
    }
    return build_network(Network(name="DynUNet", options=options), in_channels=1, out_channels=classes)


# ---------------------------------------------------------------------------------------------------------- the spacing


def test_spacing_is_the_median_of_the_cases() -> None:
    grid = target_grid([case((50, 60, 70), (1, 1, z)) for z in (1.0, 1.5, 2.0)])
    assert grid == Grid((1, 1, 1.5), (50, 60, 70), None)


def test_coarse_slices_keep_the_resolution_of_the_finer_cases() -> None:
    distances = np.linspace(3, 8, 11).tolist()
    grid = target_grid([case((256, 256, 20), (0.8, 0.8, z)) for z in distances])
    assert grid.spacing_mm == (0.8, 0.8, pytest.approx(np.percentile(distances, 10)))
    assert grid.coarse_axis == 2
    assert grid.median_size[2] == pytest.approx(20 * 5.5 / 3.5, abs=1)


def test_slices_are_never_finer_than_pixels() -> None:
    grid = target_grid([case((256, 256, 20), (1, 1, z)) for z in (0.4, 5.0, 5.0, 5.0)])
    assert grid.spacing_mm == (1, 1, pytest.approx(np.percentile([0.4, 5, 5, 5], 10)))
    grid = target_grid([case((256, 256, 20), (1, 1, z)) for z in (0.4, 0.4, 5.0, 5.0, 5.0)])
    assert grid == Grid((1, 1, 1), (256, 256, 100), None)


def test_far_apart_slices_that_are_many_are_taken_at_their_median() -> None:
    """nnU-Net asks for both: a coarse spacing and few voxels along it."""
    grid = target_grid([case((100, 100, 60), (1, 1, z)) for z in (4.0, 5.0, 6.0)])
    assert (grid.spacing_mm, grid.coarse_axis) == ((1, 1, 5), None)


# --------------------------------------------------------------------------------------------------------- the topology


@pytest.mark.parametrize(
    ("patch", "spacing", "strides"),
    [
        # nnU-Net's rule, followed by hand for patches and spacings such as those of three Decathlon tasks.
        ((40, 56, 40), (1, 1, 1), [(2, 2, 2)] * 3),
        ((128, 128, 128), (0.77, 0.77, 1), [(2, 2, 2)] * 5),
        ((320, 256, 20), (0.62, 0.62, 3.6), [(2, 2, 1)] * 2 + [(2, 2, 2)] * 2 + [(2, 2, 1)] * 2),
    ],
    ids=["hippocampus", "liver", "prostate"],
)
def test_strides_follow_the_rule_of_nnunet(patch: Size, spacing: Spacing, strides: list[Size]) -> None:
    topology = topology_for(patch, spacing)
    assert topology.patch == patch
    assert list(topology.strides) == [(1, 1, 1), *strides]


def test_kernels_along_a_coarse_axis_begin_where_the_voxels_have_become_as_long() -> None:
    topology = topology_for((320, 256, 20), (0.62, 0.62, 3.6))
    assert topology.kernels == ((3, 3, 1), (3, 3, 1), *[(3, 3, 3)] * 5)


sizes = st.tuples(*[st.integers(8, 200)] * 3)
spacings = st.tuples(*[st.floats(0.3, 6)] * 3)


@given(patch=sizes, spacing=spacings)
def test_patch_is_divisible_and_nothing_is_pooled_below_four(patch: Size, spacing: Spacing) -> None:
    topology = topology_for(patch, spacing)
    steps = np.prod(topology.strides, axis=0)
    assert not np.any(np.array(topology.patch) % steps)
    assert all(0 <= edge - wanted < step for edge, wanted, step in zip(topology.patch, patch, steps, strict=True))
    deepest = np.array(topology.sizes[-1])
    assert all(deepest[steps > 1] >= 4)
    assert len(topology.kernels) == len(topology.strides) == len(topology.filters)


# ------------------------------------------------------------------------------------------------------------- the plan


def test_hippocampus_is_planned_as_nnunet_does() -> None:
    grid = target_grid([case((35, 50, 36), (1, 1, 1))])
    plan = plan_network(grid, classes=3, cases=200, budget=Budget())
    assert plan.topology.patch == (40, 56, 40)
    assert len(plan.topology.strides) == 4


@given(
    spacing=spacings, size=st.tuples(*[st.integers(1, 400)] * 3), memory=st.floats(0.3, 40), cases=st.integers(2, 500)
)
@settings(deadline=None)
def test_budget_holds_and_more_of_it_is_no_smaller_patch(
    spacing: Spacing, size: Size, memory: float, cases: int
) -> None:
    grid = Grid(spacing, size, None)
    plan = plan_network(grid, classes=3, cases=cases, budget=Budget(memory))
    assert plan.step_bytes <= memory * 2**30
    assert plan.batch_size >= 2
    assert len(plan.topology.strides) >= 3
    larger = plan_network(grid, classes=3, cases=cases, budget=Budget(memory * 3))
    assert math.prod(larger.topology.patch) >= math.prod(plan.topology.patch)


def test_what_no_patch_fits_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="at least"):
        plan_network(Grid((1, 1, 1), (200, 200, 200), None), classes=3, cases=9, budget=Budget(0.001))


@pytest.mark.parametrize(
    "grid",
    [
        Grid((1, 1, 1), (35, 50, 36), None),
        Grid((0.7, 0.7, 5), (200, 180, 14), 2),
        Grid((4, 0.9, 0.9), (9, 150, 150), 0),
        Grid((1, 1, 1), (6, 5, 4), None),
        Grid((1, 1, 1), (60, 60, 1), None),
        Grid((0.5, 3, 3), (40, 9, 9), None),
    ],
    ids=["isotropic", "coarse_z", "coarse_x", "tiny", "flat", "long"],
)
def test_planned_network_is_built_and_learns_a_step(grid: Grid) -> None:
    topology = plan_network(grid, classes=2, cases=8, budget=Budget(0.25)).topology
    network = built(topology, classes=2)
    image = torch.randn(1, 1, *topology.patch)
    logits = network(image)
    assert logits.shape == (1, 1 + topology.supervised, 2, *topology.patch)
    logits.mean().backward()


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.7, 0.7, 4.0)], ids=["isotropic", "coarse"])
def test_memory_counted_is_what_the_backward_pass_keeps(spacing: Spacing) -> None:
    """PyTorch tells every tensor that it saves for the backward pass; each memory is counted once."""
    topology = topology_for((32, 32, 16), spacing)
    network = built(topology, classes=3)
    parameters = {parameter.data_ptr() for parameter in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    truth = torch.randint(0, 3, (2, 1, *topology.patch))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heads = network(torch.randn(2, 1, *topology.patch)).unbind(1)
        sum(loss(head, truth) for head in heads).backward()
    weights = sum(parameter.numel() for parameter in network.parameters())
    counted = training_bytes(topology, classes=3, batch=2) - 4 * 5 * weights
    assert 0.9 * sum(kept.values()) < counted < 1.5 * sum(kept.values())


def test_weights_are_counted_as_the_network_has_them() -> None:
    topology = topology_for((32, 32, 16), (0.7, 0.7, 4.0))
    weights = sum(parameter.numel() for parameter in built(topology, classes=3).parameters())
    without_batch = training_bytes(topology, classes=3, batch=0)
    assert without_batch == pytest.approx(4 * 5 * weights, rel=0.01)


@pytest.mark.parametrize(("cases", "batch", "steps", "epochs"), [(100, 2, 1000, 20), (3, 2, 10, 10), (1, 2, 5, 5)])
def test_epochs_give_the_steps_asked_for(cases: int, batch: int, steps: int, epochs: int) -> None:
    assert epochs_for(Budget(steps=steps), cases=cases, batch=batch) == epochs
