"""Studies in, reports out: read, choose, predict, measure, write, each study whole or not at all.

Invariant: one study never stops another, everything that was refused is told, and a study's folder holds only outputs
that were checked, with `report.json` naming each of them and its checksum.
"""

from __future__ import annotations

import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path

from imaging.checkpoint import Checkpoint
from imaging.dicom import read_series
from imaging.dicom.scan import Study
from imaging.dicom.seg import Algorithm, write_seg
from imaging.errors import (
    DuplicateName,
    ImagingError,
    InputRefused,
    NotApplicable,
    OutputNotWritable,
    StudyFailed,
    UnknownName,
)
from imaging.files import sha256_of, staged_folder, write_whole
from imaging.nifti import case_name, read_nifti, write_mask
from imaging.predict import Prediction, Predictor
from imaging.report.findings import (
    OutputEntry,
    Report,
    SeriesEntry,
    StudyEntry,
    findings_of,
    model_entry,
    refusals_of,
    series_entry,
)
from imaging.report.html import render_html
from imaging.report.pictures import key_pictures
from imaging.selection import subject_of
from imaging.volume import Volume
from pipelines.inspect import Inputs, SeriesView, gather, open_models, view_nifti, view_series

FORMATS = ("json", "html", "seg", "nifti")
# What a study's folder may hold from an earlier run, and is replaced.
_OURS = ("report.json", "report.html", "seg_*.dcm", "mask_*.nii.gz")

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
    error
        Why there is none.
    """

    name: str
    folder: Path | None
    report: Report | None
    problems: tuple[ImagingError, ...]


@dataclass(frozen=True, slots=True)
class Inferred:
    """What became of one call: a result for each study, and what was refused before it was known to be one."""

    studies: tuple[StudyResult, ...]
    refused: tuple[ImagingError, ...]


@dataclass(frozen=True, slots=True)
class _Source:
    """One study before it is read: whose it is, and each series as its header tells it with the way to read it."""

    entry: StudyEntry
    series: tuple[tuple[SeriesView, Callable[[], Volume]], ...]
    refused: tuple[ImagingError, ...] = ()


def infer(
    *,
    paths: Sequence[Path],
    models: Sequence[str] = (),
    out: Path = Path("out"),
    formats: Sequence[str] | None = None,
    on_study: Callable[[str, int, int], None] | None = None,
) -> Inferred:
    """Report on every study under some paths.

    Parameters
    ----------
    paths
        Folders of DICOM, or NIfTI files; a folder may hold several studies, and each NIfTI file is a study of its own.
    models
        Names of shipped checkpoints or paths of checkpoint folders; by default each shipped checkpoint takes the series
        that its `applies_to` rule names.
    out
        Each study is written to a folder of its own in here, named by its StudyInstanceUID or by its file.
    formats
        Some of `FORMATS`; by default the report, and the mask as the input's own kind (``seg`` or ``nifti``).
    on_study
        Called with the study's name, its number from 0 and the number of studies, before each study.

    Raises
    ------
    WrongUsage
        If `out` cannot be written, a checkpoint is unknown, or a format is.
    CheckpointCorrupt
        If a checkpoint differs from its checksums.
    """
    unknown = set(formats or ()) - set(FORMATS)
    if unknown:
        raise UnknownName("formats", seen=min(unknown), expected=f"some of {', '.join(FORMATS)} were expected")
    checkpoints = open_models(models)
    _check_writable(out)
    inputs = gather(paths)
    sources = list(_sources(inputs, checkpoints, named=bool(models)))
    _check_names([source.entry.name for source in sources])
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}

    @cache
    def predictor(name: str) -> Predictor:
        return Predictor(by_name[name])

    results = []
    for number, source in enumerate(sources):
        if on_study:
            on_study(source.entry.name, number, len(sources))
        results.append(_report_on(source, predictor, out, formats))
    return Inferred(tuple(results), inputs.scan.refused)


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable.partial"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputNotWritable(out, seen=error.strerror or "cannot be written") from error


def _check_names(names: Sequence[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise DuplicateName(min(twice), seen="two inputs have this name")


def _sources(inputs: Inputs, checkpoints: Sequence[Checkpoint], *, named: bool) -> Iterator[_Source]:
    for study in inputs.scan.studies:
        entry = StudyEntry(
            name=study.uid,
            uid=study.uid,
            description=study.description,
            patient_id=study.patient_id,
            date=study.date,
            accession=study.accession,
        )
        series = tuple(
            (view_series(item, checkpoints, named=named), partial(read_series, item)) for item in study.series
        )
        yield _Source(entry, series, _refused_beside(study, inputs.scan.refused))
    for path in inputs.nifti:
        # The name becomes a folder: nothing but plain characters, and no leading dot.
        name = re.sub(r"[^A-Za-z0-9._-]", "_", case_name(path)).lstrip(".") or "unnamed"
        view = view_nifti(path, checkpoints, named=named)
        yield _Source(StudyEntry(name=name), ((view, partial(read_nifti, path)),))


def _refused_beside(study: Study, refused: Sequence[ImagingError]) -> tuple[ImagingError, ...]:
    """The refused files that lie in a folder with images of the study, and so may belong to it."""
    folders = {instance.path.parent for series in study.series for instance in series.instances}
    return tuple(error for error in refused if Path(error.subject).parent in folders)


def _report_on(
    source: _Source, predictor: Callable[[str], Predictor], out: Path, formats: Sequence[str] | None
) -> StudyResult:
    name = source.entry.name
    problems: list[ImagingError] = list(source.refused)
    try:
        entries, predictions = _predict(source, predictor, problems)
        folder = out / name
        with staged_folder(folder, replaces=_OURS) as stage:
            report = _write(stage, source, entries, predictions, formats, problems)
        return StudyResult(name, folder, report, tuple(problems))
    except ImagingError as error:
        problems.append(error)
    except Exception as error:
        log.debug("traceback", exc_info=True)
        problems.append(StudyFailed(f"study {name}", seen=type(error).__name__))
    log.error("%s", problems[-1])
    return StudyResult(name, None, None, tuple(problems))


def _predict(
    source: _Source, predictor: Callable[[str], Predictor], problems: list[ImagingError]
) -> tuple[list[SeriesEntry], list[Prediction]]:
    """Read each series that a checkpoint takes and ask the checkpoint; what is refused goes to `problems`."""
    entries: list[SeriesEntry] = []
    predictions: list[Prediction] = []
    for view, read in source.series:
        reasons: list[ImagingError] = (
            [view.refusal] if view.refusal is not None else [reason for _, reason in view.declined_by]
        )
        if view.refusal is None and view.taken_by:
            try:
                volume = read()
                predictions += [predictor(model)(volume) for model in view.taken_by]
                entries.append(series_entry(volume, models=view.taken_by))
                continue
            except InputRefused as error:
                reasons = [error]
        entries.append(_unread_entry(view, reasons))
        problems += reasons
    return entries, predictions


def _unread_entry(view: SeriesView, reasons: Sequence[ImagingError]) -> SeriesEntry:
    for reason in reasons:
        log.info("%s", reason)
    return SeriesEntry(
        uid=view.facts.series_uid,
        description=view.facts.description,
        modality=view.facts.modality,
        instances=view.instances,
        refusals=refusals_of(reasons),
    )


def _write(
    stage: Path,
    source: _Source,
    entries: Sequence[SeriesEntry],
    predictions: Sequence[Prediction],
    formats: Sequence[str] | None,
    problems: list[ImagingError],
) -> Report:
    """Write a study's files into its stage, `report.json` last; an output that is withheld goes to `problems`."""
    faults: list[ImagingError] = []
    for prediction in predictions:
        faults += _write_masks(stage, prediction, formats)
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
        outputs=_outputs(stage),
    )
    if formats is None or "html" in formats:
        pictures = [picture for prediction in predictions for picture in key_pictures(prediction)]
        write_whole(stage / "report.html", render_html(report, pictures))
    report = report.model_copy(update={"outputs": _outputs(stage)})
    if formats is None or "json" in formats:
        write_whole(stage / "report.json", report.to_json())
    return report


def _outputs(stage: Path) -> tuple[OutputEntry, ...]:
    return tuple(OutputEntry(file=file.name, sha256=sha256_of(file)) for file in sorted(stage.iterdir()))


def _write_masks(stage: Path, prediction: Prediction, formats: Sequence[str] | None) -> list[ImagingError]:
    """Write the mask as the formats ask; an output that fails its check is withheld and told."""
    from_dicom = bool(prediction.volume.frames)
    wanted = set(formats) if formats is not None else {"seg" if from_dicom else "nifti"}
    faults: list[ImagingError] = []
    if "nifti" in wanted:
        write_mask(
            _free(stage, f"mask_{prediction.checkpoint.name}", ".nii.gz"), prediction.mask_XYZ, prediction.volume.affine
        )
    if "seg" in wanted and not from_dicom:
        subject = subject_of(prediction.volume.facts)
        seen, expected = "a NIfTI file has no instances to refer to", "a DICOM series was expected for seg"
        faults.append(NotApplicable(subject, seen=seen, expected=expected, remedy="Ask for nifti"))
    if "seg" in wanted and from_dicom and prediction.mask_XYZ.any():
        path = _free(stage, f"seg_{prediction.checkpoint.name}", ".dcm")
        algorithm = Algorithm(
            name=prediction.checkpoint.name,
            version=prediction.checkpoint.config.version,
            weights_sha256=prediction.checkpoint.weights_sha256,
            software_version=importlib.metadata.version("imgpipe"),
        )
        try:
            write_seg(path, prediction.mask_XYZ, prediction.volume, prediction.checkpoint.config.labels, algorithm)
        except ImagingError as error:
            log.error("%s", error)
            faults.append(error)
    return faults


def _free(stage: Path, stem: str, suffix: str) -> Path:
    """A name that is not taken: a checkpoint may take several series of one study."""
    path, number = stage / f"{stem}{suffix}", 2
    while path.exists():
        path, number = stage / f"{stem}_{number}{suffix}", number + 1
    return path
