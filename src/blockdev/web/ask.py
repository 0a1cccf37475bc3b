"""How pages are written: what a page is given (Ask), and how it says where it is (Pages).

    pages = Pages()

    @pages.get("/vms/{vm}/rename", sends="change_vm")
    async def rename_form(ask: Ask) -> Response:
        return ask.show("rename.html", vm=await ask.rest.get("/vms/{}", ask.path("vm")))

    @pages.post("/vms/{vm}/rename", again=rename_form)
    async def rename(ask: Ask) -> Response:
        name = ask.form.need("name", "the new name")
        await ask.rest.patch("/vms/{}", ask.path("vm"), body={"name": name})
        return ask.done(f"/vms/{name}", f"{ask.path('vm')} is called {name} now")

Whoever is not signed in is sent to sign in, before anything else.  A POST has been checked for its origin and its CSRF token
when the page sees it.  When it raises a BlockdevError, the form is shown again by `again`, with what was typed and what is
wrong; a GET shows an error page.  A page that is a form alone names the route of the API that it sends to: who may not use
that is told so, and sees no form.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from blockdev.api.access import Role, least_role
from blockdev.api.failures import OTHER, STATUS
from blockdev.errors import BlockdevError, NotAllowed
from blockdev.web.door import is_same_origin
from blockdev.web.forms import EMPTY, Form, read_form
from blockdev.web.rendering import render
from blockdev.web.rest import Rest, SignedOut
from blockdev.web.sessions import Notice, Session, Sessions

logger = logging.getLogger(__name__)
CSRF_FIELD, CSRF_HEADER = "csrf", "X-CSRF-Token"
COOKIE_PLAIN, COOKIE_TLS = "blockdev", "__Host-blockdev"


class RoleTooLow(NotAllowed):
    """The page is a form for others than who is signed in."""

    def __init__(self, session: Session, least: Role) -> None:
        super().__init__(f"this needs the role {least}; you are signed in as {session.name}, with the role {session.role}")
        self.least = least


class Ask:
    """One request of somebody who is signed in."""

    def __init__(self, request: Request, session: Session) -> None:
        self.request = request
        self.session = session
        self.rest = Rest(request.app.state.rest, session.token)
        self.form = EMPTY
        self.error: BlockdevError | None = None

    def path(self, name: str) -> str:
        """A part of the address."""
        return str(self.request.path_params[name])

    def query(self, name: str, default: str = "") -> str:
        return self.request.query_params.get(name, default)

    def value(self, name: str, default: object = "") -> str:
        """What a field shows: what was typed if its form is shown again, what the address asks for, or the default."""
        if self.error is not None and name in self.form:
            return self.form.text(name)
        return self.query(name) or ("" if default is None else str(default))

    def checked(self, name: str, value: str, default: bool = False) -> bool:
        """The same for check boxes, radio buttons and choices of this value."""
        if self.error is not None:
            return value in self.form.all(name)
        asked = self.request.query_params.getlist(name)
        return value in asked if asked else default

    def show(self, template: str, **given: Any) -> Response:
        """A page; templates extend base.html.  A template of a part of a page extends nothing."""
        notices = self.session.take_notices(self.request.url.path)
        return HTMLResponse(render(template, {"ask": self, "session": self.session, "notices": notices, **given}), self.status)

    def part(self, template: str, **given: Any) -> Response:
        """A part of a page, that a script asked for: notices stay for the page."""
        return HTMLResponse(render(template, {"ask": self, "session": self.session, **given}), self.status)

    def done(self, to: str, notice: str) -> Response:
        """What was asked is done: go to a page, which says so first; no page in another tab does."""
        self.session.notices.append(Notice(urlsplit(to).path, notice))
        return RedirectResponse(to, 303)

    @property
    def status(self) -> int:
        return 200 if self.error is None else status_of(self.error)


Page = Callable[[Ask], Awaitable[Response]]


class Pages:
    """The pages of one module: `routes` are the application's."""

    def __init__(self) -> None:
        self.routes: list[Route] = []

    def get(self, path: str, sends: str | None = None) -> Callable[[Page], Page]:
        """sends: of a page that is a form alone, the API's route that it is for."""
        add = self._route("GET", path, None)
        return add if sends is None else lambda page: add(_guarded(page, least_role(sends)))

    def post(self, path: str, again: Page | None = None) -> Callable[[Page], Page]:
        """again: the page that shows the form; without it an error page is shown."""
        return self._route("POST", path, again)

    def _route(self, method: str, path: str, again: Page | None) -> Callable[[Page], Page]:
        def add(page: Page) -> Page:
            async def endpoint(request: Request) -> Response:
                return await _answer(request, page, again)

            self.routes.append(Route(path, endpoint, methods=[method], name=page.__name__))
            return page

        return add


def _guarded(page: Page, least: Role) -> Page:
    @wraps(page)
    async def guarded(ask: Ask) -> Response:
        if not ask.session.may(least):
            raise RoleTooLow(ask.session, least)
        return await page(ask)

    return guarded


async def _answer(request: Request, page: Page, again: Page | None) -> Response:
    session = session_of(request)
    if session is None:
        return _to_sign_in(request)
    ask = Ask(request, session)
    try:
        if request.method == "POST":
            ask.form = await _checked_form(request, session)
        return await page(ask)
    except SignedOut:
        sessions_of(request).end(cookie_of(request))
        return _to_sign_in(request)
    except BlockdevError as error:
        return await _show_error(ask, error, again)


async def _show_error(ask: Ask, error: BlockdevError, again: Page | None) -> Response:
    ask.error = error
    try:
        if again is not None:
            return await again(ask)
    except BlockdevError as worse:  # what the form is about is not there, say
        ask.error = worse
    return ask.show("error.html", least=ask.error.least if isinstance(ask.error, RoleTooLow) else None)


async def _checked_form(request: Request, session: Session) -> Form:
    """NotAllowed: the form is not of a page of this session."""
    if not is_same_origin(request):
        raise NotAllowed("this was sent by a page of another site: nothing was done")
    form = await read_form(request)
    given = request.headers.get(CSRF_HEADER) or form.get(CSRF_FIELD) or ""
    if not hmac.compare_digest(given.encode(), session.csrf.encode()):
        raise NotAllowed("the page that this was sent from is not of this session: load it again, and nothing was done")
    return form


def status_of(error: BlockdevError) -> int:
    return next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), OTHER)


def sessions_of(request: Request) -> Sessions:
    found = request.app.state.sessions
    assert isinstance(found, Sessions)
    return found


def cookie_name(request: Request) -> str:
    """With TLS one that no other host and no plain HTTP can set."""
    return COOKIE_TLS if request.url.scheme == "https" else COOKIE_PLAIN


def cookie_of(request: Request) -> str:
    return request.cookies.get(cookie_name(request), "")


def session_of(request: Request) -> Session | None:
    value = cookie_of(request)
    return sessions_of(request).find(value) if value else None


def _to_sign_in(request: Request) -> Response:
    """A page comes back afterwards to where it was; a script's request is told to load the whole page."""
    if request.headers.get("hx-request"):
        return Response(status_code=401, headers={"HX-Refresh": "true"})
    if request.headers.get("sec-fetch-mode", "navigate") != "navigate":
        return Response(status_code=401)
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    to = f"/sign-in?to={quote(wanted)}" if request.method == "GET" and wanted != "/" else "/sign-in"
    return RedirectResponse(to, 303)


def safe_target(text: str) -> str:
    """An address below ours to go to; anything else is the first page."""
    parts = urlsplit(text)
    is_ours = text.startswith("/") and not text.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return text if is_ours and text.isprintable() and "\\" not in text else "/"
