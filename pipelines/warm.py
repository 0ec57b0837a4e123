"""The studies of a worker through the code of `imgpipe infer`, with the checkpoints opened once.

Invariant: a report of the task's study, or the error that says why there is none. Where a task is to be read under
pseudonyms, nothing but pseudonyms comes to where its outputs are made.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from imaging.dicom.attributes import read_facts
from imaging.dicom.deidentify import Options, Pseudonyms, deidentified, read_key
from imaging.errors import NotDeidentifiable
from imaging.memory import Budget
from imaging.predictors import open_predictor
from imaging.report.report import Replaced
from pipelines.asking import TOOK
from pipelines.infer import Inference
from pipelines.shelf import Shelf
from pipelines.store.content import job_name
from pipelines.worker import Hiding, Reporting, Task, why_not


class WarmReader:
    """A `Reader` with the checkpoints in memory.

    Parameters
    ----------
    first
        What to report, and how, that is opened at once; a task that says nothing is reported on by the first. What else
        a task asks for is opened with that task.
    most_bytes
        Of weights in memory, as `pipelines.shelf` keeps them; None is without bound.

    Raises
    ------
    ImagingError
        As `pipelines.infer.Inference` says.
    """

    def __init__(self, first: Sequence[Reporting], most_bytes: int | None = None) -> None:
        self._first = first[0]
        # The reportings of a worker differ by their rules; its engine and its memory are one.
        memory = self._first.memory
        budget = None if memory is None else Budget.parse(memory)
        self._shelf = Shelf(partial(open_predictor, engine=self._first.engine, budget=budget), most_bytes=most_bytes)
        self._opening = threading.Lock()
        self._opened: dict[Reporting, Inference] = {}
        for reporting in first:
            self._inference(reporting)
        hiding = self._first.hiding
        self.setup = job_name(self._inference(self._first).setup, asdict(hiding) if hiding else None)

    def _inference(self, reporting: Reporting) -> Inference:
        """The checkpoints of one way to report; those that read a copy under pseudonyms are the same."""
        plain = replace(reporting, hiding=None)
        with self._opening:
            if plain not in self._opened:
                self._opened[plain] = Inference(
                    models=plain.models,
                    formats=plain.formats,
                    seg_type=plain.seg_type,
                    fhir_version=plain.fhir_version,
                    fhir_page=plain.fhir_page,
                    policy=plain.policy,
                    explain=plain.explain,
                    engine=plain.engine,
                    opened=self._shelf,
                    memory=plain.memory,
                )
                self._opened[plain].warm_up(self._shelf.has_room)
            return self._opened[plain]

    def __call__(self, task: Task) -> dict[str, float]:
        """Report on the study of a task; gives how long each checkpoint took, in s."""
        took: dict[str, float] = {}
        TOOK.set(took)
        reporting = task.reporting or self._first
        inference = self._inference(reporting)
        if reporting.hiding is None:
            _report(inference, task, task.out, task.study_uid, task.files)
            return took
        task.out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=task.out, prefix=".hidden") as folder:
            copies, made = Path(folder) / "copies", Path(folder) / "made"
            copies.mkdir()
            study_uid, files = hidden(task.study_uid, task.files, reporting.hiding, copies)
            _report(inference, task, made, study_uid, files)
            (made / study_uid).rename(task.out / study_uid)
        return took


def _report(inference: Inference, task: Task, out: Path, study_uid: str, files: Sequence[Path]) -> None:
    replaces = None
    if task.replaces is not None:
        replaces = Replaced(version=task.replaces[0], report_sha256=task.replaces[1])
    done = inference(files, out, version=task.version, replaces=replaces, earlier=task.earlier)
    problems = list(done.refused)
    for study in done.studies:
        if study.name == study_uid and study.report is not None:
            return
        problems += study.problems
    raise why_not(problems, study_uid)


def hidden(study_uid: str, files: Sequence[Path], hiding: Hiding, folder: Path) -> tuple[str, list[Path]]:
    """Copies of a study's pictures under pseudonyms (PS3.15 Annex E).

    What is none of the pictures that this can be done to (reports, documents) is left out. A picture that cannot be
    given away refuses the study: without it another result would come out.

    Parameters
    ----------
    study_uid, files
        The study.
    hiding
        By which key, and with which options.
    folder
        Gets the copies.

    Returns
    -------
    tuple of str and list of Path
        The study's pseudonym, and the copies.

    Raises
    ------
    KeyInvalid
        If the key cannot be read.
    InputRefused
        If a picture cannot be given away, or there is none.
    """
    names = Pseudonyms(read_key(Path(hiding.key)))
    options = Options(**{name: value for name, value in asdict(hiding).items() if name != "key"})
    copies, left = [], None
    for file in files:
        try:
            made = deidentified(file, names, options)
        except NotDeidentifiable as error:
            if read_facts(file).instance.rows:
                raise
            left = error
            continue
        copies.append(folder / f"{made.sop_instance_uid}.dcm")
        copies[-1].write_bytes(made.content)
    if not copies and left is not None:
        raise left
    return names.uid(study_uid), copies
