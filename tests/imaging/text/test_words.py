"""Words, their tags and the mentions that tags spell."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.text.words import Mention, likeliest_tags, mentions_of, tags_of, words_of

TEXT = "No large-cell tumour, no effusion (left)."


def test_words_are_runs_of_letters_and_single_signs() -> None:
    assert [TEXT[start:end] for start, end in words_of(TEXT)] == [
        "No", "large", "-", "cell", "tumour", ",", "no", "effusion", "(", "left", ")", ".",
    ]  # fmt: skip


def test_a_mention_becomes_tags_and_tags_the_mention() -> None:
    mentions = [Mention(3, 20, 0), Mention(25, 33, 1)]
    words = words_of(TEXT)
    tags = tags_of(words, mentions)
    assert tags == [0, 1, 2, 2, 2, 0, 0, 3, 0, 0, 0, 0]
    assert [mention for mention, _, _ in mentions_of(words, tags)] == mentions


def test_mentions_that_touch_stay_two() -> None:
    words = words_of("a b c d")
    assert [m for m, _, _ in mentions_of(words, [1, 2, 1, 3])] == [Mention(0, 3, 0), Mention(4, 5, 0), Mention(6, 7, 1)]


def test_a_tag_that_goes_on_with_nothing_begins_a_mention() -> None:
    words = words_of("a b c")
    assert [(m, first, after) for m, first, after in mentions_of(words, [0, 2, 4])] == [
        (Mention(2, 3, 0), 1, 2),
        (Mention(4, 5, 1), 2, 3),
    ]


@given(st.lists(st.lists(st.floats(-8, 8), min_size=5, max_size=5), max_size=8))
def test_the_likeliest_tags_are_those_of_a_search_through_all_that_are_allowed(rows: list[list[float]]) -> None:
    logits = np.array(rows).reshape(-1, 5)
    tags, probability = likeliest_tags(logits)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) if len(rows) else logits
    ways: list[tuple[float, list[int]]] = [(0.0, [])]
    best = {0: (0.0, [])}
    for row in log_p:
        found: dict[int, tuple[float, list[int]]] = {}
        for score, way in best.values() if ways else []:
            for tag in range(5):
                begins = tag == 0 or tag % 2 == 1
                if not begins and (not way or way[-1] not in (tag, tag - 1)):
                    continue
                one = (score + row[tag], [*way, tag])
                if tag not in found or one[0] > found[tag][0]:
                    found[tag] = one
        best = found
    assert sum(log_p[at, tag] for at, tag in enumerate(tags)) == pytest.approx(max(s for s, _ in best.values()))
    assert len(probability) == len(tags) == len(rows)
    for before, tag in zip([0, *tags], tags, strict=False):
        assert tag == 0 or tag % 2 == 1 or before in (tag, tag - 1)
