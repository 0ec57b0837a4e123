"""What a data set's values say of how each channel is scaled: by fixed numbers, or each volume by its own.

Invariant: pure functions of the figures; numbers come from voxels inside the structures, as in nnU-Net (Isensee et al.,
Nature Methods 18:203, 2021). Imports no torch.

Shapes: ``foreground_N`` are values inside the structures, of all cases together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imaging.dataset_check import Survey

# nnU-Net's: CT is clipped to where 99 % of the structures' values lie.
_CLIPPED = (0.5, 99.5)
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Scaling:
    """How a channel is scaled, as `imaging.config.Scale` has it, and why."""

    settings: dict[str, Any]
    why: str


def scalings_of(survey: Survey, modality: str) -> tuple[Scaling, ...]:
    """How each channel of a data set is to be scaled.

    Parameters
    ----------
    survey
        The data set, looked through.
    modality
        That of a channel whose name does not tell it.
    """
    foreground_CN = np.concatenate([case.foreground_CN for case in survey.cases], axis=1)
    told = survey.description.modalities
    return tuple(
        _scaling(values, (told[c] if c < len(told) else "") or modality, [case.mean[c] for case in survey.cases])
        for c, values in enumerate(foreground_CN)
    )


def _scaling(foreground_N: NDArray[np.float32], modality: str, means: Sequence[float]) -> Scaling:
    low, middle, high = np.percentile(foreground_N.astype(np.float64), [_CLIPPED[0], 50, _CLIPPED[1]]).tolist()
    seen = f"Inside the structures the values lie between {low:.5g} and {high:.5g} (99 %), median {middle:.5g}. "
    if modality != "CT":
        why = f"{modality} has no fixed unit, so each volume is scaled by its own mean and deviation"
        return Scaling({"normalise": "zscore"}, f"{seen}{why} (means from {min(means):.4g} to {max(means):.4g}).")
    if low >= high:
        why = "They are all alike, so they say nothing of a scale: each volume is scaled by its own mean and deviation."
        return Scaling({"normalise": "zscore"}, seen + why)
    figures = (low, high, foreground_N.mean(dtype=np.float64), foreground_N.std(dtype=np.float64))
    window = dict(zip(("low", "high", "mean", "deviation"), map(_rounded, figures), strict=True))
    why = "CT has a unit: all volumes are clipped to this range and scaled by mean and deviation inside the structures."
    return Scaling({"normalise": "window", "window": window}, seen + why)


def _rounded(value: Any) -> float:
    return float(f"{float(value):.{_DIGITS}g}")
