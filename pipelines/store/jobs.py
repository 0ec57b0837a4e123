"""The moves of jobs, each one transaction.

Invariant: a move is made by whoever may make it and from where it may be made, or not at all: out of `running` only by
the holder of the lease, so that a worker that was given up can change nothing any more; a study has one current result,
and an older version never takes the place of a newer one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass

from imaging.errors import IllegalMove, ImagingError, InterruptedTooOften, UnknownJob
from pipelines.store.arrivals import tell
from pipelines.store.clock import Clock
from pipelines.store.content import job_name
from pipelines.store.database import Database
from pipelines.store.moves import RESTING, State
from pipelines.store.rules import Completeness, Judged, Retries
from pipelines.store.steps import as_json, get, is_held, make_ready, members_of, move
from pipelines.store.view import JOBS, Delivery, Event, Job, Triage, delivery_of, event_of, job_of

_NEXT = (
    "SELECT id FROM jobs AS mine WHERE state = 'ready' AND due <= ? AND (NOT ? OR route IS NOT NULL)"
    " AND NOT EXISTS (SELECT 1 FROM jobs WHERE study_uid = mine.study_uid AND id < mine.id"
    " AND state IN ('ready', 'running', 'verifying', 'delivering'))"
    " ORDER BY priority DESC, id LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Standing:
    """The current result of a study: its version, the SHA-256 of its report.json, and the number of its job."""

    version: int
    report_sha256: str
    job: int


@dataclass(frozen=True, slots=True)
class Member:
    """An instance of a job: its SOPInstanceUID, digest, size in bytes, and whether its bytes are still here."""

    sop_instance_uid: str
    digest: str
    size: int
    kept: bool


class Jobs:
    """The jobs of one store.

    Parameters
    ----------
    database, clock
        Of the store.

    Attributes
    ----------
    is_coming
        Whether a study has instances that are not known to be on disk; its job waits for them.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database, self._clock = database, clock
        self.is_coming: Callable[[str], bool] = lambda _: False

    # ------------------------------------------------------------------------------------------------------- looking

    def all(self, states: Iterable[State] = ()) -> list[Job]:
        """Jobs by their number, of some states or of all."""
        wanted = [str(state) for state in states or State]
        marks = ", ".join("?" * len(wanted))
        rows = self._database.read(f"{JOBS} WHERE state IN ({marks}) ORDER BY jobs.id", wanted)
        return [job_of(row) for row in rows]

    def find(self, name: str) -> Job:
        """A job by its number, by the beginning of its name, or the last one of a study by its StudyInstanceUID.

        Raises
        ------
        UnknownJob
            If there is none, or the beginning is that of several.
        """
        rows = self._database.read(f"{JOBS} WHERE jobs.study_uid = ? ORDER BY jobs.id DESC LIMIT 1", [name])
        if not rows and name.isdecimal() and len(name) < 18:
            rows = self._database.read(f"{JOBS} WHERE jobs.id = ?", [int(name)])
        if not rows and len(name) >= 6:
            rows = self._database.read(f"{JOBS} WHERE substr(jobs.name, 1, ?) = ?", [len(name), name])
        if len(rows) != 1:
            raise UnknownJob(name, seen="no such job" if not rows else f"the names of {len(rows)} jobs begin so")
        return job_of(rows[0])

    def events(self, job: int | None = None, *, after: int = 0, most: int = 1000) -> list[Event]:
        """What happened, to one job or at all, after the event of this number."""
        rows = self._database.read(
            "SELECT * FROM events WHERE seq > :after AND (:job IS NULL OR job = :job) ORDER BY seq LIMIT :most",
            {"after": after, "job": job, "most": most},
        )
        return [event_of(row) for row in rows]

    def members(self, job: Job) -> list[Member]:
        """What the job is made of; while instances are awaited, what is there."""
        rows = members_of(self._database.read, job)
        return [Member(row["sop_instance_uid"], row["digest"], row["size"], bool(row["kept"])) for row in rows]

    def standing(self, study_uid: str) -> Standing | None:
        """The current result of a study."""
        rows = self._database.read(
            "SELECT number, report_sha256, job FROM results JOIN jobs ON jobs.id = results.job"
            " JOIN versions ON versions.id = jobs.version WHERE results.study_uid = ? AND current",
            [study_uid],
        )
        return Standing(rows[0]["number"], rows[0]["report_sha256"], rows[0]["job"]) if rows else None

    def deliveries(self, job: int | None = None, *, waiting_at: str | None = None) -> list[Delivery]:
        """Deliveries of a job, or those that wait for one destination and are due."""
        rows = self._database.read(
            "SELECT deliveries.*, jobs.study_uid FROM deliveries JOIN jobs ON jobs.id = deliveries.job"
            " WHERE (:job IS NULL OR job = :job) AND (:waiting IS NULL OR (destination = :waiting AND NOT confirmed"
            " AND state = 'delivering' AND deliveries.due <= :now)) ORDER BY priority DESC, job, destination",
            {"job": job, "waiting": waiting_at, "now": self._clock.now()},
        )
        return [delivery_of(row) for row in rows]

    # -------------------------------------------------------------------------------------------------- to the worker

    def settle(
        self,
        rule: Completeness,
        *,
        expected: Callable[[str], int | None] = lambda _: None,
        judge: Callable[[str], Judged] | None = None,
    ) -> list[Job]:
        """Move studies that are complete from `receiving` to `ready`.

        Parameters
        ----------
        rule
            When a study is complete; where it is judged by others, before when none is.
        expected
            How many instances a study should have, by its UID; None where nobody knows.
        judge
            When a study is complete, by its UID.
        """
        now = self._clock.now()
        rows = self._database.read(
            "SELECT jobs.id, jobs.study_uid, opened, last_arrival, (SELECT count(*) FROM instances"
            " WHERE instances.study_uid = jobs.study_uid AND stands) AS instances FROM jobs"
            " WHERE state = 'receiving' AND (last_arrival <= ? OR opened <= ?)",
            [now - rule.shortest_s(), now - rule.timeout_s],
        )
        moved = []
        for row in rows:
            if self.is_coming(row["study_uid"]):
                continue
            wanted = expected(row["study_uid"])
            judged = judge(row["study_uid"]) if judge is not None else Judged(rule)
            why = judged.rule.why(waited_s=now - row["opened"], quiet_s=now - row["last_arrival"],
                           instances=row["instances"], expected=wanted, lacks=judged.lacks)  # fmt: skip
            if why is None:
                continue
            sent = self._database.read("SELECT DISTINCT source FROM instances WHERE study_uid = ? AND stands LIMIT 20",
                                       [row["study_uid"]])  # fmt: skip
            detail = {"why": why, "instances": row["instances"], "expected": wanted,
                      "sources": sorted(item["source"] for item in sent)}  # fmt: skip
            with self._database.writing() as db:
                job = get(db, row["id"])
                # Something may have come since, or a person may have let it go.
                seen = db.execute("SELECT last_arrival FROM jobs WHERE id = ?", [job.id]).fetchone()["last_arrival"]
                if job.state is State.RECEIVING and seen == row["last_arrival"]:
                    tell(db, "study_complete", study_uid=job.study_uid, job=job.id, detail=detail)
                    moved.append(make_ready(db, job))
        return moved

    def claim(self, holder: str, setup: str, *, routed: bool = False, later: Collection[int] = ()) -> Job | None:
        """Lease the next job: of those that are due the one of the greatest priority, and of these the oldest.

        A version of a study waits until the ones before it are through. The order is that of priorities, and then that
        in which studies began to arrive.

        Parameters
        ----------
        holder
            Who is going to run it.
        setup
            Digest of everything but the input that decides the output; a part of the job's name.
        routed
            Whether only those are leased of which the rules have decided.
        later
            Numbers of jobs that are not leased now; where one of them is next, nothing is.
        """
        now = self._clock.now()
        # Most of the time there is none, and to find that out nobody need wait for a transaction.
        waiting = self._database.read(_NEXT, [now, routed])
        if not waiting or waiting[0]["id"] in later:
            return None
        with self._database.writing() as db:
            row = db.execute(_NEXT, [now, routed]).fetchone()
            if row is None or row["id"] in later:
                return None
            job = get(db, row["id"])
            members = members_of(lambda query, values: db.execute(query, values).fetchall(), job)
            made_of = [[row["sop_instance_uid"], row["digest"]] for row in members]
            order = dict(job.route.order) if job.route is not None else None
            name = job_name(setup, made_of, *(() if order is None else (order,)))
            db.execute("UPDATE jobs SET name = ?, starts = starts + 1 WHERE id = ?", (name, job.id))
            move(db, job, State.RUNNING, holder=holder)
            return get(db, job.id)

    def beat(self, holders: Sequence[str]) -> None:
        """Say that these holders are alive."""
        if holders:
            with self._database.writing() as db:
                db.executemany("UPDATE jobs SET beat = beat + 1 WHERE holder = ?", [(holder,) for holder in holders])

    def recover(self, retries: Retries) -> list[Job]:
        """Take back what an earlier watcher was running when it ended; only the one watcher of the store may ask.

        It is no fault of the job, so it is tried again at once; but a job during which it ended too often may be
        what ends it, and goes into quarantine.
        """
        back = []
        with self._database.writing() as db:
            for row in db.execute(f"{JOBS} WHERE state = 'running'").fetchall():
                job = job_of(row)
                times = row["interruptions"] + 1
                db.execute("UPDATE jobs SET interruptions = ? WHERE id = ?", (times, job.id))
                if times >= retries.most_interruptions:
                    error = InterruptedTooOften(f"study {job.study_uid}", seen=f"interrupted {times} times")
                    move(db, job, State.QUARANTINED, reason=error)
                else:
                    move(db, job, State.READY)
                back.append(get(db, job.id))
        return back

    # ------------------------------------------------------------------------------------------------ from the worker

    def ran(self, job: Job, took: Mapping[str, float] | None = None, stages: Mapping[str, float] | None = None) -> bool:
        """Outputs were written; gives False where the lease was lost meanwhile, and then they count for nothing.

        Parameters
        ----------
        job
            In `running`.
        took
            How long each checkpoint took, in s.
        stages
            How long each stage of its way through the worker took, in s.
        """
        with self._database.writing() as db:
            if not is_held(db, job):
                return False
            for code, counted in (("models_asked", took), ("stages_passed", stages)):
                if counted:
                    detail = {name: round(seconds, 3) for name, seconds in counted.items()}
                    tell(db, code, study_uid=job.study_uid, job=job.id, detail=detail)
            move(db, job, State.VERIFYING)
            return True

    def refuse(self, job: Job, error: ImagingError) -> bool:
        """The study itself was refused, and would be again; gives False where the lease was lost."""
        with self._database.writing() as db:
            if not is_held(db, job):
                return False
            move(db, job, State.FAILED, reason=error)
            return True

    def give_up(self, job: Job, error: ImagingError, retries: Retries) -> bool:
        """Something went wrong with it: once more, after a while, or into quarantine; False where the lease was lost.

        A job in `verifying` has no holder; it is the watcher's own.
        """
        with self._database.writing() as db:
            if not is_held(db, job):
                return False
            faults = job.faults + 1
            db.execute("UPDATE jobs SET faults = ? WHERE id = ?", (faults, job.id))
            if faults >= retries.most:
                move(db, job, State.QUARANTINED, reason=error)
            else:
                move(db, job, State.READY, reason=error, due=self._clock.now() + retries.delay_s(faults))
            return True

    def let_go(self, job: Job) -> None:
        """Give a running job back as it was, as when the watcher is told to end."""
        with self._database.writing() as db:
            if is_held(db, job):
                move(db, job, State.READY)

    # --------------------------------------------------------------------------------------------------- to its places

    def verified(
        self,
        job: Job,
        report_sha256: str,
        destinations: Sequence[str],
        *,
        outputs: Sequence[str] = (),
        triage: Triage | None = None,
    ) -> None:
        """Its outputs are what their checksums say; they may go to their destinations.

        Parameters
        ----------
        job
            In `verifying`.
        report_sha256
            Of its report.json.
        destinations
            The names of all of them; the job is done when each has confirmed.
        outputs
            SOPInstanceUIDs of its DICOM outputs, so that they are known if they are sent back to us.
        triage
            How soon somebody should look at it.
        """
        with self._database.writing() as db:
            before = db.execute("SELECT job FROM results WHERE study_uid = ? AND current", [job.study_uid]).fetchone()
            db.execute(
                "INSERT INTO results VALUES (?, ?, ?, ?, 0)",
                (job.id, job.study_uid, report_sha256, before["job"] if before else None),
            )
            db.executemany("INSERT INTO deliveries (job, destination) VALUES (?, ?)",
                           [(job.id, destination) for destination in destinations])  # fmt: skip
            db.executemany("INSERT OR IGNORE INTO outputs VALUES (?, ?)", [(output, job.id) for output in outputs])
            if triage is not None:
                db.execute("INSERT INTO triage VALUES (?, ?, ?, ?, ?, ?, ?)", (job.id, *astuple(triage)))
            move(db, job, State.DELIVERING)

    def delivered(self, job: int, destination: str) -> None:
        """It is confirmed there; after the last one the job is done, and its result the study's current one."""
        with self._database.writing() as db:
            found = get(db, job)
            if found.state is not State.DELIVERING:
                return
            db.execute("UPDATE deliveries SET confirmed = 1, reason = NULL WHERE job = ? AND destination = ?",
                       (job, destination))  # fmt: skip
            tell(db, "delivered", study_uid=found.study_uid, job=job, detail={"destination": destination})
            if db.execute("SELECT 1 FROM deliveries WHERE job = ? AND NOT confirmed", [job]).fetchone() is None:
                db.execute("UPDATE results SET current = 0 WHERE study_uid = ? AND current", [found.study_uid])
                db.execute("UPDATE results SET current = 1 WHERE job = ?", [job])
                db.execute("UPDATE jobs SET ended = ? WHERE id = ?", (self._clock.now(), job))
                move(db, found, State.DONE)

    def undelivered(self, job: int, destination: str, error: ImagingError, retries: Retries) -> None:
        """It could not be brought there: once more, after a while, or into quarantine; the model does not run again."""
        with self._database.writing() as db:
            found = get(db, job)
            if found.state is not State.DELIVERING:
                return
            row = db.execute("SELECT faults FROM deliveries WHERE job = ? AND destination = ?",
                             (job, destination)).fetchone()  # fmt: skip
            faults = row["faults"] + 1
            db.execute(
                "UPDATE deliveries SET faults = ?, reason = ?, due = ? WHERE job = ? AND destination = ?",
                (faults, as_json(error), self._clock.now() + retries.delay_s(faults), job, destination),
            )
            detail = {"destination": destination, **error.as_dict()}
            tell(db, "delivery_failed", study_uid=found.study_uid, job=job, detail=detail)
            if faults >= retries.most:
                move(db, found, State.QUARANTINED, reason=error)

    # ------------------------------------------------------------------------------------------------------- by people

    def retry(self, job: Job) -> Job:
        """Run a failed or quarantined job again, as if for the first time.

        Raises
        ------
        IllegalMove
            If it is in another state, or there is a newer version of its study.
        """
        with self._database.writing() as db:
            found = get(db, job.id)
            if found.state not in (State.FAILED, State.QUARANTINED):
                raise IllegalMove(f"job {job.id}", seen=f"it is {found.state}",
                                  expected="a failed or a quarantined job was expected")  # fmt: skip
            newer = db.execute("SELECT max(id) AS id FROM jobs WHERE study_uid = ?", [found.study_uid]).fetchone()["id"]
            if newer != found.id:
                raise IllegalMove(f"job {job.id}", seen=f"job {newer} is of a newer version of its study",
                                  expected="the newest version of a study was expected")  # fmt: skip
            tell(db, "retried", study_uid=found.study_uid, job=found.id)
            db.execute("DELETE FROM deliveries WHERE job = ?", [found.id])
            db.execute("DELETE FROM results WHERE job = ?", [found.id])
            db.execute("UPDATE jobs SET faults = 0, interruptions = 0, route = NULL WHERE id = ?", [found.id])
            return make_ready(db, found)

    def release(self, job: Job) -> Job:
        """Let a held job go on from where it is.

        A study that is waited for is taken as complete; a quarantined job whose result stands is delivered again,
        without running the model.

        Raises
        ------
        IllegalMove
            If it is not held.
        """
        with self._database.writing() as db:
            found = get(db, job.id)
            tell(db, "released", study_uid=found.study_uid, job=found.id)
            if found.state is State.RECEIVING:
                return make_ready(db, found)
            stands = db.execute("SELECT 1 FROM results WHERE job = ?", [found.id]).fetchone() is not None
            if found.state is not State.QUARANTINED or not stands:
                held = "a study that is waited for, or a quarantined job with a result, was expected"
                raise IllegalMove(f"job {job.id}", seen=f"it is {found.state}", expected=held)
            db.execute("UPDATE deliveries SET faults = 0, due = 0 WHERE job = ? AND NOT confirmed", [found.id])
            move(db, found, State.DELIVERING)
            return get(db, found.id)

    def ask_purge(self, job: Job) -> None:
        """Ask the watcher to remove the bytes of a job's study, which `Store.purge` does.

        Raises
        ------
        IllegalMove
            If a job of the study is under way.
        """
        with self._database.writing() as db:
            states = db.execute("SELECT state FROM jobs WHERE study_uid = ?", [job.study_uid]).fetchall()
            busy = {State(row["state"]) for row in states} - RESTING
            if busy:
                raise IllegalMove(f"study {job.study_uid}", seen=f"a job of it is {min(busy)}",
                                  expected="a study of which no job is under way was expected")  # fmt: skip
            db.execute("UPDATE studies SET purge = 1 WHERE study_uid = ?", [job.study_uid])
