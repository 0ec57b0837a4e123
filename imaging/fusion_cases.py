"""Which cases a fusion is trained on: a CSV with what is known of each part, and who stands on which side.

Invariant: cases that share a patient, a picture or a text stay on one side of a split. A case that has trained one of
the checkpoints is refused: what that says of it is better than what it will say of others. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imaging.config import FuseConfig
from imaging.config.fuse import TEXT
from imaging.errors import LearntCases, ManifestInvalid
from imaging.facts import number_of
from imaging.files import sha256_of
from imaging.manifest import Split, check_once, patient_problems, rows_of, split_by_patient
from imaging.stacking import Case

_LOGIT = "logit_"
_SIDES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
# So many of the cases that are refused are told by name.
_TOLD = 5


@dataclass(frozen=True, slots=True)
class FusionCase:
    """One row.

    Attributes
    ----------
    name
        Unique in the manifest.
    patient
        With whom it stays on one side: a name for all cases that share a patient, a picture or a text with it.
    owner
        Whose it is; where the manifest does not say, its own name.
    abnormal
        Whether it is what the fusion judges.
    case
        The log-odds that the manifest tells, and the facts.
    image, text
        What a checkpoint is asked with where the manifest does not tell its log-odds; None where there is none.
    side
        Where the manifest puts it; empty where it does not say.
    """

    name: str
    patient: str
    owner: str
    abnormal: bool
    case: Case
    image: Path | None = None
    text: Path | None = field(default=None, repr=False)
    side: str = ""


def read_fusion_cases(root: Path, config: FuseConfig) -> list[FusionCase]:
    """Read the manifest of a fusion; see `imaging.config.fuse.FuseData`.

    Raises
    ------
    ManifestInvalid
        If it cannot be read, a column is missing, a file does not exist, or a row says what cannot be.
    """
    rows = rows_of(root)
    if not rows:
        raise ManifestInvalid(root, seen="no case")
    _check_columns(root, config, set(rows[0]))
    for problem in patient_problems(root, rows):
        raise problem
    cases = [_case(root, number, row, config) for number, row in enumerate(rows, start=2)]
    check_once(root, [case.name for case in cases], [])
    return _grouped(cases)


def _check_columns(root: Path, config: FuseConfig, headings: Collection[str]) -> None:
    wanted = {config.data.label: "the label"}
    for name in config.parts_asked:
        source = "text" if name == TEXT else "image"
        if f"{_LOGIT}{name}" not in headings and source not in headings:
            wanted[f"{_LOGIT}{name}"] = f"what {name} says, or {source}, what it is asked with"
    for fact in config.facts:
        wanted[fact.name] = "a fact of the config"
    if config.data.split == "given":
        wanted["split"] = "the side of each case"
    for heading, meaning in wanted.items():
        if heading not in headings:
            raise ManifestInvalid(root, seen=f"no column {heading!r}", expected=f"{meaning} was expected")


def _case(root: Path, number: int, row: Mapping[str, str | None], config: FuseConfig) -> FusionCase:
    cells = {key: (value or "").strip() for key, value in row.items() if key and isinstance(value, str | None)}
    logits: dict[str, float] = {}
    for name in config.parts_asked:
        word = cells.get(f"{_LOGIT}{name}", "")
        if word and np.isnan(number_of(word)):
            raise ManifestInvalid(root, seen=f"row {number}: {_LOGIT}{name} is no finite number")
        logits |= {name: number_of(word)} if word else {}
    paths = {key: root.parent / cells[key] if cells.get(key) else None for key in ("image", "text")}
    for key, path in paths.items():
        if path is not None and not path.exists():
            raise ManifestInvalid(root, seen=f"row {number} names a file under {key} that does not exist")
    side = cells.get("split", "").lower() if config.data.split == "given" else ""
    if config.data.split == "given" and side not in _SIDES:
        raise ManifestInvalid(root, seen=f"row {number} has the split {side!r}",
                              expected="train, validation or test was expected")  # fmt: skip
    name = cells.get("case") or (paths["image"].stem if paths["image"] else f"row_{number}")
    owner = cells.get("patient") or name
    facts = {fact.name: cells.get(fact.name, "") for fact in config.facts}
    abnormal = cells[config.data.label] in config.data.abnormal
    return FusionCase(
        name, owner, owner, abnormal, Case(logits, facts), paths["image"], paths["text"], _SIDES.get(side, "")
    )


def _grouped(cases: Sequence[FusionCase]) -> list[FusionCase]:
    """The same with one name for all that share a patient, a picture or a text, however long the chain."""
    found: dict[str, int] = {}
    group = list(range(len(cases)))

    def root(at: int) -> int:
        while group[at] != at:
            group[at] = group[group[at]]
            at = group[at]
        return at

    for at, case in enumerate(cases):
        keys = [f"patient {case.owner}"]
        keys += [f"image {sha256_of(case.image)}"] if case.image and case.image.is_file() else []
        keys += [f"text {' '.join(case.text.read_text(errors='replace').casefold().split())}"] if case.text else []
        for key in keys:
            group[root(at)] = root(found.setdefault(key, at))
    return [replace(case, patient=cases[root(at)].owner) for at, case in enumerate(cases)]


def check_unlearnt(cases: Sequence[FusionCase], model: str, learnt: Collection[str]) -> None:
    """Refuse cases with the names of those that a checkpoint's weights were fitted on.

    Raises
    ------
    LearntCases
        With how many, and some of them.
    """
    known = [case.name for case in cases if case.name in set(learnt)]
    if known:
        told = ", ".join(known[:_TOLD]) + (", ..." if len(known) > _TOLD else "")
        raise LearntCases(
            f"checkpoint {model}", seen=f"{len(known)} cases have the names of its training cases: {told}"
        )


def split_fusion(cases: Sequence[FusionCase], config: FuseConfig) -> Split:
    """Divide the cases into train, validation and test.

    Raises
    ------
    TooFewCases
        If train or validation would be empty.
    """
    settings = config.data
    if settings.split == "given":
        return Split(*(tuple(c.name for c in cases if c.side == side) for side in ("train", "validation", "test")))
    return split_by_patient(
        cases, test_fraction=settings.test_fraction, folds=settings.folds, fold=settings.fold, seed=settings.seed
    )
