"""/tokens: who may ask over TCP, and what."""

from __future__ import annotations

import secrets

from fastapi import APIRouter

from blockdev.api.access import Asking
from blockdev.api.pages import COUNT_MAX, AfterName, Count, page
from blockdev.api.schemas_tokens import CallerView, ConsoleCode, MadeToken, NewToken, TokenList, TokenView
from blockdev.api.services import Wired
from blockdev.api.tokens import CODE_PREFIX, CODE_SECONDS
from blockdev.errors import Unavailable
from blockdev.vmmap.catalog_tokens import TokenRow

router = APIRouter(prefix="/tokens", tags=["tokens"])


@router.get("")
def list_tokens(services: Wired, count: Count = COUNT_MAX, after: AfterName = "") -> TokenList:
    """By name, those that have expired too."""
    rows, cursor = page(services.tokens.page(after, count + 1), count, lambda row: row.name)
    return TokenList(tokens=[_view(row) for row in rows], next=cursor)


@router.post("", status_code=201)
def add_token(body: NewToken, services: Wired) -> MadeToken:
    """A new token; the answer alone has it."""
    row, token = services.tokens.add(body.name, body.role, body.valid_seconds)
    return MadeToken(**_view(row).model_dump(), token=token)


@router.delete("/{name}")
def remove_token(name: str, services: Wired) -> TokenView:
    """From now on it lets nobody in."""
    return _view(services.tokens.remove(name))


who = APIRouter(tags=["tokens"])


@who.get("/caller")
def show_caller(caller: Asking) -> CallerView:
    """Who asks, and what they may."""
    return CallerView(name=caller.name, role=caller.role)


@who.post("/console-codes", status_code=201)
def add_code(services: Wired) -> ConsoleCode:
    """A code that signs an admin in to the console once, within minutes.  503: the console is served over TCP, and nothing is."""
    if services.tcp is None:
        raise Unavailable("the console is served over TCP: start blockdevctl serve with --api 127.0.0.1:8443")
    row, token = services.tokens.add(CODE_PREFIX + secrets.token_hex(4), "admin", CODE_SECONDS)
    assert row.expires is not None
    return ConsoleCode(name=row.name, url=services.tcp.browser_url, code=token, expires=row.expires)


def _view(row: TokenRow) -> TokenView:
    return TokenView(name=row.name, role=row.role, created=row.created, expires=row.expires)
