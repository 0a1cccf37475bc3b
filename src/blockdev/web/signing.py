"""Signing in and out.

One gives a token of the API, or the code that `blockdevctl console` printed.  That is a token, too, one of an admin that is
valid for minutes; it is changed for a token of this session's own and removed, so it works once.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from contextlib import suppress
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from blockdev.api.access import Role
from blockdev.api.tokens import CODE_PREFIX, SESSION_PREFIX
from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.errors import BlockdevError, InvalidArgument, NotAllowed, NotFound
from blockdev.web import ask
from blockdev.web.ask import Ask, Pages
from blockdev.web.door import is_same_origin
from blockdev.web.forms import read_form
from blockdev.web.rendering import render, seconds_of
from blockdev.web.rest import Rest
from blockdev.web.sessions import SECONDS_MAX, Session

pages = Pages()
ATTEMPTS_MAX, ATTEMPTS_SECONDS = 10, 60  # that fail, of one address
ADDRESSES_MAX = 10_000
FORM_BYTES_MAX = 8192  # of somebody whom nobody knows yet


class TooMany(BlockdevError):
    """Attempts to sign in."""


class _LetIn(NamedTuple):
    """Who: what Sessions.begin takes."""

    name: str
    role: Role
    token: str
    is_ours: bool


class Attempts:
    """Failed attempts to sign in, by the address that they come from."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, deque[float]] = OrderedDict()

    def check(self, address: str) -> None:
        """TooMany."""
        failed = self._failed.get(address, deque())
        while failed and failed[0] < monotonic_seconds() - ATTEMPTS_SECONDS:
            failed.popleft()
        if len(failed) >= ATTEMPTS_MAX:
            raise TooMany(f"too many attempts: wait {ATTEMPTS_SECONDS} s")

    def failed(self, address: str) -> None:
        self._failed.setdefault(address, deque(maxlen=ATTEMPTS_MAX)).append(monotonic_seconds())
        self._failed.move_to_end(address)
        while len(self._failed) > ADDRESSES_MAX:
            self._failed.popitem(last=False)


async def show_sign_in(request: Request) -> Response:
    if ask.session_of(request) is not None:
        return RedirectResponse(ask.safe_target(request.query_params.get("to", "/")), 303)
    return _form(200, None, request.query_params.get("to", "/"))


async def sign_in(request: Request) -> Response:
    """The token comes in the body alone, and is never shown again."""
    attempts: Attempts = request.app.state.attempts
    address = request.client.host if request.client else ""
    to = "/"
    try:
        if not is_same_origin(request):
            raise NotAllowed("this was sent by a page of another site")
        attempts.check(address)
        form = await read_form(request, FORM_BYTES_MAX)
        to = ask.safe_target(form.get("to") or "/")
        session = await _let_in(request, form.need("token", "the token"))
    except TooMany as error:
        return _form(429, error.message, to, {"Retry-After": str(ATTEMPTS_SECONDS)})
    except InvalidArgument as error:
        return _form(400, error.message, to)
    except NotAllowed as error:
        attempts.failed(address)
        return _form(401, f"not signed in: {error.message}", to)
    sessions = ask.sessions_of(request)
    before = sessions.end(ask.cookie_of(request))
    if before is not None:
        await _give_up(request, before)
    answer = RedirectResponse(to, 303)
    value = sessions.begin(*session)
    answer.set_cookie(
        ask.cookie_name(request), value, max_age=SECONDS_MAX, path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict"
    )
    return answer


async def _let_in(request: Request, token: str) -> _LetIn:
    """NotAllowed: the token lets nobody in."""
    rest = Rest(request.app.state.rest, token)
    caller = await rest.get("/caller")
    if not caller["name"].startswith(CODE_PREFIX):
        return _LetIn(caller["name"], caller["role"], token, False)
    name = SESSION_PREFIX + secrets.token_hex(4)
    made = await rest.post("/tokens", body={"name": name, "role": caller["role"], "valid_seconds": SECONDS_MAX})
    own = Rest(request.app.state.rest, made["token"])
    try:
        await own.delete("/tokens/{}", caller["name"])
    except NotFound:  # somebody else used the code in this moment
        await own.delete("/tokens/{}", name)
        raise NotAllowed("the code has been used") from None
    await _sweep(own)
    return _LetIn(name, caller["role"], made["token"], True)


async def _sweep(own: Rest) -> None:
    """Remove codes and sessions of before, which are over and would be listed for ever."""
    for one in await own.get_all("tokens", "/tokens"):
        is_over = one["expires"] is not None and seconds_of(one["expires"]) < now_seconds()
        if is_over and one["name"].startswith((CODE_PREFIX, SESSION_PREFIX)):
            try:
                await own.delete("/tokens/{}", one["name"])
            except NotFound:
                continue


@pages.post("/sign-out")
async def sign_out(asked: Ask) -> Response:
    request = asked.request
    ended = ask.sessions_of(request).end(ask.cookie_of(request))
    if ended is not None:
        await _give_up(request, ended)
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(ask.cookie_name(request), path="/", secure=request.url.scheme == "https", httponly=True, samesite="strict")
    return answer


async def _give_up(request: Request, ended: Session) -> None:
    """A token that was made for a session goes with it."""
    if ended.is_ours:
        with suppress(NotFound, NotAllowed):
            await Rest(request.app.state.rest, ended.token).delete("/tokens/{}", ended.name)


def _form(status: int, error: str | None, to: str, headers: dict[str, str] | None = None) -> Response:
    return HTMLResponse(render("sign_in.html", {"error": error, "to": ask.safe_target(to), "session": None}), status, headers)


async def tell_session(request: Request) -> Response:
    """Whether the browser is signed in."""
    return JSONResponse({"signed_in": ask.session_of(request) is not None})


ROUTES = [
    Route("/session", tell_session, methods=["GET"]),
    Route("/sign-in", show_sign_in, methods=["GET"]),
    Route("/sign-in", sign_in, methods=["POST"]),
    *pages.routes,
]
