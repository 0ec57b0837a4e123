"""What a person, or another room, is shown of jobs.

Invariant: nothing here is of a patient: UIDs, codes, counts and times.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipelines.store.moves import State

# Priorities of jobs, as rules call them; the greater, the sooner.
PRIORITIES = {"stat": 100, "high": 50, "routine": 0, "low": -50}
# Joined, so that whoever asks for a job knows which version of its study it is.
JOBS = "SELECT jobs.*, versions.number AS number, versions.through_seq AS through_seq FROM jobs JOIN versions ON versions.id = jobs.version"  # noqa: E501


@dataclass(frozen=True, slots=True)
class Route:
    """What the rules have decided of a job.

    Attributes
    ----------
    rule
        The rule's name; empty where no rule takes the study.
    order
        What is done, as `pipelines.router` writes it; empty where there is no rule.
    destinations
        Where the result goes, by name.
    result_uid
        Under which UID: the study's own, or its pseudonym.
    """

    rule: str
    order: Mapping[str, Any]
    destinations: tuple[str, ...]
    result_uid: str


@dataclass(frozen=True, slots=True)
class Job:
    """One study on its way through the watcher.

    Attributes
    ----------
    id
        A number that grows.
    name
        SHA-256 over what it is made of, as hex; None until it is first begun.
    study_uid, version
        Which study, and which version of it, from 1.
    state
        Where it is.
    priority
        The greater, the sooner.
    due
        Not before this second of the store.
    starts, faults
        How often it was begun, and how often it went wrong.
    holder
        Who runs it.
    reason
        The error that brought it here, as `ImagingError.as_dict` gives it.
    through_seq
        The last instance of it; None while instances are awaited.
    route
        What the rules have decided; None where none was asked.
    """

    id: int
    name: str | None
    study_uid: str
    version: int
    state: State
    priority: int
    due: float
    starts: int
    faults: int
    holder: str | None
    reason: dict[str, str] | None
    through_seq: int | None
    route: Route | None = None

    @property
    def result_uid(self) -> str:
        """Under which UID its result is written."""
        return self.route.result_uid if self.route is not None else self.study_uid

    @property
    def urgency(self) -> str:
        """What a person is told of its priority: ``STAT``, ``high`` or nothing."""
        if self.priority <= PRIORITIES["routine"]:
            return ""
        return "STAT" if self.priority >= PRIORITIES["stat"] else "high"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def job_of(row: sqlite3.Row) -> Job:
    """A row of `JOBS`."""
    return Job(
        id=row["id"],
        name=row["name"],
        study_uid=row["study_uid"],
        version=row["number"],
        state=State(row["state"]),
        priority=row["priority"],
        due=row["due"],
        starts=row["starts"],
        faults=row["faults"],
        holder=row["holder"],
        reason=json.loads(row["reason"]) if row["reason"] else None,
        through_seq=row["through_seq"],
        route=_route_of(row["route"]),
    )


def _route_of(text: str | None) -> Route | None:
    if text is None:
        return None
    told = json.loads(text)
    return Route(**{**told, "destinations": tuple(told["destinations"])})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, by a number that grows; `at` is the wall clock's word."""

    seq: int
    at: str
    code: str
    study_uid: str | None
    job: int | None
    detail: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """A result on its way to one destination, or there."""

    job: int
    study_uid: str
    destination: str
    confirmed: bool
    due: float
    faults: int
    reason: dict[str, str] | None


@dataclass(frozen=True, slots=True)
class Triage:
    """How soon somebody should look at a result.

    Attributes
    ----------
    rank
        The smaller, the sooner: 0 abnormal, 1 indeterminate, 2 normal, 3 not judged. Where picture and words disagree
        it is at most 1.
    assessment
        Of the most urgent thing that was judged; None where nothing was.
    score
        Its probability, 0 to 1; None where it has none.
    source
        Whose number that is: ``fused``, ``image <model>`` or ``text <model>``.
    title
        What it is.
    disagreements
        How often picture and words say the opposite.
    """

    rank: int
    assessment: str | None
    score: float | None
    source: str
    title: str
    disagreements: int


def event_of(row: sqlite3.Row) -> Event:
    """A row of `events`."""
    detail = json.loads(row["detail"]) if row["detail"] else None
    return Event(row["seq"], row["at"], row["code"], row["study_uid"], row["job"], detail)


def delivery_of(row: sqlite3.Row) -> Delivery:
    """A row of `deliveries` with the study's UID."""
    return Delivery(
        row["job"],
        row["study_uid"],
        row["destination"],
        bool(row["confirmed"]),
        row["due"],
        row["faults"],
        json.loads(row["reason"]) if row["reason"] else None,
    )
