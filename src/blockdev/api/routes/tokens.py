"""/tokens: who may ask over TCP, and what."""

from __future__ import annotations

from fastapi import APIRouter

from blockdev.api.pages import COUNT_MAX, AfterName, Count, page
from blockdev.api.schemas_tokens import MadeToken, NewToken, TokenList, TokenView
from blockdev.api.services import Wired
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


def _view(row: TokenRow) -> TokenView:
    return TokenView(name=row.name, role=row.role, created=row.created, expires=row.expires)
