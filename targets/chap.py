"""CHAP secrets of targets: each target's in a file of its own, HOME/keys/targets/NAME (mode 0600), which its row in the catalog names.

Not in the catalog: a copy of it, made as a backup or to show somebody, lets nobody in.  A changed secret is a new file; the row
that names it is the commit point, and a file that no row names is removed.  Threads: any.  Durable: whatever a method returned.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from blockdev import _medium
from blockdev.errors import InvalidArgument, NotFound

SECRET_CHARACTERS = range(12, 256)  # RFC 7143, section 9.2.1 asks for 96 bits at least; LIO takes 255
USER_CHARACTERS = range(1, 256)
PRINTABLE = re.compile(r"[\x21-\x7e]+")
UNSET = "NULL"  # LIO takes what begins so as no value
FILE_BYTES_MAX = 4096
NAME_BYTES = 8
NAME = re.compile(rf"[0-9a-f]{{{2 * NAME_BYTES}}}")  # of a file of ours; others in the directory are somebody's


@dataclass(frozen=True)
class Credential:
    """A user's name and secret; the latter is in no text of it."""

    user: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """How initiators prove themselves, and how the target does; None: not at all."""

    chap: Credential | None = None
    mutual: Credential | None = None


NOBODY = Credentials()


def check(credentials: Credentials) -> None:
    """InvalidArgument, in words that do not repeat the secret."""
    for one in (credentials.chap, credentials.mutual):
        if one is not None:
            _check_text("CHAP user's name", one.user, USER_CHARACTERS)
            _check_text("CHAP secret", one.secret, SECRET_CHARACTERS)
    if credentials.mutual is None:
        return
    if credentials.chap is None:
        raise InvalidArgument("mutual CHAP is CHAP both ways: give a user and a secret of the initiators, too")
    if credentials.mutual.secret == credentials.chap.secret:
        raise InvalidArgument("the secret of the target must be another one than that of its initiators: they could play it back")


def _check_text(what: str, text: str, characters: range) -> None:
    if len(text) not in characters or not PRINTABLE.fullmatch(text) or text.startswith(UNSET):
        raise InvalidArgument(
            f"that {what} cannot be used: it has {characters[0]} to {characters[-1]} ASCII characters without spaces, "
            f"and does not begin with {UNSET} (12 to 16 for Windows)"
        )


class ChapFiles:
    """The files of one home."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, credentials: Credentials) -> str:
        """The name of a new file that holds them."""
        _medium.make_directories(str(self._directory))
        name = secrets.token_hex(NAME_BYTES)
        body = {way: [one.user, one.secret] for way, one in vars(credentials).items() if one is not None}
        _medium.write_file(str(self._directory / name), [json.dumps(body).encode()], True, True)
        _medium.sync_directory(str(self._directory))
        return name

    def read(self, name: str) -> Credentials:
        """NotFound: the file is not there, or not one of ours."""
        try:
            body = json.loads(_medium.read_file(str(self._directory / name), FILE_BYTES_MAX))
            return Credentials(**{way: Credential(*map(str, pair)) for way, pair in body.items()})
        except Exception:  # whose words may repeat what is in it
            raise NotFound(
                f"its secrets are missing: {self._directory / name} cannot be read; set them again with blockdevctl target change"
            ) from None

    def keep_only(self, names: Collection[str]) -> None:
        """Remove those of our files that no target has any more."""
        with suppress(FileNotFoundError):
            for path in list(self._directory.iterdir()):
                if NAME.fullmatch(path.name) and path.name not in names:
                    path.unlink(missing_ok=True)
