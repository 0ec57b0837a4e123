"""One study, from its series to its folder: read, ask the checkpoints, measure, write, whole or not at all.

Invariant: nothing that a study holds raises; what was refused in it is told in its report, and a study's folder holds
only outputs that were checked, with `report.json` naming each of them and its checksum.
"""

from __future__ import annotations

import importlib.metadata
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from imaging.checkpoint import FusionCheckpoint
from imaging.errors import ImagingError, SetAside, StaleResult, StudyFailed
from imaging.files import sha256_of, staged_folder
from imaging.inputs import SeriesView
from imaging.judgement import Classification, Explained
from imaging.predict import Prediction
from imaging.report.findings import findings_of, refusals_of
from imaging.report.models import model_entry
from imaging.report.report import Finding, Report, SeriesEntry
from imaging.stages import stage
from imaging.volume import SeriesFacts
from pipelines.asking import Predictors, Source, ask_pictures
from pipelines.outputs import (
    OURS,
    REPORT,
    SR,
    Stage,
    Wanted,
    delivering_bytes,
    instances_of,
    write_predictions,
    write_report,
)
from pipelines.words import Reader, say

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StudyResult:
    """What became of one study.

    Attributes
    ----------
    name
        StudyInstanceUID, or the name of a NIfTI file.
    folder
        Where its outputs lie; None where nothing was written.
    report
        The report, where there is one.
    problems
        What was refused in it, and what went wrong; the last one says why there is no report, if there is none.
    """

    name: str
    folder: Path | None
    report: Report | None
    problems: tuple[ImagingError, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Who is asked of a study, and what is wanted of it.

    Attributes
    ----------
    predictor
        Gives the predictor of a checkpoint by its name.
    explain
        Which findings of a classifier get a map of what raised their probability.
    wanted
        Which files are written.
    readers, fusion
        Checkpoints that read texts, and one that brings pictures and words together.
    """

    predictor: Predictors
    explain: Explained
    wanted: Wanted
    readers: tuple[Reader, ...] = ()
    fusion: FusionCheckpoint | None = None


def report_on(source: Source, asked: Asked, out: Path) -> StudyResult:
    """Report on one study: everything, or nothing and the reason.

    Parameters
    ----------
    source
        The study.
    asked
        Who is asked of it.
    out
        The study's folder is made in here.

    Returns
    -------
    StudyResult
        Never raises for what the study holds; Ctrl-C passes through and leaves nothing.
    """
    name = source.entry.name
    problems: list[ImagingError] = list(source.refused)
    try:
        entries, predictions = ask_pictures(
            source, asked.predictor, problems, asked.explain, delivering=partial(_delivering, asked.wanted)
        )
        with stage("report"):
            report = _report_of(source, entries, predictions, asked, problems)
        folder = out / name
        predecessors = _replaced(source, folder)
        with stage("write"), staged_folder(folder, replaces=OURS, last=REPORT) as place:
            files = Stage(place, {}, [])
            write_predictions(files, predictions, asked.wanted)
            instances = instances_of(predictions, source.files)
            report = write_report(files, report, predictions, asked.wanted, instances=instances,
                                  predecessors=predecessors)  # fmt: skip
        return StudyResult(name, folder, report, (*problems, *files.faults))
    except ImagingError as error:
        problems.append(error)
    except Exception as error:  # a fault of ours in one study must not take the others with it
        log.debug("traceback", exc_info=True)
        problems.append(StudyFailed(f"study {name}", seen=type(error).__name__))
    return StudyResult(name, None, None, (*stale_results(out, [name]), *problems))


def _delivering(wanted: Wanted, view: SeriesView, labels: int) -> int:
    """What the outputs of a series will take in memory; see `delivering_bytes`."""
    assert view.shape is not None
    # What was no DICOM has no instances that a SEG could refer to, and what is repaired may have none left.
    as_nifti = not view.facts.series_uid or any(defect.action == "repaired" for defect in view.defects)
    return delivering_bytes(wanted, view.shape[2], math.prod(view.shape), labels, as_nifti=as_nifti)


def _report_of(
    source: Source,
    entries: Sequence[SeriesEntry],
    predictions: Sequence[Prediction | Classification],
    asked: Asked,
    problems: list[ImagingError],
) -> Report:
    """What is said of a study, before anything of it is written."""
    findings = tuple(finding for prediction in predictions for finding in findings_of(prediction))
    said = say(source.documents, predictions, findings, readers=asked.readers, fusion=asked.fusion, files=source.files,
               problems=problems, series=_pictures(source))  # fmt: skip
    models = {
        prediction.checkpoint.name: model_entry(prediction.checkpoint, prediction.engine) for prediction in predictions
    }
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software="imgpipe",
        software_version=importlib.metadata.version("imgpipe"),
        study=source.entry,
        findings=findings,
        series=tuple(entries),
        refused=refusals_of(source.refused),
        models=(*models.values(), *said.models),
        texts=said.texts,
        fusion=said.fusion,
        disagreements=said.disagreements,
        not_looked_at=_not_looked_at(entries, findings),
        version=source.version,
        replaces=source.replaces,
    )


def _pictures(source: Source) -> tuple[SeriesFacts, ...]:
    """What the series that hold pictures say of themselves."""
    return tuple(view.facts for view, _ in source.series if not isinstance(view.refusal, SetAside))


def _not_looked_at(entries: Sequence[SeriesEntry], findings: Sequence[Finding]) -> tuple[str, ...]:
    """What was there, or could be asked, and no checkpoint looked at."""
    unread = [
        f"Series {entry.uid or entry.description} ({entry.modality or 'no modality'}): "
        + (", ".join(dict.fromkeys(refusal.code for refusal in entry.refusals)) or "no checkpoint takes it")
        for entry in entries
        if not entry.models
    ]
    titles = dict.fromkeys(finding.title for finding in findings)
    return (*([f"Anything but: {', '.join(titles)}"] if titles else []), *unread)


def _replaced(source: Source, folder: Path) -> tuple[Path, ...]:
    """The SR of the result that this one replaces, where that is told to lie or in the study's folder."""
    before = source.earlier or folder
    old, sr = before / REPORT, before / SR
    if source.replaces is None or not old.is_file() or not sr.is_file():
        return ()
    return (sr,) if sha256_of(old) == source.replaces.report_sha256 else ()


def stale_results(out: Path, names: Sequence[str]) -> list[ImagingError]:
    """Tell of results of an earlier run for studies that have none now."""
    folders = [out / name for name in names if Path(name).name == name]
    return [StaleResult(folder, seen="an earlier run's result") for folder in folders if (folder / REPORT).is_file()]
