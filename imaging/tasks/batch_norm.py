"""Batch normalisation over the batch of all ranks, on a CPU; PyTorch's own does it on GPUs only.

Invariant: two ranks with half a batch each normalise as one process with the whole batch does. Weights keep their
names, and with one rank, or outside training, the layer is PyTorch's.
"""

from __future__ import annotations

import torch
from lightning.pytorch.plugins import LayerSync
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from imaging.tasks.ranks import summed


class SharedBatchNorm(_BatchNorm):
    """A batch normalisation, in one, two or three dimensions, whose mean and variance are those of all ranks.

    Parameters
    ----------
    layer
        What it takes the place of; the weights are shared with it.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self.weight, self.bias = layer.weight, layer.bias
        self.running_mean, self.running_var = layer.running_mean, layer.running_var
        self.num_batches_tracked = layer.num_batches_tracked
        self.training = layer.training
        self._layer = (layer,)  # in a tuple, so that it is no part of this module

    @property
    def layer(self) -> _BatchNorm:
        """What it took the place of."""
        return self._layer[0]

    def _check_input_dim(self, input: torch.Tensor) -> None:
        """Any number of axes; the layer that was there has seen them."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Normalise (B, C, ...) by the mean and variance of each channel over all ranks (Ioffe and Szegedy, 2015)."""
        if not self.training:
            return super().forward(input)
        values = input.float()
        axes = [0, *range(2, input.ndim)]
        shape = (1, -1, *(1 for _ in axes[1:]))
        sums = summed(torch.cat([values.sum(axes), values.new_tensor([values.numel() / self.num_features])]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = values - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / count
        self._track(mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    def _track(self, mean: torch.Tensor, variance: torch.Tensor) -> None:
        """Move the running figures that are used outside training; the variance there is the unbiased one."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        share = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance, share)


class SharedBatchNorms(LayerSync):
    """Lightning's hook: every batch normalisation of a module becomes a shared one, and plain again at the end."""

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the shared layers in."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, _BatchNorm) and not isinstance(child, SharedBatchNorm):
                    setattr(module, name, SharedBatchNorm(child))
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the plain layers back."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, SharedBatchNorm):
                    child.layer.train(child.training)
                    setattr(module, name, child.layer)
        return model
