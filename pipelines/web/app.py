"""The pages, and what is served beside them.

Invariant: what was sent by others (UIDs, errors, descriptions) is escaped; the pages fetch nothing from elsewhere and
run no script. A report is shown as it was delivered, in a sandbox: whatever is in it, it can do nothing. No path is
made of what a visitor sends; a file is found by the number of its job.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from imaging.dicom.values import told_date
from imaging.errors import ImagingError, WrongUsage
from pipelines import audit
from pipelines.audit import AuditLog, Outcome
from pipelines.metrics import Metrics
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.seen import Seen
from pipelines.store.view import Job
from pipelines.web.doors import Doors
from pipelines.web.guard import Guard, address_of, begin_session, session_of

PAGE = 50
DAYS = (1.0, 7.0, 30.0, math.inf)
_LONGEST_FORM = 4096
# What a report may do: be read. Its styles and pictures are within it.
_SANDBOX = ("sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action"
            " 'none'; frame-ancestors 'self'")  # fmt: skip
_SILENCE_S = 60.0


def _time(iso: str) -> str:
    return f"{iso[:10]} {iso[11:16]} UTC" if len(iso) >= 16 else iso


def _bytes(count: int) -> str:
    return f"{count / (1 << 20):.1f} MiB" if count >= 1 << 20 else f"{count / (1 << 10):.1f} KiB"


def _told(text: str) -> Markup:
    """A text of ours with what is to be typed set as such; all else is escaped."""
    parts = str(text).split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if number % 2 and number < len(parts) - 1 else part
                           for number, part in enumerate(parts))  # fmt: skip


TEMPLATES = Environment(
    loader=PackageLoader("pipelines.web"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
TEMPLATES.filters |= {"time": _time, "day": told_date, "bytes": _bytes, "told": _told}
_STYLE = files("pipelines.web").joinpath("style.css").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Health:
    """How long the watcher has been silent, in seconds."""

    silent_s: Callable[[], float]


def application(root: Path, doors: Doors, log: AuditLog, health: Health, counted: tuple[int, int]) -> Guard:
    """The page of a store, behind its doors.

    Parameters
    ----------
    root
        Folder of the store.
    doors
        Who may look.
    log
        Is told who signs in, and who reads which report.
    health
        Of the watcher.
    counted
        Numbers of the last event and the last instance that the metrics do not count.
    """
    pages = Pages(root, doors, log, health, counted)
    routes = [
        Route("/", pages.worklist),
        Route("/worklist.json", pages.worklist_json),
        Route("/study/{study_uid}", pages.study),
        Route("/jobs", pages.jobs),
        Route("/jobs/{number:int}", pages.job),
        Route("/jobs/{number:int}/report.html", pages.report_html),
        Route("/jobs/{number:int}/report.json", pages.report_json),
        Route("/jobs/{number:int}/retry", pages.change, methods=["POST"]),
        Route("/jobs/{number:int}/release", pages.change, methods=["POST"]),
        Route("/quarantine", pages.quarantine),
        Route("/sign-in", pages.sign_in, methods=["GET", "POST"]),
        Route("/sign-out", pages.sign_out, methods=["POST"]),
        Route("/metrics", pages.metrics),
        Route("/healthz", pages.healthz),
        Route("/style.css", pages.style),
    ]
    handlers: Any = {ImagingError: pages.refused, HTTPException: pages.nothing}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), doors)


class Pages:
    """The pages of one store; see `application`."""

    def __init__(self, root: Path, doors: Doors, log: AuditLog, health: Health, counted: tuple[int, int]) -> None:
        self._root, self._doors, self._log, self._health = root, doors, log, health
        self._seen = Seen(root)
        self._metrics = Metrics(Seen(root), after_event=counted[0], after_instance=counted[1])

    # --------------------------------------------------------------------------------------------------------- pages

    def worklist(self, request: Request) -> Response:
        """The studies with a result, the most urgent first."""
        days, page = _days(request), _page(request)
        within_s = days * 86400
        entries = self._seen.worklist(within_s=within_s, offset=(page - 1) * PAGE, most=PAGE)
        shown = [(entry, _facts(self._seen.result_of(entry.job) / "report.json")) for entry in entries]
        return self._html(request, "worklist.html.j2", entries=shown, days=days, choices=DAYS, infinite=math.inf,
                          page=page, pages=_pages(self._seen.worklist_length(within_s=within_s)))  # fmt: skip

    def study(self, request: Request) -> Response:
        """A study: its jobs, and the report of its newest result."""
        study_uid = request.path_params["study_uid"]
        jobs = self._seen.jobs_of(study_uid)
        if not jobs:
            raise HTTPException(404)
        current = next((job for job in jobs if self._seen.has_result(job)), None)
        there = current is not None and self._file(current, "report.html") is not None
        facts = _facts(self._seen.result_of(current) / "report.json") if current is not None else {}
        triage = self._seen.triage(current) if current is not None else None
        return self._html(request, "study.html.j2", study_uid=study_uid, jobs=jobs, current=current, there=there,
                          facts=facts, triage=triage)  # fmt: skip

    def jobs(self, request: Request) -> Response:
        """Jobs, the newest first."""
        chosen = request.query_params.get("state", "")
        if chosen not in ("", *State):
            raise HTTPException(404)
        states = [State(chosen)] if chosen else []
        page, counts = _page(request), self._seen.counts()
        jobs = self._seen.jobs(states, offset=(page - 1) * PAGE, most=PAGE)
        length = counts[State(chosen)] if chosen else sum(counts.values())
        return self._html(request, "jobs.html.j2", jobs=jobs, chosen=chosen, page=page, pages=_pages(length))

    def job(self, request: Request) -> Response:
        """One job: where it is and why, and what happened to it."""
        job = self._job(request)
        count, size = self._seen.instances(job)
        return self._html(request, "job.html.j2", job=job, events=self._seen.events(job.id), instances=count,
                          size=size, deliveries=self._seen.deliveries(job.id),
                          has_result=self._seen.has_result(job))  # fmt: skip

    def quarantine(self, request: Request) -> Response:
        """Jobs that wait for a person, with their reasons."""
        page = _page(request)
        jobs = self._seen.jobs([State.QUARANTINED], offset=(page - 1) * PAGE, most=PAGE)
        shown = [(job, self._seen.has_result(job)) for job in jobs]
        return self._html(request, "quarantine.html.j2", jobs=shown, page=page,
                          pages=_pages(self._seen.counts()[State.QUARANTINED]))  # fmt: skip

    # --------------------------------------------------------------------------------------------------------- files

    def report_html(self, request: Request) -> Response:
        """A report's page as it was delivered, in a sandbox."""
        return self._served(request, "report.html", "text/html; charset=utf-8")

    def report_json(self, request: Request) -> Response:
        """A report as it was delivered."""
        return self._served(request, "report.json", "application/json")

    def _served(self, request: Request, name: str, media_type: str) -> Response:
        job = self._job(request)
        path = self._file(job, name)
        if path is None:
            raise HTTPException(404)
        self._log.tell(audit.READ, user="web", address=address_of(request), study_uid=job.study_uid,
                       detail={"file": name, "job": job.id})  # fmt: skip
        return FileResponse(path, media_type=media_type, headers={"Content-Security-Policy": _SANDBOX})

    def _file(self, job: Job, name: str) -> Path | None:
        """A file of a result; None where it was purged, or there is none."""
        if not self._seen.has_result(job):
            return None
        path = self._seen.result_of(job) / name
        # A link in it would lead elsewhere.
        return path if path.is_file() and path.resolve().is_relative_to(self._root.resolve()) else None

    # ------------------------------------------------------------------------------------------------------- machines

    def worklist_json(self, request: Request) -> Response:
        """The worklist for programs."""
        within_s = _days(request) * 86400
        entries = self._seen.worklist(within_s=within_s, offset=(_page(request) - 1) * PAGE, most=PAGE)
        return JSONResponse(
            {
                "worklist": [entry.as_dict() for entry in entries],
                "studies": self._seen.worklist_length(within_s=within_s),
                "not_done": {str(state): n for state, n in self._seen.counts().items() if state is not State.DONE},
            }
        )

    def metrics(self, _: Request) -> Response:
        """For Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def healthz(self, _: Request) -> Response:
        """200 while the watcher works and its database can be read."""
        silent_s = self._health.silent_s()
        if silent_s > _SILENCE_S:
            return JSONResponse({"status": "watcher_silent"}, status_code=503)
        try:
            self._seen.counts()
        except ImagingError as error:
            return JSONResponse({"status": error.code}, status_code=503)
        return JSONResponse({"status": "ok"})

    def style(self, _: Request) -> Response:
        """How it looks."""
        return Response(_STYLE, media_type="text/css", headers={"Cache-Control": "max-age=3600"})

    # -------------------------------------------------------------------------------------------------------- changes

    async def change(self, request: Request) -> Response:
        """Retry or release a job, as `imgpipe jobs` does."""
        step = request.url.path.rpartition("/")[2]
        form = await _form(request)
        if not self._doors.is_seal(form.get("seal", ""), session_of(request)):
            raise HTTPException(403, "this form is too old; go back and load its page again")
        await run_in_threadpool(self._change, self._job(request), step, address_of(request))
        return RedirectResponse(f"/jobs/{request.path_params['number']}", status_code=303)

    def _change(self, job: Job, step: str, address: str) -> None:
        with Store(self._root) as store:
            getattr(store.jobs, step)(job)
        self._log.tell(audit.CHANGED, user="web", address=address, study_uid=job.study_uid,
                       detail={"asked": step, "job": job.id})  # fmt: skip

    async def sign_in(self, request: Request) -> Response:
        """Ask for the token, and open a session for it."""
        if self._doors.token is None:
            return RedirectResponse("/", status_code=303)
        wrong = False
        if request.method == "POST":
            form = await _form(request)
            right = self._doors.is_token(form.get("token", ""))
            outcome = Outcome.SUCCESS if right else Outcome.MINOR_FAILURE
            await run_in_threadpool(self._log.tell, audit.SIGNED_IN, outcome=outcome, user="web",
                                    address=address_of(request))  # fmt: skip
            if right:
                begin_session(request, self._doors.open())
                return RedirectResponse("/", status_code=303)
            await asyncio.sleep(1)
            wrong = True
        content = TEMPLATES.get_template("sign_in.html.j2").render(wrong=wrong)
        return HTMLResponse(content, status_code=403 if wrong else 200)

    async def sign_out(self, request: Request) -> Response:
        """End a session."""
        form = await _form(request)
        if not self._doors.is_seal(form.get("seal", ""), session_of(request)):
            raise HTTPException(403, "this form is too old; go back and load its page again")
        self._doors.close(session_of(request))
        await run_in_threadpool(self._log.tell, audit.SIGNED_OUT, user="web", address=address_of(request))
        return RedirectResponse("/sign-in", status_code=303)

    # -------------------------------------------------------------------------------------------------------- common

    def refused(self, request: Request, error: ImagingError) -> Response:
        """What was asked for cannot be done now."""
        status = 409 if isinstance(error, WrongUsage) else 500
        return self._html(request, "refused.html.j2", status=status, title="This cannot be done now",
                          said=f"{error.subject}: {error.seen}; {error.expected}. {error.remedy}.")  # fmt: skip

    def nothing(self, request: Request, error: HTTPException) -> Response:
        """There is nothing here."""
        titles = {403: "This form is not taken", 404: "There is nothing here", 405: "This cannot be asked for"}
        said = error.detail if error.status_code == 403 else "It may have been purged, or never been there."
        return self._html(request, "refused.html.j2", status=error.status_code,
                          title=titles.get(error.status_code, "This cannot be done"), said=said)  # fmt: skip

    def _job(self, request: Request) -> Job:
        number = request.path_params["number"]
        job = self._seen.job(number) if number < 2**62 else None
        if job is None:
            raise HTTPException(404)
        return job

    def _html(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        content = TEMPLATES.get_template(template).render(
            counts=self._seen.counts(),
            path=request.url.path,
            seal=self._doors.seal(session_of(request)),
            signed_in=self._doors.token is not None,
            **values,
        )
        return HTMLResponse(content, status_code=status)


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a small form."""
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > _LONGEST_FORM:
            raise HTTPException(413)
    fields = parse_qs(content.decode("ascii", "replace"), max_num_fields=8)
    return {name: values[-1] for name, values in fields.items()}


def _page(request: Request) -> int:
    text = request.query_params.get("page", "1")
    if not text.isdecimal() or not text.isascii() or len(text) > 9 or int(text) < 1:
        raise HTTPException(404)
    return int(text)


def _pages(length: int) -> int:
    return max(1, math.ceil(length / PAGE))


def _days(request: Request) -> float:
    try:
        days = float(request.query_params.get("days", "7"))
    except ValueError:
        raise HTTPException(404) from None
    if not days >= 0:  # which no number is that is none
        raise HTTPException(404)
    return days


def _facts(path: Path) -> dict[str, str]:
    """What tells a person which study it is; nothing where the report was purged."""
    try:
        return _facts_in(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError):
        return {}


@lru_cache(maxsize=4096)
def _facts_in(path: Path, _changed: int) -> dict[str, str]:
    return cast(dict[str, str], json.loads(path.read_bytes())["study"])


TEMPLATES.filters["quoted"] = lambda text: quote(str(text), safe="")
