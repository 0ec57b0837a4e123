"""The network of a text model: an adapted encoder, and a thin head for the whole text, for its words, or for both.

Invariant: a text of several windows is judged as one, by what is pooled over all of them; nothing but what was trained
is published.

Shapes: B texts, W windows of at most L tokens, H numbers a token, K classes, T tags; ``ids_WL``, ``mask_WL`` (1 where
there is a token), ``owner_W`` (which text a window is of), ``classes_BK``, ``tags_WLT``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from imaging.config import TextConfig
from imaging.text.encoder import adapted, load_encoder
from imaging.weights import copy_weights

# Windows of like length are read together, so that little is filled up.
_TOGETHER = 8
# Lengths come in steps, for which the libraries below keep their plans.
_STEP = 16


@dataclass(frozen=True, slots=True, eq=False)
class Said:
    """What a network says of some texts, None where it has no such head; and the mean of each text's tokens."""

    classes_BK: torch.Tensor | None
    tags_WLT: torch.Tensor | None
    mean_BH: torch.Tensor


class TextNetwork(torch.nn.Module):
    """An encoder with one or two heads.

    Parameters
    ----------
    config
        The resolved config.
    frozen_dtype
        Of what is not trained.
    """

    def __init__(self, config: TextConfig, *, frozen_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        base = load_encoder(config.encoder, dtype=frozen_dtype)
        hidden = int(base.config.hidden_size)  # type: ignore[union-attr,arg-type]
        self.encoder = adapted(base, config.train.tuning)
        self.dropout = torch.nn.Dropout(config.train.dropout)
        # Of the marks of beginning, the mean and the greatest of all tokens.
        self.classes = torch.nn.Linear(3 * hidden, len(config.classes)) if config.classes else None
        self.tags = torch.nn.Linear(hidden, 1 + 2 * len(config.kinds)) if config.kinds else None

    def forward(self, ids_WL: torch.Tensor, mask_WL: torch.Tensor, owner_W: torch.Tensor, texts: int) -> Said:
        """Read all windows, and say what each text is and what each token is tagged with."""
        states_WLH = self._states(ids_WL, mask_WL)
        classes = None
        if self.classes is not None:
            classes = self.classes(self.dropout(_pooled(states_WLH, mask_WL, owner_W, texts))).float()
        tags = self.tags(self.dropout(states_WLH)).float() if self.tags is not None else None
        return Said(classes, tags, _mean(states_WLH, mask_WL, owner_W, texts))

    def _states(self, ids_WL: torch.Tensor, mask_WL: torch.Tensor) -> torch.Tensor:
        lengths = mask_WL.sum(1).long()
        order = lengths.argsort(stable=True)
        parts = []
        for some in torch.split(order, _TOGETHER):
            longest = min(-(-int(lengths[some].max()) // _STEP) * _STEP, ids_WL.shape[1])
            found = self.encoder(input_ids=ids_WL[some, :longest], attention_mask=mask_WL[some, :longest])
            part = found.last_hidden_state.float()
            parts.append(torch.nn.functional.pad(part, (0, 0, 0, ids_WL.shape[1] - longest)))
        return torch.cat(parts)[order.argsort()]


def _pooled(states_WLH: torch.Tensor, mask_WL: torch.Tensor, owner_W: torch.Tensor, texts: int) -> torch.Tensor:
    """For each text the mean of its windows' marks of beginning, the mean and the greatest of its tokens: (B, 3H)."""
    hidden = states_WLH.shape[2]
    counts = mask_WL[..., None]
    zeros = states_WLH.new_zeros(texts, hidden)
    windows = states_WLH.new_zeros(texts, 1).index_add(0, owner_W, torch.ones_like(counts[:, 0]))
    first = zeros.index_add(0, owner_W, states_WLH[:, 0]) / windows
    mean = _mean(states_WLH, mask_WL, owner_W, texts)
    most_WH = states_WLH.masked_fill(counts == 0, -torch.inf).amax(1)
    greatest = torch.stack([most_WH[owner_W == text].amax(0) for text in range(texts)])
    return torch.cat([first, mean, greatest], dim=1)


def _mean(states_WLH: torch.Tensor, mask_WL: torch.Tensor, owner_W: torch.Tensor, texts: int) -> torch.Tensor:
    """For each text the mean of its tokens: (B, H)."""
    counts = mask_WL[..., None]
    tokens = states_WLH.new_zeros(texts, 1).index_add(0, owner_W, counts.sum(1))
    zeros = states_WLH.new_zeros(texts, states_WLH.shape[2])
    return zeros.index_add(0, owner_W, (states_WLH * counts).sum(1)) / tokens


def trained_of(network: TextNetwork) -> dict[str, torch.Tensor]:
    """What was trained, by its names: what was added to the encoder, or its layers, and the heads."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def load_trained(network: TextNetwork, weights: Mapping[str, torch.Tensor]) -> None:
    """Copy what was trained into a network of the same config.

    Raises
    ------
    KeyError, ValueError
        If a name is missing or too many, or a shape differs; the network is then unchanged.
    """
    copy_weights(weights, trained_of(network))
