"""The store of one watcher: takes instances in, and opens a job for each study that has news.

Invariant: see `pipelines.store`; how an instance is kept for good is in `pipelines.store.taking`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from imaging.dicom.attributes import read_facts
from imaging.dicom.values import is_uid
from imaging.errors import (
    InputRefused,
    InstancesPurged,
    InvalidUid,
    MissingAttribute,
    StoreFull,
    StoreInUse,
)
from pipelines.store.arrivals import Arrival, tell
from pipelines.store.clock import Clock
from pipelines.store.content import Contents, discard
from pipelines.store.database import PATIENCE_S, Database
from pipelines.store.intake import Received
from pipelines.store.jobs import Jobs
from pipelines.store.keeping import Keeping
from pipelines.store.routes import Routes
from pipelines.store.steps import forget
from pipelines.store.taking import Taking
from pipelines.store.view import Job
from pipelines.store.waiting import Waiting
from pipelines.store.workitems import Workitems

DATABASE, _LOCK = "store.sqlite", "watcher.lock"


class Store:
    """The store in a folder.

    Parameters
    ----------
    root
        The folder; made if it is not there.
    watching
        Whether this is the watcher, of which there is one: it sweeps what a crash has left. Others look and ask.
    patience_s
        How long another program's hold on the database is waited for.

    Raises
    ------
    StoreInUse
        If there is a watcher already.
    StoreFull, StoreBusy, StoreDamaged
        If the store cannot be used.
    """

    def __init__(self, root: Path, *, watching: bool = False, patience_s: float = PATIENCE_S) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreFull(root, seen=error.strerror or "cannot be made") from error
        self._lock = _lock(root) if watching else None
        try:
            self.contents = Contents(root)
            self.database = Database(root / DATABASE, checked=watching, patience_s=patience_s)
        except BaseException:
            self._unlock()
            raise
        try:
            self.clock = Clock(self.database)
            self.jobs = Jobs(self.database, self.clock)
            self.routes, self.keeping = Routes(self.database), Keeping(self.database, self.clock)
            self.waiting, self.workitems = Waiting(self.database), Workitems(self.database)
            self._taking = Taking(self.contents, self.database, self.clock)
            self.jobs.is_coming = self._taking.is_coming
            if watching:
                self._taking.make_sure()
                self._sweep()
        except BaseException:
            self.close()
            raise

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
        """Keep one instance for good; see `Intake.put`."""
        uids = {"SOPInstanceUID": sop_instance_uid, "SOPClassUID": sop_class_uid, "SeriesInstanceUID": series_uid,
                "StudyInstanceUID": study_uid, "TransferSyntaxUID": transfer_syntax}  # fmt: skip
        for keyword, uid in uids.items():
            if not is_uid(uid):
                raise InvalidUid(source, seen=f"{keyword} is {'empty' if not uid else 'not a UID'}")
        staged = self.contents.write(data, study_uid, sop_instance_uid, transfer_syntax)
        return self._taking.take(
            staged,
            Arrival(study_uid, series_uid, sop_instance_uid, sop_class_uid, transfer_syntax, staged.digest, staged.size,
                    source),
        )  # fmt: skip

    def take(self, path: Path, *, source: str) -> Received:
        """Move a file in: its bytes are read once, kept, and the file is removed.

        What no study can have is moved to `refused` and told in the events.

        Parameters
        ----------
        path
            A DICOM file that nobody writes any more.
        source
            As `put` takes it.

        Raises
        ------
        InputRefused
            If it is no DICOM file of a study; it is gone from its place nonetheless.
        UnreadableDicom
            If it cannot be opened; it stays where it is.
        StoreFull, StoreBusy
            If it cannot be kept; it stays where it is.
        """
        temporary = self.contents.copy(path)
        try:
            facts = read_facts(temporary)
            for keyword in ("study_uid", "series_uid"):
                if not getattr(facts.instance, keyword):
                    raise MissingAttribute(temporary, seen=f"{keyword} is missing or empty")
        except InputRefused as error:
            told = self._set_aside(temporary, [error], source)
            path.unlink(missing_ok=True)
            raise told from error
        found, syntax = facts.instance, facts.instance.pixels.transfer_syntax
        staged = self.contents.stage(temporary, found.study_uid, found.sop_instance_uid, syntax)
        received = self._taking.take(
            staged,
            Arrival(found.study_uid, found.series_uid, found.sop_instance_uid, found.sop_class_uid, syntax,
                    staged.digest, staged.size, source),
        )  # fmt: skip
        path.unlink(missing_ok=True)
        return received

    def refuse(self, path: Path, errors: Sequence[InputRefused], *, source: str) -> InputRefused:
        """Move a file that no study can have to `refused`, and tell why in the events.

        Parameters
        ----------
        path
            The file.
        errors
            Each is told; at least one.
        source
            As `put` takes it.

        Returns
        -------
        InputRefused
            The first of them, about the file by the name that it has now.

        Raises
        ------
        StoreFull, StoreBusy, UnreadableDicom
            If it cannot be moved; it stays where it is.
        """
        told = self._set_aside(self.contents.copy(path), errors, source)
        path.unlink(missing_ok=True)
        return told

    def _set_aside(self, temporary: Path, errors: Sequence[InputRefused], source: str) -> InputRefused:
        name = self.contents.set_aside(temporary)
        told = [type(error)(f"file {name[:16]}", seen=error.seen, expected=error.expected, remedy=error.remedy)
                for error in errors]  # fmt: skip
        with self.database.writing() as db:
            for error in told:
                tell(db, "file_refused", detail={"file": name, "source": source, **error.as_dict()})
        return told[0]

    def holds(self, sop_instance_uid: str) -> str | None:
        """The SOP class of an instance that is durable here; none where there is no such instance."""
        return self._class_of(sop_instance_uid, "AND kept") if self._taking.is_sure(sop_instance_uid) else None

    def knows(self, sop_instance_uid: str) -> str | None:
        """The same of an instance that was ever taken, even if its bytes were purged since."""
        return self._class_of(sop_instance_uid, "")

    def _class_of(self, sop_instance_uid: str, more: str) -> str | None:
        rows = self.database.read(
            f"SELECT sop_class_uid FROM instances WHERE sop_instance_uid = ? {more} LIMIT 1",  # noqa: S608
            [sop_instance_uid],
        )
        return str(rows[0]["sop_class_uid"]) if rows else None

    def files(self, job: Job) -> list[Path]:
        """The files that a job is made of.

        Raises
        ------
        InstancesPurged
            If some of them are gone.
        """
        members = self.jobs.members(job)
        gone = sum(not member.kept for member in members)
        if gone:
            raise InstancesPurged(f"study {job.study_uid}", seen=f"{gone} of {len(members)} instances were purged")
        return [self.contents.file_of(job.study_uid, member.digest) for member in members]

    def result_of(self, job: Job) -> Path:
        """The folder that the worker of a job writes into; each time that it is begun another one."""
        return self.contents.results / f"{job.id}.{job.starts}"

    def purge(self) -> list[str]:
        """Remove the bytes of studies for which `Jobs.ask_purge` asked; only the watcher may. Rows and events stay.

        Returns
        -------
        list of str
            Their UIDs. A study that has had news since it was asked is left as it is.
        """
        purged = []
        self._taking.mend()
        with self._taking.paused():
            for row in self.database.read("SELECT study_uid FROM studies WHERE purge = 1"):
                study_uid = row["study_uid"]
                with self.database.writing() as db:
                    results = forget(db, study_uid)
                if results is not None:
                    for folder in (self.contents.folder_of(study_uid), *map(self.contents.results.joinpath, results)):
                        discard(folder)
                    purged.append(study_uid)
        return purged

    def purge_refused(self, older_s: float) -> int:
        """Remove files that no study can have and that have been here for longer; gives how many.

        Their age is told by the wall clock, for the disk knows no other.
        """
        gone = self.contents.discard_refused(older_s)
        if gone:
            with self.database.writing() as db:
                tell(db, "refused_purged", detail={"files": gone})
        return gone

    def _sweep(self) -> None:
        studies = [row["study_uid"] for row in self.database.read("SELECT study_uid FROM studies")]
        with_outputs = self.database.read(
            "SELECT id, starts FROM jobs WHERE state = 'verifying' OR id IN (SELECT job FROM results)"
        )
        results = {f"{row['id']}.{row['starts']}" for row in with_outputs}
        self.contents.sweep(studies, self._digests_of, results)

    def _digests_of(self, study_uid: str) -> set[str]:
        rows = self.database.read("SELECT digest FROM instances WHERE study_uid = ? AND kept", [study_uid])
        return {row["digest"] for row in rows}

    def close(self) -> None:
        """Let go of the store."""
        self.database.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock(root: Path) -> int:
    """Be the one watcher; the kernel lets go when the process ends, however it ends."""
    descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StoreInUse(root, seen="another process holds it") from error
    return descriptor
