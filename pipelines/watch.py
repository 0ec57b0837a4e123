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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from imaging.errors import ConfigInvalid, PeerFault, StoreBusy, StoreFull
from pipelines.audit import STARTED, STOPPED, AuditLog
from pipelines.delivery import Destination, Outbox
from pipelines.disk import Gate
from pipelines.incoming import Hidden, check_places
from pipelines.refusals import Refusals
from pipelines.router import Router
from pipelines.routing import Routing, To
from pipelines.store import Store
from pipelines.unpacking import Unpacking
from pipelines.watcher import Chore, Rules, Watcher
from pipelines.worker import ByRule, Reading, Reporting

if TYPE_CHECKING:
    from pipelines.association import Peer, Tls
    from pipelines.commitment import Commitments
    from pipelines.counting import Expecting
    from pipelines.dicomweb import Web
    from pipelines.receive import Listening, Receiver
    from pipelines.web.page import Address, Page
    from pipelines.worklist import Kind

log = logging.getLogger(__name__)

# How often refusals are written down, and how often to look whom to ask for; in seconds.
_TOLD_S, _ASKED_S = 5.0, 1.0


@dataclass(frozen=True, slots=True)
class In:
    """Where studies come from; at least one of them.

    Attributes
    ----------
    inbox
        A folder that is there; files that are put in here are taken.
    listening
        Where to listen for C-STORE, and to whom.
    web
        A DICOMweb server that is asked every `poll_s` seconds for studies of the last `days` days, by StudyDate; 0 is
        all.
    asked
        Who is asked how many instances a study has; None is `web`.
    worklist
        Only studies are taken from `web` that a workitem of this kind on its worklist (UPS-RS) is about.
    """

    inbox: Path | None = None
    listening: Listening | None = None
    web: Web | None = None
    poll_s: float = 30.0
    days: int = 7
    asked: Peer | Web | None = None
    worklist: Kind | None = None


@dataclass(frozen=True, slots=True)
class Out:
    """Where results go; at least one of them.

    Attributes
    ----------
    outbox
        A folder for each study appears in here.
    peers, webs
        A PACS gets the DICOM files by C-STORE, or by STOW-RS.
    tls
        Certificates for the associations that we open, to send and to ask; none is plain TCP.
    """

    outbox: Path | None = None
    peers: tuple[Peer, ...] = ()
    webs: tuple[Web, ...] = ()
    tls: Tls | None = None


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


@dataclass(slots=True)
class Places:
    """Makes destinations.

    Attributes
    ----------
    owner
        Of the temporary names in outboxes.
    aet
        Our AE title.
    commitments
        Those of the receiver; None without one.
    tls
        As `Out` has it.
    """

    owner: str
    aet: str = "IMGPIPE"
    commitments: Commitments | None = None
    tls: Tls | None = None

    def of(self, out: Out) -> list[Destination]:
        """All of them."""
        found: list[Destination] = [] if out.outbox is None else [Outbox(out.outbox, owner=self.owner)]
        if out.peers or out.webs:
            from pipelines.commitment import Commitments
            from pipelines.places import Pacs, WebPacs

            self.commitments = self.commitments or Commitments()
            found += [Pacs(peer, self.aet, self.commitments, self.tls) for peer in out.peers]
            found += [WebPacs(web) for web in out.webs]
        return found

    def named(self, place: To) -> Destination:
        """The one that a rule names."""
        if place.outbox is not None:
            return Outbox(place.outbox, owner=self.owner)
        if place.send is not None:
            from pipelines.association import Peer

            return self.of(Out(peers=(Peer.parse(place.send),)))[0]
        from pipelines.dicomweb import Web

        assert place.stow is not None
        return self.of(Out(webs=(Web(place.stow, token=os.environ.get("IMGPIPE_WEB_TOKEN", "")),)))[0]


@dataclass(frozen=True, slots=True)
class Ruled:
    """A file of rules, and what the command line says for what a rule leaves out.

    Attributes
    ----------
    path
        The file.
    reporting
        See there.
    on_router
        Is given the router once its rules were taken, to ask it to read them again.
    """

    path: Path
    reporting: Reporting
    on_router: Callable[[Router], None] = lambda _: None

    def router(self, go_to: Out, places: Places, check: Callable[[Routing], None] = lambda _: None) -> Router:
        """Read the rules; see `Router` for what is raised."""
        router = Router(self.path, self.reporting, places.named, places.of(go_to), check)
        self.on_router(router)
        return router


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
    ruled: Ruled | None = None,
) -> dict[str, int]:
    """Take in studies, and report on each of them.

    Parameters
    ----------
    come_from, go_to
        See there.
    store
        Where the watcher keeps all that it has and knows.
    reading
        What is done with a study; where there are rules, they say it.
    stop
        Set it, from a signal handler, to end.
    devices, rules, shown, ruled
        As `Watcher` takes them, or see there.

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
    _check(come_from, go_to, ruled)
    with Store(store, watching=True) as opened:
        shown = shown or Shown()
        audit = AuditLog(shown.audit_log or opened.root / "audit.jsonl")
        places, gate = _places(store, come_from.listening, go_to.tls), Gate(opened.root)
        check = partial(_check_incoming, come_from=come_from, store=store)
        router = ruled.router(go_to, places, check) if ruled is not None else None
        taker = Hidden(opened, lambda: router.routing.incoming if router is not None else ())
        over, refusals, expecting = threading.Event(), Refusals(), _expecting(come_from, opened, go_to.tls)
        watcher = Watcher(
            opened,
            _ruled(reading, router) if router is not None else reading,
            _swept(list(router.places.values()) if router is not None else places.of(go_to)), inbox=come_from.inbox,
            receiver=_receiver(come_from.listening, taker, places.commitments, gate, refusals), gate=gate,
            taker=taker, archives=_unpacking(come_from.inbox, taker, gate, (stop, over)), devices=devices, rules=rules,
            router=router, chores=list(_chores(come_from, opened, taker, refusals, expecting)), audit=audit,
            expected=expecting.expected if expecting else lambda _: None, page=_page(shown.web, opened, audit),
        )  # fmt: skip
        with _audited(audit, opened, refusals, over):
            watcher.run(stop)
        return dict(Counter(str(job.state) for job in opened.jobs.all()))


def _unpacking(inbox: Path | None, taker: Hidden, gate: Gate, ends: Sequence[threading.Event]) -> Unpacking | None:
    """What takes the archives of the inbox, until one of the events."""
    if inbox is None:
        return None

    def check() -> None:
        gate.check()
        if any(end.is_set() for end in ends):
            raise StoreBusy(gate.folder, seen="the watcher ends")

    return Unpacking(taker, inbox, check)


def _ruled(reading: Reading, router: Router) -> ByRule:
    """What the rules name, within the memory that the reading has."""
    return ByRule(router.firsts(), reading.most_bytes if isinstance(reading, ByRule) else None)


@contextmanager
def _audited(audit: AuditLog, store: Store, refusals: Refusals, over: threading.Event) -> Iterator[None]:
    """Tell the start and the end of a watcher, and before the end all that has happened; `over` is set at the end."""
    audit.tell(STARTED)
    try:
        yield
    finally:
        over.set()  # the watcher may have failed, and what still is unpacked holds up its process
        with suppress(StoreBusy, StoreFull):  # what is not written now is at the next start
            refusals.write(store)
            audit.follow(store.jobs)
            audit.tell(STOPPED)


def _places(store: Path, listening: Listening | None, tls: Tls | None) -> Places:
    if listening is None:
        return Places(str(store.resolve()), tls=tls)
    from pipelines.commitment import Commitments

    return Places(str(store.resolve()), listening.aet, Commitments(), tls)


def _swept(destinations: list[Destination]) -> list[Destination]:
    """Without what a killed watcher has left in outboxes; no delivery is under way yet."""
    for place in destinations:
        if isinstance(place, Outbox):
            place.sweep()
    return destinations


def _check(come_from: In, go_to: Out, ruled: Ruled | None) -> None:
    if come_from.inbox is None and come_from.listening is None and come_from.web is None:
        raise ConfigInvalid("imgpipe watch", seen="none of --inbox, --listen and --dicomweb",
                            expected="somewhere for studies to come from was expected",
                            remedy="Give one of them")  # fmt: skip
    if go_to.outbox is None and not go_to.peers and not go_to.webs and ruled is None:
        raise ConfigInvalid("imgpipe watch", seen="none of --outbox, --send and --stow",
                            expected="somewhere for results to go to was expected",
                            remedy="Give one of them")  # fmt: skip
    if come_from.inbox is not None and not come_from.inbox.is_dir():
        # One that is made here is seldom the one that is meant: a name may be mistyped, a disk not mounted yet.
        raise ConfigInvalid(come_from.inbox, seen="no such folder", expected="the folder that files are put into was "
                           "expected", remedy="Make it, or mount what it lies on")  # fmt: skip


def _check_incoming(routing: Routing, *, come_from: In, store: Path) -> None:
    """See that what is pseudonymised on its way in can be, and that nothing leads back from it."""
    check_places(routing.incoming, store)
    if routing.incoming and come_from.worklist is not None:
        raise ConfigInvalid("incoming", seen="--worklist beside it", expected="one of them was expected, for "
                            "a workitem names the study as it was")  # fmt: skip


def _page(address: Address | None, store: Store, audit: AuditLog) -> Page | None:
    if address is None:
        return None
    from pipelines.web.page import Page

    page = Page(store.root, address, audit.path)
    log.warning("the page is at %s", page.url)
    return page


def _receiver(
    listening: Listening | None, taker: Hidden, commitments: Commitments | None, gate: Gate, refusals: Refusals
) -> Receiver | None:
    if listening is None:
        return None
    from pipelines.receive import Receiver

    return Receiver(listening, taker, folder=gate.folder, holds=taker.holds, commitments=commitments, gate=gate,
                    on_refused=refusals.tell)  # fmt: skip


def _expecting(come_from: In, store: Store, tls: Tls | None) -> Expecting | None:
    """Who says how many instances a study has."""
    asked = come_from.asked or come_from.web
    if asked is None:
        return None
    from pipelines.association import Peer
    from pipelines.counting import ByFind, ByQido, Expecting

    if not isinstance(asked, Peer):
        return Expecting(store, ByQido(asked))
    aet = come_from.listening.aet if come_from.listening is not None else "IMGPIPE"
    return Expecting(store, ByFind(asked, aet, tls))


def _chores(
    come_from: In, store: Store, taker: Hidden, refusals: Refusals, expecting: Expecting | None
) -> Iterator[Chore]:
    """What goes on beside the jobs."""
    if come_from.listening is not None:
        yield Chore(partial(refusals.write, store), _TOLD_S)
    if expecting is not None:
        yield Chore(expecting.look, _ASKED_S, takes=True)
    if come_from.web is not None and come_from.worklist is not None:
        yield Chore(_claims(come_from.web, come_from.worklist, store), come_from.poll_s, takes=True)
    elif come_from.web is not None:
        yield Chore(_fetch(come_from.web, come_from.days, taker), come_from.poll_s, takes=True)


def _fetch(web: Web, days: int, taker: Hidden) -> Callable[[], None]:
    from pipelines.fetch import Poller, Watched

    poller = Poller(web, taker, taker.knows, Watched(days=days))

    def fetch() -> None:
        try:
            fetched = poller.poll()
        except PeerFault as error:
            log.warning("%s", error)
            return
        if fetched.instances or fetched.errors:
            log.info("from %s: %s, %d errors", web, dict(fetched.instances), len(fetched.errors))

    return fetch


def _claims(web: Web, kind: Kind, store: Store) -> Callable[[], None]:
    from pipelines.claims import Claims

    claims = Claims(web, kind, store)

    def work() -> None:
        try:
            claims.round()
        except PeerFault as error:
            log.warning("%s", error)

    return work


def devices() -> list[dict[str, str]]:
    """Environment variables for a worker on each GPU, or for one on the CPU; asks the driver and no torch."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(number) for number in range(len(found))]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names if name] or [{}]
