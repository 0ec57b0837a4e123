"""What is kept of a comparison: every case that says something, none that does not, and nothing rounded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from imaging.engines.accepted import Compared, Trial
from pipelines import agreement
from pipelines.agreement import classified, of_masks
from pipelines.cli.checkpoints import _tell_trial

NOWHERE = [np.nan] * 3


def trial(**compared: Compared) -> Trial:
    return Trial(engine="openvino", precision="fp32", version="1", processor="one", data="some", side="validation",
                 cases=3, compared=compared)  # fmt: skip


def test_cases_in_which_nobody_has_a_structure_do_not_make_it_look_better() -> None:
    found = of_masks(np.array([[0.9, 0.8, 0.7], NOWHERE, NOWHERE]))
    assert (found.seen, found.dice_with_torch, found.dice, found.dice_of_torch) == (1, 0.9, 0.8, 0.7)
    # Found by torch alone where there is none: two differ, and the engine agrees with the truth.
    found = of_masks(np.array([[0.0, np.nan, 0.0]]))
    assert (found.seen, found.dice_with_torch, found.dice, found.dice_of_torch) == (1, 0.0, 1.0, 0.0)


def test_masks_that_are_both_empty_where_the_truth_is_not_are_no_agreement() -> None:
    found = of_masks(np.array([[0.9, 0.8, 0.8], [np.nan, 0.0, 0.0]]))
    assert (found.seen, found.dice_with_torch, found.least_dice_with_torch) == (1, 0.9, 0.9)
    assert (found.dice, found.dice_of_torch) == (0.4, 0.4)
    assert of_masks(np.array([[np.nan, 0.0, 0.0]])) == Compared(seen=0)


def test_structure_that_nobody_has_is_told_and_vouches_for_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    unseen = of_masks(np.array([NOWHERE, NOWHERE]))
    assert unseen.model_dump(exclude_none=True) == {"seen": 0}
    one = trial(spleen=unseen, liver=of_masks(np.array([[1.0, 0.9, 0.9]])))
    assert (one.why_not(), one.unseen) == ("", ("spleen",))
    assert trial(spleen=unseen).why_not() == "no structure was seen in any case"
    assert "Dice 0.9 with torch's" in trial(spleen=unseen, liver=of_masks(np.array([[0.9, 0.9, 0.9]]))).why_not()
    _tell_trial(one)
    told = capsys.readouterr().out
    assert "accepted, never seen: spleen" in told
    assert "spleen: not seen in any case" in told
    assert "liver: Dice with torch's masks 1.0000, of the worst case 1.0000, Dice with the truth 0.9000" in told


def test_figures_are_judged_as_they_are_and_not_as_they_are_printed() -> None:
    """Rounded to five digits each of these would be at its bound."""
    found = of_masks(np.array([[0.997996, 0.9, 0.9]]))
    assert "Dice 0.997996 with torch's" in found.why_not()
    assert of_masks(np.array([[0.998, 0.9, 0.9]])).why_not() == ""
    found = of_masks(np.array([[1.0, 0.898996, 0.9]]))
    assert "Dice 0.898996 with the truth" in found.why_not()


def test_probabilities_are_judged_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter([0.5, 0.510004])

    def classifier(*_: Any, **__: Any) -> Any:
        probability = next(said)
        return lambda _: SimpleNamespace(probability={"odd": probability})

    monkeypatch.setattr(agreement, "Classifier", classifier)
    monkeypatch.setattr(agreement, "load_picture", lambda _: None)
    checkpoint: Any = SimpleNamespace(classifier=lambda: SimpleNamespace(classes=[SimpleNamespace(name="odd")]))
    engines: Any = {"fp32": None}
    case: Any = SimpleNamespace(name="one", classes=("odd",))
    reference: Any = None
    found = classified(checkpoint, reference, engines, [case], None)["fp32"]["odd"]
    assert found.difference == pytest.approx(0.010004)
    assert "differs by 0.010004" in found.why_not()
