"""A PACS as a place where results go: over DIMSE, and over DICOMweb.

Invariant: a result is there when the PACS has said of every DICOM file of it that it has it; what it said is logged.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.association import Peer, Tls
from pipelines.commitment import Commitments
from pipelines.delivery import Result
from pipelines.dicomweb import Web
from pipelines.send import Delivery, send
from pipelines.stow import store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Pacs:
    """Results go to a peer by C-STORE.

    Attributes
    ----------
    peer
        Who gets them.
    aet
        Our AE title.
    commitments
        Those of the receiver, if there is one; see `pipelines.send.send`.
    tls
        Certificates; none is plain TCP.
    """

    peer: Peer
    aet: str = "IMGPIPE"
    commitments: Commitments = field(default_factory=Commitments)
    tls: Tls | None = None

    @property
    def name(self) -> str:
        """The peer's address."""
        return f"pacs {self.peer}"

    def deliver(self, result: Result) -> None:
        """Send a result; once more is no harm, for its UIDs are the same.

        Raises
        ------
        ImagingError
            The gravest of what was wrong with a file.
        """
        sent = send(_dicom_of(result), self.peer, aet=self.aet, tls=self.tls, commitments=self.commitments)
        _see(sent, result, self.name)


@dataclass(frozen=True, slots=True)
class WebPacs:
    """Results go to a DICOMweb server by STOW-RS; see `Pacs`.

    Attributes
    ----------
    web
        The server.
    """

    web: Web

    @property
    def name(self) -> str:
        """The server's address."""
        return f"stow {self.web}"

    def deliver(self, result: Result) -> None:
        """Store a result; see `Pacs.deliver`."""
        _see(store(_dicom_of(result), self.web), result, self.name)


def _dicom_of(result: Result) -> list[Path]:
    return [result.folder / name for name in sorted(result.sums) if name.endswith(".dcm")]


def _see(delivery: Delivery, result: Result, name: str) -> None:
    """Raise what keeps a delivery from being done: first that for which trying again does not help."""
    for file in (*delivery.refused, *delivery.left):
        assert file.error is not None
        raise file.error
    ways = sorted({file.confirmed_by for file in delivery.files})
    log.info("%d DICOM files of study %s are at %s, by %s", len(delivery.files), result.study_uid, name,
             ", ".join(ways) or "nothing to be sent")  # fmt: skip
