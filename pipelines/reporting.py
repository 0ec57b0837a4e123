"""One study, from its series to its folder: read, ask the checkpoints, measure, write, whole or not at all.

Invariant: nothing that a study holds raises; what was refused in it is told in its report, and a study's folder holds
only outputs that were checked, with `report.json` naming each of them and its checksum.
"""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from imaging.channels import joined
from imaging.classifier import Classification, Classifier, Explained
from imaging.errors import ImagingError, InputRefused, NotApplicable, StaleResult, StudyFailed
from imaging.files import staged_folder, write_whole
from imaging.inputs import SeriesView
from imaging.predict import Prediction, Predictor
from imaging.report.findings import findings_of, model_entry, refusals_of
from imaging.report.html import render_html
from imaging.report.pictures import key_pictures
from imaging.report.report import DefectEntry, Replaced, Report, SeriesEntry, StudyEntry
from imaging.volume import SeriesFacts, Volume, orientation_of, spacing_of
from pipelines.outputs import OURS, REPORT, output_entries, write_heat_maps, write_masks

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Source:
    """One study before it is read.

    Attributes
    ----------
    entry
        Whose it is.
    series
        Each series as its header tells it, with the way to read it.
    refused
        Files beside its images that were refused, and so may belong to it.
    version, replaces
        As the report has them.
    """

    entry: StudyEntry
    series: tuple[tuple[SeriesView, Callable[[], Volume]], ...]
    refused: tuple[ImagingError, ...] = ()
    version: int = 1
    replaces: Replaced | None = None


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


def report_on(
    source: Source,
    predictor: Callable[[str], Predictor | Classifier],
    out: Path,
    formats: Collection[str] | None = None,
    explain: Explained = "abnormal",
) -> StudyResult:
    """Report on one study: everything, or nothing and the reason.

    Parameters
    ----------
    source
        The study.
    predictor
        Gives the predictor of a checkpoint by its name.
    out
        The study's folder is made in here.
    formats, explain
        As `infer` takes them.

    Returns
    -------
    StudyResult
        Never raises for what the study holds; Ctrl-C passes through and leaves nothing.
    """
    name = source.entry.name
    problems: list[ImagingError] = list(source.refused)
    try:
        entries, predictions = _predict(source, predictor, problems, explain)
        folder = out / name
        with staged_folder(folder, replaces=OURS, last=REPORT) as stage:
            report = _write(stage, source, entries, predictions, formats, problems)
        return StudyResult(name, folder, report, tuple(problems))
    except ImagingError as error:
        problems.append(error)
    except Exception as error:  # a fault of ours in one study must not take the others with it
        log.debug("traceback", exc_info=True)
        problems.append(StudyFailed(f"study {name}", seen=type(error).__name__))
    return StudyResult(name, None, None, (*stale_results(out, [name]), *problems))


def _predict(
    source: Source,
    predictor: Callable[[str], Predictor | Classifier],
    problems: list[ImagingError],
    explain: Explained,
) -> tuple[list[SeriesEntry], list[Prediction | Classification]]:
    """Read each series that a checkpoint takes and ask the checkpoint; what is refused goes to `problems`."""
    entries: list[SeriesEntry] = []
    predictions: list[Prediction | Classification] = []
    cases: dict[str, dict[str, tuple[int, Volume | None]]] = {}
    for view, read in source.series:
        reasons: list[ImagingError] = [view.refusal] if view.refusal is not None else []
        if view.refusal is None and not view.taken_by:
            reasons += [reason for _, reason in view.declined_by]
        volume = _attempt(read, reasons) if view.taken_by else None
        found: list[Prediction | Classification] = []
        if volume is not None:
            alone = [model for model in view.taken_by if model not in dict(view.channel_of)]
            said = [_attempt(partial(_ask, predictor, model, volume, explain), reasons) for model in alone]
            found = [prediction for prediction in said if prediction is not None]
        for model, channel in view.channel_of:
            cases.setdefault(model, {})[channel] = (len(entries), volume)
        entries.append(_entry(view, volume, found, reasons))
        predictions += found
        # A study's own reason is that of each of its series.
        problems += [reason for reason in reasons if not any(reason is problem for problem in problems)]
    for model, members in cases.items():
        reasons = []
        together = _attempt(partial(_ask_together, predictor, model, members), reasons)
        models, refusals = ((model,) if together is not None else ()), refusals_of(reasons)
        for place, _ in members.values():
            entry = entries[place]
            told = {"models": (*entry.models, *models), "refusals": (*entry.refusals, *refusals)}
            entries[place] = entry.model_copy(update=told)
        predictions += [together] if together is not None else []
        problems += reasons
    return entries, predictions


def _ask_together(
    predictor: Callable[[str], Predictor | Classifier], model: str, members: Mapping[str, tuple[int, Volume | None]]
) -> Prediction:
    """What a checkpoint says of several series, each a channel; the case is that of the first channel's series."""
    asked = predictor(model)
    assert isinstance(asked, Predictor)
    volumes = []
    for channel in asked.checkpoint.segmenter().channels:
        volume = members[channel.name][1]
        if volume is None:
            raise NotApplicable(model, seen=f"the series of channel {channel.name!r} could not be read",
                                expected="every channel was expected")  # fmt: skip
        volumes.append(volume)
    return asked(joined(volumes, [(volume.facts.subject, volume.facts.subject) for volume in volumes]))


def _ask(
    predictor: Callable[[str], Predictor | Classifier], model: str, volume: Volume, explain: Explained
) -> Prediction | Classification:
    asked = predictor(model)
    return asked(volume) if isinstance(asked, Predictor) else asked.explain(asked(volume), of=explain)


def _attempt(step: Callable[[], T], reasons: list[ImagingError]) -> T | None:
    """What a step gives, or None with the reason why the input was refused."""
    try:
        return step()
    except InputRefused as error:
        reasons.append(error)
        return None


def _entry(
    view: SeriesView,
    volume: Volume | None,
    found: Sequence[Prediction | Classification],
    reasons: Sequence[ImagingError],
) -> SeriesEntry:
    defects = volume.defects if volume is not None else view.defects
    sources = volume.sources if volume is not None else ()
    return SeriesEntry(
        uid=view.facts.series_uid,
        description=view.facts.description,
        modality=view.facts.modality,
        volume=view.facts.volume,
        instances=view.instances,
        models=tuple(prediction.checkpoint.name for prediction in found),
        channel_of=dict(view.channel_of),
        shape=view.shape,
        spacing_mm=spacing_of(view.affine) if view.affine is not None else None,
        orientation=orientation_of(view.affine) if view.affine is not None else None,
        frame_of_reference_uid=view.facts.frame_of_reference_uid,
        resampled=volume is not None and volume.resampled,
        defects=tuple(DefectEntry(code=d.code, action=d.action, detail=d.detail, error_mm=d.error_mm) for d in defects),
        source_sop_instance_uids=tuple(frame.sop_instance_uid for frame in sources),
        sop_class_uid=sources[0].sop_class_uid if sources else "",
        refusals=refusals_of(reasons),
    )


def _write(
    stage: Path,
    source: Source,
    entries: Sequence[SeriesEntry],
    predictions: Sequence[Prediction | Classification],
    formats: Collection[str] | None,
    problems: list[ImagingError],
) -> Report:
    """Write a study's files into its stage; an output that is withheld goes to `problems`."""
    faults: list[ImagingError] = []
    made_from: dict[str, SeriesFacts] = {}
    for prediction in predictions:
        if isinstance(prediction, Prediction):
            faults += write_masks(stage, prediction, formats)
        elif formats is not None and "nifti" in formats:
            faults += write_heat_maps(stage, prediction)
        made_from |= {f.name: prediction.volume.facts for f in stage.iterdir() if f.name not in made_from}
    problems += faults
    report = Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        software="imgpipe",
        software_version=importlib.metadata.version("imgpipe"),
        study=source.entry,
        findings=tuple(finding for prediction in predictions for finding in findings_of(prediction)),
        series=tuple(entries),
        refused=refusals_of([*source.refused, *faults]),
        models=tuple({p.checkpoint.name: model_entry(p) for p in predictions}.values()),
        outputs=output_entries(stage, made_from),
        version=source.version,
        replaces=source.replaces,
    )
    if formats is None or "html" in formats:
        pictures = [picture for prediction in predictions for picture in key_pictures(prediction)]
        write_whole(stage / "report.html", render_html(report, pictures))
        report = report.model_copy(update={"outputs": output_entries(stage, made_from)})
    # Whatever was asked for: it is what vouches for the other files.
    write_whole(stage / REPORT, report.to_json())
    return report


def stale_results(out: Path, names: Sequence[str]) -> list[ImagingError]:
    """Tell of results of an earlier run for studies that have none now."""
    folders = [out / name for name in names if Path(name).name == name]
    return [StaleResult(folder, seen="an earlier run's result") for folder in folders if (folder / REPORT).is_file()]
