"""The prepared samples of a run's cases, each made once and kept where the config says: on disk or in memory.

Invariant: wherever a sample is kept, and whether it is kept at all, it is the same bit for bit; and no more memory is
held than `data.memory_gib`. What does not fit is told, and made anew each time it is asked for.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from imaging.cache import FORMAT, DiskCache, Tensors
from imaging.cases import ClassifiedCase
from imaging.config import Data
from imaging.content import ContentIndex
from imaging.manifest import Case
from imaging.npz import is_npz, stored_digest

log = logging.getLogger(__name__)

_GIB = 2**30
_PACKAGES = ("imagecodecs", "monai", "nibabel", "numpy", "pillow", "pydicom", "scipy", "torch")
# Parts of a case that decide nothing of its prepared image.
_NOT_THE_IMAGE = frozenset(("name", "patient", "side", "facts", "classes"))


@dataclass(slots=True)
class Made:
    """How the samples of a run came about.

    Attributes
    ----------
    reused, anew
        How many were on disk already, and how many were made.
    unkept
        How many fit neither the disk nor the memory they may take.
    seconds
        What it took.
    """

    reused: int = 0
    anew: int = 0
    unkept: int = 0
    seconds: float = 0.0


class Keeper:
    """Where one run keeps its prepared samples, and how much it may.

    Parameters
    ----------
    settings
        `cache` and its bounds are read.

    Raises
    ------
    OutputNotWritable
        If the cache's folder cannot be used.
    """

    def __init__(self, settings: Data) -> None:
        most = int(settings.cache_gib * _GIB)
        self.disk = DiskCache(Path(settings.cache), most_bytes=most) if settings.cache else None
        self.made = Made()
        self.memory_gib = settings.memory_gib
        self._memory_left = int(settings.memory_gib * _GIB)

    def holds(self, tensors: Tensors) -> bool:
        """Whether a sample may be held in memory; if so, its size is counted."""
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size > self._memory_left:
            return False
        self._memory_left -= size
        return True


class Prepared:
    """The samples of some cases by their index.

    Every one is made, or found on disk, when this is; so a case that is refused is met before the first step.

    Parameters
    ----------
    make
        The sample of a case by its index. It is the same whenever it is made.
    length
        How many cases there are.
    keys
        The keys of the cases in the cache; empty where `keeper` has no disk.
    keeper
        Where samples are kept. Shared by all sides of a run.
    """

    def __init__(self, make: Callable[[int], Tensors], length: int, keys: Sequence[str], keeper: Keeper) -> None:
        self._make, self._keys, self._keeper = make, keys, keeper
        self._held: dict[int, Tensors] = {}
        self._length = length
        before, started = keeper.made.unkept, time.monotonic()
        # What another process is making is left to it, and met at the end: so ranks share the work.
        left = [index for index in range(length) if not self._settled(index, wait=False)]
        for index in left:
            self._settled(index, wait=True)
        keeper.made.seconds += time.monotonic() - started
        if keeper.made.unkept > before:
            log.warning(
                "%d of %d samples do not fit data.memory_gib (%g) and are made anew each time they are asked for; "
                "data.cache=FOLDER keeps them on disk", keeper.made.unkept - before, length, keeper.memory_gib
            )  # fmt: skip

    def __len__(self) -> int:
        return self._length

    def _settled(self, index: int, *, wait: bool) -> bool:
        """Whether a sample is made and kept, if it can be; False where another process is at it."""
        disk, made = self._keeper.disk, self._keeper.made
        if disk is None:
            made.anew += 1
            self._hold(index, self._make(index))
            return True
        key = self._keys[index]
        with disk.lock(key, wait=wait) as mine:
            if disk.has(key):
                made.reused += 1
            elif mine:
                made.anew += 1
                tensors = self._make(index)
                if not disk.put(key, tensors):
                    self._hold(index, tensors)
            else:
                return False
        return True

    def _hold(self, index: int, tensors: Tensors) -> None:
        if self._keeper.holds(tensors):
            self._held[index] = tensors
        else:
            self._keeper.made.unkept += 1

    def __getitem__(self, index: int) -> Tensors:
        """The sample of a case; its tensors are not to be written into."""
        if index in self._held:
            return self._held[index]
        disk = self._keeper.disk
        found = disk.read(self._keys[index]) if disk else None
        if found is None:
            found = self._make(index)
            if disk is not None:
                disk.put(self._keys[index], found)
        return found


def key_of(case: Case | ClassifiedCase, decided_by: Mapping[str, Any], index: ContentIndex) -> str:
    """The name of a case's prepared image in a cache: SHA-256 of all that decides it.

    Parameters
    ----------
    case
        Paths count by the content of what they name (a picture of a MedMNIST file by its own values), all other
        fields by their value, save those that say nothing of the image.
    decided_by
        What else decides: what the config says of preprocessing and labels.
    index
        Knows what files hold.
    """
    return hash_of({"format": FORMAT, "code": code_version(), "case": _held_by(case, index), **decided_by})


def contents_of(cases: Sequence[Case] | Sequence[ClassifiedCase], settings: Data) -> dict[str, str]:
    """What each case holds, by its name: SHA-256 of the content of its files, and of its classes where it has some.

    Parameters
    ----------
    cases
        Their files are read, but for those that the cache knows.
    settings
        Where the cache lies, if there is one.
    """
    disk = Keeper(settings).disk
    with ContentIndex(disk.contents if disk else None) as index:
        return {case.name: hash_of({"files": _held_by(case, index), "classes": getattr(case, "classes", ())})
                for case in cases}  # fmt: skip


def _held_by(case: Case | ClassifiedCase, index: ContentIndex) -> dict[str, Any]:
    """What decides a case's image before anything is made of it."""
    if isinstance(case, ClassifiedCase) and is_npz(case.image):
        return {"npz": stored_digest(case.image, case.part, case.index)}
    named = {item.name: getattr(case, item.name) for item in fields(case)}
    return {name: _content(value, index) for name, value in named.items() if name not in _NOT_THE_IMAGE}


def hash_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of what JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _content(value: Any, index: ContentIndex) -> Any:
    if isinstance(value, Path):
        # The ending says which reader takes it.
        return ["".join(value.suffixes[-2:]).lower() if value.is_file() else "", index.digest_of(value)]
    if isinstance(value, list | tuple):
        return [_content(item, index) for item in value]
    return value


@cache
def code_version() -> str:
    """SHA-256 of imgpipe's library (without what comes after a network) and the versions of those that it stands on."""
    whole = hashlib.sha256()
    for package in _PACKAGES:
        try:
            whole.update(f"{package} {importlib.metadata.version(package)}\n".encode())
        except importlib.metadata.PackageNotFoundError:
            whole.update(f"{package} not installed\n".encode())
    here = Path(__file__).parent
    for file in sorted(here.rglob("*.py")):
        place = file.relative_to(here)
        if place.parts[0] not in ("report", "tasks"):
            whole.update(f"{place}\n".encode() + file.read_bytes())
    return whole.hexdigest()
