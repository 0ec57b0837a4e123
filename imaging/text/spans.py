"""What a network tags, as mentions, and how many of them are right.

Invariant: a mention is right where both its ends and its kind are those that were marked, and not otherwise (strict, as
CoNLL counts; Tjong Kim Sang and De Meulder, CoNLL-2003).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.text.encoder import Encoded
from imaging.text.words import OUTSIDE, likeliest_tags, mentions_of


@dataclass(frozen=True, slots=True)
class Counts:
    """Of each kind how many mentions were rightly found, wrongly found, and missed."""

    right: tuple[int, ...]
    wrong: tuple[int, ...]
    missed: tuple[int, ...]

    @classmethod
    def summed(cls, parts: Sequence[Counts]) -> Counts:
        """Those of several texts together."""
        return cls(
            *(
                tuple(map(sum, zip(*(getattr(part, name) for part in parts), strict=True)))
                for name in ("right", "wrong", "missed")
            )
        )

    @property
    def precision(self) -> float:
        """Share of the found mentions that are right; NaN without one."""
        return _share(sum(self.right), sum(self.right) + sum(self.wrong))

    @property
    def recall(self) -> float:
        """Share of the marked mentions that were found; NaN without one."""
        return _share(sum(self.right), sum(self.right) + sum(self.missed))

    @property
    def f1(self) -> float:
        """Of all kinds together; NaN where nothing was marked and nothing found."""
        return _share(2 * sum(self.right), 2 * sum(self.right) + sum(self.wrong) + sum(self.missed))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def tags_said(tags_WLT: NDArray[Any], text: Encoded) -> tuple[list[int], NDArray[np.float64]]:
    """The tags of a text's words by a network's logits for its windows, and the probability of each.

    A word without a token is outside.
    """
    logits = np.full((len(text.words), tags_WLT.shape[2]), -np.inf)
    for at, place in enumerate(text.places):
        if place is None:
            logits[at, OUTSIDE] = 0.0
        else:
            logits[at] = tags_WLT[place]
    return likeliest_tags(logits)


def counted(words: Sequence[tuple[int, int]], truth: Sequence[int], said: Sequence[int], *, kinds: int) -> Counts:
    """Compare the mentions of two rows of tags for the same words."""
    marked = {mention for mention, _, _ in mentions_of(words, truth)}
    found = {mention for mention, _, _ in mentions_of(words, said)}
    return Counts(
        *(
            tuple(sum(mention.kind == kind for mention in part) for kind in range(kinds))
            for part in (marked & found, found - marked, marked - found)
        )
    )
