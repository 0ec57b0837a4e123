"""`imgpipe watch`: where studies come from, where results go, and a watcher between them.

Invariant: what a watcher is told is checked before it takes anything. A room that only some ways need (the network's)
is opened only for them.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.errors import ConfigInvalid, NothingFound, PeerFault, StoreBusy, StoreFull
from pipelines.audit import STARTED, STOPPED, AuditLog
from pipelines.delivery import Destination, Outbox
from pipelines.store import Store
from pipelines.watcher import Rules, Watcher
from pipelines.worker import Reading

if TYPE_CHECKING:
    from pipelines.association import Peer
    from pipelines.commitment import Commitments
    from pipelines.dicomweb import Web
    from pipelines.receive import Listening, Receiver
    from pipelines.web.page import Address, Page

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class In:
    """Where studies come from; at least one of them.

    Attributes
    ----------
    inbox
        A folder; files that are put in here are taken. Made if it is not there.
    listening
        Where to listen for C-STORE, and to whom.
    web
        A DICOMweb server that is asked every `poll_s` seconds for studies of the last `days` days, by StudyDate; 0 is
        all.
    """

    inbox: Path | None = None
    listening: Listening | None = None
    web: Web | None = None
    poll_s: float = 30.0
    days: int = 7


@dataclass(frozen=True, slots=True)
class Out:
    """Where results go; at least one of them.

    Attributes
    ----------
    outbox
        A folder for each study appears in here.
    peers, webs
        A PACS gets the DICOM files by C-STORE, or by STOW-RS.
    """

    outbox: Path | None = None
    peers: tuple[Peer, ...] = ()
    webs: tuple[Web, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """Where it is seen what the watcher does.

    Attributes
    ----------
    web
        Where the page is; None is nowhere.
    audit_log
        A file; None is `audit.jsonl` in the store.
    """

    web: Address | None = None
    audit_log: Path | None = None


def watch(
    *,
    come_from: In,
    go_to: Out,
    store: Path,
    reading: Reading,
    stop: threading.Event,
    devices: Sequence[dict[str, str]] = ({},),
    rules: Rules | None = None,
    shown: Shown | None = None,
) -> dict[str, int]:
    """Take in studies, and report on each of them.

    Parameters
    ----------
    come_from, go_to
        See there.
    store
        Where the watcher keeps all that it has and knows.
    reading
        What is done with a study.
    stop
        Set it, from a signal handler, to end.
    devices, rules, shown
        As `Watcher` takes them; what is shown, see there.

    Returns
    -------
    dict of int
        How many jobs there are in the end, by state.

    Raises
    ------
    ConfigInvalid
        If there is nowhere for studies to come from, or for results to go to.
    ImagingError
        If the store is in use or damaged, the address cannot be listened on, or the workers cannot start.
    """
    _check(come_from, go_to)
    with Store(store, watching=True) as opened:
        shown = shown or Shown()
        audit = AuditLog(shown.audit_log or opened.root / "audit.jsonl")
        aet = come_from.listening.aet if come_from.listening is not None else "IMGPIPE"
        commitments = _commitments() if come_from.listening is not None else None
        watcher = Watcher(
            opened,
            reading,
            _destinations(go_to, owner=str(store.resolve()), aet=aet, commitments=commitments),
            inbox=come_from.inbox,
            receiver=_receiver(come_from.listening, opened, commitments),
            fetch=_fetch(come_from.web, come_from.days, opened) if come_from.web is not None else None,
            fetch_s=come_from.poll_s,
            devices=devices,
            rules=rules,
            page=_page(shown.web, opened, audit),
            audit=audit,
        )
        with _audited(audit, opened):
            watcher.run(stop)
        return dict(Counter(str(job.state) for job in opened.jobs.all()))


@contextmanager
def _audited(audit: AuditLog, store: Store) -> Iterator[None]:
    """Tell the start and the end of a watcher, and before the end all that has happened."""
    audit.tell(STARTED)
    try:
        yield
    finally:
        with suppress(StoreBusy, StoreFull):  # what is not written now is at the next start
            audit.follow(store.jobs)
            audit.tell(STOPPED)


def _commitments() -> Commitments:
    from pipelines.commitment import Commitments

    return Commitments()


def _check(come_from: In, go_to: Out) -> None:
    if come_from.inbox is None and come_from.listening is None and come_from.web is None:
        raise ConfigInvalid("imgpipe watch", seen="none of --inbox, --listen and --dicomweb",
                            expected="somewhere for studies to come from was expected")  # fmt: skip
    if go_to == Out():
        raise ConfigInvalid("imgpipe watch", seen="none of --outbox, --send and --stow",
                            expected="somewhere for results to go to was expected")  # fmt: skip
    if come_from.inbox is not None:
        try:
            come_from.inbox.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NothingFound(come_from.inbox, seen=f"cannot be made ({error.strerror})") from error


def _page(address: Address | None, store: Store, audit: AuditLog) -> Page | None:
    if address is None:
        return None
    from pipelines.web.page import Page

    page = Page(store.root, address, audit.path)
    log.warning("the page is at %s", page.url)
    return page


def _receiver(listening: Listening | None, store: Store, commitments: Commitments | None) -> Receiver | None:
    if listening is None:
        return None
    from pipelines.receive import Receiver

    return Receiver(listening, store, folder=store.root, holds=store.holds, commitments=commitments)


def _destinations(go_to: Out, *, owner: str, aet: str, commitments: Commitments | None) -> list[Destination]:
    places: list[Destination] = []
    if go_to.outbox is not None:
        outbox = Outbox(go_to.outbox, owner=owner)
        outbox.sweep()
        places.append(outbox)
    if go_to.peers or go_to.webs:
        from pipelines.commitment import Commitments
        from pipelines.places import Pacs, WebPacs

        places += [Pacs(peer, aet, commitments or Commitments()) for peer in go_to.peers]
        places += [WebPacs(web) for web in go_to.webs]
    return places


def _fetch(web: Web, days: int, store: Store) -> Callable[[], None]:
    from pipelines.fetch import Poller, Watched

    poller = Poller(web, store, store.knows, Watched(days=days))

    def fetch() -> None:
        try:
            fetched = poller.poll()
        except PeerFault as error:
            log.warning("%s", error)
            return
        if fetched.instances or fetched.errors:
            log.info("from %s: %s, %d errors", web, dict(fetched.instances), len(fetched.errors))

    return fetch


def devices() -> list[dict[str, str]]:
    """Environment variables for a worker on each GPU, or for one on the CPU; asks the driver and no torch."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(number) for number in range(len(found))]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names if name] or [{}]
