"""The watcher: instances in, each study reported once, results out, for months.

Invariant: no study is lost, none is reported twice, no output is half written. All that must survive is in the store;
whatever ends this process, the next one goes on from there. Told to end, it takes nothing new, finishes what it is
doing within a time limit, and gives the rest back.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from imaging.errors import ConfigInvalid, DeliveryFailed, NothingFound, OutputMismatch, StoreBusy, StoreFull
from imaging.files import sync_folder
from pipelines.delivery import Destination, Outbox, read_back, reason_of
from pipelines.inbox import Inbox
from pipelines.runner import Patience, Runner
from pipelines.store import Store
from pipelines.store.content import discard
from pipelines.store.moves import State
from pipelines.store.rules import Completeness, Retries
from pipelines.worker import Reading

if TYPE_CHECKING:
    from pipelines.receive import Listening

log = logging.getLogger(__name__)

# How often the store is looked through, in seconds, when nothing tells of news.
_TICK_S = 0.2
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
    drain_s
        How long, once told to end, it goes on with what it is doing.
    """

    complete: Completeness = field(default_factory=Completeness)
    retries: Retries = field(default_factory=Retries)
    redeliveries: Retries = field(default_factory=lambda: Retries(most=20))
    patience: Patience = field(default_factory=Patience)
    settle_s: float = 2.0
    poll_s: float | None = None
    drain_s: float = 60.0


class Listener(Protocol):
    """Receives instances from when it is entered until it is told to stop; `pipelines.receive.Receiver` is one."""

    def __enter__(self) -> object: ...

    def __exit__(self, *_: object) -> None: ...

    def stop(self, grace_s: float) -> None:
        """Take no more associations, and give those that are there so long to end."""
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
    devices
        As `Runner` takes them.
    rules
        See there.
    """

    def __init__(
        self,
        store: Store,
        reading: Reading,
        destinations: Sequence[Destination],
        *,
        inbox: Path | None = None,
        receiver: Listener | None = None,
        devices: Sequence[dict[str, str]] = ({},),
        rules: Rules | None = None,
    ) -> None:
        self._store, self._rules = store, rules or Rules()
        self._destinations, self._receiver = tuple(destinations), receiver
        self._runner = Runner(
            store, reading, devices=devices, patience=self._rules.patience, retries=self._rules.retries
        )
        self._inbox = None
        if inbox is not None:
            self._inbox = Inbox(inbox, store, settle_s=self._rules.settle_s, poll_s=self._rules.poll_s)
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
        self._hold_what_has_nowhere_to_go()
        works: list[Callable[[], None]] = [self._verify_all]
        works += [lambda to=destination: self._deliver_to(to) for destination in self._destinations]  # type: ignore[misc]
        threads = [threading.Thread(target=self._keep_on, args=(work,), daemon=True) for work in works]
        if self._inbox is not None:
            threads.append(threading.Thread(target=self._guarded, args=(self._inbox.run, self._taking), daemon=True))
        for thread in threads:
            thread.start()
        try:
            with self._receiver or nullcontext():
                while not stop.is_set() and self._failure is None:
                    self._patiently(self._tick)
                    self._runner.wait(_TICK_S)
                self._taking.set()
                if self._receiver is not None:
                    self._receiver.stop(min(_LAST_WORDS_S, self._rules.drain_s))
            self._drain()
        finally:
            self._taking.set()
            self._ending.set()
            self._runner.stop()
            for thread in threads:
                thread.join(self._rules.drain_s)
        if self._failure is not None:
            raise self._failure

    def _tick(self) -> None:
        self._store.jobs.settle(self._rules.complete)
        self._store.purge()
        self._runner.tick()

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
                result = read_back(written / job.study_uid, job.study_uid, job.version)
                sync_folder(written)
                sync_folder(written.parent)
            except OutputMismatch as error:
                log.error("job %d: %s", job.id, error)
                self._store.jobs.give_up(job, error, self._rules.retries)
                discard(self._store.result_of(job))
                continue
            names = [destination.name for destination in self._destinations]
            self._store.jobs.verified(job, result.report_sha256, names, outputs=result.dicom)

    def _deliver_to(self, destination: Destination) -> None:
        """Bring there what is due."""
        for delivery in self._store.jobs.deliveries(waiting_at=destination.name):
            job = self._store.jobs.find(str(delivery.job))
            try:
                result = read_back(self._store.result_of(job) / job.study_uid, job.study_uid, job.version)
                destination.deliver(result)
            except (StoreBusy, StoreFull):
                raise
            except Exception as error:
                told = reason_of(error, destination.name)
                log.debug("traceback", exc_info=True)
                log.warning("job %d: %s", job.id, told)
                self._store.jobs.undelivered(job.id, destination.name, told, self._rules.redeliveries)
            else:
                self._store.jobs.delivered(job.id, destination.name)
                log.info("job %d: study %s is at %s", job.id, job.study_uid, destination.name)

    def _keep_on(self, work: Callable[[], None]) -> None:
        """Do a work again and again until the end."""

        def again() -> None:
            while not self._ending.is_set():
                self._patiently(work)
                self._ending.wait(_TICK_S)

        self._guarded(again)

    def _guarded(self, work: Callable[..., None], *arguments: object) -> None:
        """A thread that fails ends the watcher, and does not leave it half alive."""
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 raised by `run`
            self._failure = self._failure or error

    def _patiently(self, work: Callable[[], None]) -> None:
        """Do a work; where the store cannot be written now it is done later."""
        try:
            work()
        except (StoreBusy, StoreFull) as error:
            log.error("%s", error)
            self._ending.wait(1)


def devices() -> list[dict[str, str]]:
    """Environment variables for a worker on each GPU, or for one on the CPU; asks the driver and no torch."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible is not None else [str(number) for number in range(len(found))]
    return [{"CUDA_VISIBLE_DEVICES": name} for name in names if name] or [{}]


def watch(
    *,
    inbox: Path | None,
    outbox: Path,
    store: Path,
    reading: Reading,
    stop: threading.Event,
    listening: Listening | None = None,
    devices: Sequence[dict[str, str]] = ({},),
    rules: Rules | None = None,
) -> dict[str, int]:
    """Take in studies from a folder and from the network, and report on each of them.

    Parameters
    ----------
    inbox
        Files that are put in here are taken; made if it is not there.
    outbox
        A folder for each study appears in here.
    store
        Where the watcher keeps all that it has and knows.
    reading
        What is done with a study.
    stop
        Set it, from a signal handler, to end.
    listening
        Where to listen for C-STORE, and to whom.
    devices, rules
        As `Watcher` takes them.

    Returns
    -------
    dict of int
        How many jobs there are in the end, by state.

    Raises
    ------
    ConfigInvalid
        If there is nowhere for studies to come from.
    ImagingError
        If the store is in use or damaged, the address cannot be listened on, or the workers cannot start.
    """
    if inbox is None and listening is None:
        raise ConfigInvalid("imgpipe watch", seen="neither --inbox nor --listen",
                            expected="somewhere for studies to come from was expected")  # fmt: skip
    if inbox is not None:
        try:
            inbox.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NothingFound(inbox, seen=f"cannot be made ({error.strerror})") from error
    with Store(store, watching=True) as opened:
        place = Outbox(outbox, owner=str(store.resolve()))
        place.sweep()
        receiver = None
        if listening is not None:
            from pipelines.receive import Receiver

            receiver = Receiver(listening, opened, folder=opened.root, holds=opened.holds)
        watcher = Watcher(opened, reading, [place], inbox=inbox, receiver=receiver, devices=devices, rules=rules)
        watcher.run(stop)
        return dict(Counter(str(job.state) for job in opened.jobs.all()))
