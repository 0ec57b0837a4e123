"""Studies fetched from a PACS over DICOMweb: asked for by QIDO-RS, brought by WADO-RS, handed to the intake.

Invariant: an instance is fetched once, by whether the store holds it and not by what was asked before, so that whatever
is interrupted is taken up again; what is handed over is the server's own bytes, whole, and what it was asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from imaging.dicom.values import is_uid
from imaging.errors import ImagingError, InvalidUid, PeerUnreachable, StoreBusy, StoreFull
from pipelines.dicomweb import Client, Web
from pipelines.landing import instance_of
from pipelines.store.intake import Intake, Received

_LOG = logging.getLogger(__name__)

# After these the rest of a round would fail in the same way.
_ENDING = (PeerUnreachable, StoreBusy, StoreFull)


@dataclass(frozen=True, slots=True)
class Watched:
    """Which studies of a server are fetched.

    Attributes
    ----------
    days
        Those of the last days, by StudyDate; 0 is all. A day more is asked for, since the server's day may be another.
    match
        What else they match, by keyword (QIDO-RS), such as ``{"ModalitiesInStudy": "CT"}``.
    """

    days: int = 7
    match: Mapping[str, str] = field(default_factory=dict)

    def filters(self, now: datetime) -> dict[str, str]:
        """The question as QIDO-RS has it."""
        if not self.days:
            return dict(self.match)
        return {"StudyDate": f"{now - timedelta(days=self.days):%Y%m%d}-", **self.match}


@dataclass(frozen=True, slots=True)
class Fetched:
    """What one round has brought.

    Attributes
    ----------
    studies
        How many the server named.
    instances
        How many were fetched, by outcome (``new``, ``same``, ``conflict``).
    errors
        What could not be had; it is asked for again in the next round.
    """

    studies: int
    instances: Mapping[str, int]
    errors: tuple[ImagingError, ...]


class Poller:
    """Asks one server, round after round.

    Parameters
    ----------
    web
        The server.
    intake
        Where instances go.
    holds
        Whether an instance is there already, by its SOPInstanceUID: its SOP class, or none.
    watched
        Which studies.
    """

    def __init__(
        self, web: Web, intake: Intake, holds: Callable[[str], str | None], watched: Watched | None = None
    ) -> None:
        self._web, self._intake, self._holds = web, intake, holds
        self._watched = watched or Watched()
        # How many instances a study had when all of them were there.
        self._complete: dict[str, int] = {}

    def poll(self) -> Fetched:
        """One round: every study that is new or has more instances than before.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
            If the server does not say which studies there are.
        """
        counts = dict.fromkeys(Received, 0)
        errors: list[ImagingError] = []
        named: dict[str, int] = {}
        with Client(self._web) as client:
            named.update(client.studies(self._watched.filters(datetime.now(UTC))))
            for study, count in named.items():
                if count >= 0 and self._complete.get(study) == count:
                    continue
                try:
                    if self._fetch(client, study, counts, errors) >= count:
                        self._complete[study] = count
                except ImagingError as error:
                    errors.append(error)
                    if isinstance(error, _ENDING):
                        break
        self._complete = {study: count for study, count in self._complete.items() if study in named}
        told = {outcome.value: count for outcome, count in counts.items() if count}
        return Fetched(len(named), told, tuple(errors))

    def bring(self, study: str) -> Fetched:
        """Bring what is missing of one study.

        Raises
        ------
        PeerUnreachable, WebRefused, WebUnavailable
            If the server does not say which instances it has.
        StoreFull, StoreBusy
            If they cannot be kept.
        """
        counts = dict.fromkeys(Received, 0)
        errors: list[ImagingError] = []
        with Client(self._web) as client:
            self._fetch(client, study, counts, errors)
        return Fetched(1, {outcome.value: count for outcome, count in counts.items() if count}, tuple(errors))

    def _fetch(self, client: Client, study: str, counts: dict[Received, int], errors: list[ImagingError]) -> int:
        """Bring what is missing of a study; gives how many of its instances are there now."""
        there = 0
        for series, uid in client.instances(study):
            try:
                if self._holds(_known(self._web, study, series, uid)) is None:
                    counts[self._take(client, study, series, uid)] += 1
                there += 1
            except _ENDING:
                raise
            except ImagingError as error:
                _LOG.warning("an instance of %s was not fetched: %s", self._web, error)
                errors.append(error)
        return there

    def _take(self, client: Client, study: str, series: str, uid: str) -> Received:
        content = client.instance(study, series, uid)
        instance = instance_of(content, sop_instance_uid=uid)
        return self._intake.put(
            instance.content,
            sop_instance_uid=instance.sop_instance_uid,
            sop_class_uid=instance.sop_class_uid,
            series_uid=instance.series_uid,
            study_uid=instance.study_uid,
            transfer_syntax=instance.transfer_syntax,
            source=f"dicomweb {self._web.url}",
        )


def _known(web: Web, *uids: str) -> str:
    """The last of them, once all are UIDs: they become parts of an address."""
    if not all(map(is_uid, uids)):
        raise InvalidUid(web, seen="a name of an instance that is not a UID")
    return uids[-1]
