"""Folders, files and archives -> studies and series, from headers alone.

Invariant: one bad file never stops the scan, and no file disappears: each one is an instance of a series or is named
with the reason why it is not. Studies of different patients are never joined. Imports no torch.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from imaging.dicom.archives import Member, is_archive, tell_members, unpack
from imaging.dicom.attributes import FileFacts, Instance, read_facts
from imaging.errors import ArchiveNotUnpacked, ImagingError, MixedPatients, NotDicom, NothingFound, UnreadableDicom
from imaging.volume import Defect, SeriesFacts

# PS3.10 annex: the DICOMDIR of a medium is an index of its files.
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
# Files that media and operating systems leave beside images; they hold no image by design.
_KNOWN_STRAYS = ("dicomdir", "dirfile", "thumbs.db", ".ds_store", "desktop.ini", "autorun.inf")
# The words beside a study, which `imaging.text.intake` reads; nobody does in an archive.
TEXTS = ("report.txt", "request.txt")
# Read from a folder, not from an archive.
_NIFTI = (".nii", ".nii.gz")
# Root of UIDs made from a UUID (PS3.5 annex B.2).
_MADE = "2.25."
# Files that a thread takes at once: handing each over by itself costs as much as reading it.
_AT_ONCE = 32
# Files that take this many times longer than the work on them are waited for; more threads than these only queue.
_WAITS = 3.0
_THREADS = 8


# A folder, a file, an archive, or several of them.
Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Where an archive was unpacked; the folder goes when nothing refers to it any more."""

    archive: Path
    folder: TemporaryDirectory[str]


@dataclass(frozen=True, slots=True)
class Series:
    """The instances of one SeriesInstanceUID of one study, in no particular order.

    `defects` tells where the UIDs are not those of the files but were made, because the files have none. `unpacked`
    keeps the files of archives alive.
    """

    uid: str
    facts: SeriesFacts
    instances: tuple[Instance, ...]
    defects: tuple[Defect, ...] = ()
    unpacked: tuple[Unpacked, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Study:
    """One StudyInstanceUID of one patient.

    `patient_id`, `date` and `accession` go into the report for the reader who must know whose it is, never into a log.
    """

    uid: str
    description: str
    series: tuple[Series, ...]
    patient_id: str = field(default="", repr=False)
    date: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Scan:
    """What lies under some paths.

    Attributes
    ----------
    studies
        By StudyInstanceUID.
    refused
        For each file or study that could not be taken, the named reason.
    strays
        Files that are known to hold no image (DICOMDIR, Thumbs.db, ``._*``, report.txt), archives of nothing else, and
        links to folders, which are not followed.
    unpacked
        Archives whose files are among the studies; they can be read as long as this, or a series of it, is alive.
    """

    studies: tuple[Study, ...]
    refused: tuple[ImagingError, ...]
    strays: tuple[Path, ...] = ()
    unpacked: tuple[Unpacked, ...] = ()

    def origin(self, path: Path) -> Path:
        """The archive that a file was unpacked from, or the file itself."""
        return next((item.archive for item in self.unpacked if path.is_relative_to(item.folder.name)), path)


def scan(paths: Paths) -> Scan:
    """Read the headers of all files under the given folders or files.

    Parameters
    ----------
    paths
        A folder, a file, or several of both; folders are searched to any depth, links to folders are not followed. ZIP
        and TAR archives are unpacked into a temporary folder and read; a DICOMDIR stands for the folder it lies in.

    Raises
    ------
    NothingFound
        If a path does not exist or is an empty folder.
    """
    roots = [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
    below = files_under(roots)
    found = scan_files(below.files)
    return replace(found, refused=(*below.unreadable, *found.refused), strays=(*below.links, *found.strays))


def scan_files(files: Sequence[Path]) -> Scan:
    """The same of files that were found before; see `files_under`."""
    found = _Found([], [path for path in files if _holds_no_image(path.name)], [], [])
    _read_all([path for path in files if not _holds_no_image(path.name)], found)
    studies, conflicts = _group(found.read, tuple(found.unpacked))
    return Scan(studies, (*found.refused, *conflicts), tuple(found.strays), tuple(found.unpacked))


@dataclass(frozen=True, slots=True)
class _Found:
    read: list[FileFacts]
    strays: list[Path]
    refused: list[ImagingError]
    unpacked: list[Unpacked]


def _read_all(files: Sequence[Path], found: _Found) -> None:
    for path, facts in zip(files, _facts_of(files), strict=True):
        if isinstance(facts, NotDicom) and is_archive(path):
            _read_archive(path, found)
        elif isinstance(facts, ImagingError):
            found.refused.append(facts)
        elif facts.instance.sop_class_uid == _MEDIA_DIRECTORY:
            found.strays.append(path)
        else:
            found.read.append(facts)


def _facts_of(files: Sequence[Path]) -> Iterator[FileFacts | ImagingError]:
    """Read headers, in the order of the files: alone while they lie in memory, in threads where the disk is waited for.

    Reading a header is Python's work, so threads only get in each other's way where nothing has to be waited for.
    """
    parts = [files[start : start + _AT_ONCE] for start in range(0, len(files), _AT_ONCE)]
    if not parts:
        return
    wall, worked = time.perf_counter(), time.thread_time()
    first = _try_all(parts[0])
    waits = time.perf_counter() - wall > _WAITS * (time.thread_time() - worked)
    yield from first
    if not waits:
        for part in parts[1:]:
            yield from _try_all(part)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        for answers in threads.map(_try_all, parts[1:]):
            yield from answers


@dataclass(frozen=True, slots=True)
class Opened:
    """What lay in an archive.

    Attributes
    ----------
    read
        The headers of its DICOM files, a DICOMDIR left out.
    refused
        What else was in there, or did not come out; each is about the archive, and names no member.
    """

    read: tuple[FileFacts, ...]
    refused: tuple[ImagingError, ...]


def open_archive(archive: Path, into: Path, check: Callable[[], None] = lambda: None) -> Opened:
    """Unpack a ZIP or TAR, within the bounds of `imaging.dicom.archives`, and read the headers of what was in it.

    Parameters
    ----------
    archive
        See `is_archive`.
    into
        An empty folder, which the caller removes.
    check
        Called again and again meanwhile; what it raises is raised.
    """
    unpacked = unpack(archive, into, check=check)
    members = [member for member in unpacked.files if not _is_stray(member.name)]
    read: list[FileFacts] = []
    refused = list(unpacked.refused)
    strangers: list[Member] = []
    for member, facts in zip(members, _facts_of([member.path for member in members]), strict=True):
        check()
        if isinstance(facts, NotDicom):
            strangers.append(member)
        elif isinstance(facts, ImagingError):
            seen = f"its file {member.path.name}: {facts.seen}"
            refused.append(type(facts)(archive, seen=seen, expected=facts.expected, remedy=facts.remedy))
        elif facts.instance.sop_class_uid != _MEDIA_DIRECTORY:
            read.append(facts)
    if strangers:
        refused.append(_not_dicom(archive, strangers))
    return Opened(tuple(read), tuple(refused))


def _read_archive(archive: Path, found: _Found) -> None:
    """Unpack an archive for as long as anybody refers to its files."""
    try:
        folder = TemporaryDirectory(prefix="imgpipe_")
    except OSError as error:
        found.refused.append(ArchiveNotUnpacked(archive, seen=f"there is no room to unpack it ({error.strerror})"))
        return
    opened = open_archive(archive, Path(folder.name))
    found.read.extend(opened.read)
    found.refused.extend(opened.refused)
    if opened.read:
        found.unpacked.append(Unpacked(archive, folder))
    else:
        folder.cleanup()
        if not opened.refused:
            found.strays.append(archive)


def _not_dicom(archive: Path, members: Sequence[Member]) -> NotDicom:
    """One refusal for all of them, for the parts of an office document or of a saved array are no news each."""
    seen = f"a ZIP or TAR archive in which {tell_members([member.number for member in members], 'not DICOM')}"
    remedy = "Remove them from the archive, or the archive from the study folder if it holds no images"
    hidden = [member.number for member in members if member.name.lower().endswith(_NIFTI) or is_archive(member.path)]
    if hidden:
        seen += f"; of these {tell_members(hidden, 'NIfTI or packed once more')}"
        remedy = "Unpack the archive and give its NIfTI files and inner archives themselves"
    return NotDicom(archive, seen=seen, remedy=remedy)


def _try_all(paths: Sequence[Path]) -> list[FileFacts | ImagingError]:
    return [_try(path) for path in paths]


def _try(path: Path) -> FileFacts | ImagingError:
    try:
        return read_facts(path)
    except ImagingError as error:
        # Kept by the thousand: with what it was raised in and from, each would keep its file's bytes in memory.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)


class Below(NamedTuple):
    """What lies under some paths.

    Attributes
    ----------
    files
        Sorted within each path, each once. Links to nothing are among them, so that whoever reads them names them.
    unreadable
        A refusal for each folder that cannot be listed; what lies in it may belong to a study that was found.
    links
        Links to folders, which are not followed.
    """

    files: list[Path]
    unreadable: list[UnreadableDicom]
    links: list[Path]


def files_under(roots: Iterable[Path]) -> Below:
    """All files under some folders or files, sorted within each, each once; a DICOMDIR stands for its folder.

    Raises
    ------
    NothingFound
        If a root does not exist or is an empty folder.
    """
    files: dict[str, Path] = {}  # ordered, each once, also where the roots overlap or are spelled differently
    folders: dict[Path, Path] = {}
    unreadable: list[UnreadableDicom] = []
    links: list[Path] = []

    def refuse(error: OSError) -> None:
        unreadable.append(UnreadableDicom(Path(error.filename), seen=f"the folder cannot be listed ({error.strerror})"))

    for given in roots:
        if not given.exists():
            raise NothingFound(given, seen="the path does not exist")
        root = given.parent if _is_index(given) else given
        before = len(unreadable)
        below: list[Path] = [root] if root.is_file() else []
        for folder, folders_in, names in os.walk(root, onerror=refuse) if root.is_dir() else ():
            below += [Path(folder) / name for name in names]
            links += [Path(folder) / name for name in folders_in if (Path(folder) / name).is_symlink()]
        below.sort()
        if not below and len(unreadable) == before:
            raise NothingFound(root, seen="the folder holds no file")
        for path in below:
            files.setdefault(_place(path, folders), path)
    return Below(list(files.values()), unreadable, links)


def _place(path: Path, folders: dict[Path, Path]) -> str:
    """Where a file lies without links; a folder is looked up once."""
    if path.is_symlink():
        return str(path.resolve())
    if path.parent not in folders:
        folders[path.parent] = path.parent.resolve()
    return f"{folders[path.parent]}/{path.name}"


def _holds_no_image(name: str) -> bool:
    return _is_stray(name) or name.lower() in TEXTS


def _is_stray(name: str) -> bool:
    return name.lower() in _KNOWN_STRAYS or name.startswith("._")


def _is_index(root: Path) -> bool:
    return root.name.lower() == "dicomdir" and root.is_file()


def _identified(read: Sequence[FileFacts]) -> tuple[list[FileFacts], set[tuple[str, str]]]:
    """Give a study and a series UID to files that have none; gives all headers, and which series that made.

    Files of one folder and patient that say the same of their series are taken as one; whether they are one volume is
    for their geometry to say. The UID is a function of what they hold (PS3.5 annex B.2, UUID derived).
    """
    whole = [item for item in read if item.instance.study_uid and item.instance.series_uid]
    if len(whole) == len(read):
        return whole, set()
    nameless = [item for item in read if not (item.instance.study_uid and item.instance.series_uid)]
    studies: dict[object, list[str]] = {}
    series: dict[object, list[str]] = {}
    for item in nameless:
        studies.setdefault(_study_key(item), []).append(item.instance.sop_instance_uid)
        series.setdefault((_study_key(item), item.series), []).append(item.instance.sop_instance_uid)
    made: set[tuple[str, str]] = set()
    for item in nameless:
        members = series[_study_key(item), item.series]
        study_uid = item.instance.study_uid or _made_uid(studies[_study_key(item)])
        series_uid = item.instance.series_uid or _made_uid(["series", *members])
        made.add((study_uid, series_uid))
        instance = replace(item.instance, study_uid=study_uid, series_uid=series_uid)
        facts = replace(item.series, study_uid=study_uid, series_uid=series_uid)
        whole.append(replace(item, instance=instance, series=facts))
    return whole, made


def _study_key(item: FileFacts) -> object:
    """What files of one study without a UID have in common."""
    path = item.instance.path
    return item.instance.study_uid, item.patient, item.date, item.study_description, path.parent


def _made_uid(parts: Iterable[str]) -> str:
    digest = hashlib.sha256("\n".join(sorted(parts)).encode()).digest()
    return f"{_MADE}{uuid.UUID(bytes=digest[:16], version=5).int}"


def _group(read: Sequence[FileFacts], unpacked: tuple[Unpacked, ...]) -> tuple[tuple[Study, ...], list[ImagingError]]:
    """Headers -> studies; a study with two patients is refused, for nobody can tell whose it is."""
    by_study: dict[str, list[FileFacts]] = {}
    whole, made = _identified(read)
    for item in whole:
        by_study.setdefault(item.instance.study_uid, []).append(item)
    studies: list[Study] = []
    refused: list[ImagingError] = []
    for uid in sorted(by_study):
        members = by_study[uid]
        patients = {item.patient for item in members}
        if len(patients) > 1:
            refused.append(MixedPatients(f"study {uid}", seen=f"{len(patients)} different patients"))
            continue
        first = members[0]
        studies.append(
            Study(
                uid=uid,
                description=first.study_description,
                series=_series(members, made, unpacked),
                patient_id=first.patient_id,
                date=first.date,
                accession=first.accession,
            )
        )
    return _telling_shared_series(studies), refused


def _telling_shared_series(studies: list[Study]) -> tuple[Study, ...]:
    """Tell of a series whose files are of several studies; each has a part of it, and its volume may be one in two."""
    users = Counter(series.uid for study in studies for series in study.series if not series.defects)
    if max(users.values(), default=0) < 2:
        return tuple(studies)
    note = Defect("shared_series", "noted", "files of this SeriesInstanceUID belong to other studies too")
    told = [
        tuple(replace(s, defects=(*s.defects, note)) if users[s.uid] > 1 else s for s in study.series)
        for study in studies
    ]
    return tuple(replace(study, series=series) for study, series in zip(studies, told, strict=True))


def _series(
    members: Iterable[FileFacts], made: set[tuple[str, str]], unpacked: tuple[Unpacked, ...]
) -> tuple[Series, ...]:
    by_series: dict[str, list[FileFacts]] = {}
    for item in members:
        by_series.setdefault(item.instance.series_uid, []).append(item)
    note = Defect(
        "missing_uid",
        "repaired",
        "the files name no study or no series; under repair those of one folder and patient that say the same are one",
    )
    return tuple(
        Series(
            uid,
            items[0].series,
            tuple(item.instance for item in items),
            (note,) if (items[0].instance.study_uid, uid) in made else (),
            unpacked,
        )
        for uid, items in sorted(by_series.items())
    )
