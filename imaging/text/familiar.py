"""What a text is like by its words alone, whatever a network makes of them: how many, how rare, how broken up.

Invariant: how rare a word is comes from the training texts, and a training text is no witness of its own words: what is
usual is told as it will be told of new texts. Of the training texts nothing is kept but how often each token occurs in
all of them together.

Shapes: N texts, V tokens of the encoder's vocabulary, H numbers a token, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from imaging.novelty import Traits
from imaging.text.encoder import Encoded

Floats = NDArray[np.float64]
# What a checkpoint keeps the counts under, beside what `imaging.novelty` keeps.
COUNTS = "words.counts"
# Added to the count of each token, so that one that never occurred is rare and not impossible (Lidstone).
_UNSEEN = 0.1
# The share of a text's tokens that are less surprising than the one that is told.
_RARE = 0.9


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """How often each token occurs in the training texts.

    Attributes
    ----------
    counts_V
        By the token's id; those beyond the last that occurs may be left out.
    """

    counts_V: NDArray[np.float32]

    @classmethod
    def of(cls, texts: Sequence[Encoded]) -> Vocabulary:
        """That of some texts."""
        tokens = np.concatenate([tokens_of(text) for text in texts]) if texts else np.zeros(0, dtype=np.int64)
        return cls(np.bincount(tokens).astype(np.float32))

    def words(self, text: Encoded, *, own: bool = False) -> Floats:
        """What a text is like by its words, (F,); empty where it has none.

        The logarithm of the number of its words, tokens a word, the share of different ones among its tokens, the
        share of tokens that no training text has, and their mean and 90th percentile of surprise, ``-log p`` by how
        often each occurs.

        Parameters
        ----------
        text
            Which.
        own
            Whether it is one of the training texts, whose own tokens then do not count.
        """
        tokens = tokens_of(text)
        if not len(tokens) or not text.words:
            return np.zeros(0)
        counts_V = np.zeros(max(len(self.counts_V), int(tokens.max()) + 1))
        counts_V[: len(self.counts_V)] = self.counts_V
        if own:
            np.subtract.at(counts_V, tokens, 1)
        counts_N = counts_V[tokens]
        surprise_N = np.log(counts_V.sum() + _UNSEEN * len(counts_V)) - np.log(counts_N + _UNSEEN)
        return np.array([
            np.log(len(text.words)), len(tokens) / len(text.words), len(np.unique(tokens)) / len(tokens),
            (counts_N == 0).mean(), surprise_N.mean(), np.quantile(surprise_N, _RARE),
        ])  # fmt: skip


def tokens_of(text: Encoded) -> NDArray[np.int64]:
    """The tokens of all its windows without their marks; those that two windows share count twice."""
    return np.array([token for window in text.windows for token in window[1:-1]], dtype=np.int64)


def traits_of(
    texts: Sequence[Encoded], embedding_NH: Floats, vocabulary: Vocabulary, *, own: bool = False
) -> list[Traits]:
    """What texts are like, for `imaging.novelty`.

    Parameters
    ----------
    texts
        Which.
    embedding_NH
        What the encoder makes of them.
    vocabulary, own
        See `Vocabulary.words`.
    """
    none = np.zeros(0)
    return [
        Traits(none, none, embedding_H, vocabulary.words(text, own=own))
        for text, embedding_H in zip(texts, embedding_NH, strict=True)
    ]
