"""What a watcher would do, without doing it: `imgpipe watch --dry-run`.

Invariant: nothing is taken, moved, begun or written down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imaging.dicom.scan import Study, scan
from pipelines.router import Router, read_told, told_by, told_of
from pipelines.routing import StudyTold
from pipelines.store import Store
from pipelines.store.store import DATABASE


@dataclass(frozen=True, slots=True)
class Planned:
    """What would become of one study.

    Attributes
    ----------
    study_uid
        Which study.
    where
        ``inbox``, or the state of its newest job.
    rule
        The rule that takes it; empty where none does.
    priority
        As the rule has it.
    checkpoints
        Names of those that would be asked.
    formats
        What would be written; none is what fits.
    to
        Where it would go.
    is_deidentified
        Whether the result would be under pseudonyms.
    lacks_required
        Whether a required series has not come.
    """

    study_uid: str
    where: str
    rule: str
    priority: str
    checkpoints: tuple[str, ...]
    formats: tuple[str, ...] | None
    to: tuple[str, ...]
    is_deidentified: bool
    lacks_required: bool

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def preview(router: Router, *, store: Path, inbox: Path | None) -> Iterator[Planned]:
    """Say of each study in the store and in the inbox what the rules would do with it.

    Parameters
    ----------
    router
        The rules.
    store
        A watcher's store; where there is none there are no studies in it. A watcher may be running.
    inbox
        A folder of files that nobody has taken yet.

    Raises
    ------
    ImagingError
        If the store or the inbox cannot be read.
    """
    if (store / DATABASE).is_file():
        with Store(store) as opened:
            newest = {job.study_uid: job for job in opened.jobs.all()}
            for uid, job in newest.items():
                yield _planned(router, told_of(opened, uid), str(job.state))
    if inbox is not None and inbox.is_dir():
        for study in scan(inbox).studies:
            yield _planned(router, _told_of_files(study), "inbox")


def _told_of_files(study: Study) -> StudyTold:
    found = [(read_told(series.instances[0].path), len(series.instances)) for series in study.series]
    return told_by(study.uid, found)


def _planned(router: Router, told: StudyTold, where: str) -> Planned:
    rule = router.routing.rule_of(told)
    if rule is None:
        return Planned(told.study_uid, where, "", "", (), None, (), False, False)
    route = router.route_of(rule, told.study_uid)
    formats = route.order["reporting"]["formats"]
    return Planned(
        told.study_uid,
        where,
        rule.name,
        rule.priority,
        tuple(name for name, *_ in route.order["checkpoints"]),
        None if formats is None else tuple(formats),
        route.destinations,
        rule.deidentify is not None,
        rule.lacks(told),
    )
