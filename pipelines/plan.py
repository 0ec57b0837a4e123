"""`imgpipe plan`: look a data set through and propose a config to train with.

Invariant: nothing is written while something of the data set must be mended, and what is written is a config that
`imgpipe train` takes. Imports no torch.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from imaging.config import load_config
from imaging.dataset_check import OnCase, Survey, survey
from imaging.errors import ManifestInvalid, OutputNotWritable
from imaging.files import write_whole
from imaging.plan import Budget
from imaging.proposal import propose
from imaging.reasoned import Proposal


@dataclass(frozen=True, slots=True)
class Planned:
    """What came of it.

    Attributes
    ----------
    survey
        The data set, looked through.
    proposal
        The config; None where something must be mended first.
    """

    survey: Survey
    proposal: Proposal | None


def plan(
    *,
    dataset: Path,
    out: Path,
    modality: str = "",
    memory_gib: float = 8.0,
    steps: int = 10_000,
    on_case: OnCase | None = None,
) -> Planned:
    """Read a data set once and write a config for it, with the reason of each choice beside it.

    Parameters
    ----------
    dataset
        As ``data.root`` takes it: a folder with a ``dataset.json``, that file, or a CSV.
    out
        The config file; it must not exist yet.
    modality
        As DICOM writes it (``MR``, ``CT``, ``PT``); where the data set does not tell it.
    memory_gib
        What a training step may take.
    steps
        Optimizer steps of the whole run.
    on_case
        Called before each case with its name, its number from 0 and how many there are.

    Raises
    ------
    OutputNotWritable
        If the file exists, or cannot be written.
    ManifestInvalid
        If the cases cannot be listed, or nobody tells the modality or the size of the voxels.
    TooFewCases, ConfigInvalid
        If there are fewer than two patients, or the smallest patch needs more memory.
    """
    if out.exists():
        raise OutputNotWritable(out, seen="it exists", expected="a new file was expected", remedy="Give another --out")
    found = survey(dataset, on_case=on_case)
    if found.problems:
        return Planned(found, None)
    if not all(case.known_spacing for case in found.cases):
        raise ManifestInvalid(dataset, seen="pictures, which do not tell the size of their pixels",
                              expected="volumes with voxels of a known size were expected",
                              remedy="Write the config by hand: docs/training.md, Slices or volumes")  # fmt: skip
    budget = Budget(memory_gib, steps)
    proposal = propose(found, root=dataset, name=out.name, modality=modality, budget=budget)
    text = proposal.to_yaml()
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / out.name
        write_whole(draft, text)
        load_config(draft)
    if not out.parent.is_dir():
        raise OutputNotWritable(out, seen="its folder does not exist")
    write_whole(out, text)
    return Planned(found, proposal)
