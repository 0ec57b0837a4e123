"""What a text is like by its words: computed by hand, and never by the text itself."""

from __future__ import annotations

import numpy as np
import pytest

from imaging.text.encoder import Encoded
from imaging.text.familiar import Vocabulary, tokens_of, traits_of

BEGIN, END = 101, 102


def text(*windows: list[int], words: int) -> Encoded:
    """Tokens in windows between their marks; where the words are does not matter here."""
    marked = tuple((BEGIN, *window, END) for window in windows)
    return Encoded(marked, tuple((at, at + 1) for at in range(words)), (None,) * words)


def surprise(count: float, total: float, kinds: int) -> float:
    return float(-np.log((count + 0.1) / (total + 0.1 * kinds)))


def test_tokens_are_those_of_all_windows_without_their_marks() -> None:
    assert tokens_of(text([5, 6, 7], [7, 8], words=4)).tolist() == [5, 6, 7, 7, 8]


def test_words_of_a_text_are_told_by_how_often_training_texts_have_them() -> None:
    vocabulary = Vocabulary.of([text([1, 1, 2], words=3), text([1, 3], words=2)])
    assert vocabulary.counts_V.tolist() == [0, 3, 1, 1]
    surprises = [surprise(count, 5, 6) for count in (3, 1, 0, 0)]  # of six tokens now: 0 to 5
    expected = [np.log(2), 4 / 2, 3 / 4, 2 / 4, np.mean(surprises), np.quantile(surprises, 0.9)]
    assert vocabulary.words(text([1, 2, 5, 5], words=2)) == pytest.approx(expected)


def test_a_training_text_is_no_witness_of_its_own_words() -> None:
    ours, other = text([1, 2, 2], words=3), text([1, 1, 3], words=3)
    told = Vocabulary.of([ours, other]).words(ours, own=True)
    # As it would be told of a new text by a vocabulary of the other alone, which has no token beyond its last.
    assert told == pytest.approx(Vocabulary.of([other]).words(ours))
    assert told[3] == pytest.approx(2 / 3)
    assert Vocabulary.of([ours, other]).words(ours)[3] == 0


def test_rarer_words_surprise_more() -> None:
    vocabulary = Vocabulary.of([text([1] * 50 + [2] * 5, words=55)])
    common, rare, unseen = (vocabulary.words(text([token] * 4, words=4))[4] for token in (1, 2, 9))
    assert common < rare < unseen


def test_a_text_without_words_is_like_nothing() -> None:
    vocabulary = Vocabulary.of([text([1, 2], words=2)])
    assert vocabulary.words(text([], words=0)).size == 0
    assert Vocabulary.of([]).counts_V.size == 0


def test_traits_are_words_and_embedding_and_nothing_of_a_picture() -> None:
    texts = [text([1, 2], words=2), text([3], words=1)]
    embedding_NH = np.arange(6, dtype=np.float64).reshape(2, 3)
    vocabulary = Vocabulary.of(texts)
    found = traits_of(texts, embedding_NH, vocabulary)
    assert [traits.embedding.tolist() for traits in found] == embedding_NH.tolist()
    assert [traits.words.tolist() for traits in found] == [vocabulary.words(one).tolist() for one in texts]
    assert all(traits.intensity.size == traits.geometry.size == 0 for traits in found)
