"""Files in, files out that do not say whose they are: `imgpipe deidentify`.

Invariant: a study's folder appears whole, by one rename, and only when all was read and the crosswalk is safe; what is
refused is told and never copied. Names of folders and files are pseudonyms, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from imaging.dicom.deidentify import Deidentified, Options, Pseudonyms, deidentified, make_key, read_key
from imaging.errors import (
    ImagingError,
    KeyInvalid,
    NothingFound,
    OutputNotWritable,
    SharedInstanceUid,
)
from imaging.files import PARTIAL, staged_folder


@dataclass(slots=True)
class StudyOut:
    """One study that was written.

    Attributes
    ----------
    patient, study_uid
        Its pseudonyms.
    folder
        Where it lies.
    instances
        How many files it has.
    unsure_pixels
        How many of them are of a kind that often has text burnt in; somebody should look at these.
    """

    patient: str
    study_uid: str
    folder: Path
    instances: int = 0
    unsure_pixels: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call.

    Attributes
    ----------
    studies
        What was written, by folder.
    refused
        Why a file was not.
    gone
        How often what was taken away, by keyword or by what it is.
    """

    studies: tuple[StudyOut, ...]
    refused: tuple[ImagingError, ...]
    gone: Mapping[str, int] = field(default_factory=dict)


def deidentify(
    *,
    source: Path,
    out: Path,
    key: Path,
    new_key: bool = False,
    crosswalk: Path | None = None,
    options: Options | None = None,
    on_file: Callable[[int, int], None] | None = None,
) -> Outcome:
    """De-identify every DICOM picture under a path.

    Parameters
    ----------
    source
        A file, or a folder with files at any depth; it is only read.
    out
        Gets ``<patient>/<study>/<instance>.dcm``, all by pseudonym.
    key
        The file with the key that pseudonyms are made with.
    new_key
        Make the key.
    crosswalk
        Gets what stands for what, apart from `out`; by default nothing is kept.
    options
        Which options of the profile are taken.
    on_file
        Called with a file's number from 0 and the number of files, before each.

    Raises
    ------
    NothingFound
        If there is no file.
    KeyInvalid
        If key or crosswalk cannot be used, or lie where the pictures will.
    OutputNotWritable
        If `out` cannot be written, or is a part of what is read.
    """
    _check_places(source, out, key, crosswalk)
    files = _files(source)
    names = Pseudonyms(make_key(key) if new_key else read_key(key))
    refused: list[ImagingError] = []
    gone: Counter[str] = Counter()
    with ExitStack() as whole:
        stages = _Stages(out, whole)
        for number, file in enumerate(files):
            if on_file:
                on_file(number, len(files))
            try:
                made = deidentified(file, names, options or Options())
                stages.take(made, file)
                gone.update(made.gone)
            except OutputNotWritable:
                raise
            except ImagingError as error:
                refused.append(error)
        if crosswalk is not None:
            names.crosswalk(crosswalk)
    studies = tuple(stages.studies[folder] for folder in sorted(stages.studies))
    return Outcome(studies, tuple(refused), dict(sorted(gone.items())))


class _Stages:
    """A temporary folder for each study, until all of them appear.

    Parameters
    ----------
    out
        Where the studies will be.
    whole
        Ends when everything is written.
    """

    def __init__(self, out: Path, whole: ExitStack) -> None:
        self._out, self._whole = out, whole
        self._stages: dict[Path, Path] = {}
        self.studies: dict[Path, StudyOut] = {}

    def take(self, made: Deidentified, file: Path) -> None:
        """Write an instance into its study's stage; the same one again is no second one."""
        folder = self._out / made.patient / (made.study_uid or "no_study")
        if folder not in self._stages:
            self._stages[folder] = self._whole.enter_context(staged_folder(folder))
            self.studies[folder] = StudyOut(made.patient, made.study_uid, folder)
        if _write(self._stages[folder] / f"{made.sop_instance_uid}.dcm", made.content, file):
            self.studies[folder].instances += 1
            self.studies[folder].unsure_pixels += made.unsure_pixels


def _write(path: Path, content: bytes, file: Path) -> bool:
    """Write an instance into its stage; the same one again is no second one. Gives whether it is new."""
    try:
        if not path.exists():
            path.write_bytes(content)
            return True
        same = path.read_bytes() == content
    except OSError as error:
        raise OutputNotWritable(path.parent, seen=error.strerror or "write failed") from error
    if not same:
        raise SharedInstanceUid(file, seen="another object of the same SOPInstanceUID came before it")
    return False


def _files(source: Path) -> list[Path]:
    found = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    found = [path for path in found if not path.name.endswith(PARTIAL)]
    if not found:
        raise NothingFound(source, seen="no file")
    return found


def _check_places(source: Path, out: Path, key: Path, crosswalk: Path | None) -> None:
    read, written = source.resolve(), out.resolve()
    if written == read or written.is_relative_to(read) or read.is_relative_to(written):
        raise OutputNotWritable(out, seen="one of the two folders lies in the other")
    if out.exists() and not out.is_dir():
        raise OutputNotWritable(out, seen="it is a file, not a folder")
    for secret in (key, crosswalk):
        if secret is not None and secret.resolve().is_relative_to(written):
            raise KeyInvalid(secret, seen="it lies where the pictures will", remedy="Keep it apart from them")
