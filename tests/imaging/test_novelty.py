"""What is unlike the training cases is flagged with its aspect, and of those that are like them no more than stated."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from safetensors.numpy import load

from imaging.config import Novelty
from imaging.novelty import Familiar, Traits, familiar_of, traits_of


def drawn(generator: np.random.Generator, cases: int, *, shift: float = 0.0, wide: bool = True) -> list[Traits]:
    """Pictures of about equal proportions, with embeddings in which four of ten features go together."""
    mixing = np.eye(10)
    mixing[:4, :4] += 2
    found = []
    for _ in range(cases):
        values = generator.normal(0, 1, (1, 12, 12))
        width = int(generator.integers(90, 110)) if wide else 100
        embedding = 5 + mixing @ generator.normal(0, 1, 10)
        embedding[0] += shift
        found.append(traits_of(values, (width, 100, 1), (1.0, 1.0, 1.0), embedding))
    return found


@pytest.mark.parametrize("embedding", ["mahalanobis", "knn"])
def test_no_more_usual_cases_are_flagged_than_stated(embedding: Literal["mahalanobis", "knn"]) -> None:
    """A simulation: 20 times 99 validation cases and 200 new ones."""
    generator = np.random.default_rng(0)
    train, shares = drawn(generator, 300), []
    for _ in range(20):
        familiar = familiar_of(train, drawn(generator, 99), Novelty(false_flags=0.12, embedding=embedding))
        assert familiar.aspects == ("intensity", "geometry", "embedding")
        shares.append(np.mean([bool(familiar.reasons(one)) for one in drawn(generator, 200)]))
    assert 0.05 < np.mean(shares) < 0.14


@pytest.mark.parametrize("embedding", ["mahalanobis", "knn"])
def test_each_aspect_is_flagged_by_its_own(embedding: Literal["mahalanobis", "knn"]) -> None:
    generator = np.random.default_rng(1)
    familiar = familiar_of(drawn(generator, 300), drawn(generator, 300), Novelty(embedding=embedding))
    usual = drawn(generator, 1)[0]
    assert familiar.reasons(usual) == ()
    strange: dict[str, Traits] = {
        "intensity": Traits(usual.intensity**3 + 2, usual.geometry, usual.embedding),
        "geometry": Traits(usual.intensity, usual.geometry + 1, usual.embedding),
        "embedding": Traits(usual.intensity, usual.geometry, -usual.embedding),
    }
    for aspect, traits in strange.items():
        (reason,) = familiar.reasons(traits)
        assert reason.startswith(f"{aspect}: ")
        assert "times as far as may be" in reason


def test_features_that_go_together_count_together() -> None:
    """A step that is small in each feature, but against how they vary together."""
    generator = np.random.default_rng(2)
    familiar = familiar_of(drawn(generator, 500), drawn(generator, 300), Novelty())
    usual = drawn(generator, 1)[0]
    step = np.array([4.0, -4.0, 4.0, -4.0, 0, 0, 0, 0, 0, 0])
    along = np.array([4.0, 4.0, 4.0, 4.0, 0, 0, 0, 0, 0, 0])
    assert familiar.reasons(Traits(usual.intensity, usual.geometry, usual.embedding + step))
    assert familiar.reasons(Traits(usual.intensity, usual.geometry, usual.embedding + along)) == ()


def test_what_shows_no_variety_is_not_known() -> None:
    generator = np.random.default_rng(3)
    train, validation = drawn(generator, 100, wide=False), drawn(generator, 100, wide=False)
    familiar = familiar_of(train, validation, Novelty(false_flags=0.1))
    assert familiar.aspects == ("intensity", "embedding")
    wide = traits_of(generator.normal(0, 1, (1, 12, 12)), (400, 100, 1), (1.0, 1.0, 1.0), train[0].embedding)
    assert not any(reason.startswith("geometry") for reason in familiar.reasons(wide))


def test_too_few_validation_cases_know_nothing() -> None:
    generator = np.random.default_rng(4)
    assert familiar_of(drawn(generator, 100), drawn(generator, 20), Novelty(false_flags=0.03)).aspects == ()


@pytest.mark.parametrize("embedding", ["mahalanobis", "knn"])
def test_what_is_kept_says_the_same(embedding: Literal["mahalanobis", "knn"]) -> None:
    generator = np.random.default_rng(5)
    settings = Novelty(false_flags=0.3, embedding=embedding, kept=50)
    familiar = familiar_of(drawn(generator, 200), drawn(generator, 100), settings)
    again = Familiar.of_arrays(load(familiar.to_bytes()))
    assert (again.aspects, again.false_flags) == (familiar.aspects, 0.3)
    for one in drawn(generator, 100):
        assert bool(again.reasons(one)) == bool(familiar.reasons(one))
    assert any(again.reasons(one) for one in drawn(generator, 100))


@pytest.mark.parametrize(
    ("shape", "spacing", "geometry"),
    [
        ((200, 100, 1), (1.0, 1.0, 1.0), [np.log(2)]),
        ((200, 100, 1), (0.5, 1.0, 1.0), [0.0]),
        ((10, 20, 40), (1.0, 2.0, 0.5), np.log([10, 40, 20])),
        ((1, 1, 1), (1.0, 1.0, 1.0), []),
    ],
)
def test_a_picture_has_a_proportion_and_a_volume_an_extent(
    shape: tuple[int, ...], spacing: tuple[float, ...], geometry: Any
) -> None:
    assert traits_of(np.zeros((1, 2, 2)), shape, spacing, np.zeros(0)).geometry == pytest.approx(geometry)


def test_an_image_with_other_axes_is_strange() -> None:
    generator = np.random.default_rng(6)
    familiar = familiar_of(drawn(generator, 200), drawn(generator, 100), Novelty(false_flags=0.3))
    usual = drawn(generator, 1)[0]
    (reason,) = familiar.reasons(Traits(usual.intensity, np.zeros(3), usual.embedding))
    assert "in other axes" in reason
