"""A home's own key pair: by it the others know this home, whether it connects to them or they to it.

HOME/keys/identity, a private key of OpenSSH's format, mode 0600; made on first need, then kept: others have pinned it.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import asyncssh

from blockdev import _medium
from blockdev.beside import made_beside
from blockdev.errors import InvalidArgument
from blockdev.home import Home
from blockdev.replicate import keys

FILE = "identity"
FILE_BYTES_MAX = 1 << 16


class KeyPair:
    """Both halves; the private one never leaves the process but to its file."""

    def __init__(self, private: asyncssh.SSHKey) -> None:
        self.private = private
        self.key = public_line(private)  # "ssh-ed25519 AAAA..."
        self.fingerprint = keys.fingerprint(self.key)

    @classmethod
    def load(cls, home: Home) -> KeyPair:
        """The home's; made, durable, when there is none.  InvalidArgument: what is there cannot be used; MediumError."""
        path = home.keys / FILE
        if not path.exists():
            home.make_directories()
            _make(path)
        if path.stat().st_mode & 0o077:
            raise InvalidArgument(f"{path} can be read by others: chmod 600 it, or remove it and have others pin the new one")
        try:
            found = asyncssh.import_private_key(_medium.read_file(str(path), FILE_BYTES_MAX))
            if found.get_algorithm() != keys.TYPE:
                raise ValueError(f"it is of type {found.get_algorithm()}")
        except (ValueError, asyncssh.KeyImportError) as error:
            raise InvalidArgument(f"{path} is no {keys.TYPE} key without a password: {error}") from None
        return cls(found)


def public_line(key: asyncssh.SSHKey) -> str:
    """A key's public half, as tables have it.  InvalidArgument: it is not of our type."""
    return keys.parse_key(key.export_public_key().decode())


def _make(path: Path) -> None:
    """All or nothing; a process that was faster wins."""
    made = asyncssh.generate_private_key(keys.TYPE, comment="blockdev")
    with made_beside(path, "identity") as above:
        beside = above / FILE
        _medium.write_file(str(beside), [made.export_private_key()], True, True)  # mode 0600, as all that it makes
        with suppress(FileExistsError):
            os.link(beside, path)
    _medium.sync_directory(str(path.parent))
