"""The page in its own process: what is shown, to whom, and what nobody can make it do."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

import pytest
from arriving import study_uid
from pacs import required
from reported import judged
from shown import claimed, held, reported

from imaging.errors import DeliveryFailed, MissingSlices, WorkerLost
from imaging.report.report import Disagreement, StudyEntry
from pipelines.store import Store
from pipelines.store.moves import State
from pipelines.store.rules import Retries
from pipelines.web.app import _told
from pipelines.web.page import Address, Page

TOKEN = "0123456789abcdef0123"
HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"


@dataclass
class Answer:
    status: int
    text: str
    headers: http.client.HTTPMessage


@dataclass
class Visitor:
    """A browser without a picture: keeps its cookie."""

    address: str
    cookie: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(self.address, timeout=30)
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.cookie:
            sent["Cookie"] = self.cookie
        body = None
        if form is not None:
            body, sent["Content-Type"] = urlencode(form), "application/x-www-form-urlencoded"
        connection.request("GET" if form is None else "POST", path, body, sent)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        if "Set-Cookie" in answer.headers:
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return Answer(answer.status, text, answer.headers)

    def seal(self, path: str) -> str:
        found = re.search(r'name="seal" value="(\w+)"', self(path).text)
        assert found is not None
        return found[1]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown")


@pytest.fixture(scope="module")
def store(root: Path) -> Iterator[Store]:
    with Store(root / "store", watching=True) as store:
        dispute = Disagreement(kind="image_normal_report_abnormal", name="nodule", score=0.9, note="They differ.")
        entry = StudyEntry(name=study_uid(1), uid=study_uid(1), description=HOSTILE, date="20260102", accession="A&1")
        reported(store, 1, study=entry, findings=(judged("nodule", 0.91, "abnormal"),), page=f"<p>{HOSTILE}")
        reported(store, 2, priority=100, findings=(judged("nodule", 0.2, "normal"),), disagreements=(dispute,))
        held(store, 3, WorkerLost(HOSTILE, seen=HOSTILE))
        job = claimed(store, 4)
        store.jobs.refuse(job, MissingSlices("study x", seen="3 slices are missing"))
        reported(store, 5)
        yield store


@pytest.fixture(scope="module")
def page(root: Path, store: Store) -> Iterator[Page]:
    with Page(store.root, Address("127.0.0.1", 0), root / "audit.jsonl") as page:
        yield page


@pytest.fixture(scope="module")
def guarded(root: Path, store: Store) -> Iterator[Page]:
    with Page(store.root, Address("127.0.0.1", 0, TOKEN), root / "audit_guarded.jsonl") as page:
        yield page


def address(page: Page) -> str:
    return page.url.removeprefix("http://").rstrip("/")


@pytest.fixture
def visit(page: Page) -> Visitor:
    return Visitor(address(page))


def audited(path: Path) -> list[tuple[str, int]]:
    events = [json.loads(line)["EventIdentification"] for line in path.read_text().splitlines()]
    return [(event["EventID"]["originalText"], event["EventOutcomeIndicator"]) for event in events]


def test_the_worklist_shows_stat_first_and_tells_what_is_not_in_it(visit: Visitor) -> None:
    answer = visit("/")
    assert answer.status == 200
    places = [answer.text.index(f'<code class="soft">{study_uid(study)}</code>') for study in (2, 1, 5)]
    assert places == sorted(places)
    assert answer.text.index("STAT") < places[0]
    assert "picture and words disagree" in answer.text
    assert "0.910" in answer.text
    assert "2026-01-02" in answer.text
    assert "1 failed" in answer.text
    assert "1 in quarantine" in answer.text
    assert study_uid(3) not in answer.text


def test_what_others_have_sent_is_escaped_everywhere(visit: Visitor) -> None:
    for path in ("/", f"/study/{study_uid(1)}", "/jobs", "/jobs/3", "/quarantine"):
        answer = visit(path)
        assert answer.status == 200
        assert "<script" not in answer.text
        assert "<img" not in answer.text
    assert "&lt;script&gt;" in visit("/quarantine").text


def test_no_page_fetches_runs_or_is_framed(visit: Visitor) -> None:
    for path in ("/", "/jobs", "/jobs/1", "/quarantine", "/nothing", f"/study/{study_uid(1)}"):
        headers = visit(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not re.search(r'(src|href)="(https?:)?//', visit(path).text)


def test_a_report_is_served_as_it_is_in_a_sandbox(visit: Visitor, root: Path) -> None:
    answer = visit("/jobs/1/report.html")
    assert answer.text == f"<p>{HOSTILE}"
    assert answer.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
    assert "allow" not in answer.headers["content-security-policy"]
    assert '<iframe sandbox title="Report" src="/jobs/1/report.html">' in visit(f"/study/{study_uid(1)}").text
    assert json.loads(visit("/jobs/1/report.json").text)["study"]["uid"] == study_uid(1)
    assert ("DICOM Instances Accessed", 0) in audited(root / "audit.jsonl")


@pytest.mark.parametrize("path", [
    "/jobs/1/../../watcher.lock", "/jobs/1/..%2f..%2fstore.sqlite", "/jobs/1/store.sqlite", "/jobs/1/report.htm",
    "/study/..%2f..%2f..%2fetc%2fpasswd", "/study/../../../../etc/passwd", "/jobs/%2e%2e/report.html", "//etc/passwd",
    "/jobs/999999999999999999999999/report.html", "/jobs/-1", "/style.css/../../doors.py", "/jobs/3/report.html",
    "/study/1.2.3", "/jobs?state=none", "/?page=0", "/?page=x", "/?page=9999999999", "/?days=nan", "/?days=-1",
    "/?days=x",
])  # fmt: skip
def test_there_is_nothing_at_any_other_path(visit: Visitor, path: str) -> None:
    answer = visit(path)
    assert answer.status == 404, answer.text
    assert "root:" not in answer.text


def test_a_link_in_a_result_leads_nowhere(visit: Visitor, store: Store, root: Path) -> None:
    (root / "secret").write_text("secret")
    job = reported(store, 20)
    file = store.result_of(job) / job.study_uid / "report.html"
    file.unlink()
    file.symlink_to(root / "secret")
    assert visit(f"/jobs/{job.id}/report.html").status == 404
    assert "was purged" in visit(f"/study/{study_uid(20)}").text


def test_a_job_shows_its_history_and_its_reason(visit: Visitor) -> None:
    text = visit("/jobs/4").text
    assert "missing_slices" in text
    assert "3 slices are missing" in text
    events = re.findall(r"<strong>(\w+)</strong>", text)
    assert events == ["receiving", "study_complete", "ready", "routed", "running", "failed"]
    assert "sources scp CT1@192.0.2.7" in text
    assert "outbox /out: there" in visit("/jobs/1").text


def test_what_is_to_be_typed_is_set_as_such_and_the_rest_is_escaped(visit: Visitor) -> None:
    text = visit("/quarantine").text
    assert "<code>imgpipe jobs retry</code> runs it again" in text
    assert "`" not in text
    assert "KiB" in visit("/jobs/1").text
    assert _told("a `<b>` c `<i>") == "a <code>&lt;b&gt;</code> c &lt;i&gt;"


def test_jobs_are_chosen_by_their_state(visit: Visitor) -> None:
    text = visit("/jobs?state=failed").text
    assert study_uid(4) in text
    assert study_uid(1) not in text


def test_a_held_job_is_run_again_by_its_button(visit: Visitor, store: Store, root: Path) -> None:
    job = held(store, 6, WorkerLost("study x", seen="killed"))
    seal = visit.seal("/quarantine")
    answer = visit(f"/jobs/{job.id}/retry", {"seal": seal})
    assert (answer.status, answer.headers["location"]) == (303, f"/jobs/{job.id}")
    assert store.jobs.find(str(job.id)).state is State.READY
    assert ("Procedure Record", 0) in audited(root / "audit.jsonl")
    again = visit(f"/jobs/{job.id}/retry", {"seal": seal})
    assert again.status == 409
    assert "it is ready" in again.text
    claimed_again = store.jobs.claim("w", "s")
    assert claimed_again is not None
    store.jobs.refuse(claimed_again, MissingSlices("study x", seen="3"))


def test_an_undelivered_result_is_delivered_again_by_its_button(visit: Visitor, store: Store) -> None:
    job = claimed(store, 7)
    store.jobs.ran(job)
    store.jobs.verified(store.jobs.find(str(job.id)), "0" * 64, ["pacs"])
    store.jobs.undelivered(job.id, "pacs", DeliveryFailed("pacs", seen="away"), Retries(most=1))
    assert "not yet, tried 1 time" in visit(f"/jobs/{job.id}").text
    assert visit(f"/jobs/{job.id}/release", {"seal": visit.seal("/quarantine")}).status == 303
    assert store.jobs.find(str(job.id)).state is State.DELIVERING


def test_a_form_is_taken_from_its_own_page_and_visitor_only(visit: Visitor, page: Page, store: Store) -> None:
    seal = visit.seal("/quarantine")
    stranger = Visitor(address(page))
    assert visit("/jobs/3/retry", {}).status == 403
    assert visit("/jobs/3/retry", {"seal": "0" * 64}).status == 403
    assert stranger("/jobs/3/retry", {"seal": seal}).status == 403
    assert visit("/jobs/3/retry", {"seal": seal}, Origin="http://evil.example").status == 403
    assert visit("/jobs/3/retry", {"seal": seal}, Origin="null").status == 403
    assert visit("/jobs/3/retry", {"seal": seal}, Sec_Fetch_Site="cross-site").status == 403
    assert visit("/jobs/3/retry", {"seal": seal, "x": "y" * 5000}).status == 413
    assert visit("/jobs/3/purge", {"seal": seal}).status == 404
    assert visit("/jobs/3/retry").status == 405
    assert store.jobs.find("3").state is State.QUARANTINED


def test_another_name_for_our_address_is_not_answered(visit: Visitor) -> None:
    assert visit("/", Host="evil.example").status == 421


def test_the_cookie_is_kept_from_scripts_and_other_sites(page: Page) -> None:
    cookie = Visitor(address(page))("/").headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "Set-Cookie" not in Visitor(address(page))("/metrics").headers


def test_machines_are_told_worklist_metrics_and_health(visit: Visitor) -> None:
    document = json.loads(visit("/worklist.json").text)
    assert [item["study_uid"] for item in document["worklist"]][:2] == [study_uid(2), study_uid(1)]
    assert document["worklist"][1]["score"] == 0.91
    assert document["worklist"][0]["disagreements"] == 1
    assert document["not_done"]["failed"] >= 1
    assert HOSTILE not in json.dumps(document)
    assert 'imgpipe_jobs{state="done"}' in visit("/metrics").text
    assert json.loads(visit("/healthz").text) == {"status": "ok"}


def test_who_has_not_signed_in_sees_nothing(guarded: Page) -> None:
    stranger = Visitor(address(guarded))
    for path in ("/", "/jobs", "/jobs/1/report.html", f"/study/{study_uid(1)}", "/nothing"):
        answer = stranger(path)
        assert (answer.status, answer.headers["location"], answer.text) == (303, "/sign-in", "")
    for path in ("/metrics", "/worklist.json"):
        assert stranger(path).status == 401
    assert stranger("/jobs/3/retry", {"seal": "x"}).status == 401
    assert stranger("/healthz").status == 200
    assert "Set-Cookie" not in stranger("/sign-in").headers
    for token in ("wrong", "", TOKEN + "0"):
        assert stranger("/metrics", Authorization=f"Bearer {token}").status == 401


def test_the_token_opens_a_session_until_signing_out(guarded: Page, root: Path) -> None:
    visitor = Visitor(address(guarded))
    begun = time.monotonic()
    refused = visitor("/sign-in", {"token": "wrong"})
    assert (refused.status, time.monotonic() - begun > 0.9) == (403, True)
    assert visitor.cookie == ""
    assert visitor("/sign-in", {"token": TOKEN}).status == 303
    first = visitor.cookie
    assert visitor("/").status == 200
    assert visitor("/sign-out", {"seal": visitor.seal("/")}).status == 303
    visitor.cookie = first
    assert visitor("/").status == 303
    assert Visitor(address(guarded))("/metrics", Authorization=f"Bearer {TOKEN}").status == 200
    told = [event for event in audited(root / "audit_guarded.jsonl") if event[0] == "User Authentication"]
    assert told == [("User Authentication", 4), ("User Authentication", 0), ("User Authentication", 0)]
    assert TOKEN not in (root / "audit_guarded.jsonl").read_text()


def test_it_is_started_again_at_the_same_place_and_tells_when_the_watcher_is_silent(
    page: Page, visit: Visitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.web.page._PAUSE_S", 0)
    assert page._process is not None
    page._process.kill()
    page._process.join()
    page.tick()
    assert visit("/healthz").status == 200
    page._beat.value = time.monotonic() - 3600
    answer = visit("/healthz")
    assert (answer.status, json.loads(answer.text)) == (503, {"status": "watcher_silent"})
    page.tick()
    assert visit("/healthz").status == 200


def chromium(url: str, profile: Path) -> str:
    """The page as a browser makes it."""
    required("/usr/bin/chromium")
    command = ["/usr/bin/chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}",
               "--dump-dom", url]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_browser_shows_the_pages_and_runs_nothing_of_a_report(page: Page, store: Store, tmp_path: Path) -> None:
    evil = "<!doctype html><p>read me<script>document.body.append('R' + 'AN')</script>"
    job = reported(store, 30, page=evil)
    shown = chromium(f"{page.url}jobs/{job.id}/report.html", tmp_path)
    assert "read me" in shown
    assert "RAN" not in shown
    assert study_uid(2) in chromium(page.url, tmp_path)


def test_many_studies_come_by_the_page(visit: Visitor, store: Store) -> None:
    for study in range(100, 155):
        reported(store, study)
    text = visit("/").text
    assert 'href="/?days=7.0&page=2"' in text or 'href="/?days=7.0&amp;page=2"' in text
    assert "page 1 of 2" in text
    second = visit("/?days=7.0&page=2").text
    assert "page 2 of 2" in second
    assert study_uid(154) in second
    assert quote(study_uid(154)) not in text
