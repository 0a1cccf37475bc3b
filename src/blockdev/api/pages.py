"""Pages of lists: `count` things after a cursor, the answer's `next`.

A cursor says where a page ended, not how many came before: what is made or deleted meanwhile neither repeats nor hides
the others.  Answers are written down as they are: they are values of ours, and validating a thousand of them takes
longer than finding them (docs/api.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from fastapi import Query, Response
from pydantic import BaseModel

from blockdev.vmmap.names import NAME_CHARACTERS_MAX

COUNT_MAX = 1000

Count = Annotated[int, Query(ge=1, le=COUNT_MAX, description="how many at most")]
AfterName = Annotated[
    str,
    Query(
        max_length=NAME_CHARACTERS_MAX,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="`next` of the answer before; absent: from the beginning",
    ),
]
Glob = Annotated[
    str | None,
    Query(
        max_length=2 * NAME_CHARACTERS_MAX,
        pattern=r"^[A-Za-z0-9._*?\[\]^-]+$",
        description="only those whose name matches: `*` any characters, `?` one, `[a-c]` one of these",
        examples=["web-*"],
    ),
]
AfterSnapshot = Annotated[
    str,
    Query(
        pattern=r"^[0-9]{1,18}-[0-9]{1,18}$",
        description="`next` of the answer before; absent: from the beginning",
    ),
]
Row = TypeVar("Row")


def page(found: Sequence[Row], count: int, cursor: Callable[[Row], str]) -> tuple[Sequence[Row], str | None]:
    """Of up to count + 1 rows that were found, those of this page, and the cursor of the next one."""
    if len(found) <= count:
        return found, None
    return found[:count], cursor(found[count - 1])


def written(body: BaseModel, status: int = 200) -> Response:
    """`body` as an answer, without being validated: for routes whose `response_model` is its class."""
    return Response(body.__pydantic_serializer__.to_json(body), status, media_type="application/json")
