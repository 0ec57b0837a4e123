"""How many instances a study should have, asked of a PACS that has it.

Invariant: nobody waits for an answer: it is asked for beside, as soon as a study begins to be quiet. An answer counts
only if the question was asked after the study's last news; without one the quiet time decides. What we made ourselves,
and the PACS has from us, is not waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from imaging.errors import ImagingError, PeerUnreachable
from pipelines.association import Peer, Tls
from pipelines.dicomweb import Client, Web
from pipelines.send import find
from pipelines.store import Store
from pipelines.store.moves import State

log = logging.getLogger(__name__)

# How long the PACS may take to begin an answer: others wait to be asked for meanwhile.
_ANSWER_S = 10.0
# A study that lacks something is asked for again after so long; so is a PACS that did not answer.
_AGAIN_S = 15.0
# How long nothing must have come before it is asked at all.
_SETTLED_S = 1.0


class Pacs(Protocol):
    """Knows how many instances a study has."""

    def __str__(self) -> str: ...

    def count(self, study_uid: str) -> int | None:
        """How many there are; None where it does not say.

        Raises
        ------
        ImagingError
            If it does not answer.
        """
        ...

    def instances(self, study_uid: str) -> set[str]:
        """Their SOPInstanceUIDs.

        Raises
        ------
        ImagingError
            If it does not answer.
        """
        ...


@dataclass(frozen=True, slots=True)
class ByQido:
    """A DICOMweb server (QIDO-RS, PS3.18 section 10.6)."""

    web: Web

    def __str__(self) -> str:
        return f"dicomweb {self.web}"

    def count(self, study_uid: str) -> int | None:
        """Number of Study Related Instances."""
        with Client(replace(self.web, timeout_s=_ANSWER_S)) as client:
            counts = [count for uid, count in client.studies({"StudyInstanceUID": study_uid}) if uid == study_uid]
        return counts[0] if counts and counts[0] >= 0 else None

    def instances(self, study_uid: str) -> set[str]:
        """See `Pacs`."""
        with Client(replace(self.web, timeout_s=_ANSWER_S)) as client:
            return {uid for _series, uid in client.instances(study_uid)}


@dataclass(frozen=True, slots=True)
class ByFind:
    """A peer (C-FIND, PS3.4 section C.4.1, Study Root)."""

    peer: Peer
    aet: str = "IMGPIPE"
    tls: Tls | None = None

    def __str__(self) -> str:
        return f"pacs {self.peer}"

    def _find(self, level: str, wanted: str, **keys: str) -> list[str]:
        return find(self.peer, level, wanted, keys, aet=self.aet, tls=self.tls, timeout_s=_ANSWER_S)

    def count(self, study_uid: str) -> int | None:
        """Number of Study Related Instances."""
        found = self._find("STUDY", "NumberOfStudyRelatedInstances", StudyInstanceUID=study_uid)
        return int(found[0]) if found and found[0].isdecimal() else None

    def instances(self, study_uid: str) -> set[str]:
        """See `Pacs`."""
        series = self._find("SERIES", "SeriesInstanceUID", StudyInstanceUID=study_uid)
        found: set[str] = set()
        for uid in series:
            found.update(self._find("IMAGE", "SOPInstanceUID", StudyInstanceUID=study_uid, SeriesInstanceUID=uid))
        return found


@dataclass(frozen=True, slots=True)
class _Answer:
    """What was said of a study: when it was asked, by the store's clock, and how many it should have."""

    asked_at: float
    expected: int | None


class Expecting:
    """What a PACS says of the studies that are waited for.

    Parameters
    ----------
    store
        The watcher's.
    pacs
        Who is asked.
    """

    def __init__(self, store: Store, pacs: Pacs) -> None:
        self._store, self._pacs = store, pacs
        self._answers: dict[str, _Answer] = {}

    def expected(self, study_uid: str) -> int | None:
        """How many instances of a study there should be in the store; None where nobody has said so since its news."""
        answer = self._answers.get(study_uid)
        if answer is None or answer.expected is None:
            return None
        last = self._store.waiting.last_arrival(study_uid)
        return answer.expected if last is not None and answer.asked_at > last else None

    def look(self) -> None:
        """Ask for each study that is waited for and has begun to be quiet; ends where the PACS does not answer.

        Raises
        ------
        StoreFull, StoreBusy
            If the store cannot be read.
        """
        waiting = [job.study_uid for job in self._store.jobs.all([State.RECEIVING])]
        self._answers = {uid: answer for uid, answer in self._answers.items() if uid in waiting}
        begun = time.monotonic()
        for uid in self._due(waiting):
            try:
                self._answers[uid] = _Answer(self._store.clock.now(), self._ask(uid))
            except ImagingError as error:
                log.warning("%s does not say how many images a study has: %s", self._pacs, error)
                self._answers[uid] = _Answer(self._store.clock.now(), None)
                if isinstance(error, PeerUnreachable) or time.monotonic() - begun > _ANSWER_S:
                    return

    def _due(self, waiting: Sequence[str]) -> list[str]:
        due, now = [], self._store.clock.now()
        for uid in waiting:
            last, answer = self._store.waiting.last_arrival(uid), self._answers.get(uid)
            if last is None or now - last < _SETTLED_S:
                continue
            if answer is None or answer.asked_at <= last or now - answer.asked_at >= _AGAIN_S:
                due.append(uid)
        return due

    def _ask(self, study_uid: str) -> int | None:
        """How many the store should have."""
        count = self._pacs.count(study_uid)
        have = self._store.waiting.instances(study_uid)
        if not count or count <= have:
            return count or None
        # Some of what it has may be ours, or kept here beside the study.
        lacking = {uid for uid in self._pacs.instances(study_uid) if not self._store.waiting.is_known(uid)}
        return have + len(lacking)
