"""Losses of the whole batch, however many processes share it.

Invariant: the loss is a function of sums over the cases of all ranks, so that two processes with half a batch each have
the loss, and the gradient, of one process with the whole.

Shapes: B batch of this rank, K classes; ``logits_BK...`` and ``label_B1...`` with any number of spatial axes.
"""

from __future__ import annotations

import torch
from monai.losses.utils import compute_tp_fp_fn
from monai.networks.utils import one_hot
from torch.nn import functional

from imaging.tasks.ranks import summed

# As in MONAI: keeps a structure that is nowhere from dividing nothing by nothing.
_SMOOTH = 1e-5


def dice_cross_entropy(logits: torch.Tensor, label: torch.Tensor, *, ignored: int | None = None) -> torch.Tensor:
    """1 - Dice, the mean over structures, plus the cross-entropy, the mean over voxels.

    With one process this is MONAI's ``DiceCELoss(to_onehot_y=True, softmax=True, batch=True,
    include_background=False)``: overlaps are added up over the batch before they are divided (V-Net, Milletari et al.,
    3DV 2016). MONAI's class adds up over the batch of one rank only, and the mean of two such ratios is another number.

    Parameters
    ----------
    logits
        (B, K, ...), float32.
    label
        (B, 1, ...), class ids; 0 is the background, which the Dice leaves out.
    ignored
        In `label`, what counts neither in the Dice nor in the cross-entropy.
    """
    axes = [0, *range(2, logits.ndim)]
    target, probability = label[:, 0].long(), logits.softmax(1)[:, 1:]
    if ignored is None:
        cross = functional.cross_entropy(logits, target, reduction="sum")
        voxels = torch.full_like(cross, label.numel())
    else:
        counted = label != ignored
        cross = functional.cross_entropy(logits, target, reduction="sum", ignore_index=ignored)
        voxels = counted.sum().to(cross.dtype)
        # Where neither has anything there is no hit, nothing false and nothing missed.
        label, probability = label * counted, probability * counted
    truth = one_hot(label, num_classes=logits.shape[1])[:, 1:]
    hits, false, missed = compute_tp_fp_fn(probability, truth, axes, 1, False)
    sums = summed(torch.cat([hits, false, missed, cross[None], voxels[None]]))
    hits, false, missed = sums[:-2].chunk(3)
    dice = (2 * hits + _SMOOTH) / (2 * hits + false + missed + _SMOOTH)
    return 1 - dice.mean() + sums[-2] / sums[-1]


def regions_dice_cross_entropy(
    logits: torch.Tensor, truth: torch.Tensor, *, counted: torch.Tensor | None = None
) -> torch.Tensor:
    """1 - Dice, the mean over regions, plus the cross-entropy, the mean over voxels and regions, each on its own.

    With one process this is MONAI's ``DiceLoss(sigmoid=True, batch=True)`` plus ``BCEWithLogitsLoss``; nnU-Net trains
    regions so (Isensee et al., *nnU-Net for brain tumor segmentation*, BrainLes 2020).

    Parameters
    ----------
    logits, truth
        (B, K, ...), float32; `truth` of 0 and 1.
    counted
        (B, 1, ...), which voxels count; by default all do.
    """
    axes = [0, *range(2, logits.ndim)]
    probability, weight = logits.sigmoid(), None
    values = torch.full((), truth.numel(), dtype=logits.dtype, device=logits.device)
    if counted is not None:
        weight = counted.to(logits.dtype)
        probability, truth = probability * weight, truth * weight
        values = weight.sum() * truth.shape[1]
    hits, false, missed = compute_tp_fp_fn(probability, truth, axes, 1, False)
    cross = functional.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
    sums = summed(torch.cat([hits, false, missed, cross[None], values[None]]))
    hits, false, missed = sums[:-2].chunk(3)
    dice = (2 * hits + _SMOOTH) / (2 * hits + false + missed + _SMOOTH)
    return 1 - dice.mean() + sums[-2] / sums[-1]


def classes_cross_entropy(
    logits: torch.Tensor, label: torch.Tensor, *, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Cross-entropy of cases that are exactly one class each, the mean over cases weighted by their class.

    Parameters
    ----------
    logits, label
        (B, K); `label` of 0 and exactly one 1 a case.
    weights
        Of each class, (K,).
    smoothing
        Share of the certainty that is spread over the classes.

    Notes
    -----
    As ``torch.nn.CrossEntropyLoss``, whose weighted mean divides by the weights of the cases.
    """
    chosen = label.argmax(1)
    loss = functional.cross_entropy(logits, chosen, weights, label_smoothing=smoothing, reduction="sum")
    weight = weights[chosen].sum() if weights is not None else torch.full_like(loss, len(label))
    return _ratio(loss, weight)


def findings_cross_entropy(
    logits: torch.Tensor, label: torch.Tensor, *, weights: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Cross-entropy of cases that have each class or not, the mean over cases and classes.

    Parameters
    ----------
    logits, label
        (B, K); `label` of 0 and 1.
    weights
        How many times a case that has the class counts, (K,).
    smoothing
        Share of the certainty that is given up.
    """
    softened = label * (1 - smoothing) + smoothing / 2
    loss = functional.binary_cross_entropy_with_logits(logits, softened, pos_weight=weights, reduction="sum")
    return _ratio(loss, torch.full_like(loss, label.numel()))


def mean_over_ranks(total: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """A sum divided by how many were added up, over all ranks; 0 where nobody has any."""
    sums_2 = summed(torch.stack([total, count.to(total.dtype)]))
    return sums_2[0] / sums_2[1].clamp(min=1)


def _ratio(numerator: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks divided by sum over all ranks."""
    sums_2 = summed(torch.stack([numerator, divisor]))
    return sums_2[0] / sums_2[1]
