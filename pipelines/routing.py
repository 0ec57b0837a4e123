"""The rules of a watcher: which studies, by which checkpoints, as which files, where to, and how long all of it stays.

Invariant: a file of rules is taken whole or refused with the key that is wrong and what was meant; nothing in it is
code. The first rule that matches a study decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from imaging.config.load import load_section
from imaging.config.section import Count, Pattern, Section
from imaging.errors import ConfigInvalid
from imaging.report.report import Format
from pipelines.disk import Marks
from pipelines.retention import Retention
from pipelines.store.rules import Completeness

# A description is looked at so far: a pattern is tried on what a stranger has sent.
_LOOKED_AT = 256


@dataclass(frozen=True, slots=True)
class SeriesTold:
    """What a series says of itself, and how many of its instances are there."""

    modality: str
    description: str
    body_part: str
    instances: int


@dataclass(frozen=True, slots=True)
class StudyTold:
    """What is known of a study before anybody reads its pixels.

    Attributes
    ----------
    study_uid
        Which study.
    description, urgency
        Study Description, and Requested Procedure Priority (0040,1003) in upper case; empty where there is none.
    senders
        AE titles that it came from; none where it came otherwise.
    series
        Those that are there.
    """

    study_uid: str
    description: str = ""
    urgency: str = ""
    senders: frozenset[str] = frozenset()
    series: tuple[SeriesTold, ...] = ()


class SeriesRule(Section):
    """Which series: what is left out is not asked. `instances`: as many must be there."""

    modality: tuple[str, ...] = ()
    description: Pattern | None = None
    body_part: tuple[str, ...] = ()
    instances: Count = 1

    def takes(self, series: SeriesTold) -> bool:
        """Whether a series is such a one."""
        return (
            (not self.modality or series.modality in self.modality)
            and (not self.body_part or series.body_part in self.body_part)
            and _matches(self.description, series.description)
            and series.instances >= self.instances
        )


class When(Section):
    """Which studies: all that is given must hold, and an empty one takes every study.

    `modality`, `series_description`, `body_part` must hold for one and the same series. `aet`: who sent it by C-STORE.
    `urgency`: Requested Procedure Priority of the header, such as STAT.
    """

    modality: tuple[str, ...] = ()
    body_part: tuple[str, ...] = ()
    series_description: Pattern | None = None
    study_description: Pattern | None = None
    aet: tuple[str, ...] = ()
    urgency: tuple[str, ...] = ()

    def takes(self, study: StudyTold) -> bool:
        """Whether a study is such a one."""
        series = SeriesRule(modality=self.modality, description=self.series_description, body_part=self.body_part)
        return (
            (series == SeriesRule() or any(map(series.takes, study.series)))
            and _matches(self.study_description, study.description)
            and (not self.aet or not study.senders.isdisjoint(self.aet))
            and (not self.urgency or study.urgency in {urgency.upper() for urgency in self.urgency})
        )


class To(Section):
    """One place where results go: a folder, a peer (AET@HOST:PORT) or a DICOMweb server."""

    outbox: Path | None = None
    send: str | None = None
    stow: str | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> To:
        if sum(value is not None for value in (self.outbox, self.send, self.stow)) != 1:
            raise ValueError("one of outbox, send and stow was expected")
        return self


class Deidentify(Section):
    """The model reads a copy that does not say whose it is, so that no output can.

    `key`: the file that pseudonyms are made with, by `imgpipe deidentify --make-key`. The others are options of PS3.15
    Annex E, as that verb has them.
    """

    key: Path
    modified_dates: bool = False
    clean_descriptors: bool = False
    patient_characteristics: bool = False
    device_identity: bool = False
    unsure_pixels: bool = False


class Incoming(Section):
    """What is pseudonymised before it is kept: each instance that `when` takes, by its own header.

    `crosswalk`: a file that gets what stands for what, apart from the store; without it nothing is written.
    """

    when: When = When()
    deidentify: Deidentify
    crosswalk: Path | None = None


class Rule(Section):
    """What is done with some studies.

    `checkpoints`: names of shipped ones, or folders; none is what the command line says. `formats`, and `seg_type`,
    `fhir_version`, `fhir_page`: likewise. `to`: likewise. `required`: series without which a study is not complete
    before `complete.timeout_s`.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    when: When = When()
    priority: Literal["stat", "high", "routine", "low"] = "routine"
    checkpoints: tuple[str, ...] = ()
    formats: tuple[Format, ...] | None = None
    seg_type: Literal["binary", "labelmap"] | None = None
    fhir_version: Literal["r4", "r5"] | None = None
    fhir_page: Literal["hash", "whole"] | None = None
    to: tuple[To, ...] = ()
    required: tuple[SeriesRule, ...] = ()
    complete: Completeness | None = None
    deidentify: Deidentify | None = None

    def lacks(self, study: StudyTold) -> bool:
        """Whether a series that is required has not come."""
        return not all(any(map(wanted.takes, study.series)) for wanted in self.required)


class Routing(Section):
    """A file of rules.

    `incoming`: what is pseudonymised before it is kept. `disk`: when nothing more is taken. `retention`: when what was
    delivered is removed.
    """

    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    incoming: tuple[Incoming, ...] = ()
    disk: Marks = Marks()
    retention: Retention = Retention()

    @model_validator(mode="after")
    def _one_name_each(self) -> Routing:
        names = [rule.name for rule in self.rules]
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise ValueError(f"two rules are named {double!r}")
        return self

    def rule_of(self, study: StudyTold) -> Rule | None:
        """The first rule that takes a study."""
        return next((rule for rule in self.rules if rule.when.takes(study)), None)


def load_routing(path: Path, *, places: Iterable[str] = ()) -> Routing:
    """Read a file of rules.

    Parameters
    ----------
    path
        A YAML file; paths in it are taken from its own folder.
    places
        Where results go by the command line; without these each rule must say it.

    Raises
    ------
    UnknownKey, ConfigInvalid
        If it is no file of rules, with the key.
    """
    read = load_section(path, Routing)
    if not list(places):
        mute = next((rule.name for rule in read.rules if not rule.to), None)
        if mute is not None:
            raise ConfigInvalid(path, seen=f"rule {mute!r} has no `to`", expected="somewhere for results to go to was "
                                "expected, there or on the command line")  # fmt: skip
    folder = path.resolve().parent
    rules, incoming = [_rooted(rule, folder) for rule in read.rules], [_apart(rule, folder) for rule in read.incoming]
    return read.model_copy(update={"rules": tuple(rules), "incoming": tuple(incoming)})


def _apart(rule: Incoming, folder: Path) -> Incoming:
    hidden = rule.deidentify.model_copy(update={"key": folder / rule.deidentify.key})
    crosswalk = None if rule.crosswalk is None else folder / rule.crosswalk
    return rule.model_copy(update={"deidentify": hidden, "crosswalk": crosswalk})


def _rooted(rule: Rule, folder: Path) -> Rule:
    """A rule whose paths do not depend on where the watcher was started."""
    to = tuple(To(outbox=folder / place.outbox) if place.outbox is not None else place for place in rule.to)
    hidden = rule.deidentify
    if hidden is not None:
        hidden = hidden.model_copy(update={"key": folder / hidden.key})
    near = tuple(str(folder / name) if (folder / name).is_dir() else name for name in rule.checkpoints)
    return rule.model_copy(update={"to": to, "deidentify": hidden, "checkpoints": near})


def _matches(pattern: str | None, text: str) -> bool:
    return pattern is None or re.search(pattern, text[:_LOOKED_AT], re.IGNORECASE) is not None
