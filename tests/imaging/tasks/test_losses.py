"""In one process the losses are the known ones; what two processes make of them stands in pipelines/test_devices.py."""

from __future__ import annotations

import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn import functional

from imaging.tasks.losses import (
    classes_cross_entropy,
    dice_cross_entropy,
    findings_cross_entropy,
    regions_dice_cross_entropy,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4)], ids=["2d", "3d"])
@pytest.mark.parametrize("absent", [False, True], ids=["all_structures", "one_absent"])
def test_dice_cross_entropy_is_that_of_monai(generator: torch.Generator, shape: tuple[int, ...], absent: bool) -> None:
    logits = torch.randn(3, 4, *shape, generator=generator, requires_grad=True)
    label = torch.randint(0, 3 if absent else 4, (3, 1, *shape), generator=generator, dtype=torch.uint8)
    own = dice_cross_entropy(logits, label)
    theirs = DiceCELoss(to_onehot_y=True, softmax=True, batch=True, include_background=False)(logits, label)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(gradient_of(own, logits), gradient_of(theirs, logits))


@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4)], ids=["2d", "3d"])
def test_regions_loss_is_that_of_monai_and_torch(generator: torch.Generator, shape: tuple[int, ...]) -> None:
    logits = torch.randn(3, 4, *shape, generator=generator, requires_grad=True)
    truth = torch.randint(0, 2, (3, 4, *shape), generator=generator).float()
    own = regions_dice_cross_entropy(logits, truth)
    theirs = DiceLoss(sigmoid=True, batch=True)(logits, truth)
    theirs = theirs + functional.binary_cross_entropy_with_logits(logits, truth)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(gradient_of(own, logits), gradient_of(theirs, logits))


def test_what_is_ignored_counts_for_nothing(generator: torch.Generator) -> None:
    """The loss of a padded patch is that of the part within the volume, and no gradient comes from around it."""
    logits = torch.randn(3, 4, 8, 9, generator=generator, requires_grad=True)
    inside = torch.randint(0, 4, (3, 1, 5, 6), generator=generator, dtype=torch.uint8)
    label = functional.pad(inside, (1, 2, 2, 1), value=255)
    cut = logits[:, :, 2:7, 1:7]
    own, expected = dice_cross_entropy(logits, label, ignored=255), dice_cross_entropy(cut, inside)
    torch.testing.assert_close(own, expected)
    gradient = gradient_of(own, logits)
    assert not gradient[(label == 255).expand_as(gradient)].any()
    torch.testing.assert_close(gradient, gradient_of(expected, logits))
    as_background = dice_cross_entropy(logits, label.masked_fill(label == 255, 0))
    assert abs((as_background - own).item()) > 0.01


def test_what_is_ignored_counts_for_no_region(generator: torch.Generator) -> None:
    logits = torch.randn(3, 4, 8, 9, generator=generator, requires_grad=True)
    truth = torch.randint(0, 2, (3, 4, 8, 9), generator=generator).float()
    counted = torch.zeros(3, 1, 8, 9, dtype=torch.bool)
    counted[:, :, 2:7, 1:7] = True
    own = regions_dice_cross_entropy(logits, truth, counted=counted)
    expected = regions_dice_cross_entropy(logits[:, :, 2:7, 1:7], truth[:, :, 2:7, 1:7])
    torch.testing.assert_close(own, expected)
    torch.testing.assert_close(gradient_of(own, logits), gradient_of(expected, logits))


def test_ignoring_what_is_not_there_changes_nothing(generator: torch.Generator) -> None:
    logits = torch.randn(3, 4, 7, 6, generator=generator)
    label = torch.randint(0, 4, (3, 1, 7, 6), generator=generator, dtype=torch.uint8)
    assert torch.equal(dice_cross_entropy(logits, label, ignored=255), dice_cross_entropy(logits, label))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 1.0, 3.0])], ids=["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_cross_entropy_is_that_of_torch(
    generator: torch.Generator, weights: torch.Tensor | None, smoothing: float
) -> None:
    logits = torch.randn(8, 3, generator=generator, requires_grad=True)
    chosen = torch.randint(0, 3, (8,), generator=generator)
    own = classes_cross_entropy(logits, functional.one_hot(chosen, 3).float(), weights=weights, smoothing=smoothing)
    theirs = functional.cross_entropy(logits, chosen, weights, label_smoothing=smoothing)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(gradient_of(own, logits), gradient_of(theirs, logits))


def test_findings_cross_entropy_is_that_of_torch(generator: torch.Generator) -> None:
    logits = torch.randn(8, 3, generator=generator, requires_grad=True)
    label = torch.randint(0, 2, (8, 3), generator=generator).float()
    weights = torch.tensor([0.5, 1.0, 3.0])
    own = findings_cross_entropy(logits, label, weights=weights, smoothing=0.0)
    theirs = functional.binary_cross_entropy_with_logits(logits, label, pos_weight=weights)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(gradient_of(own, logits), gradient_of(theirs, logits))
