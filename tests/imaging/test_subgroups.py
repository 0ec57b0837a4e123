"""Groups hold the cases that they are named after, and nobody whose fact nobody told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from imaging.cases import ClassifiedCase
from imaging.subgroups import SMALLEST_GROUP, subgroups


def cases_with(fact: str, values: Sequence[str]) -> list[ClassifiedCase]:
    return [ClassifiedCase(f"c{n}", Path("x.png"), (), f"p{n}", facts={fact: v}) for n, v in enumerate(values)]


def told(fact: str, values: Sequence[str]) -> dict[str, int]:
    return {name: len(members) for name, members in subgroups(cases_with(fact, values)).items()}


def test_values_are_groups_in_their_order() -> None:
    assert told("sex", ["M", "F"] * 25) == {"sex=F": 25, "sex=M": 25}
    assert subgroups(cases_with("sex", ["M", "F"] * 25))["sex=F"].tolist() == list(range(1, 50, 2))


def test_blank_is_no_group_and_a_small_group_is_left_out() -> None:
    assert told("view", ["PA"] * SMALLEST_GROUP + [""] * 30 + ["AP"] * (SMALLEST_GROUP - 1)) == {
        "view=PA": SMALLEST_GROUP
    }


def test_ages_are_told_in_bands_and_an_impossible_age_in_none() -> None:
    ages = [str(age) for age in range(100)] + ["414"] * 30
    assert told("Age", ages) == {
        "Age=18 to under 40": 22, "Age=40 to under 60": 20, "Age=60 to under 80": 20, "Age=80 and over": 20
    }  # fmt: skip


def test_word_among_ages_is_in_no_band_and_the_ages_are_told() -> None:
    ages = [str(age) for age in range(20, 40)] + ["unknown", "nan"] * 15
    assert told("PatientAge", ages) == {}, "mostly words"
    assert told("PatientAge", [*ages, *map(str, range(20, 40))]) == {"PatientAge=18 to under 40": 40}


def test_other_numbers_are_told_in_thirds() -> None:
    assert told("dose", [str(value / 10) for value in range(90)]) == {
        "dose=under 2.967": 30, "dose=2.967 to under 5.933": 30, "dose=5.933 and over": 30
    }  # fmt: skip


def test_many_names_make_no_groups() -> None:
    assert told("centre", [f"site{n % 12}" for n in range(400)]) == {}
