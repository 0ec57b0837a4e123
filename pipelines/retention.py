"""How long the store keeps what it has delivered.

Invariant: only a study whose newest result is at all its places goes, and of which no job is under way or in
quarantine; that is asked again in the transaction that lets it go. Rows and events stay, so an image that is sent again
is the same image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from imaging.config.section import Section
from pipelines.disk import Gate
from pipelines.store import Store
from pipelines.store.keeping import Kept

log = logging.getLogger(__name__)

_DAY_S = 86400.0
_GIB = 1 << 30
_Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Retention(Section):
    """When a delivered study leaves the store; None is never. The oldest go first.

    `delivered_days`: so long after it was delivered. `most_gib`: when all images of the store are more than that.
    `when_full`: when the disk is at its high mark, until it is below its low mark. `refused_days`: so long a file
    that no study can have is kept.
    """

    delivered_days: _Bound | None = None
    most_gib: _Bound | None = None
    when_full: bool = False
    refused_days: _Bound | None = None


def purge_by(policy: Retention, store: Store, gate: Gate) -> list[str]:
    """Remove what a policy lets go.

    Parameters
    ----------
    policy
        See there.
    store
        Opened as the watcher's.
    gate
        Of the store's disk.

    Returns
    -------
    list of str
        StudyInstanceUIDs.
    """
    if policy.refused_days is not None:
        store.purge_refused(policy.refused_days * _DAY_S)
    gone = []
    for kept in list(_leaving(policy, store)):
        if store.keeping.ask(kept.study_uid):
            gone += store.purge()
    if policy.when_full and not gate.is_open():
        for kept in store.keeping.delivered():
            if gate.share() < gate.marks.low:
                break
            if store.keeping.ask(kept.study_uid):
                gone += store.purge()
    if gone:
        log.info("%d delivered studies were removed from the store", len(gone))
    return gone


def _leaving(policy: Retention, store: Store) -> Iterator[Kept]:
    """Those whose time is up, and those for which there is no room, the oldest first."""
    if policy.delivered_days is None and policy.most_gib is None:
        return
    total = store.keeping.size()
    for kept in store.keeping.delivered():
        is_old = policy.delivered_days is not None and kept.age_s >= policy.delivered_days * _DAY_S
        if is_old or (policy.most_gib is not None and total > policy.most_gib * _GIB):
            total -= kept.size
            yield kept
