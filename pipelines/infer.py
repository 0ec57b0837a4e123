"""Studies in, reports out: read, choose, predict, measure, write, each study whole or not at all.

Invariant: one study never stops another, everything that was refused is told, and a study's folder holds only outputs
that were checked, with `report.json` naming each of them and its checksum.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from imaging.channels import joined, read_channels
from imaging.checkpoint import Checkpoint, open_checkpoints
from imaging.classifier import Classification, Classifier, Explained, open_predictor
from imaging.dicom import read_stack
from imaging.dicom.scan import Scan, Study
from imaging.dicom.seg import Algorithm, write_seg
from imaging.dicom.stack import Policy
from imaging.errors import (
    DuplicateName,
    FormatNotApplicable,
    ImagingError,
    InputRefused,
    NotApplicable,
    OutputMismatch,
    OutputNotWritable,
    StaleResult,
    StudyFailed,
    UnknownName,
)
from imaging.files import sha256_of, staged_folder, write_whole
from imaging.inputs import Inputs, SeriesView, cases_in, gather, view_nifti, view_picture
from imaging.nifti import read_nifti, write_mask, write_volume
from imaging.png import is_png, read_png
from imaging.predict import Prediction, Predictor
from imaging.report.findings import (
    DefectEntry,
    OutputEntry,
    Report,
    SeriesEntry,
    StudyEntry,
    findings_of,
    model_entry,
    refusals_of,
)
from imaging.report.html import render_html
from imaging.report.pictures import key_pictures
from imaging.study_channels import view_study
from imaging.volume import SeriesFacts, Volume, orientation_of, spacing_of

FORMATS = ("json", "html", "seg", "nifti")
_REPORT = "report.json"
# What a study's folder may hold from an earlier run, and is replaced.
_OURS = (_REPORT, "report.html", "seg_*.dcm", "mask_*.nii.gz", "heatmap_*.nii.gz")

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
    """

    entry: StudyEntry
    series: tuple[tuple[SeriesView, Callable[[], Volume]], ...]
    refused: tuple[ImagingError, ...] = ()


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
class Inferred:
    """What became of one call: a result for each study, and what was refused beside or before them."""

    studies: tuple[StudyResult, ...]
    refused: tuple[ImagingError, ...]


def infer(
    *,
    paths: Sequence[Path],
    models: Sequence[str] = (),
    out: Path = Path("out"),
    formats: Sequence[str] | None = None,
    policy: Policy = "repair",
    explain: Explained = "abnormal",
    on_study: Callable[[str, int, int], None] | None = None,
) -> Inferred:
    """Report on every study under some paths.

    Parameters
    ----------
    paths
        Folders of DICOM, NIfTI files or PNG pictures; a folder may hold several studies, and each NIfTI or PNG file is
        a study of its own.
    models
        Names of shipped checkpoints or paths of checkpoint folders; by default each shipped checkpoint takes the series
        that its `applies_to` rule names.
    out
        Each study is written to a folder of its own in here, named by its StudyInstanceUID or by its file.
    formats
        Some of `FORMATS`; by default the report, and the mask as the input's own kind (``seg`` or ``nifti``). ``json``
        is always written.
    policy
        Whether a series that would have to be changed to be a volume is taken or refused.
    explain
        Which findings of a classifier get a map of what raised their probability.
    on_study
        Called with the study's name, its number from 0 and the number of studies, before each study.

    Raises
    ------
    WrongUsage
        If `out` cannot be written, a checkpoint is unknown, or a format is.
    CheckpointCorrupt
        If a named checkpoint differs from its checksums; a shipped one is left out and told.
    """
    unknown = set(formats or ()) - set(FORMATS)
    if unknown:
        raise UnknownName("formats", seen=repr(min(unknown)), expected=f"some of {', '.join(FORMATS)} were expected")
    checkpoints, unusable = open_checkpoints(models)
    _check_writable(out)
    inputs = gather(paths, leave_out=out)
    sources, doubles = _sources(inputs, checkpoints, named=bool(models), policy=policy)
    by_name = {checkpoint.name: checkpoint for checkpoint in checkpoints}

    @cache
    def predictor(name: str) -> Predictor | Classifier:
        return open_predictor(by_name[name])

    results = []
    for number, source in enumerate(sources):
        if on_study:
            on_study(source.entry.name, number, len(sources))
        results.append(report_on(source, predictor, out, formats, explain))
    stale = _stale(out, [error.subject.removeprefix("study ") for error in inputs.scan.refused])
    return Inferred(tuple(results), (*unusable, *inputs.scan.refused, *doubles, *stale))


def _stale(out: Path, names: Sequence[str]) -> list[ImagingError]:
    """Tell of results of an earlier run for studies that have none now."""
    folders = [out / name for name in names if Path(name).name == name]
    return [StaleResult(folder, seen="an earlier run's result") for folder in folders if (folder / _REPORT).is_file()]


def _check_writable(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise OutputNotWritable(out, seen="it is a file, not a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".writable.partial"
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputNotWritable(out, seen=error.strerror or "cannot be written") from error


def _sources(
    inputs: Inputs, checkpoints: Sequence[Checkpoint], *, named: bool, policy: Policy
) -> tuple[list[Source], list[DuplicateName]]:
    """The studies to report on; files of one name cannot be told apart by their outputs, so all are left out."""
    sources = [_dicom_source(study, inputs, checkpoints, named=named, policy=policy) for study in inputs.scan.studies]
    cases: dict[str, list[tuple[Path, ...]]] = {}
    found = [*cases_in(inputs.nifti, checkpoints), *((path.stem, (path,)) for path in inputs.pictures)]
    for plain, files in found:
        # The name becomes a folder: nothing but plain characters, and no leading dot.
        name = re.sub(r"[^A-Za-z0-9._-]", "_", plain).lstrip(".") or "unnamed"
        cases.setdefault(name, []).append(files)
    doubles = []
    for name, each in cases.items():
        if len(each) > 1:
            doubles.append(DuplicateName(name, seen=f"{len(each)} files have this name"))
            continue
        sources.append(Source(StudyEntry(name=name), (_of_files(each[0], checkpoints, named=named),)))
    return sources, doubles


def _of_files(
    files: tuple[Path, ...], checkpoints: Sequence[Checkpoint], *, named: bool
) -> tuple[SeriesView, Callable[[], Volume]]:
    """A picture, or a volume of one or several files, with the way to read it."""
    if is_png(files[0]):
        return view_picture(files[0], checkpoints, named=named), partial(read_png, files[0])
    read = partial(read_nifti, files[0]) if len(files) == 1 else partial(read_channels, files)
    return view_nifti(files, checkpoints, named=named), read


def _dicom_source(
    study: Study, inputs: Inputs, checkpoints: Sequence[Checkpoint], *, named: bool, policy: Policy
) -> Source:
    entry = StudyEntry(
        name=study.uid,
        uid=study.uid,
        description=study.description,
        patient_id=study.patient_id,
        date=study.date,
        accession=study.accession,
    )
    series = tuple(
        (item.view, partial(read_stack, item.series, item.stack) if item.stack is not None else _nothing)
        for item in view_study(study, checkpoints, named=named, policy=policy)
    )
    return Source(entry, series, _refused_near(study, inputs.scan))


def _nothing() -> Volume:
    """Stands for the reader of what was refused; nobody calls it."""
    raise AssertionError("a refused series has no volume")


def _refused_near(study: Study, found: Scan) -> tuple[ImagingError, ...]:
    """What was refused in or below the folder that holds all of a study's images, and so may belong to it."""
    files = {found.origin(instance.path) for item in study.series for instance in item.instances}
    home = Path(os.path.commonpath([file.parent.resolve() for file in files]))
    with_path = ((error, error.path) for error in found.refused if error.path is not None)
    return tuple(error for error, path in with_path if path.resolve().is_relative_to(home))


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
        with staged_folder(folder, replaces=_OURS, last=_REPORT) as stage:
            report = _write(stage, source, entries, predictions, formats, problems)
        return StudyResult(name, folder, report, tuple(problems))
    except ImagingError as error:
        problems.append(error)
    except Exception as error:  # a fault of ours in one study must not take the others with it
        log.debug("traceback", exc_info=True)
        problems.append(StudyFailed(f"study {name}", seen=type(error).__name__))
    return StudyResult(name, None, None, (*_stale(out, [name]), *problems))


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
            faults += _write_masks(stage, prediction, formats)
        elif formats is not None and "nifti" in formats:
            faults += _write_heat_maps(stage, prediction)
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
        outputs=_outputs(stage, made_from),
    )
    if formats is None or "html" in formats:
        pictures = [picture for prediction in predictions for picture in key_pictures(prediction)]
        write_whole(stage / "report.html", render_html(report, pictures))
        report = report.model_copy(update={"outputs": _outputs(stage, made_from)})
    # Whatever was asked for: it is what vouches for the other files.
    write_whole(stage / _REPORT, report.to_json())
    return report


def _outputs(stage: Path, made_from: Mapping[str, SeriesFacts]) -> tuple[OutputEntry, ...]:
    return tuple(
        OutputEntry(file=file.name, sha256=sha256_of(file), series_uid=facts.series_uid, volume=facts.volume)
        for file in sorted(stage.iterdir())
        for facts in [made_from.get(file.name, SeriesFacts())]
    )


def _write_masks(stage: Path, prediction: Prediction, formats: Collection[str] | None) -> list[ImagingError]:
    """Write the mask as the formats ask; an output that fails its check is withheld and told."""
    volume, config = prediction.volume, prediction.checkpoint.segmenter()
    # highdicom builds a SEG over single-frame instances, one for each slice.
    single = len({frame.sop_instance_uid for frame in volume.sources}) == len(volume.sources) > 0
    has_own_grid = single and not volume.resampled
    wanted = formats if formats is not None else {"seg" if has_own_grid else "nifti"}
    faults: list[ImagingError] = []
    try:
        if "nifti" in wanted:
            write_mask(_free(stage, f"mask_{config.name}", ".nii.gz"), prediction.mask_XYZ, volume.affine)
        if "seg" in wanted and not has_own_grid:
            faults.append(FormatNotApplicable(volume.facts.subject, seen=_why_no_seg(volume)))
        elif "seg" in wanted and prediction.mask_XYZ.any():
            algorithm = Algorithm(
                name=config.name,
                version=config.version,
                weights_sha256=prediction.checkpoint.weights_sha256,
                config_sha256=config.digest(),
                software_version=importlib.metadata.version("imgpipe"),
            )
            path = _free(stage, f"seg_{config.name}", ".dcm")
            write_seg(path, prediction.found, volume, config.labels, algorithm)
    except OutputNotWritable:
        raise
    except ImagingError as error:
        faults.append(error)
    return faults


def _write_heat_maps(stage: Path, prediction: Classification) -> list[ImagingError]:
    """Write each map on the image's grid, -1 where the network saw nothing; one that fails its check is withheld."""
    faults: list[ImagingError] = []
    for found in prediction.heat_maps:
        path = _free(stage, f"heatmap_{prediction.checkpoint.name}_{found.target}", ".nii.gz")
        try:
            write_volume(path, Volume(np.nan_to_num(found.heat_XYZ, nan=-1.0)[np.newaxis], prediction.volume.affine))
        except OutputMismatch as error:
            faults.append(error)
    return faults


def _why_no_seg(volume: Volume) -> str:
    if not volume.sources:
        return "a NIfTI file has no instances to refer to"
    return "the volume was resampled" if volume.resampled else "its slices are frames of a multi-frame instance"


def _free(stage: Path, stem: str, suffix: str) -> Path:
    """A name that is not taken: a checkpoint may take several series of one study."""
    path, number = stage / f"{stem}{suffix}", 2
    while path.exists():
        path, number = stage / f"{stem}_{number}{suffix}", number + 1
    return path
