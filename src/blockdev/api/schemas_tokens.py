"""The bodies of /tokens."""

from __future__ import annotations

from pydantic import BaseModel, Field

from blockdev.api.access import Role
from blockdev.api.schemas import Body, Name
from blockdev.constants import DURATION_SECONDS_MAX


class NewToken(Body):
    name: Name
    role: Role
    valid_seconds: int | None = Field(None, ge=1, le=DURATION_SECONDS_MAX, description="it expires so long from now; absent: never")


class TokenView(BaseModel):
    """A token, without itself."""

    name: str
    role: Role
    created: str
    expires: str | None = Field(description="null: never")


class MadeToken(TokenView):
    token: str = Field(description="for `Authorization: Bearer`; told this once")


class TokenList(BaseModel):
    tokens: list[TokenView]
    next: str | None = Field(description="`after` of the next page; null: this is the last one")


class CallerView(BaseModel):
    """Whoever asks."""

    name: str = Field(description="owner, over the Unix socket, or the token's name")
    role: Role


class ConsoleCode(BaseModel):
    """What signs in to the console, once."""

    name: str = Field(description="of the token that it is until then")
    url: str = Field(description="of the console")
    code: str = Field(description="told this once")
    expires: str
