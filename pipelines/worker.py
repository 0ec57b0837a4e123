"""A worker: a process of its own that holds its checkpoints warm and reports on a few studies at a time.

Invariant: it writes into the folders that its tasks name and nowhere else, touches no database, and does not outlive
the watcher that started it. Each study has a thread, and what it raises ends no other; what ends the whole process
(memory, a library's crash, a study without end) is for `pipelines.runner` to tell whose it was. It runs the code that
`imgpipe infer` runs.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from imaging.errors import ImagingError, InputRefused, InternalFault, NothingFound, StudyFailed
from imaging.stages import listening, taking_turns
from pipelines.turns import Turns

if TYPE_CHECKING:
    from imaging.dicom.seg import SegType
    from imaging.dicom.stack import Policy
    from imaging.engines import Wanted
    from imaging.judgement import Explained
    from imaging.report.fhir import Version
    from pipelines.outputs import FhirPage

log = logging.getLogger(__name__)

# How often a worker says that it is alive, in seconds.
BEAT_S = 1.0
# prctl(2): the signal that the kernel sends to a process when its parent ends.
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Task:
    """One study to report on.

    Attributes
    ----------
    study_uid, files
        The study, and its files.
    job
        Its job's number.
    out
        An empty folder; the study's folder is made in it.
    version
        Of the study, from 1.
    replaces
        Version and SHA-256 of report.json of the result that this one stands in for.
    earlier
        The folder with that result; None where there is none, or it is gone.
    reporting
        How it is reported on; None is as the worker was started.
    """

    study_uid: str
    files: tuple[Path, ...]
    out: Path
    version: int = 1
    replaces: tuple[int, str] | None = None
    earlier: Path | None = None
    reporting: Reporting | None = None
    job: int = 0


@dataclass(frozen=True, slots=True)
class Ready:
    """The worker's checkpoints are warm; `setup` is the digest of all but the input that decides its outputs."""

    setup: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The worker is alive."""


@dataclass(frozen=True, slots=True)
class Waits:
    """A job begins to wait for another one of the same worker, or goes on."""

    job: int
    waits: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """A task has come to its end.

    Attributes
    ----------
    error
        Why there is no report.
    took
        How long each checkpoint took, in s.
    stages
        How long each stage (`imaging.stages`) took, in s, without waiting for its turn.
    job
        Whose it is; 0 where the worker could not start.
    """

    error: ImagingError | None = None
    took: Mapping[str, float] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    job: int = 0

    @property
    def is_refusal(self) -> bool:
        """Whether it is the study that was refused, which trying again would not mend."""
        return isinstance(self.error, InputRefused)


class Reader(Protocol):
    """Reports on studies, with its checkpoints in memory."""

    setup: str

    def __call__(self, task: Task) -> Mapping[str, float]:
        """Report on a study into the task's folder; gives how long each checkpoint took, in s.

        Raises
        ------
        ImagingError
            Where there is no report.
        """
        ...


class Reading(Protocol):
    """What a worker does; it is sent to the worker's process, and opened there."""

    def open(self) -> Reader:
        """Read the checkpoints."""
        ...


@dataclass(frozen=True, slots=True)
class Hiding:
    """A study is read as a copy under pseudonyms; the fields are those of `pipelines.routing.Deidentify`."""

    key: str
    modified_dates: bool = False
    clean_descriptors: bool = False
    patient_characteristics: bool = False
    device_identity: bool = False
    unsure_pixels: bool = False


@dataclass(frozen=True, slots=True)
class Reporting:
    """Reporting as `imgpipe infer` does it; the fields are that verb's, and `hiding` whether pseudonyms are read."""

    models: tuple[str, ...] = ()
    formats: tuple[str, ...] | None = None
    seg_type: SegType = "binary"
    fhir_version: Version = "r4"
    fhir_page: FhirPage = "hash"
    policy: Policy = "repair"
    explain: Explained = "abnormal"
    engine: Wanted = "auto"
    hiding: Hiding | None = None
    memory: str | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Reporting:
        """What was written as JSON."""
        models, formats, hiding = tuple(told["models"]), told["formats"], told["hiding"]
        formats = None if formats is None else tuple(formats)
        return cls(**{**told, "models": models, "formats": formats, "hiding": Hiding(**hiding) if hiding else None})

    def open(self) -> Reader:
        """Read the checkpoints; see `pipelines.infer.Inference` for what is raised."""
        from pipelines.warm import WarmReader

        return WarmReader((self,))


@dataclass(frozen=True, slots=True)
class ByRule:
    """Reporting as each task says; what was named at the start is in memory from the start.

    Attributes
    ----------
    first
        What was named; a task that says nothing is reported on by the first.
    most_bytes
        Of weights in a worker's memory; None is without bound.
    """

    first: tuple[Reporting, ...]
    most_bytes: int | None = None

    def open(self) -> Reader:
        """Read the checkpoints; see `Reporting.open`."""
        from pipelines.warm import WarmReader

        return WarmReader(self.first, self.most_bytes)


def why_not(problems: Sequence[ImagingError], study_uid: str) -> ImagingError:
    """Of all that was wrong with a study without a report, what decides whose turn it is."""
    faults = [problem for problem in problems if isinstance(problem, InternalFault)]
    # A disk that is full is nobody's data: it is tried again.
    others = [problem for problem in problems if not isinstance(problem, InputRefused)]
    unknown = NothingFound(f"study {study_uid}", seen="none of its files is of this study")
    return next(iter([*faults, *others, *reversed(problems)]), unknown)


def serve(
    pipe: Connection, reading: Reading, environment: dict[str, str], level: int, parent: int, at_once: int = 1
) -> None:
    """What the process does until its pipe is closed."""
    end_with(parent)
    # A service manager signals every process of the service; the watcher decides when this one ends.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(environment)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    speaking = threading.Lock()

    def say(what: Ready | Beat | Waits | Outcome) -> None:
        with speaking:
            pipe.send(what)

    def beat() -> None:
        while True:
            try:
                say(Beat())
            except OSError:
                return
            time.sleep(BEAT_S)

    threading.Thread(target=beat, daemon=True).start()
    # Where the watcher is gone there is nobody to tell.
    with suppress(EOFError, OSError):
        try:
            reader = reading.open()
        except ImagingError as error:
            say(Outcome(error))
            return
        say(Ready(reader.setup))
        # Threads that stay: libraries keep things for each thread that ever asked them for work.
        tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        turns = Turns()
        for number in range(at_once):
            threading.Thread(target=_work, args=(reader, tasks, turns, say), name=f"study{number}", daemon=True).start()
        while True:
            tasks.put(pipe.recv())


def _work(reader: Reader, tasks: queue.SimpleQueue[Task], turns: Turns, say: Callable[[Waits | Outcome], None]) -> None:
    """One study after another, each stage in its turn."""
    with suppress(OSError):
        while True:
            task = tasks.get()
            with listening() as stages, taking_turns(turns.of(partial(_tell_waiting, say, task.job))):
                outcome = _tried(reader, task)
            passed = {str(name): seconds for name, seconds in stages.seconds().items()}
            say(replace(outcome, stages=passed, job=task.job))


def _tell_waiting(say: Callable[[Waits | Outcome], None], job: int, waits: bool) -> None:
    say(Waits(job, waits))


def _tried(reader: Reader, task: Task) -> Outcome:
    try:
        return Outcome(took=reader(task))
    except ImagingError as error:
        # What it was raised from may not be sent, and is not needed any more.
        error.__cause__ = error.__context__ = None
        return Outcome(error.with_traceback(None))
    except Exception as error:  # its text may quote header values, so only its kind is told
        log.debug("traceback", exc_info=True)
        return Outcome(StudyFailed(f"study {task.study_uid}", seen=type(error).__name__))


def end_with(parent: int) -> None:
    """Be killed by the kernel when the watcher ends, however it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


@dataclass(slots=True)
class Worker:
    """The watcher's side of one worker.

    Parameters
    ----------
    name
        Told in leases and logs.
    reading
        What it does.
    environment
        Variables of its own, such as the device that it may see.
    at_once
        How many tasks it works on at a time.

    Attributes
    ----------
    setup
        As `Ready` has it; empty until the worker is ready.
    last_sign
        When it last said anything, by the monotonic clock.
    """

    name: str
    reading: Reading
    environment: dict[str, str] = field(default_factory=dict)
    at_once: int = 1
    setup: str = ""
    last_sign: float = 0.0
    _process: Any = None
    _pipe: Connection | None = None

    def start(self) -> None:
        """Start the process; call it from the thread that lives as long as the worker should."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        level = logging.getLogger().getEffectiveLevel()
        arguments = (other, self.reading, self.environment, level, os.getpid(), self.at_once)
        self._process = spawn.Process(target=serve, args=arguments, name=self.name, daemon=True)
        self._process.start()
        other.close()
        self.setup, self.last_sign = "", time.monotonic()

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.is_alive()

    def send(self, task: Task) -> None:
        """Give it a task; it has fewer than it works on at a time.

        Raises
        ------
        OSError
            If it has ended meanwhile.
        """
        assert self._pipe is not None
        self._pipe.send(task)

    def heard(self) -> list[Waits | Outcome]:
        """Take what it has said of its tasks; the outcome of its start, if that went wrong, is of no job."""
        told: list[Waits | Outcome] = []
        try:
            while self._pipe is not None and self._pipe.poll():
                said = self._pipe.recv()
                self.last_sign = time.monotonic()
                if isinstance(said, Ready):
                    self.setup = said.setup
                elif isinstance(said, Waits | Outcome):
                    told.append(said)
        except (EOFError, OSError):  # it has ended; what it said before counts
            pass
        return told

    def waits_on(self) -> list[Any]:
        """What to wait on for news of it."""
        return [self._pipe, self._process.sentinel] if self.is_alive else []

    def exit_code(self) -> int | None:
        """How its process ended; a negative one is a signal's."""
        return self._process.exitcode if self._process is not None else None

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process.close()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        self.setup = ""
