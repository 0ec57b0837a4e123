"""Texts that are nearly equal are found."""

from __future__ import annotations

import random

from imaging.text.likeness import groups_of

LONG = "the lungs are clear and the heart is of normal size with no effusion and no fracture of any rib that we see"


def test_digits_signs_and_the_size_of_letters_do_not_count() -> None:
    assert groups_of([LONG, LONG.upper() + ".", f"1) {LONG}!", "an opacity"], alike=1, run=3) == [0, 0, 0, 3]


def test_one_word_more_is_nearly_equal_and_another_half_is_not() -> None:
    other = LONG.split()[:11] + ["opacity"] * 11
    assert groups_of([LONG, LONG + " today", " ".join(other)], alike=0.8, run=3) == [0, 0, 2]
    assert groups_of([LONG, LONG + " today"], alike=1, run=3) == [0, 1]


def test_what_is_like_one_of_a_group_is_of_the_group() -> None:
    chain = [LONG, LONG + " a b", LONG + " a b c d"]
    assert groups_of([chain[0], chain[2]], alike=0.9, run=3) == [0, 1]
    assert groups_of(chain, alike=0.9, run=3) == [0, 0, 0]


def test_the_order_of_the_texts_makes_no_other_groups() -> None:
    generator = random.Random(0)
    words = LONG.split()
    texts = [" ".join(generator.sample(words, 12)[:9] + words[: generator.randint(0, 9)]) for _ in range(40)] + [LONG]
    whole = groups_of(texts, alike=0.3, run=2)
    order = list(range(len(texts)))
    generator.shuffle(order)
    shuffled = groups_of([texts[at] for at in order], alike=0.3, run=2)
    pairs = {(a, b) for a in range(41) for b in range(41) if whole[a] == whole[b]}
    assert 41 < len(pairs) < 41 * 41
    assert {(order[a], order[b]) for a in range(41) for b in range(41) if shuffled[a] == shuffled[b]} == pairs


def test_texts_without_a_word_are_like_each_other() -> None:
    assert groups_of(["", LONG, "..."], alike=0.8, run=3) == [0, 1, 0]
