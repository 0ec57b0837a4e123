"""A shared batch normalisation is PyTorch's where there is one rank; what two make of it: pipelines/test_devices.py."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from imaging.tasks.batch_norm import SharedBatchNorm, SharedBatchNorms


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (5, 3)),
        (nn.BatchNorm2d(3, momentum=None), (4, 3, 5, 6)),
        (nn.BatchNorm3d(3, affine=False), (2, 3, 4, 5, 3)),
        (nn.BatchNorm2d(3, track_running_stats=False), (4, 3, 5, 6)),
    ],
    ids=["1d", "cumulative", "no_weights", "no_statistics"],
)
def test_one_rank_normalises_as_the_layer_did(layer: nn.Module, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = SharedBatchNorm(copy.deepcopy(layer))
    for _ in range(3):
        values = 3 + 2 * torch.randn(shape, generator=generator)
        given = [values.clone().requires_grad_() for _ in range(2)]
        found, expected = shared(given[0]), layer(given[1])
        torch.testing.assert_close(found, expected)
        for result in (found, expected):
            (result**3).sum().backward()
        torch.testing.assert_close(given[0].grad, given[1].grad, rtol=1e-4, atol=1e-4)
    for name, value in layer.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    shared.eval(), layer.eval()
    torch.testing.assert_close(shared(values), layer(values))


def test_layers_go_and_come_back_with_what_they_have_learnt() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.Sequential(nn.BatchNorm2d(2)), nn.BatchNorm2d(2), nn.InstanceNorm2d(2)
    )
    network[2].eval()  # frozen
    names, frozen = set(network.state_dict()), network[2]
    sync = SharedBatchNorms(on_gpu=False)
    sync.apply(network)
    assert isinstance(network[1][0], SharedBatchNorm) and network[2] is frozen
    assert set(network.state_dict()) == names
    network[1][0].running_mean = torch.ones(2)
    sync.revert(network)
    assert type(network[1][0]) is nn.BatchNorm2d
    assert network[1][0].running_mean.tolist() == [1, 1]
