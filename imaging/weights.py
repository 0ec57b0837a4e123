"""Weights into a network, all of them or none.

Invariant: what does not fit by name and shape changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch


def copy_weights(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Copy weights into the tensors of a network.

    Parameters
    ----------
    weights
        By name.
    own
        The network's, to be written into.

    Raises
    ------
    KeyError, ValueError
        If a name is missing or too many, or a shape differs; nothing is then written.
    """
    names = own.keys() ^ weights.keys()
    if names:
        raise KeyError(f"{len(names)} names differ, {min(names)!r} among them")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape:
            raise ValueError(f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
