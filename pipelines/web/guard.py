"""What every request passes before a page sees it, and every answer on its way out.

Invariant: nothing but the sign-in page, its style and the health is answered to who has not signed in, where that is
asked for; no answer can be framed, sniffed or stored by others, and none of ours runs a script.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.web.doors import Doors

_OPEN = ("/healthz", "/sign-in", "/style.css")
_FOR_MACHINES = ("/metrics", "/worklist.json", "/healthz", "/style.css")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; frame-src 'self'; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_SESSION = "imgpipe.session"


def session_of(request: Request) -> str:
    """The session of a request; empty where there is none."""
    return str(request.scope.get(_SESSION, ""))


def begin_session(request: Request, session: str) -> None:
    """Give the visitor a session with the answer."""
    request.scope[_SESSION] = session


def address_of(request: Request) -> str:
    """Who asks."""
    return request.client.host if request.client is not None else ""


class Guard:
    """Lets requests through to an application, or not.

    Parameters
    ----------
    inner
        The application.
    doors
        Who may look.
    """

    def __init__(self, inner: ASGIApp, doors: Doors) -> None:
        self._inner, self._doors = inner, doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            return
        request = Request(scope)
        cookie = f"imgpipe_{(scope.get('server') or ('', 0))[1]}"
        before = self._session(request, cookie)
        scope[_SESSION] = before

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                session = scope[_SESSION]
                if session and session != request.cookies.get(cookie) and request.url.path not in _FOR_MACHINES:
                    headers.append("Set-Cookie", f"{cookie}={session}; Path=/; HttpOnly; SameSite=Strict")
            await send(message)

        answer = self._refusal(request, before)
        await (answer or self._inner)(scope, receive, sealed)

    def _session(self, request: Request, cookie: str) -> str:
        given = request.cookies.get(cookie, "")
        if self._doors.token is None:
            # Nobody signs in; the session only ties a form to the visitor that it was given to.
            return given if len(given) >= 32 and given.isascii() and given.isprintable() else self._doors.new()
        return given if given and self._doors.knows(given) else ""

    def _refusal(self, request: Request, session: str) -> Response | None:
        """The answer where a request is not let through."""
        headers, path = request.headers, request.url.path
        if not self._doors.answers_to(headers.get("host", "")):
            return PlainTextResponse("this page answers to this machine's own names only\n", status_code=421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("this is not done here\n", status_code=405)
        if request.method == "POST" and not _is_own(headers):
            return PlainTextResponse("a form of another page is not taken\n", status_code=403)
        if self._doors.token is None or session or path in _OPEN or self._bears_token(headers):
            return None
        if path in _FOR_MACHINES or request.method == "POST":
            return PlainTextResponse("sign in first\n", status_code=401, headers={"WWW-Authenticate": "Bearer"})
        return RedirectResponse("/sign-in", status_code=303)

    def _bears_token(self, headers: Headers) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and self._doors.is_token(token.strip())


def _is_own(headers: Headers) -> bool:
    """Whether a form was sent by a page of ours; browsers say so, other programs need not."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
        return False
    return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
