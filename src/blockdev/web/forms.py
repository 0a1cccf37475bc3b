"""What a form sent: application/x-www-form-urlencoded, bounded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import parse_qs

from starlette.requests import Request

from blockdev.errors import InvalidArgument
from blockdev.written import parse_duration, parse_size

BYTES_MAX = 1 << 20
FIELDS_MAX = 5000
SECONDS_MAX = 20  # for all of it to come: a connection is not kept by whoever sends slowly
TYPE = "application/x-www-form-urlencoded"


class Form:
    """The fields of one form; a field that was left empty is as one that is missing."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str | None:
        """Its text without spaces around it; None: empty."""
        found = self._fields.get(name, [""])[0].strip()
        return found or None

    def text(self, name: str) -> str:
        """As it was typed, with line ends as Unix has them."""
        return self._fields.get(name, [""])[0].replace("\r\n", "\n")

    def need(self, name: str, what: str) -> str:
        """InvalidArgument: it is empty.  what: how the person knows it."""
        found = self.get(name)
        if found is None:
            raise InvalidArgument(f"{what} is missing")
        return found

    def all(self, name: str) -> list[str]:
        """Of check boxes or several fields of one name: what is not empty."""
        return [one.strip() for one in self._fields.get(name, []) if one.strip()]

    def every(self, name: str) -> list[str]:
        """Of several fields of one name: all, so that what belongs together is at the same place."""
        return [one.strip() for one in self._fields.get(name, [])]

    def flag(self, name: str) -> bool:
        """Whether a check box was checked."""
        return bool(self.get(name))

    def whole(self, name: str, what: str) -> int | None:
        """A whole number; None: empty."""
        found = self.get(name)
        if found is None:
            return None
        if not (found.isascii() and found.isdigit() and len(found) <= 18):
            raise InvalidArgument(f"{what} is no whole number: {found[:40]!r}")
        return int(found)

    def size(self, name: str) -> int | None:
        """20G, 512M or bytes, in bytes; None: empty."""
        found = self.get(name)
        return None if found is None else parse_size(found)

    def duration(self, name: str) -> int | None:
        """3d, 12h or 2w, in seconds; None: empty."""
        found = self.get(name)
        return None if found is None else parse_duration(found)

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)


EMPTY = Form({})


async def read_form(request: Request, bytes_max: int = BYTES_MAX) -> Form:
    """InvalidArgument: it is no form, too large, or does not come."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != TYPE:
        raise InvalidArgument(f"send a form, as {TYPE}")
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_MAX):
            async for part in request.stream():
                body += part
                if len(body) > bytes_max:
                    raise InvalidArgument(f"the form is larger than {bytes_max} bytes")
    except TimeoutError:
        raise InvalidArgument(f"the form did not come within {SECONDS_MAX} s") from None
    try:
        return Form(parse_qs(body.decode(), keep_blank_values=True, max_num_fields=FIELDS_MAX))
    except ValueError:
        raise InvalidArgument("the form cannot be read: it is no UTF-8, or has too many fields") from None
