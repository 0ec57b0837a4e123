"""Which engines a checkpoint has been accepted with: `engines.json` in its folder, among its checksums.

Invariant: an engine other than torch answers for a checkpoint only where its answers were compared with those of torch
in fp32 on cases of the checkpoint, and were as good. Whether they were is said by the figures, each time they are read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from imaging.checkpoint import Checkpoint, read_verified
from imaging.engines import runtime
from imaging.engines.engine import EngineName, Precision
from imaging.errors import CheckpointCorrupt

FILE = "engines.json"
# What the cases were to the checkpoint: held out of its training, or of another data set.
Side = Literal["validation", "other"]

# Least Dice with torch's masks, and how much lower the Dice with the truth may be, as means over the cases; for a
# classifier the greatest difference of a probability, and to how many digits its AUC must agree.
LEAST_DICE, LOWER_DICE, LARGEST_DIFFERENCE, AUC_DIGITS = 0.998, 0.001, 0.01, 3


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Compared(_Part):
    """What an engine's answers are worth for one structure, or one thing that is judged.

    Attributes
    ----------
    seen
        In how many cases the engine or torch found the structure; None of what is no structure, and where an earlier
        version of this file did not say. Where it is 0 there is no other figure.
    dice_with_torch, least_dice_with_torch
        Of the engine's masks with those of torch in fp32: mean over these cases, and of the worst of them.
    dice, dice_of_torch
        Of both with the truth, means over the cases.
    difference
        The greatest difference of a probability in any case.
    auc, auc_of_torch
        Of both; None where the cases are all of one kind.
    """

    seen: Annotated[int, Field(ge=0)] | None = None
    dice_with_torch: float | None = None
    least_dice_with_torch: float | None = None
    dice: float | None = None
    dice_of_torch: float | None = None
    difference: float | None = None
    auc: float | None = None
    auc_of_torch: float | None = None

    def why_not(self) -> str:
        """What is not good enough; empty where all is, or nothing was seen. What is not a number never is."""
        if self.dice_with_torch is None and self.difference is None:
            return "" if self.seen == 0 else "no figure was compared"
        if self.dice_with_torch is not None and not self.dice_with_torch >= LEAST_DICE:
            return f"Dice {self.dice_with_torch:.6g} with torch's masks, at least {LEAST_DICE} was expected"
        if self.dice is not None and self.dice_of_torch is not None and self.dice < self.dice_of_torch - LOWER_DICE:
            return f"Dice {self.dice:.6g} with the truth, and torch's is {self.dice_of_torch:.6g}"
        if self.difference is not None and not self.difference <= LARGEST_DIFFERENCE:
            return f"a probability differs by {self.difference:.6g}, at most {LARGEST_DIFFERENCE} was expected"
        if self.auc is None or self.auc_of_torch is None:
            return ""
        same = round(self.auc, AUC_DIGITS) == round(self.auc_of_torch, AUC_DIGITS)
        return "" if same else f"AUC {self.auc:.4f}, and torch's is {self.auc_of_torch:.4f}"


class Trial(_Part):
    """One engine, compared with torch in fp32.

    Attributes
    ----------
    engine, precision, version
        Who computed, and in what.
    processor, instructions
        On which machine, and by what of it, as `runtime.instructions` has it; empty where an earlier version of this
        file did not say.
    data, side, cases
        The cases: their data set, what they were to the checkpoint, and how many.
    compared
        By structure, or by what is judged.
    speed
        How many times as fast as torch in fp32 it was on that machine; None where nobody looked.
    calibrated, chosen_by, spared, made_by
        Of int8: the training cases that its scales were chosen on, and those that its layers were; of each network the
        layers that are not in int8; and what made it.
    """

    engine: EngineName
    precision: Precision
    version: str
    processor: str
    data: str
    side: Side
    cases: Annotated[int, Field(ge=1)]
    compared: dict[str, Compared]
    instructions: str = ""
    speed: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    calibrated: tuple[str, ...] = ()
    chosen_by: tuple[str, ...] = ()
    spared: tuple[tuple[str, ...], ...] = ()
    made_by: str = ""

    @model_validator(mode="before")
    @classmethod
    def _without_verdict(cls, values: Any) -> Any:
        """Files used to repeat in `accepted` what their figures say."""
        return (
            {key: value for key, value in values.items() if key != "accepted"} if isinstance(values, dict) else values
        )

    def why_not(self) -> str:
        """What is not good enough; empty where all is."""
        if len(self.unseen) == len(self.compared):
            return "no structure was seen in any case"
        found = ((name, item.why_not()) for name, item in self.compared.items())
        return "; ".join(f"{name}: {reason}" for name, reason in found if reason)

    @property
    def unseen(self) -> tuple[str, ...]:
        """The structures that neither the engine nor torch found in any case: of them nothing is known."""
        return tuple(name for name, item in self.compared.items() if item.seen == 0)


class Trials(_Part):
    """The file: every engine that was compared."""

    trials: tuple[Trial, ...]


def trials_of(checkpoint: Checkpoint) -> tuple[Trial, ...]:
    """What a checkpoint's own file says; empty where it has none.

    Raises
    ------
    CheckpointCorrupt
        If the file is not what it should be.
    """
    sha256 = checkpoint.sums.get(FILE)
    if sha256 is None:
        return ()
    content = read_verified(checkpoint.folder / FILE, sha256)
    try:
        return Trials.model_validate(json.loads(content)).trials
    except (ValueError, ValidationError) as error:
        raise CheckpointCorrupt(checkpoint.folder / FILE, seen="is not as this version writes it") from error


def trial_of(trials: Sequence[Trial], engine: EngineName, precision: Precision) -> Trial | None:
    """The last one of an engine in a precision; None where it was never compared."""
    found = [trial for trial in trials if (trial.engine, trial.precision) == (engine, precision)]
    return found[-1] if found else None


def elsewhere(trial: Trial) -> str:
    """What was another there, where it was compared, than it is here; empty where nothing was that counts.

    Another patch of OpenVINO is no other version. What a processor computes in a precision with decides the order of
    its sums, so that the last bits may differ.
    """
    there, here = _minor(trial.version), _minor(runtime.version())
    found = [] if there == here else [(f"OpenVINO {there}", f"OpenVINO {here}")]
    instructions = runtime.instructions(trial.precision)
    if trial.instructions and trial.instructions != instructions:
        found.append((trial.instructions, instructions or "others"))
    if not found:
        return ""
    was, now = (" and ".join(side) for side in zip(*found, strict=True))
    return f"{trial.precision} was accepted with {was}, here it is {now}"


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
