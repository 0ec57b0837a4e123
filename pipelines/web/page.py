"""The process that serves the page, as the watcher sees it: started with it, looked after, ended with it.

Invariant: the address is held by the watcher, so whatever ends the process, the next one answers at the same place. The
watcher never waits for it.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import uvicorn

from imaging.errors import ConfigInvalid, ListenImpossible
from pipelines.audit import AuditLog
from pipelines.store.seen import Seen
from pipelines.web.app import Health, application
from pipelines.web.doors import Doors, is_loopback
from pipelines.worker import end_with

log = logging.getLogger(__name__)

# A process that ends is started again, and not more often than this, in seconds.
_PAUSE_S = 5.0
_REQUESTS = 64


@dataclass(frozen=True, slots=True)
class Address:
    """Where the page is, and the token that it asks for; port 0 takes a free one."""

    host: str
    port: int
    token: str | None = None

    @classmethod
    def parse(cls, text: str, token: str | None = None) -> Address:
        """``HOST:PORT``, or ``[HOST]:PORT`` for IPv6.

        Raises
        ------
        ConfigInvalid
            If it is none.
        """
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or int(port) >= 65536:
            raise ConfigInvalid("--web", seen=repr(text[:80]), expected="HOST:PORT was expected")
        return cls(host.strip("[]"), int(port), token)


class Page:
    """The page of a store; it is there from when it is entered.

    Parameters
    ----------
    root
        Folder of the store, which is open and stays so.
    address
        Where to listen.
    audit
        Who looks at what is told there.

    Raises
    ------
    ConfigInvalid
        If it could be reached from elsewhere and asks nobody for a token.
    ListenImpossible
        If the address cannot be had.
    """

    def __init__(self, root: Path, address: Address, audit: Path) -> None:
        self._root, self._address, self._audit = root, address, audit
        self._socket = _bound(address)
        self._spawn = multiprocessing.get_context("spawn")
        self._beat: Any = self._spawn.Value("d", time.monotonic(), lock=False)
        self._process: BaseProcess | None = None
        self._begun = 0.0
        self._counted = _last_of(root)

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._socket.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/"

    def __enter__(self) -> Page:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._socket.close()

    def tick(self) -> None:
        """Say that the watcher is alive, and start the process again if it has ended. Call it from the main thread."""
        self._beat.value = time.monotonic()
        if self._process is None or self._process.is_alive() or time.monotonic() - self._begun < _PAUSE_S:
            return
        log.warning("the page ended with %s and is started again", self._process.exitcode)
        self._start()

    def _start(self) -> None:
        self._begun = time.monotonic()
        arguments = (self._root, self._socket, self._address.token, self._audit, self._beat, self._counted,
                     log.getEffectiveLevel(), os.getpid())  # fmt: skip
        self._process = self._spawn.Process(target=_serve, args=arguments, name="page", daemon=True)
        self._process.start()


def _bound(address: Address) -> socket.socket:
    """A socket that listens, unless everybody could come in."""
    subject = f"--web {address.host}:{address.port}"
    try:
        [family, _, _, _, place] = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        if not is_loopback(str(place[0])) and address.token is None:
            raise ConfigInvalid(subject, seen="it can be reached from other machines, and nobody would have to sign in",
                                expected="a loopback address or a token was expected",
                                remedy="Give --web-token-file, or 127.0.0.1 as the host")  # fmt: skip
        return socket.create_server(place[:2], family=family, backlog=128)
    except OSError as error:
        raise ListenImpossible(subject, seen=error.strerror or "the address cannot be used",
                               expected="a free port was expected") from error  # fmt: skip


def _last_of(root: Path) -> tuple[int, int]:
    """Numbers of the last event and the last instance."""
    seen = Seen(root)
    try:
        [row] = seen.read("SELECT (SELECT coalesce(max(seq), 0) FROM events) AS event,"
                          " (SELECT coalesce(max(seq), 0) FROM instances) AS instance")  # fmt: skip
        return row["event"], row["instance"]
    finally:
        seen.close()


class _Server(uvicorn.Server):
    """One that leaves signals alone: a service manager signals every process, and the watcher ends this one."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing is captured."""
        return nullcontext()


def _serve(
    root: Path,
    listening: socket.socket,
    token: str | None,
    audit: Path,
    beat: Any,
    counted: tuple[int, int],
    level: int,
    parent: int,
) -> None:
    """What the process does."""
    end_with(parent)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Who looks waits for who works.
    os.nice(5)
    level = max(level, logging.WARNING)
    logging.basicConfig(stream=sys.stderr, level=level, format="%(levelname)s %(name)s: %(message)s")
    app = application(root, Doors(token), AuditLog(audit), Health(lambda: time.monotonic() - beat.value), counted)
    config = uvicorn.Config(
        app,
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_REQUESTS,
        h11_max_incomplete_event_size=32 << 10,
    )
    _Server(config).run(sockets=[listening])
