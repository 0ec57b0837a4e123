"""Who may look, and who may change something.

Invariant: without a token only this machine's own addresses are answered, under their own names; with one nobody is
shown anything before having signed in. A form is taken only from the visitor that it was given to.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from imaging.errors import ConfigInvalid

# A token is guessed by trying; so many characters are not.
SHORTEST = 16
# How long somebody who does nothing stays signed in, and how many may be at once.
_IDLE_S, _MOST = 8 * 3600.0, 1000


@dataclass(slots=True)
class Doors:
    """Sessions of visitors.

    Parameters
    ----------
    token
        What a visitor signs in with; None lets everybody in who comes from this machine.
    idle_s
        How long a session lasts without a request.
    """

    token: str | None = None
    idle_s: float = _IDLE_S
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    _sessions: dict[str, float] = field(default_factory=dict)
    _changing: threading.Lock = field(default_factory=threading.Lock)

    def is_token(self, given: str) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        wanted = hashlib.sha256((self.token or "").encode()).digest()
        same = hmac.compare_digest(hashlib.sha256(given.encode()).digest(), wanted)
        return same and self.token is not None

    @staticmethod
    def new() -> str:
        """A name for a session that nobody guesses."""
        return secrets.token_urlsafe(32)

    def open(self) -> str:
        """A session of somebody who has signed in; where there are too many, the one that was idle longest ends."""
        session = self.new()
        with self._changing:
            if len(self._sessions) >= _MOST:
                del self._sessions[min(self._sessions, key=self._sessions.__getitem__)]
            self._sessions[session] = time.monotonic()
        return session

    def knows(self, session: str) -> bool:
        """Whether a session goes on; if so it does from now."""
        with self._changing:
            last = self._sessions.pop(session, None)
            if last is None or time.monotonic() - last > self.idle_s:
                return False
            self._sessions[session] = time.monotonic()
            return True

    def close(self, session: str) -> None:
        """End a session."""
        with self._changing:
            self._sessions.pop(session, None)

    def seal(self, session: str) -> str:
        """What the forms of a session carry, which no other page can know."""
        return hmac.new(self._secret, session.encode(), hashlib.sha256).hexdigest()

    def is_seal(self, given: str, session: str) -> bool:
        """Whether a form was given to this session."""
        return bool(session) and hmac.compare_digest(given.encode(), self.seal(session).encode())

    def answers_to(self, host: str) -> bool:
        """Whether a Host header is one of ours.

        Without a token only this machine's own names are, lest a page from elsewhere gives its own name to our address.
        """
        if self.token is not None:
            return True
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        return is_loopback(name.strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own and reached from nowhere else."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_token(path: Path) -> str:
    """The token in a file: its only line.

    Raises
    ------
    ConfigInvalid
        If it cannot be read, or is short.
    """
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(path, seen="cannot be read", expected="a file with a token was expected") from error
    if len(token) < SHORTEST or not token.isprintable() or " " in token:
        raise ConfigInvalid(path, seen="no token, or a short one",
                            expected=f"a line of at least {SHORTEST} characters was expected",
                            remedy="Make one: `openssl rand -hex 32`")  # fmt: skip
    return token
