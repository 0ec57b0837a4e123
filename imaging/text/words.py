"""The words of a text, the tags of words, and the mentions that tags spell.

Invariant: places are offsets into the text itself, in code points, end not included; what a model is trained on, what
it is measured by and what it serves are the same words. Imports no torch.

Tags are numbers: 0 is outside of all mentions, 1 + 2k begins one of the kind k, 2 + 2k goes on with it (BIO; Ramshaw
and Marcus, *Text chunking using transformation-based learning*, 1995).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OUTSIDE = 0
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, order=True)
class Mention:
    """Where something of the kind with this number is mentioned: [start, end)."""

    start: int
    end: int
    kind: int


def words_of(text: str) -> list[tuple[int, int]]:
    """Where the words of a text are: runs of letters and digits, and every other sign by itself."""
    return [match.span() for match in _WORD.finditer(text)]


def tags_of(words: Sequence[tuple[int, int]], mentions: Sequence[Mention]) -> list[int]:
    """The tag of each word, where the words of a mention are those that lie in it."""
    tags = [OUTSIDE] * len(words)
    for mention in mentions:
        inside = [at for at, (start, end) in enumerate(words) if start >= mention.start and end <= mention.end]
        for number, at in enumerate(inside):
            tags[at] = (1 if number == 0 else 2) + 2 * mention.kind
    return tags


def mentions_of(words: Sequence[tuple[int, int]], tags: Sequence[int]) -> list[tuple[Mention, int, int]]:
    """The mentions that tags spell, each with the numbers of its first word and of the one after its last.

    A tag that goes on with nothing begins a mention.
    """
    found: list[tuple[Mention, int, int]] = []
    first: int | None = None
    for at, tag in enumerate([*tags, OUTSIDE]):
        goes_on = first is not None and tag == tags[first] + tags[first] % 2
        if first is not None and not goes_on:
            kind = (tags[first] - 1) // 2
            found.append((Mention(words[first][0], words[at - 1][1], kind), first, at))
            first = None
        if tag != OUTSIDE and not goes_on:
            first = at
    return found


def likeliest_tags(logits_WT: NDArray[np.float64]) -> tuple[list[int], NDArray[np.float64]]:
    """The likeliest row of tags in which no mention goes on that has not begun, and each tag's own probability.

    Parameters
    ----------
    logits_WT
        Of each word and tag.

    Returns
    -------
    tags, probability_W
        The tags, and of each word the probability of its tag.

    Notes
    -----
    Viterbi, *Error bounds for convolutional codes*, IEEE Transactions on Information Theory 13 (1967) 260-269, where
    all steps that are allowed are equally likely.
    """
    words, tags = logits_WT.shape
    if not words:
        return [], np.zeros(0)
    log_WT = logits_WT - np.logaddexp.reduce(logits_WT, axis=1, keepdims=True)
    goes_on = np.array([tag != OUTSIDE and tag % 2 == 0 for tag in range(tags)])
    step_TT = np.zeros((tags, tags))
    for tag in np.flatnonzero(goes_on):
        step_TT[[other for other in range(tags) if other not in (tag, tag - 1)], tag] = -np.inf
    best_T = np.where(goes_on, -np.inf, log_WT[0])
    came_from = []
    for log_T in log_WT[1:]:
        way_TT = best_T[:, None] + step_TT
        came_from.append(way_TT.argmax(axis=0))
        best_T = way_TT.max(axis=0) + log_T
    row = [int(best_T.argmax())]
    for from_T in reversed(came_from):
        row.append(int(from_T[row[-1]]))
    row.reverse()
    return row, np.asarray(np.exp(log_WT[np.arange(words), row]))
