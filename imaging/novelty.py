"""Whether a picture or a text is unlike those that trained a checkpoint, so that what it says of it means nothing.

Invariant: what is usual comes from the training cases, and how unusual a case may be from the validation cases, of
which the stated share is flagged at most; an aspect of which the training cases show no variety, or for which there are
too few validation cases, is not known, and never guessed.

Of a picture three aspects are looked at: **intensity**, the quantiles of what the network is given; **geometry**, the
proportion of a picture or the extent of a volume before it is brought to the network's grid; **embedding**, the last
feature map of the network, averaged over the image. Of a text two: **words**, how many, how rare and how broken up they
are (`imaging.text.familiar`); **embedding**, what the encoder makes of its tokens, averaged over these.

Shapes: N cases, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from imaging.config import Novelty

Floats = NDArray[np.float64]
Aspect = Literal["intensity", "geometry", "words", "embedding"]
ASPECTS: tuple[Aspect, ...] = get_args(Aspect)
# The file that a checkpoint keeps it in.
FILE = "novelty.safetensors"

_WORDS = {
    "intensity": "how its grey values are distributed is",
    "geometry": "its proportion or its extent is",
    "words": "how many its words are, how rare or how broken up is",
    "embedding": "what the network makes of it is",
}
_QUANTILES = np.linspace(0.05, 0.95, 19)
# Of the mean variance of the features, added to each: features that never varied apart get no infinite weight.
_SHRINKAGE = 0.01
# A feature that varies less than this in training shows no variety.
_NOTHING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Traits:
    """What one case is like, in each aspect a vector; empty where the aspect cannot be told of it."""

    intensity: Floats
    geometry: Floats
    embedding: Floats
    words: Floats = field(default_factory=lambda: np.zeros(0))


def traits_of(values: NDArray[Any], shape: Sequence[int], spacing_mm: Sequence[float], embedding: Floats) -> Traits:
    """What a picture is like.

    Parameters
    ----------
    values
        What the network is given.
    shape, spacing_mm
        Voxels of the image along each of its axes, and their size; an axis of one voxel is none. Of a picture, whose
        scale may not be known, the proportion counts; of a volume its extent in mm.
    embedding
        (F,); empty where the network gives none.
    """
    extent = np.log([voxels * size for voxels, size in zip(shape, spacing_mm, strict=True) if voxels > 1])
    geometry = extent if len(extent) > 2 else extent[:1] - extent[1:]
    return Traits(np.quantile(values, _QUANTILES), geometry, np.asarray(embedding, dtype=np.float64))


@dataclass(frozen=True, slots=True, eq=False)
class _Usual:
    """What is usual in one aspect, and from which distance on a picture is not."""

    mean_F: Floats
    precision_FF: Floats
    bank_NF: Floats
    neighbour: int
    most: float

    def distance(self, values_NF: Floats) -> Floats:
        """How far cases are from the training cases, (N,)."""
        if len(self.bank_NF):
            return _from_neighbours(values_NF, self.bank_NF, self.neighbour)
        apart_NF = values_NF - self.mean_F
        return np.asarray(np.sqrt(np.maximum(np.einsum("nf,fg,ng->n", apart_NF, self.precision_FF, apart_NF), 0.0)))


class Familiar:
    """What a checkpoint knows its cases by.

    Parameters
    ----------
    usual
        By the aspect; those that are not known are not there.
    false_flags
        The share of the validation cases that may be flagged.
    """

    def __init__(self, usual: Mapping[Aspect, _Usual], false_flags: float) -> None:
        self._usual = dict(usual)
        self.false_flags = false_flags

    @property
    def aspects(self) -> tuple[Aspect, ...]:
        """Those that are known."""
        return tuple(aspect for aspect in ASPECTS if aspect in self._usual)

    def reasons(self, traits: Traits, *, of: str = "pictures") -> tuple[str, ...]:
        """Why a case is unlike the training cases; empty where it is not. `of` says what they are, for people."""
        told = []
        for aspect, usual in self._usual.items():
            values = getattr(traits, aspect)
            distance = float(usual.distance(values[None])[0]) if values.shape == usual.mean_F.shape else float("inf")
            if distance > usual.most:
                how = (
                    f"{distance / usual.most:.1f} times as far as may be" if np.isfinite(distance) else "in other axes"
                )
                told.append(f"{aspect}: {_WORDS[aspect]} unlike that of the training {of} ({how})")
        return tuple(told)

    def to_bytes(self, beside: Mapping[str, NDArray[Any]] | None = None) -> bytes:
        """As the checkpoint keeps it: safetensors, with other arrays beside."""
        from safetensors.numpy import save

        arrays: dict[str, NDArray[Any]] = {"false_flags": np.array([self.false_flags]), **(beside or {})}
        for aspect, usual in self._usual.items():
            arrays |= {
                f"{aspect}.mean": usual.mean_F,
                f"{aspect}.precision": usual.precision_FF.astype(np.float32),
                f"{aspect}.bank": usual.bank_NF.astype(np.float32),
                f"{aspect}.limits": np.array([usual.neighbour, usual.most]),
            }
        return save({name: np.ascontiguousarray(array) for name, array in arrays.items()})

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Familiar:
        """As `to_bytes` wrote it."""
        usual: dict[Aspect, _Usual] = {}
        for aspect in ASPECTS:
            if f"{aspect}.mean" in arrays:
                mean, precision, bank, limits = (
                    np.asarray(arrays[f"{aspect}.{name}"], dtype=np.float64)
                    for name in ("mean", "precision", "bank", "limits")
                )
                usual[aspect] = _Usual(mean, precision, bank, int(limits[0]), float(limits[1]))
        return cls(usual, float(arrays["false_flags"][0]))


def familiar_of(train: Sequence[Traits], validation: Sequence[Traits], settings: Novelty) -> Familiar:
    """What training cases are like, and how unlike them validation cases are.

    Each aspect that can be known is given its part of the share of false flags; its limit is the conformal quantile of
    the distances of the validation cases, so that of new cases like those no more than that share is flagged.

    Notes
    -----
    The Mahalanobis distance from the mean of all training cases, its covariance shrunk: Mahalanobis (1936); of features
    of a network Lee et al., *A simple unified framework for detecting out-of-distribution samples*, NeurIPS 2018. The
    distance from the k-th neighbour of unit vectors: Sun et al., *Out-of-distribution detection with deep nearest
    neighbors*, ICML 2022. The limit: Bates et al., *Testing for outliers with conformal p-values*, Annals of Statistics
    51 (2023) 149-178.
    """
    known = {aspect: usual for aspect in ASPECTS if (usual := _usual(aspect, train, settings)) is not None}
    rate = settings.false_flags / max(len(known), 1)
    found: dict[Aspect, _Usual] = {}
    for aspect, usual in known.items():
        distances = np.sort(usual.distance(np.stack([getattr(one, aspect) for one in validation])))
        rank = int(np.ceil((len(distances) + 1) * (1 - rate) - 1e-9))
        if rank <= len(distances):
            # In single precision as it is kept, and a little further: a case on the limit stays familiar elsewhere.
            found[aspect] = _Usual(
                usual.mean_F, usual.precision_FF, usual.bank_NF, usual.neighbour, float(distances[rank - 1]) * 1.0001
            )
    return Familiar(found, settings.false_flags)


def _usual(aspect: Aspect, train: Sequence[Traits], settings: Novelty) -> _Usual | None:
    """What is usual in one aspect, its limit still open; None where it cannot be known."""
    vectors = [getattr(one, aspect) for one in train]
    if not vectors or len({vector.shape for vector in vectors}) > 1 or not len(vectors[0]):
        return None
    values_NF = np.stack(vectors)
    if values_NF.std(axis=0).max() < _NOTHING:
        return None
    mean_F = values_NF.mean(axis=0)
    none = np.zeros((0, values_NF.shape[1]))
    if aspect == "embedding" and settings.embedding == "knn":
        chosen = np.random.default_rng(0).permutation(len(values_NF))[: settings.kept]
        neighbour = min(settings.neighbour, len(chosen))
        return _Usual(mean_F, none, _unit(values_NF[np.sort(chosen)]), neighbour, np.inf)
    apart_NF = values_NF - mean_F
    covariance_FF = apart_NF.T @ apart_NF / len(apart_NF)
    covariance_FF += np.eye(len(mean_F)) * max(_SHRINKAGE * np.trace(covariance_FF) / len(mean_F), _NOTHING**2)
    return _Usual(mean_F, np.linalg.inv(covariance_FF), none, 0, np.inf)


def _unit(values_NF: Floats) -> Floats:
    return np.asarray(values_NF / np.maximum(np.linalg.norm(values_NF, axis=1, keepdims=True), 1e-12))


def _from_neighbours(values_NF: Floats, bank_NF: Floats, neighbour: int) -> Floats:
    apart_NM = np.sqrt(np.maximum(2 - 2 * _unit(values_NF) @ bank_NF.T, 0.0))
    return np.asarray(np.partition(apart_NM, neighbour - 1, axis=1)[:, neighbour - 1])
