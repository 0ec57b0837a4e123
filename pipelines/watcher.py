"""The watcher: instances in, each study reported once, results out, for months.

Invariant: no study is lost, none is reported twice, no output is half written. All that must survive is in the store;
whatever ends this process, the next one goes on from there. Told to end, it takes nothing new, finishes what it is
doing within a time limit, and gives the rest back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from imaging.errors import DeliveryFailed, OutputMismatch, PeerFault, StoreBusy, StoreFull
from imaging.files import sync_folder
from pipelines.audit import AuditLog
from pipelines.delivery import Destination, read_back, reason_of
from pipelines.disk import Gate
from pipelines.inbox import Inbox, Taker
from pipelines.retention import purge_by
from pipelines.router import Router
from pipelines.runner import Patience, Runner
from pipelines.store import Store
from pipelines.store.content import discard
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.worker import Reading

log = logging.getLogger(__name__)

# How often the store is looked through, in seconds, when nothing tells of news.
_TICK_S = 0.2
# How often to look what may leave the store.
_LOOK_S = 30.0
# How long associations may go on once the watcher is told to end.
_LAST_WORDS_S = 10.0


@dataclass(frozen=True, slots=True)
class Rules:
    """What a watcher is told.

    Attributes
    ----------
    complete, retries, redeliveries, patience
        When a study is complete, how often a job and a delivery are tried, how long a worker may take.
    settle_s, poll_s
        As `Inbox` takes them.
    at_once
        How many studies a worker has in hand: while the network is asked of one, another is read or written.
    drain_s
        How long, once told to end, it goes on with what it is doing.
    """

    complete: Completeness = field(default_factory=Completeness)
    retries: Retries = field(default_factory=Retries)
    redeliveries: Retries = field(default_factory=lambda: Retries(most=20))
    patience: Patience = field(default_factory=Patience)
    settle_s: float = 2.0
    poll_s: float | None = None
    at_once: int = 2
    drain_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Chore:
    """A work that goes on beside the others.

    Attributes
    ----------
    work
        Does what is to be done now; where it says that the store cannot be written it is asked again.
    every_s
        How long it rests between.
    takes
        Whether it takes new things in, and so ends as soon as the watcher is told to.
    """

    work: Callable[[], object]
    every_s: float
    takes: bool = False


class Listener(Protocol):
    """Receives instances from when it is entered until it is told to stop; `pipelines.receive.Receiver` is one."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def stop(self, grace_s: float) -> None:
        """Take no more associations, and give those that are there so long to end."""
        ...


class Shown(Protocol):
    """Is seen from when it is entered; `pipelines.web.page.Page` is one."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def tick(self) -> None:
        """The watcher is alive."""
        ...


class Watcher:
    """A watcher over a store.

    Parameters
    ----------
    store
        Opened as the watcher's.
    reading
        What its workers do.
    destinations
        Where results go; a job is done when each has it.
    inbox
        A folder to take files from.
    receiver
        Listens for instances, which it puts into the store.
    chores
        What else it does; those that take things in rest while the disk has no room.
    expected
        How many instances a study should have, by its UID; None where nobody knows.
    devices
        As `Runner` takes them.
    rules
        See there.
    page
        Shows what is where.
    audit
        Is told what happened.
    router
        Decides of each study what is done with it; without one every study is treated alike.
    gate
        Says whether the disk has room.
    taker
        Takes the files of the inbox; None is the store.
    archives
        Takes the archives of the inbox; None leaves them to whoever takes the files.
    """

    def __init__(
        self,
        store: Store,
        reading: Reading,
        destinations: Sequence[Destination],
        *,
        inbox: Path | None = None,
        receiver: Listener | None = None,
        chores: Sequence[Chore] = (),
        expected: Callable[[str], int | None] = lambda _: None,
        devices: Sequence[dict[str, str]] = ({},),
        rules: Rules | None = None,
        page: Shown | None = None,
        audit: AuditLog | None = None,
        router: Router | None = None,
        gate: Gate | None = None,
        taker: Taker | None = None,
        archives: Taker | None = None,
    ) -> None:
        self._store, self._rules = store, rules or Rules()
        self._router, self._gate = router, gate or Gate(store.root)
        self._destinations, self._receiver = list(destinations), receiver
        self._threads: list[threading.Thread] = []
        self._next_look = 0.0
        self._chores, self._expected = tuple(chores), expected
        self._page, self._audit = page, audit
        self._runner = Runner(
            store, reading, devices=devices, patience=self._rules.patience, retries=self._rules.retries,
            at_once=self._rules.at_once, routed=router is not None,
        )  # fmt: skip
        self._inbox = None
        if inbox is not None:
            self._inbox = Inbox(inbox, taker or store, settle_s=self._rules.settle_s, poll_s=self._rules.poll_s,
                                is_open=self._gate.is_open, archives=archives)  # fmt: skip
        self._taking, self._ending = threading.Event(), threading.Event()
        self._failure: BaseException | None = None

    def run(self, stop: threading.Event) -> None:
        """Watch until told to stop, then finish what is under way.

        Call it from the main thread: workers end with the thread that has started them.

        Raises
        ------
        ImagingError
            If workers cannot start, or the store is damaged.
        """
        self._store.jobs.recover(self._rules.retries)
        self._store.routes.decide_anew()
        self._hold_what_has_nowhere_to_go()
        for work in self._beside():
            self._begin(*work)
        grace_s = 1.0  # where it is not told to end but torn away, nobody is waited for
        try:
            with self._receiver or nullcontext(), self._page or nullcontext():
                while not stop.is_set() and self._failure is None:
                    self._patiently(self._tick)
                    if self._page is not None:
                        self._page.tick()
                    self._runner.wait(_TICK_S)
                self._taking.set()
                if self._receiver is not None:
                    self._receiver.stop(min(_LAST_WORDS_S, self._rules.drain_s))
            self._drain()
            grace_s = self._rules.drain_s
        finally:
            self._taking.set()
            self._ending.set()
            self._runner.stop()
            for thread in self._threads:
                thread.join(grace_s)
        if self._failure is not None:
            raise self._failure

    def _beside(self) -> Iterator[tuple[Any, ...]]:
        """What goes on beside the jobs: reading back, delivering, taking in."""
        yield self._keep_on, self._verify_all, self._ending, _TICK_S
        for destination in self._destinations:
            yield self._delivering(destination)
        if self._audit is not None:
            yield self._keep_on, partial(self._audit.follow, self._store.jobs), self._ending, _TICK_S
        if self._inbox is not None:
            yield self._inbox.run, self._taking
        for chore in self._chores:
            end = self._taking if chore.takes else self._ending
            yield self._keep_on, partial(self._do, chore), end, chore.every_s

    def _begin(self, *work: Any) -> None:
        """Let a work go on beside the others until the end."""
        thread = threading.Thread(target=self._guarded, args=work, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _delivering(self, destination: Destination) -> tuple[Any, ...]:
        return self._keep_on, partial(self._deliver_to, destination), self._ending, _TICK_S

    def _do(self, chore: Chore) -> None:
        if not chore.takes or self._gate.is_open():
            chore.work()

    def _tick(self) -> None:
        self._follow_rules()
        self._store.purge()
        self._runner.tick()

    def _follow_rules(self) -> None:
        """See which studies are complete, what is done with them, and what may leave the store."""
        router, complete = self._router, self._rules.complete
        if router is None:
            self._store.jobs.settle(complete, expected=self._expected)
            return
        if router.reload(self._store):
            known = {destination.name for destination in self._destinations}
            for destination in [place for name, place in router.places.items() if name not in known]:
                # One that no rule names any more still gets what was meant for it.
                self._destinations.append(destination)
                self._begin(*self._delivering(destination))
        self._gate.marks = router.routing.disk
        self._store.jobs.settle(router.soonest(complete), expected=self._expected,
                                judge=router.judge(self._store, complete))  # fmt: skip
        router.decide(self._store)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_S
            purge_by(router.routing.retention, self._store, self._gate)

    def _drain(self) -> None:
        """Let running jobs end, and what they gave be verified and tried to be delivered once."""
        deadline = time.monotonic() + self._rules.drain_s
        while time.monotonic() < deadline and self._failure is None:
            running = self._runner.tick(claiming=False)
            due = [d for to in self._destinations for d in self._store.jobs.deliveries(waiting_at=to.name)]
            untried = [delivery for delivery in due if not delivery.faults]
            if not running and not self._store.jobs.all([State.VERIFYING]) and not untried:
                return
            self._runner.wait(_TICK_S)

    def _hold_what_has_nowhere_to_go(self) -> None:
        """Let a person look at what should go where this watcher, unlike an earlier one, does not deliver."""
        known = {destination.name for destination in self._destinations}
        for job in self._store.jobs.all([State.DELIVERING]):
            for delivery in self._store.jobs.deliveries(job.id):
                if not delivery.confirmed and delivery.destination not in known:
                    error = DeliveryFailed(delivery.destination, seen="it is no destination of this watcher any more")
                    self._store.jobs.undelivered(job.id, delivery.destination, error, Retries(most=1))

    # ---------------------------------------------------------------------------------------------- beside the main way

    def _verify_all(self) -> None:
        """Read back what the workers have written."""
        for job in self._store.jobs.all([State.VERIFYING]):
            try:
                written = self._store.result_of(job)
                result = read_back(written / job.result_uid, job.result_uid, job.version)
                sync_folder(written)
                sync_folder(written.parent)
            except OutputMismatch as error:
                log.error("job %d: %s", job.id, error)
                self._store.jobs.give_up(job, error, self._rules.retries)
                discard(self._store.result_of(job))
                continue
            names = [destination.name for destination in self._destinations]
            if job.route is not None:
                names = list(job.route.destinations)
            self._store.jobs.verified(job, result.report_sha256, names, outputs=result.dicom,
                                      triage=result.triage)  # fmt: skip

    def _deliver_to(self, destination: Destination) -> None:
        """Bring there what is due."""
        for delivery in self._store.jobs.deliveries(waiting_at=destination.name):
            job = self._store.jobs.find(str(delivery.job))
            try:
                result = read_back(self._store.result_of(job) / job.result_uid, job.result_uid, job.version)
                destination.deliver(result)
            except (StoreBusy, StoreFull):
                raise
            except Exception as error:
                told = reason_of(error, destination.name)
                log.debug("traceback", exc_info=True)
                log.warning("job %d: %s", job.id, told)
                hopeless = isinstance(told, PeerFault) and not told.transient
                retries = Retries(most=1) if hopeless else self._rules.redeliveries
                self._store.jobs.undelivered(job.id, destination.name, told, retries)
            else:
                self._store.jobs.delivered(job.id, destination.name)
                log.info("job %d: study %s is at %s", job.id, job.study_uid, destination.name)

    def _keep_on(self, work: Callable[[], object], end: threading.Event, pause_s: float) -> None:
        """Do a work again and again until the end."""
        while not end.is_set():
            self._patiently(work)
            end.wait(pause_s)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """A thread that fails ends the watcher, and does not leave it half alive."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 raised by `run`
            self._failure = self._failure or error

    def _patiently(self, work: Callable[[], object]) -> None:
        """Do a work; where the store cannot be written now it is done later."""
        try:
            work()
        except (StoreBusy, StoreFull) as error:
            log.error("%s", error)
            self._ending.wait(1)
