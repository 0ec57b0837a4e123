"""The verb of the watcher: watch."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.verb import (
    PATH,
    as_json,
    print_json,
    verb_of,
    with_engine,
    with_memory,
    with_outputs,
    with_policy,
    with_store,
)

if TYPE_CHECKING:
    from imaging.dicom.seg import SegType
    from imaging.dicom.stack import Policy
    from imaging.engines import Wanted
    from imaging.judgement import Explained
    from imaging.report.fhir import Version
    from pipelines.association import Peer, Tls
    from pipelines.dicomweb import Web
    from pipelines.outputs import FhirPage
    from pipelines.receive import Listening
    from pipelines.router import Router
    from pipelines.watch import In, Out, Ruled, Shown
    from pipelines.watcher import Rules
    from pipelines.worker import Reporting
    from pipelines.worklist import Kind

_SECONDS = click.FloatRange(min=0)


@click.command(short_help="Report on each study that arrives, for months.")
@click.option("--inbox", type=PATH, metavar="DIR", help="Files that are put in here are taken.")
@click.option("--listen", metavar="AET:PORT", help="Receive by C-STORE under this AE title.")
@click.option("--caller", "callers", multiple=True, metavar="AET", help="Only these may send. Repeatable.")
@click.option("--private-class", "private", multiple=True, metavar="UID",
              help="Receive instances of this private SOP class, too. Repeatable.")  # fmt: skip
@click.option("--associations", type=click.IntRange(min=1), default=32, show_default=True,
              help="With --listen: so many at once; more are rejected for now.")  # fmt: skip
@click.option("--pdu", "pdu_bytes", type=click.IntRange(4096, 1 << 19), default=1 << 17, show_default=True,
              metavar="BYTES", help="With --listen: the longest PDU that senders are asked for.")  # fmt: skip
@click.option("--tls-certificate", type=PATH, metavar="FILE",
              help="Ours, in PEM: --listen, --send and --ask speak TLS, and plain TCP is refused.")  # fmt: skip
@click.option("--tls-key", type=PATH, metavar="FILE", help="Its private key, in PEM.")
@click.option("--tls-trusted", type=PATH, metavar="FILE",
              help="Certificates that are trusted, in PEM; a peer without one signed by them is refused.")  # fmt: skip
@click.option("--worklist", metavar="CODE",
              help="With --dicomweb: only what its worklist (UPS-RS) has under this code, VALUE[^SCHEME].")  # fmt: skip
@click.option("--ask", "asked", metavar="PACS",
              help="Ask it how many images a study has: AET@HOST:PORT or a DICOMweb URL; else --dicomweb.")  # fmt: skip
@click.option("--dicomweb", metavar="URL", help="Fetch new studies from this server.")
@click.option("--days", type=click.IntRange(min=0), default=7, show_default=True,
              help="With --dicomweb: of the last days, by StudyDate; 0 is all, those without one too.")  # fmt: skip
@click.option("--outbox", type=PATH, metavar="DIR", help="A folder for each study appears in here.")
@click.option("--send", "peers", multiple=True, metavar="AET@HOST:PORT", help="Send results by C-STORE. Repeatable.")
@click.option("--stow", "webs", multiple=True, metavar="URL", help="Send results by STOW-RS. Repeatable.")
@with_store
@click.option("--model", "models", multiple=True, metavar="NAME", help="A shipped checkpoint, or a folder. Repeatable.")
@with_outputs
@click.option("--quiet", "study_quiet_s", type=_SECONDS, default=60.0, show_default=True, metavar="S",
              help="A study is complete when nothing of it came for this long.")  # fmt: skip
@click.option("--timeout", "timeout_s", type=_SECONDS, default=3600.0, show_default=True, metavar="S",
              help="A study is complete in any case this long after its first image.")  # fmt: skip
@click.option("--settle", "settle_s", type=_SECONDS, default=2.0, show_default=True, metavar="S",
              help="A file in the inbox is whole when it has not changed for this long.")  # fmt: skip
@click.option("--poll", "poll_s", type=click.FloatRange(min=0.05), metavar="S",
              help="Look into the inbox this often; by default where no events come (NFS, SMB).")  # fmt: skip
@click.option("--time-limit", "study_s", type=click.FloatRange(min=1), default=300.0, show_default=True, metavar="S",
              help="A study may take this long, and 2 s more for each MiB of it.")  # fmt: skip
@click.option("--at-once", type=click.IntRange(1, 8), show_default="2, with --memory 1",
              help="Studies that a worker has in hand: one is asked, others are read or written.")  # fmt: skip
@click.option("--warm-gib", type=click.FloatRange(min=0, min_open=True), metavar="GIB",
              help="Most weights in a worker's memory; those used longest ago leave. By default all stay.")  # fmt: skip
@click.option("--tries", type=click.IntRange(min=1), default=5, show_default=True,
              help="After so many faults a job is quarantined.")  # fmt: skip
@click.option("--drain", "drain_s", type=_SECONDS, default=60.0, show_default=True, metavar="S",
              help="Told to end, finish what runs for at most this long.")  # fmt: skip
@click.option("--web", metavar="HOST:PORT", help="Show worklist, reports, jobs and metrics there.")
@click.option("--web-token-file", "token_file", type=PATH, metavar="FILE", help="Who looks signs in with this token.")
@click.option("--audit-log", type=PATH, metavar="FILE", help="Instead of audit.jsonl in the store.")
@click.option("--rules", "rules_file", type=PATH, metavar="FILE",
              help="What is done with which studies (docs/watcher.md). SIGHUP reads it again.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what the rules would do with each study that is here, and end.")
@with_engine
@with_policy
@with_memory
@as_json
@verb_of
def watch(
    store: Path, rules_file: Path | None, dry_run: bool, warm_gib: float | None, as_json: bool, **told: Any
) -> int:
    """Report on each study that comes, once.

    Studies come from the inbox, by C-STORE or from a DICOMweb server; results go to the outbox, a folder for each
    study, or to a PACS. A token for DICOMweb servers is taken from the environment variable IMGPIPE_WEB_TOKEN.

    Files of the inbox move into the store. An image that comes late makes a new version of the study's result, which
    names the one that it replaces. SIGTERM or Ctrl-C ends it when what runs is finished; a second one ends it at once.
    Whatever ends it, the next start goes on from there.
    """
    from pipelines import watch as verb
    from pipelines.worker import ByRule

    if dry_run:
        return _dry_run(store, _ruled(rules_file, told), as_json=as_json, **told)
    warm_bytes = None if warm_gib is None else int(warm_gib * 2**30)
    left = verb.watch(
        come_from=_ways_in(**told),
        go_to=_ways_out(**told),
        store=store,
        reading=ByRule((_reading(**told),), warm_bytes),
        stop=_ended_by_signals(),
        devices=verb.devices(),
        rules=_rules(**told),
        shown=_shown(**told),
        ruled=_ruled(rules_file, told) if rules_file is not None else None,
    )
    if as_json:
        print_json({"jobs": left, "exit_status": 0})
    else:
        click.echo(", ".join(f"{count} {state}" for state, count in sorted(left.items())) or "no study came")
    return 0


def _ruled(path: Path | None, told: dict[str, Any]) -> Ruled:
    """The rules, which SIGHUP lets be read again."""
    from imaging.errors import ConfigInvalid
    from pipelines.watch import Ruled

    if path is None:
        raise ConfigInvalid("--dry-run", seen="no --rules", expected="a file of rules was expected")

    def on_router(router: Router) -> None:
        signal.signal(signal.SIGHUP, lambda *_: router.ask_reload())

    return Ruled(path, _reading(**told), on_router)


def _dry_run(store: Path, ruled: Ruled, *, inbox: Path | None, as_json: bool, **told: Any) -> int:
    from pipelines.preview import preview
    from pipelines.watch import Places

    router = ruled.router(_ways_out(**told), Places(str(store.resolve())))
    planned = list(preview(router, store=store, inbox=inbox))
    if as_json:
        print_json({"studies": [one.as_dict() for one in planned], "exit_status": 0})
        return 0
    for one in planned:
        if not one.rule:
            click.echo(f"{one.study_uid}  {one.where}: no rule takes it (no_rule)")
            continue
        more = "".join([", under pseudonyms" if one.is_deidentified else "",
                        ", waits for a required series" if one.lacks_required else ""])  # fmt: skip
        files = ",".join(one.formats) if one.formats is not None else "what fits"
        click.echo(f"{one.study_uid}  {one.where}: rule {one.rule} ({one.priority}): {', '.join(one.checkpoints)} "
                   f"-> {files} -> {', '.join(one.to)}{more}")  # fmt: skip
    if not planned:
        click.echo("no study is here")
    return 0


def _ways_in(
    *,
    inbox: Path | None,
    listen: str | None,
    callers: tuple[str, ...],
    private: tuple[str, ...],
    peers: tuple[str, ...],
    associations: int,
    pdu_bytes: int,
    dicomweb: str | None,
    days: int,
    asked: str | None,
    worklist: str | None,
    **told: Any,
) -> In:
    from imaging.errors import ConfigInvalid
    from pipelines.watch import In

    if worklist and not dicomweb:
        raise ConfigInvalid("--worklist", seen="no --dicomweb", expected="the server that has it was expected")

    listening = None
    if listen:
        # Whoever gets results is told of what it sent where it listens, and need not hold its association open.
        known = {peer.aet: peer for peer in _peers(peers)}
        listening = replace(_listening(listen, callers, private), peers=known, associations=associations,
                            pdu_bytes=pdu_bytes, tls=_tls(**told))  # fmt: skip
    return In(
        inbox=inbox,
        listening=listening,
        web=_web(dicomweb) if dicomweb else None,
        days=days,
        worklist=_kind(worklist) if worklist else None,
        asked=(_web(asked) if "://" in asked else _peers((asked,))[0]) if asked else None,
    )


def _ways_out(*, outbox: Path | None, peers: tuple[str, ...], webs: tuple[str, ...], **told: Any) -> Out:
    from pipelines.watch import Out

    return Out(outbox=outbox, peers=_peers(peers), webs=tuple(map(_web, webs)), tls=_tls(**told))


def _tls(*, tls_certificate: Path | None, tls_key: Path | None, tls_trusted: Path | None, **_: object) -> Tls | None:
    """The certificates; all three, or none."""
    from imaging.errors import ConfigInvalid

    if tls_certificate is None and tls_key is None and tls_trusted is None:
        return None
    if tls_certificate is None or tls_key is None or tls_trusted is None:
        raise ConfigInvalid("TLS", seen="some of --tls-certificate, --tls-key and --tls-trusted",
                            expected="all three of them were expected", remedy="Give all three, or none")  # fmt: skip
    from pipelines.association import Tls

    tls = Tls(tls_certificate, tls_key, tls_trusted)
    tls.context(server=False)  # refuses what cannot be used before anything starts
    return tls


def _reading(
    *,
    models: tuple[str, ...],
    formats: str | None,
    seg_type: SegType,
    fhir_version: Version,
    fhir_page: FhirPage,
    explain: Explained,
    engine: Wanted,
    policy: Policy,
    memory: str | None,
    **_: object,
) -> Reporting:
    from imaging.memory import Budget
    from pipelines.worker import Reporting

    if memory is not None:
        Budget.parse(memory)  # refuses nonsense before anything starts

    chosen = tuple(part.strip() for part in formats.split(",")) if formats else None
    return Reporting(models, chosen, seg_type=seg_type, fhir_version=fhir_version, fhir_page=fhir_page, policy=policy,
                     explain=explain, engine=engine, memory=memory)  # fmt: skip


def _rules(
    *,
    study_quiet_s: float,
    timeout_s: float,
    settle_s: float,
    poll_s: float | None,
    study_s: float,
    at_once: int | None,
    memory: str | None,
    tries: int,
    drain_s: float,
    **_: object,
) -> Rules:
    from pipelines.runner import Patience
    from pipelines.store.rules import Completeness, Retries
    from pipelines.watcher import Rules

    return Rules(
        complete=Completeness(
            series_quiet_s=min(10.0, study_quiet_s), study_quiet_s=study_quiet_s, timeout_s=timeout_s
        ),
        retries=Retries(most=tries),
        patience=Patience(study_s=study_s),
        settle_s=settle_s,
        poll_s=poll_s,
        at_once=_in_hand(at_once, memory),
        drain_s=drain_s,
    )


def _in_hand(at_once: int | None, memory: str | None) -> int:
    """How many studies a worker has in hand; within a budget one, for what another one has yet to take nobody knows."""
    from imaging.errors import ConfigInvalid

    if memory is None:
        return at_once or 2
    if at_once not in (None, 1):
        raise ConfigInvalid("--at-once", seen=f"{at_once} with --memory {memory}",
                            expected="1 was expected: the budget is one study's at a time",
                            remedy="Leave out one of the two")  # fmt: skip
    return 1


def _shown(*, web: str | None, token_file: Path | None, audit_log: Path | None, **_: object) -> Shown:
    from imaging.errors import ConfigInvalid
    from pipelines.watch import Shown

    if web is None:
        if token_file is not None:
            raise ConfigInvalid("--web-token-file", seen="no --web", expected="a page to sign in to was expected")
        return Shown(audit_log=audit_log)
    from pipelines.web.doors import read_token
    from pipelines.web.page import Address

    return Shown(Address.parse(web, read_token(token_file) if token_file is not None else None), audit_log)


def _ended_by_signals() -> threading.Event:
    """Set by the first SIGTERM or Ctrl-C; the second one ends the process."""
    stop = threading.Event()

    def end(signum: int, _: Any) -> None:
        if stop.is_set():
            raise SystemExit(128 + signum)
        click.echo("imgpipe: ending when what runs is finished", err=True)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return stop


def _web(url: str) -> Web:
    from pipelines.dicomweb import Web

    return Web(url, token=os.environ.get("IMGPIPE_WEB_TOKEN", ""))


def _kind(text: str) -> Kind:
    from pipelines.worklist import Kind

    return Kind.parse(text)


def _peers(texts: tuple[str, ...]) -> tuple[Peer, ...]:
    from pipelines.association import Peer

    return tuple(map(Peer.parse, texts))


def _listening(text: str, callers: tuple[str, ...], private: tuple[str, ...]) -> Listening:
    from imaging.dicom.values import is_uid
    from imaging.errors import ConfigInvalid
    from pipelines.receive import Listening

    aet, _, port = text.rpartition(":")
    if not aet or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigInvalid("--listen", seen=repr(text[:80]), expected="AET:PORT was expected",
                            remedy="Correct --listen")  # fmt: skip
    wrong = next((uid for uid in private if not is_uid(uid) or uid.startswith("1.2.840.10008.")), None)
    if wrong is not None:
        raise ConfigInvalid("--private-class", seen=repr(wrong[:80]), expected="the UID of a private SOP class was "
                            "expected")  # fmt: skip
    return Listening(aet, int(port), callers=frozenset(callers), private=frozenset(private))
