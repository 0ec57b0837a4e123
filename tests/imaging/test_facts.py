"""Facts alone tell what depends on them and nothing else, and only training cases are learnt from."""

from __future__ import annotations

import numpy as np
import pytest

from imaging.facts import FactsAlone
from imaging.scores import auc


def people(count: int, seed: int = 0) -> list[dict[str, str]]:
    generator = np.random.default_rng(seed)
    sexes, ages = generator.choice(["F", "M"], count), generator.integers(20, 90, count)
    return [{"sex": str(sexes[n]), "age": str(ages[n]), "id": f"x{n}"} for n in range(count)]


def test_class_that_follows_a_value_is_told_by_it() -> None:
    trained, asked = people(200), people(100, seed=1)
    truth = np.array([case["sex"] == "F" for case in trained])
    told = FactsAlone(trained).probability(truth, asked)
    women = np.array([case["sex"] == "F" for case in asked])
    assert auc(women, told) == 1
    assert told[women].min() > 0.9 and told[~women].max() < 0.1


def test_class_of_the_middle_aged_is_told_by_a_curve() -> None:
    trained, asked = people(400), people(200, seed=1)
    middle = [np.array([45 <= int(case["age"]) <= 65 for case in side]) for side in (trained, asked)]
    assert auc(middle[1], FactsAlone(trained).probability(middle[0], asked)) > 0.9


def test_class_that_follows_nothing_is_not_told() -> None:
    trained, asked = people(2000), people(2000, seed=1)
    generator = np.random.default_rng(2)
    truths = [generator.random(2000) < 0.3 for _ in range(2)]
    told = FactsAlone(trained).probability(truths[0], asked)
    assert auc(truths[1], told) == pytest.approx(0.5, abs=0.04)
    assert told.mean() == pytest.approx(truths[0].mean(), abs=0.01)


def test_probability_is_the_share_where_there_is_one_value() -> None:
    facts = [{"view": "PA"}] * 8
    told = FactsAlone(facts).probability(np.array([True, True, False, False, False, False, False, False]), facts)
    assert told == pytest.approx(np.full(8, 0.25), abs=1e-5)


def test_names_with_many_values_do_not_count() -> None:
    assert FactsAlone(people(50)).names == ("age", "sex")


@pytest.mark.parametrize("word", ["nan", "unknown", "inf", "NA"])
def test_word_among_numbers_is_a_missing_number_and_not_the_end_of_the_fact(word: str) -> None:
    """Dropped with its age, a classifier's gain over the facts would be told too great."""
    trained = people(400)
    old = np.array([int(case["age"]) > 55 for case in trained])
    trained[7]["age"] = word
    alone = FactsAlone(trained)
    assert "age" in alone.names and auc(old, alone.probability(old, trained)) > 0.95


def test_many_sites_count_where_each_has_cases_enough() -> None:
    """A network that knows the hospital knows a lot: Zech et al., PLOS Medicine 15:e1002683 (2018)."""
    generator = np.random.default_rng(0)
    sites = generator.integers(0, 14, 420)
    facts = [{"site": f"s{site}"} for site in sites]
    truth = sites % 2 == 0
    alone = FactsAlone(facts)
    assert alone.names == ("site",) and alone.left_out == ()
    assert auc(truth, alone.probability(truth, facts)) == 1


def test_facts_that_do_not_count_are_told() -> None:
    assert FactsAlone(people(50)).left_out == ("id",)


def test_missing_and_unseen_values_have_a_probability() -> None:
    trained = people(100)
    truth = np.array([case["sex"] == "F" for case in trained])
    told = FactsAlone(trained).probability(truth, [{}, {"sex": "O", "age": ""}, {"sex": "", "age": "old"}])
    assert np.isfinite(told).all() and (told > 0).all() and (told < 1).all()


def test_weights_are_the_best_there_are() -> None:
    """No other regression of this size explains the training cases as well: nearby ones are worse."""
    trained = people(60)
    truth = np.array([(int(case["age"]) > 50) ^ (index % 4 == 0) for index, case in enumerate(trained)])
    told = FactsAlone(trained).probability(truth, trained)
    assert told.mean() == pytest.approx(truth.mean(), abs=1e-5)  # what the slope of the intercept being zero means
