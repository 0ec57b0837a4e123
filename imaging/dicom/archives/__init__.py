"""A ZIP or TAR of a study, perhaps a hostile one -> plain files in a folder.

Invariant: nothing is written but regular files named by the member's number in the archive, so that no name in it is
ever a path; the bytes written, the members, the memory and the time are bounded whatever the archive declares; and no
member disappears: it is a file in the folder, or a refusal tells its number and why. No member's name, which may be a
patient's, stands in a refusal. Imports no torch.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imaging.dicom.archives.compressed import BZIP2, DECODERS, FAULTS, Decoded
from imaging.dicom.archives.sink import CHUNK, Damaged, Member, NoRoom, Sink, Unusable
from imaging.dicom.archives.tarred import BLOCK, USTAR, is_tar, untar
from imaging.dicom.archives.zipped import END, LOCAL, unzip
from imaging.errors import ArchiveNotUnpacked, ArchiveRefused, ImagingError

__all__ = ["MOST_BYTES", "MOST_MEMBERS", "RESERVE", "Member", "Unpacked", "is_archive", "tell_members", "unpack"]

# The largest studies in routine (4D perfusion, 4D flow, tomosynthesis of both breasts) are 5 to 10 GiB uncompressed and
# have less than 100,000 instances. Twice that is no study any more.
MOST_BYTES = 16 * 1024**3
MOST_MEMBERS = 200_000
# What stays free on the disk for those who share it: the watcher's store and the results.
RESERVE = 1024**3

_HEAD = 4096
_NUMBERS_TOLD = 10


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What came out of an archive, and what did not: one refusal for each reason."""

    files: tuple[Member, ...]
    refused: tuple[ImagingError, ...]


def is_archive(path: Path) -> bool:
    """Whether a file is a ZIP or a TAR (plain, gzip, bzip2 or xz) by its first bytes, whatever its name.

    A file with 'DICM' at byte 128 is DICOM, for its preamble may hold anything (PS3.10 section 7.1). A compressed file
    is an archive only if a TAR is inside: a ``.nii.gz`` is not. A file that cannot be read is none; its reader says so.
    """
    try:
        if not path.is_file():
            return False
        with path.open("rb", buffering=0) as stream:
            return _magic(stream) != b""
    except OSError:
        return False


def unpack(
    path: Path,
    into: Path,
    *,
    most_bytes: int = MOST_BYTES,
    most_members: int = MOST_MEMBERS,
    reserve: int = RESERVE,
    check: Callable[[], None] = lambda: None,
) -> Unpacked:
    """Unpack the regular files of an archive into a folder, flat, each named by its number: 000001, 000002, ...

    An archive over a bound gives nothing, for a part of a study that its sender can choose is none. A TAR that ends
    early gives the members before; a ZIP gives nothing, for what says which members it has stands at its end. A TAR
    whose compressed data are damaged gives nothing, for a checksum at the end does not say which member is wrong; a
    ZIP, which has one for each member, leaves that one out. An archive inside stays a file.

    Parameters
    ----------
    path
        The archive.
    into
        The folder, which is made; best an empty one that the caller removes.
    most_bytes
        That all members together, and of a TAR the headers and padding too, may unpack to.
    most_members
        That it may have, folders and links counted.
    reserve
        Bytes that stay free on the disk of `into`.
    check
        Called at each member and at each piece of one. What it raises is raised, and what was unpacked by then lies
        in `into`.

    Returns
    -------
    Unpacked
        Its `refused` are `ArchiveRefused` whose subject is `path`; `ArchiveNotUnpacked` where trying again may help.
    """
    sink = Sink(into, most_bytes, most_members, reserve, check)
    damage: list[ImagingError] = []
    try:
        into.mkdir(parents=True, exist_ok=True)
        with path.open("rb", buffering=CHUNK) as stream:
            _unpack(stream, sink)
    except Damaged as error:
        kept = f"files kept from before the damage: {len(sink.files)}"
        damage.append(ArchiveRefused(path, seen=f"damaged: {error}; {kept}"))
    except Unusable as error:
        sink.discard()
        kind = ArchiveNotUnpacked if isinstance(error, NoRoom) else ArchiveRefused
        damage.append(kind(path, seen=f"{error}; nothing of it is kept"))
    except OSError as error:
        sink.discard()
        damage.append(ArchiveNotUnpacked(path, seen=f"cannot be unpacked ({error.strerror}); nothing of it is kept"))
    told = [ArchiveRefused(path, seen=tell_members(numbers, reason)) for reason, numbers in sink.refused.items()]
    return Unpacked(tuple(sink.files), (*told, *damage))


def tell_members(numbers: Sequence[int], what: str) -> str:
    """Say of members of an archive what they are, without their names; of many, the first few numbers and a count."""
    named = ", ".join(map(str, numbers[:_NUMBERS_TOLD])) + (", ..." if len(numbers) > _NUMBERS_TOLD else "")
    return f"member {named} is {what}" if len(numbers) == 1 else f"{len(numbers)} members ({named}) are {what}"


def _magic(stream: IO[bytes]) -> bytes:
    """The magic bytes of what it is: `LOCAL` for a ZIP, `USTAR` for a TAR, those of a compressed TAR, or none."""
    head = stream.read(_HEAD)
    if head[128:132] == b"DICM":
        return b""
    if head.startswith((LOCAL, END)):
        return LOCAL
    if is_tar(head):
        return USTAR
    magic = next((magic for magic in DECODERS if head.startswith(magic)), b"")
    if magic == BZIP2:  # gives nothing before its first block is whole, up to 900 kB
        head += stream.read(CHUNK)
    with suppress(*FAULTS):
        if magic and is_tar(DECODERS[magic]().decompress(head, BLOCK)):
            return magic
    return b""


def _unpack(stream: IO[bytes], sink: Sink) -> None:
    magic = _magic(stream)
    stream.seek(0)
    if magic == LOCAL:
        unzip(stream, sink)
    elif magic == USTAR:
        untar(stream, sink)
    elif magic:
        untar(io.BufferedReader(Decoded(stream, magic), CHUNK), sink)
    else:
        raise Unusable("it begins neither as a ZIP nor as a TAR")
