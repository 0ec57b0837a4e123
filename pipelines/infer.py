"""Studies in, reports out: which studies lie under some paths, and what checkpoint may read each of them.

Invariant: one study never stops another, and everything that was refused is told.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imaging.channels import read_channels
from imaging.checkpoint import Checkpoint
from imaging.dicom import read_stack
from imaging.dicom.scan import TEXTS, Scan, Study
from imaging.dicom.seg import SegType
from imaging.dicom.stack import Policy
from imaging.engines import Wanted as EngineWanted
from imaging.errors import (
    DuplicateName,
    ImagingError,
    InputRefused,
    OutputNotWritable,
    PartRemoved,
    TextOfMany,
    TextOfNobody,
    TextRole,
)
from imaging.files import sweep_folder
from imaging.inputs import Inputs, SeriesView, cases_in, gather, view_nifti, view_picture
from imaging.judgement import Explained
from imaging.memory import Budget
from imaging.nifti import read_nifti
from imaging.png import is_png, read_png
from imaging.predictors import open_predictor
from imaging.report.fhir import Version
from imaging.report.report import Replaced, StudyEntry
from imaging.stages import StageName, listening, stage
from imaging.study_channels import view_study
from imaging.text.document import Role
from imaging.text.intake import Found, read_text, texts_of
from imaging.volume import Volume
from pipelines.asking import Source
from pipelines.chosen import choose
from pipelines.outputs import FhirPage, Wanted
from pipelines.reporting import Asked, StudyResult, report_on, stale_results
from pipelines.shelf import Shelf
from pipelines.words import LazyReader

if TYPE_CHECKING:
    from imaging.classifier import Classifier
    from imaging.predict import Predictor
    from pipelines.cluster.nodes import Cluster


@dataclass(frozen=True, slots=True)
class Inferred:
    """What became of one call: a result for each study, what was refused, and seconds by stage."""

    studies: tuple[StudyResult, ...]
    refused: tuple[ImagingError, ...]
    stages: Mapping[StageName, float]


@dataclass(frozen=True, slots=True)
class Listed:
    """The studies of one call before any is read, and what was refused before them.

    Attributes
    ----------
    sources
        The studies.
    unusable, removed, doubles
        Checkpoints that were left out, parts of results that a killed run had left, and files that cannot be told apart
        by their outputs.
    scan
        What was found; it keeps the files of archives, without which the sources cannot be read.
    """

    sources: tuple[Source, ...]
    unusable: tuple[ImagingError, ...]
    removed: tuple[PartRemoved, ...]
    doubles: tuple[DuplicateName, ...]
    scan: Scan

    def inferred(
        self,
        results: Sequence[StudyResult],
        out: Path,
        stages: Mapping[StageName, float],
        beside: Sequence[ImagingError] = (),
    ) -> Inferred:
        """What became of the call; `beside` are further refusals that are of no study."""
        stale = stale_results(out, [error.subject.removeprefix("study ") for error in self.scan.refused])
        refused = (*self.unusable, *self.removed, *self.scan.refused, *self.doubles, *stale, *beside)
        return Inferred(tuple(results), refused, stages)


def infer(
    *,
    paths: Sequence[Path],
    models: Sequence[str] = (),
    text: Path | None = None,
    text_role: Role | None = None,
    out: Path = Path("out"),
    formats: Sequence[str] | None = None,
    seg_type: SegType = "binary",
    fhir_version: Version = "r4",
    fhir_page: FhirPage = "hash",
    policy: Policy = "repair",
    explain: Explained = "abnormal",
    engine: EngineWanted = "auto",
    memory: str | None = None,
    cluster: Cluster | None = None,
    on_study: Callable[[str, int, int], None] | None = None,
) -> Inferred:
    """Report on every study under some paths.

    Parameters
    ----------
    paths
        Folders of DICOM, NIfTI files or PNG pictures; a folder may hold several studies, and each NIfTI or PNG file is
        a study of its own.
    text
        A text of the one study under the paths: plain text, FHIR JSON or a DICOM SR. What comes with a study (in its
        headers, as an SR, or in files beside its images) is read without being named.
    text_role
        Whether it is a ``request``, written before the picture was seen, or a ``report`` of it; plain text needs it.
    out
        Each study is written to a folder of its own in here, named by its StudyInstanceUID or by its file.
    models, formats, seg_type, fhir_version, fhir_page, policy, explain, engine, memory
        As `Inference` takes them.
    cluster
        Whose nodes read the studies; then what lies in `out` already is not made again.
    on_study
        Called with the study's name, its number from 0 and the number of studies, before each; on a cluster after it.

    Raises
    ------
    WrongUsage
        If `out` cannot be written, a checkpoint is unknown, or a format is; if an engine that is asked for by name
        cannot be had, or no cluster; if it is not told what role a text has, or a text is given for several studies.
    CheckpointCorrupt
        If a named checkpoint differs from its checksums; a shipped one is left out and told.
    """
    options: dict[str, Any] = {"models": models, "formats": formats, "seg_type": seg_type, "engine": engine,
                               "fhir_version": fhir_version, "fhir_page": fhir_page, "policy": policy,
                               "explain": explain, "memory": memory}  # fmt: skip
    if cluster is not None:
        from pipelines.cluster.calling import infer_on_cluster

        return infer_on_cluster(
            cluster, options, paths=paths, text=text, text_role=text_role, out=out, on_study=on_study
        )
    with listening():
        with stage("open"):
            inference = Inference(**options)
        return inference(paths, out, text=text, text_role=text_role, on_study=on_study)


class Inference:
    """Checkpoints that are opened once and asked of any number of studies.

    Parameters
    ----------
    models
        Names of shipped checkpoints or paths of checkpoint folders; by default each shipped checkpoint takes the series
        that its `applies_to` rule names. A fusion that is named brings pictures and words together.
    formats
        Some of `pipelines.outputs.FORMATS`; by default the page, the mask as the input's own kind (``seg`` or
        ``nifti``), and of a DICOM study of which something is said an ``sr``. ``json`` is always written.
    seg_type
        Of DICOM SEG: ``binary``, which every archive takes, or ``labelmap``.
    fhir_version, fhir_page
        ``r4`` or ``r5``; whether it names the page by its ``hash`` or holds it ``whole``.
    policy
        Whether a series that would have to be changed to be a volume is taken or refused.
    explain
        Which findings of a classifier get a map of what raised their probability.
    engine
        What computes the networks: ``auto`` takes the fastest that the machine and the checkpoint take.
    opened
        Gives a checkpoint, opened; by default each is opened when it is first asked and kept.
    memory
        What the process may have in memory at once, such as ``4GB``; a series that needs more is refused.

    Attributes
    ----------
    chosen
        All that are asked; `checkpoints` are those of them that look at pictures.
    setup
        The digest of all but the input that decides the outputs.

    Raises
    ------
    UnknownName, UnknownCheckpoint, DuplicateName, CheckpointCorrupt
        As `infer` says.
    """

    def __init__(
        self,
        *,
        models: Sequence[str] = (),
        formats: Sequence[str] | None = None,
        seg_type: SegType = "binary",
        fhir_version: Version = "r4",
        fhir_page: FhirPage = "hash",
        policy: Policy = "repair",
        explain: Explained = "abnormal",
        engine: EngineWanted = "auto",
        opened: Callable[[Checkpoint], Predictor | Classifier] | None = None,
        memory: str | None = None,
    ) -> None:
        budget = None if memory is None else Budget.parse(memory)
        wanted = Wanted(None if formats is None else frozenset(formats), seg_type, fhir_version, fhir_page)
        self.chosen = chosen = choose(models)
        self.checkpoints, self._unusable = chosen.images, chosen.unusable
        self._named, self._policy = chosen.images_named, policy
        by_name = {checkpoint.name: checkpoint for checkpoint in self.checkpoints}
        readers = tuple(map(LazyReader, chosen.texts))
        opened = opened or Shelf(partial(open_predictor, engine=engine, budget=budget))
        predictor = partial(_opened, opened, by_name)
        self._asked = Asked(predictor, explain, wanted, readers, chosen.fusion)
        # Which checkpoints there are is told by their digests; one that was named takes what it else would not. What
        # was refused within a budget is none within another.
        options = (chosen.images_named, formats and sorted(formats), seg_type, fhir_version, policy, explain, engine,
                   *([budget.total] if budget else ()), *([fhir_page] if fhir_page != "hash" else ()))  # fmt: skip
        decides = [importlib.metadata.version("imgpipe"), chosen.digests(), options]
        self.setup = hashlib.sha256(json.dumps(decides).encode()).hexdigest()

    def warm_up(self, has_room: Callable[[Checkpoint], bool] = lambda _: True) -> None:
        """Read the weights of every checkpoint that there is room for, which the first study would wait for."""
        for checkpoint in filter(has_room, self.checkpoints):
            self._asked.predictor(checkpoint.name)

    def __call__(
        self,
        paths: Sequence[Path],
        out: Path,
        *,
        text: Path | None = None,
        text_role: Role | None = None,
        on_study: Callable[[str, int, int], None] | None = None,
        version: int = 1,
        replaces: Replaced | None = None,
        earlier: Path | None = None,
    ) -> Inferred:
        """Report on every study under some paths.

        Parameters
        ----------
        paths, out, text, text_role, on_study
            As `infer` takes them.
        version, replaces
            As the report has them; where there is more than one study they are those of each.
        earlier
            The study's folder with the result that is replaced, where that does not lie in `out`.

        Raises
        ------
        OutputNotWritable, NothingFound
            If `out` cannot be written, or there is nothing under the paths.
        TextRole, TextOfMany
            As `infer` says.
        """
        with listening() as stages:
            listed = self.studies_in(paths, out, text=text, text_role=text_role)
            results = []
            for number, source in enumerate(listed.sources):
                if on_study:
                    on_study(source.entry.name, number, len(listed.sources))
                results.append(self.report(replace(source, version=version, replaces=replaces, earlier=earlier), out))
        return listed.inferred(results, out, stages.seconds())

    def report(self, source: Source, out: Path) -> StudyResult:
        """Report on one study into a folder of `out`; see `pipelines.reporting.report_on`."""
        return report_on(source, self._asked, out)

    def studies_in(
        self, paths: Sequence[Path], out: Path, *, text: Path | None = None, text_role: Role | None = None
    ) -> Listed:
        """Find the studies under some paths, by their headers; see `__call__`."""
        if text is None and text_role is not None:
            raise TextRole("text_role", seen=f"{text_role}, and no text", remedy="Give the text with --text FILE")
        _check_writable(out)
        removed = tuple(PartRemoved(part, seen="what a run that was killed has left") for part in sweep_folder(out))
        with stage("scan"):
            inputs, texts = _with_texts(gather(paths, leave_out=out), paths, named=text)
            sources, doubles = _sources(inputs, self.checkpoints, named=self._named, policy=self._policy)
            sources = [_told(source, texts.get(source.entry.uid)) for source in sources]
            if text is not None:
                sources = [_with_text(sources, inputs, text, text_role)]
        return Listed(tuple(sources), self._unusable, removed, tuple(doubles), inputs.scan)


def _opened(
    opened: Callable[[Checkpoint], Predictor | Classifier], by_name: Mapping[str, Checkpoint], name: str
) -> Predictor | Classifier:
    return opened(by_name[name])


def _with_texts(inputs: Inputs, roots: Sequence[Path], *, named: Path | None) -> tuple[Inputs, dict[str, Found]]:
    """The texts that come with each DICOM study by its UID; the files that hold them, or the one named, are no strays.

    What is called as a text and is no study's is told.
    """
    studies = inputs.scan.studies
    found = {study.uid: texts_of(study, others=studies, roots=roots) for study in studies}
    taken = {path.resolve() for texts in found.values() for path in texts.sidecars}
    taken |= {named.resolve()} if named is not None else set()
    refused = [error for error in inputs.scan.refused if error.path is None or error.path.resolve() not in taken]
    texts = (path for path in inputs.scan.strays if path.name.lower() in TEXTS and path.resolve() not in taken)
    refused += [TextOfNobody(path, seen="a text that no study can be told for") for path in texts]
    return replace(inputs, scan=replace(inputs.scan, refused=tuple(refused))), found


def _told(source: Source, texts: Found | None) -> Source:
    """A study with the texts that came with it."""
    if texts is None:
        return source
    return replace(source, documents=texts.documents, refused=(*source.refused, *texts.refused))


def _with_text(sources: Sequence[Source], inputs: Inputs, path: Path, role: Role | None) -> Source:
    """The one study with the text that was named for it; where that is refused, it is told with the study.

    Raises
    ------
    TextOfMany, TextRole
        If there are several studies or none, or nobody says whether it is a request or a report.
    """
    if len(sources) != 1:
        raise TextOfMany(path, seen=f"{len(sources)} studies lie under the paths")
    (source,) = sources
    study = next((study for study in inputs.scan.studies if study.uid == source.entry.uid), None)
    try:
        document = read_text(path, role=role, study=study)
    except InputRefused as error:
        return replace(source, refused=(*source.refused, error))
    others = (other for other in source.documents if (other.sha256, other.role) != (document.sha256, document.role))
    return replace(source, documents=(document, *others))


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
        of_files = _of_files(each[0], checkpoints, named=named)
        sources.append(Source(StudyEntry(name=name), (of_files,), pictures=each[0]))
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
    # The scan keeps the files of archives; a source may be sent to another process, which must not remove them.
    series = tuple(
        (item.view, partial(read_stack, replace(item.series, unpacked=()), item.stack) if item.stack else _nothing)
        for item in view_study(study, checkpoints, named=named, policy=policy)
    )
    files = tuple(instance.path for item in study.series for instance in item.instances)
    return Source(entry, series, _refused_near(study, inputs.scan), files)


def _nothing() -> Volume:
    """Stands for the reader of what was refused; nobody calls it."""
    raise AssertionError("a refused series has no volume")


def _refused_near(study: Study, found: Scan) -> tuple[ImagingError, ...]:
    """What was refused in or below the folder that holds all of a study's images, and so may belong to it."""
    files = {found.origin(instance.path) for item in study.series for instance in item.instances}
    home = Path(os.path.commonpath([file.parent.resolve() for file in files]))
    with_path = ((error, error.path) for error in found.refused if error.path is not None)
    return tuple(error for error, path in with_path if path.resolve().is_relative_to(home))
