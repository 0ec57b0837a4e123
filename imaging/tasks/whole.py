"""A network in training over a whole volume: tile by tile, or slice by slice where the network sees slices only.

Invariant: validation looks at a volume as `imaging.tiles`, which serves, does: the same tiles, blended the same way.

Shapes: B batch, C channels, K outputs; ``image_BCXYZ`` on the network's grid.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from monai.inferers import SliceInferer, sliding_window_inference

from imaging.config import Predict

# The slices of a 2D network lie across the last axis of `preprocess.orientation`.
_ACROSS = 2


def logits_of(
    network: Callable[[torch.Tensor], torch.Tensor], image_BCXYZ: torch.Tensor, settings: Predict
) -> torch.Tensor:
    """What a network says of whole volumes.

    Parameters
    ----------
    network
        Takes tiles (B, C, *patch) and gives (B, K, *patch).
    image_BCXYZ
        Preprocessed volumes.
    settings
        Patch, overlap, and how many tiles or slices go through the network at once.

    Returns
    -------
    Tensor
        (B, K, X, Y, Z); where tiles overlap, their mean, weighted by a Gaussian.
    """
    if len(settings.patch) == 3:
        logits = sliding_window_inference(
            image_BCXYZ, settings.patch, settings.batch_size, network, overlap=settings.overlap, mode="gaussian"
        )
    else:
        by_slice = SliceInferer(
            roi_size=settings.patch,
            sw_batch_size=settings.batch_size,
            overlap=settings.overlap,
            mode="gaussian",
            spatial_dim=_ACROSS,
        )
        logits = by_slice(image_BCXYZ, network)
    assert isinstance(logits, torch.Tensor)
    return logits
