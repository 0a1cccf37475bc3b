"""How two homes come to know each other's keys by one code, which a person carries from the one to the other.

The receiving home makes the code: the fingerprint of its key, and a secret that is good for one use and some minutes.  The
other one connects, checks the fingerprint, and only then gives the secret as the password of the SSH user `pair`: who stands
between them gets nothing.  Then it tells its key.  The receiving home keeps only the secret's SHA-256, in memory; TRIES_MAX
wrong ones, whoever gave them, end every invitation.  The code's form: docs/format/replication.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from blockdev.errors import BlockdevError, InvalidArgument, NotAllowed
from blockdev.replicate import control, keys, messages
from blockdev.replicate.frames import Frame, Message, ProtocolError
from blockdev.replicate.messages import Kind
from blockdev.replicate.negotiation import common_version, own_hello

USER = "pair"  # of SSH
REQUEST = "pair"
VERSION = 1
SECRET_BYTES = 16
FINGERPRINT_BYTES = 32
CHECK_BYTES = 1
CODE_BYTES = 1 + FINGERPRINT_BYTES + SECRET_BYTES + CHECK_BYTES
GROUP_CHARACTERS = 8
TRIES_MAX = 5
INVITATIONS_MAX = 100


class Invited(NamedTuple):
    """Who may come, and what he may do then."""

    name: str
    vms: list[str]  # globs
    space_bytes: int | None


class Code(NamedTuple):
    fingerprint: str  # "SHA256:..." of the key of the home that invites
    secret: bytes


def encode_code(code: Code) -> str:
    """Ten groups of eight letters and digits."""
    digest = base64.b64decode(code.fingerprint.removeprefix("SHA256:") + "=")
    body = bytes([VERSION]) + digest + code.secret
    text = base64.b32encode(body + hashlib.sha256(body).digest()[:CHECK_BYTES]).decode()
    return "-".join(text[place : place + GROUP_CHARACTERS] for place in range(0, len(text), GROUP_CHARACTERS))


def decode_code(text: str) -> Code:
    """InvalidArgument: a code that was not copied whole."""
    wrong = InvalidArgument("that is no code of an invitation: copy all of what blockdevctl replicate peer invite printed")
    if not isinstance(text, str) or len(text) > 200:
        raise wrong
    try:
        body = base64.b32decode("".join(text.split()).replace("-", "").upper())
    except (binascii.Error, ValueError):
        raise wrong from None
    if len(body) != CODE_BYTES or hashlib.sha256(body[:-CHECK_BYTES]).digest()[:CHECK_BYTES] != body[-CHECK_BYTES:]:
        raise wrong
    if body[0] != VERSION:
        raise InvalidArgument(f"that code is of version {body[0]}, and this blockdev knows {VERSION} only: bring both ends up to date")
    digest, secret = body[1 : 1 + FINGERPRINT_BYTES], body[1 + FINGERPRINT_BYTES : -CHECK_BYTES]
    return Code("SHA256:" + base64.b64encode(digest).decode().rstrip("="), secret)


class _Open(NamedTuple):
    invited: Invited
    digest: bytes  # of the secret
    until: float
    era: int  # all of one era end together


class Ticket:
    """An invitation whose secret was given: nobody else can use it meanwhile.  Any thread."""

    def __init__(self, invitations: Invitations, one: _Open) -> None:
        self._invitations = invitations
        self._lock = threading.Lock()
        self._one: _Open | None = one

    def use(self, admit: Callable[[Invited], None]) -> None:
        """The one use; it is not used when `admit` raises.  NotAllowed: it was used, or given back."""
        one = self._take()
        if one is None:
            raise NotAllowed("this code was used already: have the other home invite again")
        try:
            admit(one.invited)
        except BaseException:
            self._invitations._put(one)
            raise

    def give_back(self) -> None:
        """If it was not used."""
        one = self._take()
        if one is not None:
            self._invitations._put(one)

    def _take(self) -> _Open | None:
        with self._lock:
            one, self._one = self._one, None
            return one


class Invitations:
    """Those that are open; they end with the process.  Any thread."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._open: list[_Open] = []
        self._wrong = 0  # tries since the oldest was made
        self._era = 0

    def invite(self, invited: Invited, fingerprint: str, seconds: float) -> str:
        """The code.  One to the same name replaces the one before.  NotAllowed: there are too many."""
        secret = secrets.token_bytes(SECRET_BYTES)
        with self._lock:
            self._forget(invited.name)
            if len(self._open) >= INVITATIONS_MAX:
                raise NotAllowed(f"{INVITATIONS_MAX} invitations are open: wait until some are used or have expired")
            if not self._open:
                self._wrong = 0
            self._open.append(_Open(invited, hashlib.sha256(secret).digest(), self._monotonic() + seconds, self._era))
        return encode_code(Code(fingerprint, secret))

    @property
    def is_any_open(self) -> bool:
        with self._lock:
            self._forget()
            return bool(self._open)

    def take(self, secret: bytes) -> Ticket | None:
        """None: no invitation has this secret, and one more try was wrong."""
        digest = hashlib.sha256(secret).digest()
        with self._lock:
            self._forget()
            found = [one for one in self._open if hmac.compare_digest(one.digest, digest)]
            if found:
                self._open.remove(found[0])
                return Ticket(self, found[0])
            self._wrong += 1
            if self._wrong >= TRIES_MAX:
                self._open.clear()
                self._wrong = 0
                self._era += 1
            return None

    def _put(self, one: _Open) -> None:
        with self._lock:
            if one.era == self._era:
                self._open.append(one)

    def _forget(self, name: str | None = None) -> None:
        """The expired ones, and that to `name`."""
        now = self._monotonic()
        self._open = [one for one in self._open if one.until > now and one.invited.name != name]


def password_of(secret: bytes) -> str:
    """The secret as SSH carries it."""
    return secret.hex()


def secret_of(password: str) -> bytes:
    """What was meant by a password; b"": nothing."""
    try:
        return bytes.fromhex(password)
    except ValueError:
        return b""


def pair_arguments(key: str) -> dict[str, Any]:
    """Of the request that tells the own key."""
    return {"key": key}


class Admission:
    """The receiving end of a pairing's channel: takes the other's key, once; the face of a Receiver."""

    def __init__(self, ticket: Ticket, admit: Callable[[Invited, str], None]) -> None:
        """admit(invited, key): make him a peer; may refuse."""
        self.is_closed = False
        self._ticket = ticket
        self._admit = admit
        self._has_hello = False

    def handle(self, message: Message) -> list[Frame]:
        """The frames that answer a message; never raises what the other end did wrong."""
        try:
            return [self._handle(messages.kind_of(message), messages.body_of(message))]
        except BlockdevError as error:
            self.close()
            return [control.encode_refuse(error)]

    def _handle(self, kind: Kind, body: memoryview) -> Frame:
        if not self._has_hello and kind is Kind.HELLO:
            common_version(control.decode_hello(body))
            self._has_hello = True
            return control.encode_hello(own_hello())
        if not self._has_hello or kind is not Kind.REQUEST:
            raise ProtocolError(f"{kind.name} has no place in a pairing")
        asked = control.decode_request(body)
        if asked.what != REQUEST:
            raise NotAllowed("who comes by an invitation may tell its key, and nothing else")
        key = keys.parse_key(asked.arguments.get("key", ""))
        self._ticket.use(lambda invited: self._admit(invited, key))
        self.close()
        return control.encode_answer({})

    def close(self) -> None:
        """An invitation that was not used stays open."""
        self.is_closed = True
        self._ticket.give_back()
