"""The verb for those who look after a watcher: jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.verb import as_json, print_json, verb_of, with_store

if TYPE_CHECKING:
    from pipelines.store import Store
    from pipelines.store.view import Job

_STATES = ("receiving", "ready", "running", "verifying", "delivering", "done", "failed", "quarantined")


@click.group(short_help="Look at the watcher's jobs, and help those that are stuck.")
def jobs() -> None:
    """Look at the jobs of a watcher, and help those that are stuck.

    A JOB is its number, at least six characters of its name, or a StudyInstanceUID. The watcher may be running.
    """


def _open(store: Path) -> Store:
    from imaging.errors import NothingFound
    from pipelines.store import Store
    from pipelines.store.store import DATABASE

    if not (store / DATABASE).is_file():
        raise NothingFound(store, seen="no watcher's store", expected="the --store of an `imgpipe watch` was expected",
                           remedy="Give its folder with --store, or start a watcher first")  # fmt: skip
    return Store(store)


_job = click.argument("job")
_several = click.argument("names", metavar="JOB...", nargs=-1, required=True)


@jobs.command("list", short_help="List jobs.")
@click.option("--state", "states", type=click.Choice(_STATES), multiple=True, help="Only these. Repeatable.")
@with_store
@as_json
@verb_of
def list_jobs(states: tuple[str, ...], store: Path, as_json: bool) -> int:
    """List jobs, the oldest first."""
    from pipelines.store.moves import State

    with _open(store) as opened:
        found = opened.jobs.all([State(state) for state in states])
    if as_json:
        print_json({"jobs": [job.as_dict() for job in found], "exit_status": 0})
        return 0
    for job in found:
        click.echo(_line(job))
    return 0


def _line(job: Job) -> str:
    name = (job.name or "-")[:12]
    why = f"  {job.reason['code']}" if job.reason else ""
    return f"{job.id:>6}  {job.state:<11}  {name:<12}  {job.study_uid} v{job.version}{why}"


@jobs.command("worklist", short_help="List what was reported, the most urgent first.")
@click.option("--days", type=click.FloatRange(min=0), default=7.0, show_default=True,
              help="Only studies that began to arrive within so many days; `inf` for all.")  # fmt: skip
@click.option("--most", type=click.IntRange(min=1), default=100, show_default=True, help="No more than so many.")
@with_store
@as_json
@verb_of
def worklist(days: float, most: int, store: Path, as_json: bool) -> int:
    """List the studies with a result in the order in which somebody should look at them.

    What was sent as urgent comes first; then what is abnormal, indeterminate, normal and not judged, the most probable
    first, by picture and words together where they were fused.
    """
    from pipelines.store.seen import Seen

    with _open(store) as opened:
        seen = Seen(store, opened.database)
        entries = seen.worklist(within_s=days * 86400, most=most)
        waiting = {str(state): count for state, count in seen.counts().items() if state != "done"}
    if as_json:
        print_json({"worklist": [entry.as_dict() for entry in entries], "not_done": waiting, "exit_status": 0})
        return 0
    for entry in entries:
        score = f"{entry.triage.score:.3f}" if entry.triage.score is not None else "-"
        dispute = "  picture and words disagree" if entry.triage.disagreements else ""
        click.echo(f"{entry.job.urgency:<4}  {entry.triage.assessment or 'not judged':<13}  {score:>5}  "
                   f"{entry.job.study_uid} v{entry.job.version}  {entry.triage.title}{dispute}")  # fmt: skip
    return 0


@jobs.command("show", short_help="Show one job with its history.")
@_job
@with_store
@as_json
@verb_of
def show(job: str, store: Path, as_json: bool) -> int:
    """Show JOB: where it is and why, what it is made of, where it should go, and what happened to it."""
    from dataclasses import asdict

    with _open(store) as opened:
        found = opened.jobs.find(job)
        document: dict[str, Any] = {
            "job": found.as_dict(),
            "instances": [asdict(member) for member in opened.jobs.members(found)],
            "result": str(opened.result_of(found) / found.result_uid),
            "deliveries": [asdict(delivery) for delivery in opened.jobs.deliveries(found.id)],
            "events": [asdict(event) for event in opened.jobs.events(found.id)],
        }
    if as_json:
        print_json({**document, "exit_status": 0})
        return 0
    click.echo(_line(found))
    if found.reason:
        click.echo(f"  {found.reason['subject']}: {found.reason['seen']}; {found.reason['expected']}.")
        click.echo(f"  {found.reason['remedy']}")
    click.echo(f"  {len(document['instances'])} instances, begun {found.starts} times, {found.faults} faults")
    for delivery in document["deliveries"]:
        click.echo(f"  {delivery['destination']}: {'there' if delivery['confirmed'] else 'not yet'}")
    for event in document["events"]:
        click.echo(f"  {event['at']}  {event['code']}")
    return 0


def _each(names: tuple[str, ...], store: Path, as_json: bool, step: str) -> int:
    """Do one thing to several jobs, each found before the first is touched."""
    with _open(store) as opened:
        found = [opened.jobs.find(name) for name in names]
        for job in found:
            getattr(opened.jobs, step)(job)
        after = [opened.jobs.find(str(job.id)) for job in found]
    if as_json:
        print_json({"jobs": [job.as_dict() for job in after], "exit_status": 0})
    else:
        for job in after:
            click.echo(_line(job))
    return 0


@jobs.command("retry", short_help="Run failed or quarantined jobs again.")
@_several
@with_store
@as_json
@verb_of
def retry(names: tuple[str, ...], store: Path, as_json: bool) -> int:
    """Run each failed or quarantined JOB again, as if for the first time."""
    return _each(names, store, as_json, "retry")


@jobs.command("release", short_help="Let held jobs go on from where they are.")
@_several
@with_store
@as_json
@verb_of
def release(names: tuple[str, ...], store: Path, as_json: bool) -> int:
    """Let each held JOB go on from where it is.

    A study that is still waited for is taken as complete; a quarantined job whose result stands is delivered again,
    without running the model.
    """
    return _each(names, store, as_json, "release")


@jobs.command("purge", short_help="Remove the images and outputs of studies that are through.")
@_several
@with_store
@as_json
@verb_of
def purge(names: tuple[str, ...], store: Path, as_json: bool) -> int:
    """Remove the images and outputs of each JOB's study from the store; what was delivered stays where it is.

    The watcher does it; without one it is done at once. What happened is still known: an image that is sent again is
    the same image.
    """
    from imaging.errors import StoreInUse
    from pipelines.store import Store

    status = _each(names, store, as_json, "ask_purge")
    try:
        with Store(store, watching=True) as opened:
            opened.purge()
    except StoreInUse:
        pass
    return status
