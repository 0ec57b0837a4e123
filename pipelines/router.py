"""Asks the rules of each study, and keeps to the last rules that were right.

Invariant: rules that cannot be taken change nothing, and that is told. What is asked of a study comes from one header
of each of its series; of these nothing is logged or written down but the name of the rule.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

from imaging.dicom.attributes import FileFacts, read_facts
from imaging.dicom.deidentify import Pseudonyms, read_key
from imaging.dicom.header import read_header
from imaging.errors import ImagingError
from pipelines.chosen import choose
from pipelines.delivery import Destination
from pipelines.routing import Routing, Rule, SeriesTold, StudyTold, To, load_routing
from pipelines.store import Store
from pipelines.store.rules import Completeness, Judged
from pipelines.store.view import PRIORITIES, Route
from pipelines.worker import Hiding, Reporting

log = logging.getLogger(__name__)

_URGENCY = 0x00401003  # Requested Procedure Priority


class Router:
    """The rules of a file.

    Parameters
    ----------
    path
        The file.
    reporting
        What the command line says, for what a rule leaves out.
    place_of
        Makes the place that a rule names.
    places
        Where results go by the command line.
    check
        Is asked whether rules may be taken; raises why they may not.

    Attributes
    ----------
    routing
        The rules, as they were last taken.
    places
        Every place that a rule may send to, by name.

    Raises
    ------
    UnknownKey, ConfigInvalid, UnknownCheckpoint, CheckpointCorrupt, KeyInvalid
        If the rules cannot be taken.
    """

    def __init__(
        self,
        path: Path,
        reporting: Reporting,
        place_of: Callable[[To], Destination],
        places: Sequence[Destination] = (),
        check: Callable[[Routing], None] = lambda _: None,
    ) -> None:
        self._check = check
        self._path, self._reporting, self._place_of, self._always = path, reporting, place_of, tuple(places)
        self.places: dict[str, Destination] = {place.name: place for place in places}
        self._asked = threading.Event()
        self._take()

    def _take(self) -> None:
        """Read the file, and all that it names, before any of it counts."""
        routing = load_routing(self._path, places=[place.name for place in self._always])
        orders, to = {}, {}
        for rule in routing.rules:
            orders[rule.name] = _order(self._told(rule))
            to[rule.name] = [self._place_of(place) for place in rule.to] or list(self._always)
            if rule.deidentify is not None:
                read_key(rule.deidentify.key)
        for hidden in routing.incoming:
            read_key(hidden.deidentify.key)
        self._check(routing)
        self.routing, self._orders = routing, orders
        self._to = {rule: tuple(place.name for place in places) for rule, places in to.items()}
        self.places |= {place.name: place for places in to.values() for place in places}

    def _told(self, rule: Rule) -> Reporting:
        """What a rule says of reporting, and the command line where it says nothing."""
        told = replace(self._reporting, models=rule.checkpoints or self._reporting.models)
        if rule.formats is not None:
            told = replace(told, formats=tuple(rule.formats))
        if rule.seg_type is not None:
            told = replace(told, seg_type=rule.seg_type)
        if rule.fhir_version is not None:
            told = replace(told, fhir_version=rule.fhir_version)
        if rule.fhir_page is not None:
            told = replace(told, fhir_page=rule.fhir_page)
        if rule.deidentify is not None:
            told = replace(told, hiding=Hiding(**{**rule.deidentify.model_dump(), "key": str(rule.deidentify.key)}))
        return told

    def firsts(self) -> tuple[Reporting, ...]:
        """What workers read from the start: what each rule asks for, once."""
        return tuple(dict.fromkeys(self._told(rule) for rule in self.routing.rules))

    def ask_reload(self) -> None:
        """Let the rules be read again, as soon as the watcher comes to it; safe in a signal handler."""
        self._asked.set()

    def reload(self, store: Store) -> bool:
        """Read the rules again if that was asked for; gives whether there are new ones."""
        if not self._asked.is_set():
            return False
        self._asked.clear()
        try:
            self._take()
        except ImagingError as error:
            log.error("the rules stay as they were: %s", error)
            store.routes.told("rules_refused", {key: str(value) for key, value in error.as_dict().items()})
            return False
        log.info("%d rules taken from %s", len(self.routing.rules), self._path)
        store.routes.told("rules_taken", {"rules": ", ".join(rule.name for rule in self.routing.rules)})
        store.routes.decide_anew()
        return True

    def decide(self, store: Store) -> None:
        """Write down for each job that waits what is done with it."""
        for job in store.routes.undecided():
            rule = self.routing.rule_of(told_of(store, job.study_uid))
            by_rule = PRIORITIES[rule.priority] if rule is not None else 0
            asked = store.workitems.priority_of(job.study_uid)
            store.routes.decide(job, self.route_of(rule, job.study_uid), _urgency(by_rule, asked))

    def route_of(self, rule: Rule | None, study_uid: str) -> Route:
        """What a rule does with a study; nothing where there is none."""
        if rule is None:
            return Route("", {}, (), study_uid)
        hidden = rule.deidentify
        uid = Pseudonyms(read_key(hidden.key)).uid(study_uid) if hidden is not None else study_uid
        return Route(rule.name, self._orders[rule.name], self._to[rule.name], uid)

    def judge(self, store: Store, by_default: Completeness) -> Callable[[str], Judged]:
        """Says by which times a study is complete, and whether it lacks a series that is required."""

        def judged(study_uid: str) -> Judged:
            told = told_of(store, study_uid)
            rule = self.routing.rule_of(told)
            if rule is None:
                return Judged(by_default)
            return Judged(rule.complete or by_default, rule.lacks(told))

        return judged

    def soonest(self, by_default: Completeness) -> Completeness:
        """Before these times no rule takes a study as complete."""
        told = [by_default, *(rule.complete for rule in self.routing.rules if rule.complete is not None)]
        return Completeness(
            series_quiet_s=min(one.series_quiet_s for one in told),
            study_quiet_s=min(one.study_quiet_s for one in told),
            timeout_s=min(one.timeout_s for one in told),
        )


def _urgency(by_rule: int, asked: int | None) -> int:
    """The more urgent of what a rule says and what a workitem asks for; a rule that says routine says nothing."""
    if asked is None:
        return by_rule
    return max(by_rule, asked) if by_rule else asked


def _order(reporting: Reporting) -> Mapping[str, object]:
    """All that decides the outputs of a study but the study: what is asked, of which weights."""
    return {"reporting": asdict(reporting), "checkpoints": choose(reporting.models).digests()}


def told_of(store: Store, study_uid: str) -> StudyTold:
    """What is known of a study in the store."""
    found = [(_read(store.contents.file_of(study_uid, digest)), n) for _, digest, n in store.routes.series(study_uid)]
    senders = (source.removeprefix("scp ") for source in store.routes.sources(study_uid) if source.startswith("scp "))
    return told_by(study_uid, found, frozenset(sender.rpartition("@")[0] for sender in senders))


def told_by(
    study_uid: str, found: Sequence[tuple[tuple[FileFacts, str] | None, int]], senders: frozenset[str] = frozenset()
) -> StudyTold:
    """The same by one header of each series, where it can be read, and how many instances the series has."""
    read = [(*header, instances) for header, instances in found if header is not None]
    series = tuple(SeriesTold(f.series.modality, f.series.description, f.series.body_part, n) for f, _, n in read)
    description = next((facts.study_description for facts, _, _ in read if facts.study_description), "")
    urgency = next((urgency for _, urgency, _ in read if urgency), "")
    return StudyTold(study_uid, description, urgency, senders, series)


@lru_cache(4096)
def _read(path: Path) -> tuple[FileFacts, str] | None:
    """What one header says; a file of the store never changes, for its name is its digest."""
    return read_told(path)


def read_told(path: Path) -> tuple[FileFacts, str] | None:
    """What one header says, and its urgency; None where it cannot be read, which the report will tell."""
    try:
        urgency = read_header(path, frozenset((_URGENCY,))).values.get(_URGENCY, b"")
        return read_facts(path), urgency.decode("latin-1").strip(" \0").upper()
    except ImagingError:
        return None
