"""Batch normalisation over the batch of all ranks: PyTorch's own on GPUs, where it works, and one for CPUs.

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
    """Lightning's hook: every batch normalisation of a module becomes a shared one, and plain again at the end.

    Those that are frozen, and so out of training, stay as they are.

    Parameters
    ----------
    on_gpu
        Whether PyTorch's own shared layer can be taken.
    """

    def __init__(self, *, on_gpu: bool) -> None:
        self._on_gpu = on_gpu
        self._plain: list[tuple[nn.Module, str, nn.Module]] = []

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the shared layers in."""
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, _BatchNorm) and child.training:
                    self._plain.append((module, name, child))
                    setattr(module, name, self._shared(child))
        return model

    def _shared(self, layer: _BatchNorm) -> nn.Module:
        if self._on_gpu:
            shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(layer)  # type: ignore[no-untyped-call]
            return shared
        return SharedBatchNorm(layer)

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the plain layers back, with what the shared ones have learnt."""
        for module, name, layer in self._plain:
            shared = getattr(module, name)
            for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
                setattr(layer, key, getattr(shared, key))
            setattr(module, name, layer.train(shared.training))
        self._plain.clear()
        return model
