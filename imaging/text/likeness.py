"""Which texts are nearly equal, so that a split can keep them on one side.

Invariant: the groups do not depend on the order of the texts. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"[^\W\d_]+")


def groups_of(texts: Sequence[str], *, alike: float, run: int) -> list[int]:
    """A number for each text, the same for those that are nearly equal.

    Two texts are nearly equal where of all runs of words that either has the share `alike` is in both (Broder, *On the
    resemblance and containment of documents*, 1997); digits, signs and the size of letters do not count. What is nearly
    equal to a text of a group is of the group.

    Parameters
    ----------
    texts
        One without a word is like nothing but others without a word.
    alike
        In (0, 1].
    run
        How many words there are in a run; a shorter text is one run.

    Returns
    -------
    list of int
        The place of the group's first text.
    """
    runs = [_runs(text, run) for text in texts]
    numbers: dict[str, int] = {}
    codes = [np.array(sorted(numbers.setdefault(item, len(numbers)) for item in own), dtype=np.int64) for own in runs]
    leader = list(range(len(texts)))

    def lead(at: int) -> int:
        while leader[at] != at:
            leader[at] = leader[leader[at]]
            at = leader[at]
        return at

    having: list[list[int]] = [[] for _ in numbers]
    sizes = np.array([len(own) for own in codes])
    for at, own in enumerate(codes):
        earlier = [having[code] for code in own.tolist() if having[code]]
        if earlier:
            shared = np.bincount(np.concatenate([np.array(places) for places in earlier]), minlength=at)
            either = sizes[: len(shared)] + sizes[at] - shared
            for other in np.flatnonzero(shared >= alike * either).tolist():
                first, second = sorted((lead(other), lead(at)))
                leader[second] = first
        for code in own.tolist():
            having[code].append(at)
    return [lead(at) for at in range(len(texts))]


def _runs(text: str, run: int) -> set[str]:
    words = [word.lower() for word in _WORD.findall(text)]
    return {" ".join(words[at : at + run]) for at in range(max(1, len(words) - run + 1))}
