"""The bytes of instances: a folder for each study, a file for each data set, named by its digest.

Invariant: what `OnItsWay.wait` has returned for is whole and on disk under its name, and no other file is put in its
place. A name comes from a digest and never from what a sender wrote, so nothing that is sent decides where it lies. A
file that has a name and no row may be anything; it is swept at the next start.

Most of the time that an instance takes is waiting for the disk to say that it is there. `place` begins to wait for file
and folder at once, and gives back what to go on waiting on; `pipelines.store.taking` says why that is sound.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from imaging.dicom.header import data_set_start
from imaging.errors import StoreFull, UnreadableDicom
from imaging.files import PARTIAL, sha256_of, sync_file, sync_folder

# Folders of one level; a folder of a hundred thousand is slow on some file systems.
_SHARDS = 256
# A meta header is shorter than this, unless somebody keeps private things in it (PS3.10 section 7.1).
_HEAD = 1 << 20
_CHUNK = 1 << 20
# The folder of what workers have written.
RESULTS = "results"
# How many files and folders are waited for at once.
_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes under a temporary name, which nobody has waited for yet.

    Attributes
    ----------
    temporary
        Where they are.
    final
        Where they belong.
    digest
        SHA-256 over SOPInstanceUID, transfer syntax and data set, as lower-case hex: two files that differ in their
        meta header only, which each sender writes anew, are the same.
    size
        Bytes of the file.
    """

    temporary: Path
    final: Path
    digest: str
    size: int


class OnItsWay:
    """A file that has its name, and is not known to be on disk.

    Parameters
    ----------
    where
        Told if the disk cannot be written.
    waited
        For the file, its folder, and the folder's name if that is new.
    there
        Called once all are on disk.
    """

    def __init__(self, where: Path, waited: Sequence[Future[None]], there: Callable[[], None]) -> None:
        self._where, self._waited, self._there = where, waited, there

    def wait(self) -> None:
        """Return when file and name are on disk.

        Raises
        ------
        StoreFull
            If that fails; then the file may be there, or a part of it.
        """
        wait_for(self._waited)
        try:
            for item in self._waited:
                item.result()
        except OSError as error:
            raise StoreFull(self._where, seen=error.strerror or "cannot be written") from error
        self._there()


class Contents:
    """The files of a store.

    Parameters
    ----------
    root
        The store's folder; what is missing below it is made.

    Attributes
    ----------
    root
        See there.
    refused
        Files that no study can have, by the SHA-256 of their bytes.
    results
        A folder for each time that a worker has begun a job.

    Raises
    ------
    StoreFull
        If it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._incoming, self._instances = root / "incoming", root / "instances"
        self._naming, self._waiting = threading.Lock(), ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="sync")
        self.refused, self.results = root / "refused", root / RESULTS
        # Folders of studies whose names nobody has waited for yet.
        self._fresh: set[Path] = set()
        try:
            for folder in (self._incoming, self.refused, self.results):
                folder.mkdir(parents=True, exist_ok=True)
            for number in range(_SHARDS):
                (self._instances / f"{number:02x}").mkdir(parents=True, exist_ok=True)
            sync_folder(self._instances)
            sync_folder(root)
        except OSError as error:
            raise StoreFull(root, seen=error.strerror or "cannot be made") from error

    def folder_of(self, study_uid: str) -> Path:
        """Where the files of a study lie."""
        name = hashlib.sha256(study_uid.encode()).hexdigest()[:40]
        return self._instances / name[:2] / name

    def file_of(self, study_uid: str, digest: str) -> Path:
        """Where an instance lies."""
        return self.folder_of(study_uid) / f"{digest}.dcm"

    def write(self, data: bytes | memoryview, study_uid: str, sop_instance_uid: str, transfer_syntax: str) -> Staged:
        """Write bytes under a temporary name, and say where they belong.

        Raises
        ------
        StoreFull
            If they cannot be written; nothing is left of them.
        """
        temporary = self._incoming_file(lambda stream: stream.write(data))
        digest = _begun(sop_instance_uid, transfer_syntax)
        digest.update(memoryview(data)[data_set_start(bytes(data[:_HEAD])) :])
        return self._staged(temporary, study_uid, digest.hexdigest(), len(data))

    def copy(self, path: Path) -> Path:
        """The same for the bytes of a file, which are read once.

        Raises
        ------
        StoreFull
            If they cannot be written.
        UnreadableDicom
            If they cannot be read.
        """
        try:
            source = path.open("rb")
        except OSError as error:
            raise UnreadableDicom(path, seen=f"cannot be opened ({error.strerror})") from error
        with source:
            return self._incoming_file(lambda stream: shutil.copyfileobj(source, stream, _CHUNK))

    def _incoming_file(self, fill: Callable[[BinaryIO], object]) -> Path:
        temporary = self._incoming / f".{secrets.token_hex(8)}{PARTIAL}"
        try:
            with temporary.open("xb") as stream:
                fill(stream)
        except OSError as error:
            discard(temporary)
            raise StoreFull(self._incoming, seen=error.strerror or "cannot be written") from error
        return temporary

    def stage(self, temporary: Path, study_uid: str, sop_instance_uid: str, transfer_syntax: str) -> Staged:
        """Say where a file under a temporary name belongs; `place` brings it there."""
        digest, size = _digest_of(temporary, sop_instance_uid, transfer_syntax)
        return self._staged(temporary, study_uid, digest, size)

    def _staged(self, temporary: Path, study_uid: str, digest: str, size: int) -> Staged:
        return Staged(temporary, self.file_of(study_uid, digest), digest, size)

    def is_whole(self, study_uid: str, sop_instance_uid: str, transfer_syntax: str, digest: str) -> bool:
        """Whether an instance's file is there with the bytes that it was named by; if so it is on disk afterwards."""
        file = self.file_of(study_uid, digest)
        try:
            if _digest_of(file, sop_instance_uid, transfer_syntax)[0] != digest:
                return False
            sync_file(file)
            sync_folder(file.parent)
            sync_folder(file.parent.parent)
        except OSError:
            return False
        return True

    def set_aside(self, temporary: Path) -> str:
        """Keep a file that no study can have, for a person to look at; gives its name, the SHA-256 of its bytes.

        Raises
        ------
        StoreFull
            If that fails.
        """
        name = sha256_of(temporary)
        try:
            sync_file(temporary)
            temporary.replace(self.refused / name)
            sync_folder(self.refused)
        except OSError as error:
            raise StoreFull(self.refused, seen=error.strerror or "cannot be written") from error
        return name

    def discard_refused(self, older_s: float) -> int:
        """Remove what was set aside longer ago than this; gives how many files that was."""
        latest, gone = time.time() - older_s, 0
        with suppress(OSError):
            for file in self.refused.iterdir():
                if file.stat().st_mtime <= latest:
                    discard(file)
                    gone += 1
        return gone

    def place(self, staged: Staged) -> OnItsWay:
        """Give a file its name, unless the same one is there, and begin to make both durable.

        Raises
        ------
        StoreFull
            If it cannot be named; `discard` what was staged.
        """
        folder = staged.final.parent
        try:
            with self._naming:
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    self._fresh.add(folder)
                # Whoever is the first to have waited: the name of a study's folder must be there for each file in it.
                folders = [folder, folder.parent] if folder in self._fresh else [folder]
                if staged.final.exists():
                    staged.temporary.unlink()
                else:
                    staged.temporary.replace(staged.final)
        except OSError as error:
            raise StoreFull(self._instances, seen=error.strerror or "cannot be written") from error
        waited = [self._waiting.submit(sync_file, staged.final)]
        waited += [self._waiting.submit(sync_folder, changed) for changed in folders]
        return OnItsWay(self._instances, waited, lambda: self._fresh.discard(folder))

    def sweep(self, studies: Iterable[str], digests_of: Callable[[str], set[str]], results: Set[str]) -> int:
        """Remove what a crash has left: temporary files, files without a row, and results that were not finished.

        Parameters
        ----------
        studies
            Of which files may be kept.
        digests_of
            Gives the digests of a study's rows.
        results
            Names of the folders in `results` that are kept.

        Returns
        -------
        int
            How many files and folders there were.
        """
        left = list(self._incoming.iterdir())
        left += [folder for folder in self.results.iterdir() if folder.name not in results]
        unknown = {folder.name: folder for shard in self._instances.iterdir() for folder in shard.iterdir()}
        for study_uid in studies:
            folder = unknown.get(self.folder_of(study_uid).name)
            known = digests_of(study_uid)
            if folder is not None and known:
                del unknown[folder.name]
                left += [file for file in folder.iterdir() if file.stem not in known]
        left += unknown.values()
        for path in left:
            discard(path)
        return len(left)


def _begun(sop_instance_uid: str, transfer_syntax: str) -> hashlib._Hash:
    """The digest of an instance, before its data set."""
    return hashlib.sha256(f"{sop_instance_uid}\n{transfer_syntax}\n".encode())


def _digest_of(file: Path, sop_instance_uid: str, transfer_syntax: str) -> tuple[str, int]:
    """The digest of an instance, as `Staged` has it, and the size of its file."""
    digest = _begun(sop_instance_uid, transfer_syntax)
    with file.open("rb") as stream:
        stream.seek(data_set_start(stream.read(_HEAD)))
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        return digest.hexdigest(), stream.tell()


def job_name(setup: str, *decides: object) -> str:
    """The name of a job: of the same study, reported on in the same way, the same one.

    Parameters
    ----------
    setup
        Digest of everything but the input that decides the outputs.
    decides
        What decides them of the input, as JSON can say it.
    """
    return hashlib.sha256(json.dumps([setup, *decides]).encode()).hexdigest()


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
