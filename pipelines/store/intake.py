"""What whoever receives instances is given, and what it is told of each.

Invariant: when `put` returns, the instance is durable: its bytes and its name in the folder are on disk, and its row is
committed. When it raises, nothing of the instance is kept.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Protocol


class Received(StrEnum):
    """What became of one instance.

    Attributes
    ----------
    NEW
        It was not there before.
    SAME
        The very data set in the same transfer syntax is there already; nothing changes.
    CONFLICT
        Another data set is there under its SOPInstanceUID. The first one stands; this one is kept beside it and told.
    """

    NEW = "new"
    SAME = "same"
    CONFLICT = "conflict"


class Intake(Protocol):
    """Takes instances in, from several threads at once."""

    def put(
        self,
        data: bytes | memoryview,
        *,
        sop_instance_uid: str,
        sop_class_uid: str,
        series_uid: str,
        study_uid: str,
        transfer_syntax: str,
        source: str,
    ) -> Received:
        """Keep one instance for good.

        Parameters
        ----------
        data
            A whole DICOM file (PS3.10): preamble, meta header, data set.
        sop_instance_uid, sop_class_uid, series_uid, study_uid, transfer_syntax
            As its headers say.
        source
            Where it came from, such as ``scp STORESCU@10.0.0.7`` or ``inbox``; kept for whoever asks later.

        Raises
        ------
        InvalidUid
            If one of the UIDs is none by PS3.5 section 9.1, or is empty.
        StoreFull
            If there is no room, or the disk cannot be written.
        StoreBusy
            If the database is held by someone else for too long.
        """
        ...
