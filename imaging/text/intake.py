"""The texts beside a study -> documents, or named refusals.

Invariant: whether a text is a request or a report is known from what it is, or told; never guessed. A text that names
another patient or study is refused. One bad text never stops another, and no refusal quotes a text. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from imaging.dicom.attributes import Instance, read_facts
from imaging.dicom.scan import Study
from imaging.errors import DeviceReport, ImagingError, NotAReport, TextRole
from imaging.text.document import Document, Role, Whose
from imaging.text.fhir import parse_json, read_fhir
from imaging.text.owner import Owner, check_owner
from imaging.text.plain import LARGEST_CONTAINER, checked, decoded, read_bounded
from imaging.text.request_attributes import request_words
from imaging.text.structured import is_text_report, report_words

# Files beside the images that are taken without being named, in any case.
_SIDECARS: dict[str, Role] = {"request.txt": "request", "report.txt": "report"}
_RESOURCES = frozenset(("ServiceRequest", "DiagnosticReport", "Bundle"))
# A JSON file so called is meant as FHIR, and is told where it is none.
_MEANT = ("fhir", "servicerequest", "diagnosticreport")
_MOST_JSON = 64


@dataclass(frozen=True, slots=True)
class Found:
    """The texts of a study.

    Attributes
    ----------
    documents
        Each text once.
    refused
        What would have been one, with the reason.
    sidecars
        The files beside the images that were taken or refused as texts, so that nobody calls them strays.
    """

    documents: tuple[Document, ...]
    refused: tuple[ImagingError, ...]
    sidecars: tuple[Path, ...]


def read_text(path: Path, *, role: Role | None = None, study: Study | None = None) -> Document:
    """Read a text from a file: plain text, FHIR JSON or a DICOM SR.

    Parameters
    ----------
    path
        The file.
    role
        What it is. Plain text does not say so itself; FHIR and SR do, and must agree.
    study
        The images that it should belong to.

    Raises
    ------
    TextRole
        If the role is neither told nor known, or is told otherwise than it is.
    TextOfAnother
        If it names another study, patient or accession number.
    InputRefused
        By the name of what keeps it from being read.
    """
    images = None if study is None else Owner.of(study)
    data = read_bounded(path, LARGEST_CONTAINER)
    if data[128:132] == b"DICM":
        return _sr_document(path, role, images)
    if path.suffix.lower() == ".json" or data.lstrip()[:1] == b"{":
        return _fhir_document(parse_json(data, path), path, role, images)
    text = decoded(data, path)
    if role is None:
        raise TextRole(path, seen="plain text, which does not say what it is")
    return _document(text, Owner(), path, role=role, source=f"file {path.name}", images=images)


def texts_of(study: Study, *, others: Sequence[Study] = (), roots: Sequence[Path] = ()) -> Found:
    """The texts that come with a study: in its headers, in its SR objects, and in files beside its images.

    Parameters
    ----------
    study
        As `scan` gives it.
    others
        The other studies of the same scan: a folder that holds images of theirs, too, does not say whose its texts are,
        and none is taken from it.
    roots
        The folders that were scanned: files beside the images are looked for in the images' own folders, in the one
        that holds those, and above up to these.
    """
    sidecars = _sidecars(study, others, roots)
    read = [*_from_headers(study), *_from_reports(study), *_from_files(sidecars, study)]
    documents = {(item.sha256, item.role): item for item in reversed(read) if isinstance(item, Document)}
    refused = tuple(item for item in read if isinstance(item, ImagingError))
    return Found(tuple(reversed(documents.values())), refused, tuple(path for path, _ in sidecars))


def _from_headers(study: Study) -> Iterator[Document | ImagingError]:
    """Each series repeats the request; one file of each is asked, of pictures only."""
    pictures = [series.instances[0] for series in study.series if not is_text_report(series.instances[0])]
    try:
        text, attributes = request_words(pictures)
        if text:
            source = f"attribute {', '.join(attributes)}"
            language = checked(text, f"study {study.uid}")
            yield Document.of(text, role="request", source=source, language=language, whose="named")
    except ImagingError as error:
        yield error


def _from_reports(study: Study) -> Iterator[Document | ImagingError]:
    for instance in (instance for series in study.series for instance in series.instances):
        if is_text_report(instance):
            yield _tried(partial(_of_instance, instance, Owner.of(study)))


def _from_files(sidecars: Sequence[tuple[Path, Role | None]], study: Study) -> Iterator[Document | ImagingError]:
    for path, role in sidecars:
        yield _tried(partial(read_text, path, role=role, study=study))


def _tried(read: Callable[[], Document]) -> Document | ImagingError:
    try:
        return read()
    except ImagingError as error:
        return error


def _sidecars(study: Study, others: Sequence[Study], roots: Sequence[Path]) -> list[tuple[Path, Role | None]]:
    """The texts in the folders around a study's images in which no other study has any."""
    own = _folders(study)
    foreign = {folder for other in others if other.uid != study.uid for folder in _folders(other)}
    around = own | ({Path(os.path.commonpath(own))} if own else set())
    around |= {above for folder in own for above in folder.parents for root in roots if above.is_relative_to(root)}
    return [
        found
        for folder in sorted(around)
        if not any(theirs.is_relative_to(folder) for theirs in foreign)
        for found in _sidecars_in(folder)
    ]


def _folders(study: Study) -> set[Path]:
    return {instance.path.parent for series in study.series for instance in series.instances}


def _sidecars_in(folder: Path) -> Iterator[tuple[Path, Role | None]]:
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file())
    except OSError:
        return  # the scan has told of a folder that cannot be listed
    for name in names:
        if name.lower() in _SIDECARS:
            yield folder / name, _SIDECARS[name.lower()]
    for name in [name for name in names if name.lower().endswith(".json")][:_MOST_JSON]:
        if _is_text_resource(folder / name):
            yield folder / name, None


def _is_text_resource(path: Path) -> bool:
    """Whether a JSON file holds a text's resource, or is called as if it did."""
    try:
        content = parse_json(read_bounded(path, LARGEST_CONTAINER), path)
    except ImagingError:
        content = None
    if isinstance(content, dict) and content.get("resourceType") in _RESOURCES:
        return True
    return any(word in path.name.lower() for word in _MEANT)


def _fhir_document(content: object, path: Path, role: Role | None, images: Owner | None) -> Document:
    text, known, resource, owner = read_fhir(content, path, role)
    return _document(text, owner, path, role=known, source=f"fhir {resource}", images=images)


def _sr_document(path: Path, role: Role | None, images: Owner | None) -> Document:
    instance = read_facts(path).instance
    if not is_text_report(instance):
        raise NotAReport(path, seen=instance.class_name)
    if role == "request":
        raise TextRole(path, seen="a DICOM SR, which is a report, where a request was asked for")
    try:
        return _of_instance(instance, images)
    except DeviceReport as error:  # who names a file means it as a report
        raise NotAReport(path, seen=error.seen) from None


def _of_instance(instance: Instance, images: Owner | None) -> Document:
    text, owner, coded = report_words(instance)
    source = f"sr {instance.sop_instance_uid}"
    source += f", {coded} coded finding(s) of it in words" if coded else ""
    return _document(text, owner, source, role="report", source=source, images=images)


def _document(text: str, owner: Owner, subject: object, *, role: Role, source: str, images: Owner | None) -> Document:
    """A document, once it is known whose its words are and that they can be read."""
    known = (*check_owner(owner, images, subject), *check_owner(Owner.named_in(text), images, subject))
    whose: Whose = "unknown" if images is None else "named" if known else "unnamed"
    return Document.of(text, role=role, source=source, language=checked(text, subject), whose=whose)
