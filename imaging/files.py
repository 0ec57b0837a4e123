"""Bytes to disk, whole or not at all: temporary name, fsync, rename.

Invariant: whoever lists a folder sees either the old file or the whole new one, never a part. A temporary name begins
with a dot and ends with `.partial`, so that what a killed process leaves can be told and swept; a temporary folder is
held by a lock for as long as its process lives, and nobody sweeps what is held.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import BinaryIO

from imaging.errors import OutputNotWritable
from imaging.locks import hold, unheld

PARTIAL = ".partial"

# rename(2), linux/fs.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

_UMASK = threading.Lock()

_HERE = Path(__file__).resolve().parent


def shipped(kind: str) -> Path:
    """The folder `configs` or `checkpoints` that comes with imgpipe, in a checkout and in an installed wheel alike."""
    installed = _HERE / "shipped" / kind
    return _HERE.parent / kind if (_HERE.parent / "pyproject.toml").is_file() else installed


@contextmanager
def whole_file(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A stream whose bytes become the file when the block ends well.

    Parameters
    ----------
    path
        Where it goes; its folder exists.
    mode
        Who may use it from its first byte on, less the umask.

    Yields
    ------
    BinaryIO
        To write into, and to read again what was written. If the block raises, the old file, if any, is untouched.

    Raises
    ------
    OutputNotWritable
        If the folder cannot be written or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        with os.fdopen(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, mode), "w+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise OutputNotWritable(path, seen=error.strerror or "write failed") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, content: bytes | str, *, mode: int = 0o666) -> None:
    """Write a file atomically.

    Parameters
    ----------
    path
        Where it goes; its folder exists.
    content
        Bytes, or text that is written as UTF-8.
    mode
        Who may use it from its first byte on, less the umask.

    Raises
    ------
    OutputNotWritable
        If the folder cannot be written or the disk is full; the old file, if any, is untouched.
    """
    with whole_file(path, mode=mode) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def staged_folder(
    target: Path, *, replaces: Sequence[str] = (), last: str = "", stage_in: Path | None = None
) -> Iterator[Path]:
    """A temporary folder, by default beside `target`, whose files appear in `target` when the block ends well.

    A new target appears whole, by one rename. In an existing one `last`, if it is there, goes first; then the files are
    moved in one by one, each whole, and the new `last` comes last: whoever finds it finds all that it names.
    Files there that `replaces` does not match are left alone, for they may be the user's.

    Parameters
    ----------
    target
        The folder that should hold the files; its parents are made.
    replaces
        Patterns (`fnmatch`) of the names that an earlier result may have left; what matches and is not written anew is
        removed.
    last
        Name of the file that vouches for the others.
    stage_in
        Where the temporary folder lies instead, on the same file system: one that somebody sweeps.

    Yields
    ------
    Path
        The folder to write into. If the block raises, Ctrl-C included, it is removed and `target` is as before.

    Raises
    ------
    OutputNotWritable
        If the folder cannot be made or written.
    """
    # Named before it is made, so that an interrupt at any moment finds it.
    stage = (stage_in or target.parent) / f".{target.name[:40]}.{_kernel()}.{secrets.token_hex(4)}{PARTIAL}"
    held = None
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            while held is None:  # whoever swept it before it was held did so once
                stage.mkdir(mode=0o700)
                held = hold(stage)
        except OSError as error:
            raise OutputNotWritable(target, seen=error.strerror or "cannot be made") from error
        yield stage
        try:
            _move_into(stage, target, replaces, last)
        except OSError as error:
            raise OutputNotWritable(target, seen=error.strerror or "cannot be replaced") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if held is not None:
            os.close(held)


def sweep_folder(folder: Path) -> list[Path]:
    """Remove the temporary folders in a folder whose processes were killed; those of running ones stay.

    What a process of another machine left, or one from before a restart of this one, cannot be told from what is being
    written there, and stays, too.

    Parameters
    ----------
    folder
        Where results lie; nothing below its folders is looked at.

    Returns
    -------
    list of Path
        What was removed, by name.
    """
    gone = []
    for path in sorted(folder.glob(f".*.{_kernel()}.*{PARTIAL}")):
        with unheld(path) as is_abandoned:
            if is_abandoned:
                shutil.rmtree(path, ignore_errors=True)
        if is_abandoned and not path.exists():
            gone.append(path)
    return gone


@cache
def _kernel() -> str:
    """What tells one running kernel from all others, the same in each of its containers: who shares it shares locks."""
    try:
        running = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
    except OSError:
        running = os.uname().nodename
    return hashlib.sha256(running.encode()).hexdigest()[:8]


def _move_into(stage: Path, target: Path, replaces: Sequence[str], last: str) -> None:
    files = sorted(stage.iterdir(), key=lambda file: (file.name == last, file.name))
    for path in stage.rglob("*"):
        sync_folder(path) if path.is_dir() else sync_file(path)
    # mkdtemp makes the folder private; the result is as open as the user's umask wants it.
    stage.chmod(0o777 & ~_umask())
    if not target.exists():
        stage.rename(target)
    else:
        stale = {old for old in target.iterdir() if any(fnmatch(old.name, pattern) for pattern in replaces)}
        if last:
            (target / last).unlink(missing_ok=True)
            sync_folder(target)
        for file in files:
            file.replace(target / file.name)
        for old in stale - {target / file.name for file in files}:
            old.unlink(missing_ok=True)
        sync_folder(target)
    sync_folder(target.parent)


def _umask() -> int:
    """The user's umask, read without changing it: two threads that change it at once may leave it at 0."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    with _UMASK:
        umask = os.umask(0)
        os.umask(umask)
        return umask


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    _sync(folder, os.O_RDONLY)


def sync_file(path: Path) -> None:
    """Make the bytes of a file durable."""
    _sync(path, os.O_RDWR)


def exchange(new: Path, place: Path) -> None:
    """Put a folder into a place by one rename; what was there before is at `new` afterwards.

    Where the file system cannot exchange two names (NFS), the old one is moved aside first, and for a moment nothing is
    in the place. The folders that hold both are not synced.

    Parameters
    ----------
    new, place
        On one file system.

    Raises
    ------
    OSError
        If that fails; then nothing has moved.
    """
    if not place.exists():
        new.rename(place)
        return
    answer = _LIBC.renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(place), _RENAME_EXCHANGE)
    if answer == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        raise OSError(code, os.strerror(code), str(place))
    aside = new.with_name(f".{secrets.token_hex(4)}{PARTIAL}")
    place.rename(aside)
    try:
        new.rename(place)
    except OSError:
        aside.rename(place)
        raise
    aside.rename(new)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as lower-case hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
