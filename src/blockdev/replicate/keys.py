"""Public keys of homes as people and tables write them: one line of OpenSSH's, of type ssh-ed25519."""

from __future__ import annotations

import base64
import binascii
import hashlib

from blockdev.errors import InvalidArgument

TYPE = "ssh-ed25519"
KEY_CHARACTERS_MAX = 1024
_PREFIX = len(TYPE).to_bytes(4, "big") + TYPE.encode() + (32).to_bytes(4, "big")  # RFC 8709, section 4
_BLOB_BYTES = len(_PREFIX) + 32


def parse_key(text: str) -> str:
    """The key of a line `ssh-ed25519 AAAA... [COMMENT]`, without the comment.  InvalidArgument."""
    words = text.split() if isinstance(text, str) and len(text) <= KEY_CHARACTERS_MAX else []
    if len(words) < 2 or words[0] != TYPE:
        raise InvalidArgument(f"that is no public key of a home: give the line that blockdevctl replicate identity shows, {TYPE} AAAA...")
    return f"{TYPE} {base64.b64encode(_blob(words[1])).decode()}"


def fingerprint(key: str) -> str:
    """As OpenSSH shows it: SHA256:, and 43 characters.  InvalidArgument."""
    digest = hashlib.sha256(_blob(parse_key(key).split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _blob(word: str) -> bytes:
    try:
        blob = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if len(blob) != _BLOB_BYTES or not blob.startswith(_PREFIX):
        raise InvalidArgument(f"that {TYPE} key is damaged or cut off: copy the whole line")
    return blob
