"""From bytes under a temporary name to an instance that is kept for good: one wait for the disk, shared by all.

Invariant: when `Taking.take` returns, the bytes, their name and their row are on disk; when it raises, nothing of the
instance is kept.

File, folder and row are waited for at once, since the file system writes its journal once for all three, and instances
that come at once from several threads share one transaction. So after a power cut any of the three may be there without
the others. That is sound:

- Nothing is acknowledged before all three are there. What is acknowledged needs no mending.
- A file without a row was never acknowledged. It is removed at the next start, and the sender sends it again.
- A row without its file, or with half of it, was never acknowledged either. It is taken back at the next start. Which
  rows to look at is told by the mark: each transaction writes down through which row all files are known to be on disk.
  Rows up to the mark are never looked at; of those behind it the file is read and compared with its digest, which names
  it. The mark grows only after a wait that went well, so no row whose file may be missing is ever below it.
- The name is given before the row is written. If the process is killed, and the machine is not, the kernel keeps
  both bytes and name, so a row without a file cannot come of a kill.
- If the disk fails while the process lives, the row is taken back at once; if that fails, too, the mark stays where it
  is, and the next start does it.
- Nobody acts on a row before its file is on disk: its study is not complete (`Jobs.settle`), it is not committed to
  (`Store.holds`), and who sends the same at the same time is answered as the first is.
- Bytes that come again after a purge have a row already, maybe below the mark. There the file is waited for first.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from imaging.errors import ImagingError, StoreBusy, StoreFull
from pipelines.store.arrivals import Arrival, is_purged, record, withdraw
from pipelines.store.clock import Clock
from pipelines.store.content import Contents, OnItsWay, Staged, discard
from pipelines.store.database import Database
from pipelines.store.intake import Received


@dataclass(slots=True, eq=False)
class _Pending:
    """An instance that has its name.

    Attributes
    ----------
    on_its_way
        Its file and its name, which are not known to be on disk.
    received, error
        What became of its row.
    settled
        Whether that is known.
    mark
        Through which row all files were known to be on disk when its own was written.
    leans_on
        Who has brought the same before, and is not through.
    ended, sure
        Whether anybody works on it any more, and whether it is kept for good.
    """

    staged: Staged
    arrival: Arrival
    on_its_way: OnItsWay
    received: Received | None = None
    error: Exception | None = None
    settled: bool = False
    mark: int = 0
    leans_on: _Pending | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    sure: bool = False


class Taking:
    """Takes the instances of one store in.

    Parameters
    ----------
    contents, database, clock
        Of the store.
    """

    def __init__(self, contents: Contents, database: Database, clock: Clock) -> None:
        self._contents, self._database, self._clock = contents, database, clock
        self._waiting: list[_Pending] = []
        # Those with a row whose file is not known to be on disk, by the file.
        self._unsure: dict[Path, _Pending] = {}
        self._queueing, self._settling = threading.Lock(), threading.Lock()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile no row is written and none taken back."""
        with self._settling:
            yield

    def is_coming(self, study_uid: str) -> bool:
        """Whether there are rows of a study whose files are not known to be on disk."""
        with self._queueing:
            return any(item.arrival.study_uid == study_uid for item in self._unsure.values())

    def is_sure(self, sop_instance_uid: str) -> bool:
        """Whether the file of an instance that has a row is on disk."""
        with self._queueing:
            return all(item.arrival.sop_instance_uid != sop_instance_uid for item in self._unsure.values())

    def take(self, staged: Staged, arrival: Arrival) -> Received:
        """Keep an instance.

        Parameters
        ----------
        staged
            Its bytes; they are gone from their temporary place afterwards, whatever happens.
        arrival
            What it is.

        Raises
        ------
        StoreFull, StoreBusy
            If it cannot be kept.
        """
        try:
            mine = _Pending(staged, arrival, self._contents.place(staged))
        except StoreFull:
            with self._settling:
                self._clear(staged, arrival)
            raise
        try:
            self._settle(mine)
            self._finish(mine)
        finally:
            mine.ended.set()
        if mine.error is not None:
            raise mine.error
        assert mine.received is not None
        return mine.received

    def _settle(self, mine: _Pending) -> None:
        with self._queueing:
            self._waiting.append(mine)
        with self._settling:
            # Whoever comes first takes all that wait along.
            if not mine.settled:
                self._record_all()

    def _record_all(self) -> None:
        """Write the rows of all that wait, in one transaction."""
        with self._queueing:
            batch, self._waiting = self._waiting, []
        try:
            with self._database.writing() as db:
                mark = self._mark(db)
                now = self._clock.now()
                told = [(item, self._record(db, item, now, mark)) for item in batch]
            for item, received in told:
                item.received = received
        except Exception as error:  # noqa: BLE001 each `take` raises it in its own thread
            for item in batch:
                item.error = error
        finally:
            for item in batch:
                item.settled = True
                if item.received is None:
                    item.error = item.error or StoreBusy(self._contents.root, seen="the watcher was interrupted")
                    self._is_over(item)

    def _mark(self, db: sqlite3.Connection) -> int:
        """Write down through which row all files are on disk."""
        [last] = db.execute("SELECT coalesce(max(seq), 0) FROM instances").fetchone()
        with self._queueing:
            mark = min([int(last), *(item.mark for item in self._unsure.values())])
        db.execute("UPDATE sure SET through = ?", [mark])
        return mark

    def _record(self, db: sqlite3.Connection, item: _Pending, now: float, mark: int) -> Received | None:
        final = item.staged.final
        # Somebody else's failed attempt at the same file, or a purge, may have taken it away.
        if not final.exists():
            item.error = StoreBusy(self._contents.root, seen="a file that was removed while it was taken in")
            return None
        if is_purged(db, item.arrival):
            try:
                item.on_its_way.wait()
            except StoreFull as error:
                item.error = error
                return None
        received = record(db, item.arrival, now)
        with self._queueing:
            if received is Received.SAME:
                item.leans_on = self._unsure.get(final)
            else:
                item.mark, self._unsure[final] = mark, item
        return received

    def _finish(self, mine: _Pending) -> None:
        """Wait for the disk; where it fails, or anything did before, leave nothing of the instance."""
        try:
            mine.on_its_way.wait()
        except StoreFull as error:
            mine.error = mine.error or error
        if mine.leans_on is not None:
            mine.leans_on.ended.wait()
            if not mine.leans_on.sure:
                mine.error = mine.error or StoreBusy(self._contents.root, seen="the same instance, which was not taken")
        if mine.error is None:
            self._is_over(mine)
            mine.sure = True
            return
        with self._settling, suppress(ImagingError):  # what cannot be done now is done by `mend`, or at the next start
            self._take_back(mine)

    def _take_back(self, item: _Pending) -> None:
        discard(item.staged.temporary)
        about = item.arrival
        if self._unsure.get(item.staged.final) is item:
            with self._database.writing() as db:
                withdraw(db, about.study_uid, about.sop_instance_uid, about.digest)
            self._is_over(item)
        self._clear(item.staged, about)

    def _clear(self, staged: Staged, arrival: Arrival) -> None:
        """Remove the file of an instance that was not taken, unless the same one was taken before."""
        discard(staged.temporary)
        rows = self._database.read(
            "SELECT 1 FROM instances WHERE study_uid = ? AND digest = ? AND kept", [arrival.study_uid, arrival.digest]
        )
        if not rows:
            discard(staged.final)

    def _is_over(self, item: _Pending) -> None:
        with self._queueing:
            if self._unsure.get(item.staged.final) is item:
                del self._unsure[item.staged.final]

    def mend(self) -> None:
        """Take back what could not be taken back when its file failed.

        Raises
        ------
        StoreFull, StoreBusy
            If the store cannot be written now, either.
        """
        with self._settling:
            with self._queueing:
                left = [item for item in self._unsure.values() if item.ended.is_set()]
            for item in left:
                self._take_back(item)

    def make_sure(self) -> int:
        """Take back the rows whose files a power cut has kept from the disk; only before anything is taken in.

        Returns
        -------
        int
            How many there were.
        """
        rows = self._database.read(
            "SELECT seq, study_uid, sop_instance_uid, transfer_syntax, digest FROM instances"
            " WHERE seq > (SELECT through FROM sure) AND kept ORDER BY seq"
        )
        lost = [row for row in rows if not self._contents.is_whole(*tuple(row)[1:])]
        with self._database.writing() as db:
            for row in lost:
                withdraw(db, row["study_uid"], row["sop_instance_uid"], row["digest"])
            db.execute("UPDATE sure SET through = (SELECT coalesce(max(seq), 0) FROM instances)")
        return len(lost)
