"""Prepared samples on disk: computed once, mapped into memory by whoever needs them, reused from run to run.

Invariant: an entry is what its key says or it is not used. A key covers the content of the case's files and everything
that decides what is made of them (`imaging.prepared.key_of`), so nothing here is ever out of date; an entry is written
whole or not at all, carries a checksum, and a damaged one is told and made anew. The folder stays within its bound: the
entries used longest ago go first, those of the present run never. What cannot be kept is told and done without.

In the folder::

    samples-<format>/<2 hex>/<key>.safetensors   an entry; its time of modification is that of its last use
    locks/<2 hex>                                held by the process that makes an entry whose key begins so
    contents.sqlite                              `imaging.content.ContentIndex`

Several processes may share a folder. Each looks at what lies there before it removes anything, and in any case after it
has written a twentieth of the bound, so that N processes may exceed it by N twentieths for a while. Nothing here is
pickled.
"""

from __future__ import annotations

import logging
import os
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from imaging.errors import OutputNotWritable
from imaging.files import PARTIAL
from imaging.locks import locked

log = logging.getLogger(__name__)

Tensors = dict[str, torch.Tensor]

# Of the entries themselves; another format has other folders, and is never looked into.
FORMAT = 1
_SUFFIX = ".safetensors"
_ABANDONED_S = 3600  # what is still half written after this time was left by a process that is gone
_GIB = 2**30


class DiskCache:
    """A folder of prepared samples.

    Parameters
    ----------
    root
        The folder; it is made. What lies in it and is not of a cache is left alone.
    most_bytes
        What all entries together may take.

    Raises
    ------
    OutputNotWritable
        If the folder cannot be made or written.
    """

    def __init__(self, root: Path, *, most_bytes: int) -> None:
        self.root = root
        self._most = most_bytes
        self._entries = root / f"samples-{FORMAT}"
        self._in_use: set[str] = set()
        self._verified: set[str] = set()
        self._keeps = True
        try:
            for folder in (self._entries, root / "locks"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputNotWritable(root, seen=error.strerror or "cannot be made") from error
        if not os.access(self._entries, os.W_OK | os.X_OK):
            raise OutputNotWritable(root, seen="it cannot be written")
        self._looked_at = sum(size for _, _, size in self._all())
        self._written = 0

    @property
    def contents(self) -> Path:
        """Where the digests of source files are remembered."""
        return self.root / "contents.sqlite"

    def _path(self, key: str) -> Path:
        return self._entries / key[:2] / f"{key}{_SUFFIX}"

    def has(self, key: str) -> bool:
        """Whether there is an entry; if so, it is used now and stays for this run."""
        path = self._path(key)
        try:
            os.utime(path)
        except OSError:  # not there, or another user's
            if not path.is_file():
                return False
        self._in_use.add(key)
        return True

    def lock(self, key: str, *, wait: bool) -> AbstractContextManager[bool]:
        """Keep other processes from making the same entry; gives whether this one may."""
        return locked(self.root / "locks" / key[:2], wait=wait)

    def read(self, key: str) -> Tensors | None:
        """An entry's tensors, mapped from the file; None where there is none, or it was damaged and is removed.

        The whole of it is checked when this process reads it for the first time.
        """
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            if key not in self._verified and metadata.get("checksum") != checksum(tensors):
                raise ValueError("checksum")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, SafetensorError) as error:
            log.warning("entry %s of the cache is damaged (%s): it is made anew", key[:16], type(error).__name__)
            with suppress(OSError):
                path.unlink()
            return None
        self._verified.add(key)
        return tensors

    def put(self, key: str, tensors: Tensors) -> bool:
        """Write an entry; gives whether it is kept. When one cannot be, that is told, and no other is written."""
        if not self._keeps:
            return False
        content = save(tensors, metadata={"checksum": checksum(tensors)})
        if not self._make_room(len(content)):
            used = f"{self._most / _GIB:.3g} GiB"
            self._stop(f"what this run uses does not fit data.cache_gib ({used})")
            return False
        path = self._path(key)
        temporary = path.with_name(f".{key}.{os.getpid()}{PARTIAL}")
        try:
            path.parent.mkdir(exist_ok=True)
            # Not brought to the disk at once: after a power cut the checksum tells what was lost.
            temporary.write_bytes(content)
            temporary.replace(path)
        except OSError as error:
            self._stop(error.strerror or "write failed")
            return False
        finally:
            with suppress(OSError):
                temporary.unlink()
        self._in_use.add(key)
        self._verified.discard(key)
        self._written += len(content)
        return True

    def _stop(self, why: str) -> None:
        self._keeps = False
        log.warning("the cache keeps no further samples: %s; the run goes on without", why)

    def _make_room(self, wanted: int) -> bool:
        """Whether `wanted` bytes fit, after removing what was used longest ago and not by this run."""
        if self._written < self._most / 20 and self._looked_at + self._written + wanted <= self._most:
            return True
        entries = sorted(self._all(), key=lambda entry: entry[1])
        total = sum(size for _, _, size in entries)
        spare = [entry for entry in entries if entry[0].name.removesuffix(_SUFFIX) not in self._in_use]
        if total - sum(size for _, _, size in spare) + wanted > self._most:
            return False
        for path, _, size in spare:
            if total + wanted <= self._most:
                break
            with suppress(FileNotFoundError):
                path.unlink()
            total -= size
        self._looked_at, self._written = total, 0
        return True

    def _all(self) -> Iterator[tuple[Path, float, int]]:
        """Every entry, also of other formats: path, time of last use (s), bytes. What was abandoned is swept."""
        for path in self.root.glob("samples-*/??/*"):
            with suppress(FileNotFoundError):
                status = path.stat()
                abandoned = path.name.endswith(PARTIAL) and time.time() - status.st_mtime > _ABANDONED_S
                if abandoned:
                    path.unlink()
                elif path.suffix in (_SUFFIX, PARTIAL):
                    yield path, status.st_mtime, status.st_size


def checksum(tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32 over names, types, shapes and bytes: against damage, not against forgery."""
    value = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), value)
        value = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
