"""The bytes of instances: a folder for each study, a file for each data set, named by its digest.

Invariant: a file that has its name is whole and on disk. A name comes from a digest and never from what a sender wrote,
so nothing that is sent decides where it lies.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from imaging.dicom.header import data_set_start
from imaging.errors import StoreFull
from imaging.files import PARTIAL, sync_folder

# Folders of one level; a folder of a hundred thousand is slow on some file systems.
_SHARDS = 256
# A meta header is shorter than this, unless somebody keeps private things in it (PS3.10 section 7.1).
_HEAD = 1 << 20


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes that are on disk under a temporary name.

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


class Contents:
    """The files of a store.

    Parameters
    ----------
    root
        The store's folder; what is missing below it is made.

    Raises
    ------
    StoreFull
        If it cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self._incoming, self._instances = root / "incoming", root / "instances"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
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

    def stage(self, data: bytes | memoryview, study_uid: str, sop_instance_uid: str, transfer_syntax: str) -> Staged:
        """Write the bytes of an instance and make them durable; `settle` gives them their name.

        Raises
        ------
        StoreFull
            If they cannot be written; nothing is left of them.
        """
        temporary = self._incoming / f".{secrets.token_hex(8)}{PARTIAL}"
        digest = _digest(data, sop_instance_uid, transfer_syntax)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            discard(temporary)
            raise StoreFull(self._incoming, seen=error.strerror or "cannot be written") from error
        return Staged(temporary, self.file_of(study_uid, digest), digest, len(data))

    def settle(self, staged: Iterable[Staged]) -> None:
        """Give files their names and make the names durable, each folder once.

        Raises
        ------
        StoreFull
            If that fails; `discard` what was staged.
        """
        try:
            changed: set[Path] = set()
            for item in staged:
                folder = item.final.parent
                if not folder.is_dir():
                    folder.mkdir(exist_ok=True)
                    changed.add(folder.parent)
                item.temporary.replace(item.final)
                changed.add(folder)
            for folder in changed:
                sync_folder(folder)
        except OSError as error:
            raise StoreFull(self._instances, seen=error.strerror or "cannot be written") from error

    def sweep(self, studies: Iterable[str], digests_of: Callable[[str], set[str]]) -> int:
        """Remove what a crash has left: temporary files, and files without a row.

        Parameters
        ----------
        studies
            Of which files may be kept.
        digests_of
            Gives the digests of a study's rows.

        Returns
        -------
        int
            How many files and folders there were.
        """
        left = list(self._incoming.iterdir())
        unknown = {folder.name: folder for shard in self._instances.iterdir() for folder in shard.iterdir()}
        for study_uid in studies:
            folder = unknown.pop(self.folder_of(study_uid).name, None)
            if folder is not None:
                known = digests_of(study_uid)
                left += [file for file in folder.iterdir() if file.stem not in known]
        left += unknown.values()
        for path in left:
            discard(path)
        return len(left)

    def remove_study(self, study_uid: str) -> None:
        """Remove the files of a study."""
        discard(self.folder_of(study_uid))


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _digest(data: bytes | memoryview, sop_instance_uid: str, transfer_syntax: str) -> str:
    digest = hashlib.sha256(f"{sop_instance_uid}\n{transfer_syntax}\n".encode())
    digest.update(memoryview(data)[data_set_start(bytes(data[:_HEAD])) :])
    return digest.hexdigest()
