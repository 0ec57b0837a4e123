"""How far the answers of some engines agree with those of torch in fp32, case by case.

Invariant: what nobody has is no agreement. A structure that neither mask has in any case was not seen, and nothing is
said of it; figures are kept as they were counted, for what is good enough is judged by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from imaging.cases import ClassifiedCase, load_picture
from imaging.checkpoint import Checkpoint
from imaging.classifier import Classifier
from imaging.dataset_check import OnCase
from imaging.engines import Engines, Precision
from imaging.engines.accepted import Compared
from imaging.manifest import Case
from imaging.metrics import dice
from imaging.predict import Predictor
from imaging.samples import load_case
from imaging.scores import auc
from imaging.structures import structure_of, truth_of


def segmented(
    checkpoint: Checkpoint,
    reference: Engines,
    engines: Mapping[Precision, Engines],
    cases: Sequence[Case],
    on_case: OnCase | None,
) -> dict[Precision, dict[str, Compared]]:
    """By precision and structure."""
    config = checkpoint.segmenter()
    torch, others = Predictor(checkpoint, engine=reference), {
        one: Predictor(checkpoint, engine=found) for one, found in engines.items()
    }  # fmt: skip
    # (with torch's mask, with the truth, torch's with the truth) of each case.
    figures: dict[Precision, dict[str, list[tuple[float, float, float]]]] = {
        one: {label.name: [] for label in config.labels} for one in engines
    }
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        image, mask = load_case(case, values=config.mask_values, channels=len(config.scales))
        truth, expected = truth_of(mask.array[0], config), torch(image).found
        for one, predictor in others.items():
            found = predictor(image).found
            for label in config.labels:
                own, of_torch, true = (structure_of(each, label) for each in (found, expected, truth))
                figures[one][label.name].append((dice(own, of_torch, 1), dice(own, true, 1), dice(of_torch, true, 1)))
    return {one: {name: of_masks(np.array(rows)) for name, rows in each.items()} for one, each in figures.items()}


def of_masks(figures_N3: NDArray[np.float64]) -> Compared:
    """Means over the cases.

    Parameters
    ----------
    figures_N3
        Dice of the engine's mask with torch's, of it with the truth, and of torch's with the truth, of each case; NaN
        where neither of the two has the structure. With torch's masks only cases count in which either has it; with
        the truth those in which anybody does, and a mask that has it as little as the truth is as good as can be.
    """
    seen_N = ~np.isnan(figures_N3[:, 0])
    if not seen_N.any():
        return Compared(seen=0)
    with_truth_N2 = np.nan_to_num(figures_N3[~np.isnan(figures_N3).all(axis=1), 1:], nan=1.0)
    own, of_torch = with_truth_N2.mean(axis=0).tolist()
    with_torch_N = figures_N3[seen_N, 0]
    return Compared(seen=int(seen_N.sum()), dice_with_torch=float(with_torch_N.mean()),
                    least_dice_with_torch=float(with_torch_N.min()), dice=own, dice_of_torch=of_torch)  # fmt: skip


def classified(
    checkpoint: Checkpoint,
    reference: Engines,
    engines: Mapping[Precision, Engines],
    cases: Sequence[ClassifiedCase],
    on_case: OnCase | None,
) -> dict[Precision, dict[str, Compared]]:
    """By precision and class."""
    names = [item.name for item in checkpoint.classifier().classes]
    classifiers = [Classifier(checkpoint, engine=found) for found in (reference, *engines.values())]
    rows = []
    for number, case in enumerate(cases):
        if on_case:
            on_case(case.name, number, len(cases))
        picture = load_picture(case)
        rows.append([[said.probability[name] for name in names] for said in (one(picture) for one in classifiers)])
    truth_NK = np.array([[name in case.classes for name in names] for case in cases], dtype=np.bool_)
    probability_NEK = np.array(rows)
    return {
        one: {
            name: _of_probabilities(truth_NK[:, k], probability_NEK[:, 0, k], probability_NEK[:, number, k])
            for k, name in enumerate(names)
        }
        for number, one in enumerate(engines, start=1)
    }


def _of_probabilities(
    truth_N: NDArray[np.bool_], torch_N: NDArray[np.float64], engine_N: NDArray[np.float64]
) -> Compared:
    both = bool(truth_N.any()) and not bool(truth_N.all())
    return Compared(
        difference=float(np.abs(torch_N - engine_N).max()),
        auc=auc(truth_N, engine_N) if both else None,
        auc_of_torch=auc(truth_N, torch_N) if both else None,
    )
