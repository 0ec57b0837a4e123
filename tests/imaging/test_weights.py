"""Weights that do not fit change nothing."""

from __future__ import annotations

import pytest
import torch

from imaging.weights import copy_weights


@pytest.mark.parametrize(
    ("weights", "refused"),
    [
        ({"a": torch.ones(2)}, KeyError),
        ({"a": torch.ones(2), "b": torch.ones(3), "c": torch.ones(1)}, KeyError),
        ({"a": torch.ones(2), "b": torch.ones(4)}, ValueError),
    ],
    ids=["one_missing", "one_too_many", "another_shape"],
)
def test_weights_that_do_not_fit_change_nothing(weights: dict[str, torch.Tensor], refused: type[Exception]) -> None:
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    with pytest.raises(refused, match=r"[bc]"):
        copy_weights(weights, own)
    assert not any(tensor.any() for tensor in own.values())


def test_weights_that_fit_are_copied_into_the_same_tensors() -> None:
    own = {"a": torch.zeros(2, requires_grad=True)}
    tensor = own["a"]
    copy_weights({"a": torch.tensor([1.0, 2.0], dtype=torch.float64)}, own)
    assert own["a"] is tensor
    assert tensor.tolist() == [1, 2]
    assert tensor.dtype == torch.float32
