"""What the processes of one training, the ranks, tell each other.

Invariant: with one process every function here gives back what it was given, and nothing else happens.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import distributed

_Item = TypeVar("_Item")


def ranks() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


class _Summed(torch.autograd.Function):
    """The sum over ranks, whose gradient is the sum of the ranks' gradients.

    Each rank computes the same loss L of the sum, so that a rank's share in it receives as many times its gradient as
    there are ranks. DistributedDataParallel then takes the mean over ranks, and what is left is the gradient of L.
    """

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of a tensor over ranks, for a loss that is no mean over cases (Dice over a batch, a weighted mean).

    Gradients flow through it such that DistributedDataParallel's mean over ranks is the gradient of one process.
    """
    if ranks() == 1:
        return tensor
    total: torch.Tensor = _Summed.apply(tensor)  # type: ignore[no-untyped-call]
    return total


def gathered(items: list[_Item]) -> list[_Item]:
    """The items of all ranks, rank by rank."""
    if ranks() == 1:
        return items
    found: list[list[_Item]] = [[] for _ in range(ranks())]
    distributed.all_gather_object(found, items)
    return [item for of_rank in found for item in of_rank]
