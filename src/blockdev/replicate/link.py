"""The connection of a path: made when a channel is wanted, kept while there is one.  All in the loop's thread."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any, NamedTuple

import asyncssh

from blockdev.addresses import show_address
from blockdev.errors import Unavailable
from blockdev.replicate import pairing, ssh
from blockdev.replicate.channel import PACKET_BYTES, WINDOW_BYTES, Channel, Cut
from blockdev.replicate.gate import Gate
from blockdev.replicate.halt import Rejected, Unreached
from blockdev.replicate.identity import KeyPair, public_line
from blockdev.replicate.keys import fingerprint
from blockdev.replicate.sessions import Handing
from blockdev.replicate.wire import Dialer, Wire

CONNECT_SECONDS_MAX = 10.0
IDLE_SECONDS_MAX = 30.0
OPEN_SECONDS_MAX = 60.0


class End(NamedTuple):
    """Where a path leads, and who must be there."""

    host: str
    port: int
    fingerprint: str  # of its key

    def __str__(self) -> str:
        return show_address(self.host, self.port)


class _Client(asyncssh.SSHClient):
    """Looks at the other end's key."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.found: str | None = None  # the public line of the key that it has proven to have
        self.lost: asyncio.Event = asyncio.Event()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        self.found = public_line(key)
        return fingerprint(self.found) == self.wanted

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class _Session(Handing, asyncssh.SSHClientSession):
    """A channel that we open."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel


async def connect(
    end: End, own: KeyPair, secret: bytes | None = None
) -> tuple[asyncssh.SSHClientConnection, _Client]:
    """A connection by our key, or by an invitation's secret.  Unreached; Rejected."""
    client = _Client(end.fingerprint)
    who = (
        {"username": ssh.USER, "client_keys": [own.private], "preferred_auth": ["publickey"]}
        if secret is None
        else {
            "username": pairing.USER,
            "client_keys": None,
            "password": pairing.password_of(secret),
            "preferred_auth": ["password"],
        }
    )
    try:
        made = await asyncssh.connect(
            end.host,
            end.port,
            tunnel=Dialer(),
            client_factory=lambda: client,
            client_version="blockdev",
            known_hosts=([], [], []),  # so that it asks the client
            server_host_key_algs=[ssh.TYPE],
            agent_path=None,
            connect_timeout=CONNECT_SECONDS_MAX + ssh.LOGIN_SECONDS_MAX,
            disable_trivial_auth=True,
            **who,
            **ssh.options(),
        )
    except asyncssh.HostKeyNotVerifiable:
        raise Rejected(_another(end, client)) from None
    except asyncssh.PermissionDenied:
        raise Rejected(_unknown(end, own, secret)) from None
    except TimeoutError:
        raise Unreached(f"{end} does not answer: see that it is on, serves with --replicate, and that no firewall is between") from None
    except (OSError, asyncssh.Error) as error:
        raise Unreached(f"{end} cannot be reached: {_reason(error)}") from None
    return made, client


def _another(end: End, client: _Client) -> str:
    found = "a key of another type" if client.found is None else f"the key {fingerprint(client.found)}"
    return (
        f"{end} is not the home that it should be: it has {found}, not {end.fingerprint}; somebody may be in between, or "
        "it was set up anew: compare with blockdevctl replicate identity there, and if that is its key now, say so by "
        "blockdevctl replicate path change PATH --key KEY"
    )


def _unknown(end: End, own: KeyPair, secret: bytes | None) -> str:
    if secret is not None:
        return f"{end} does not know this code: it was used already, has expired, or is of another home; have it invite again"
    return f"{end} does not know this home: add the key {own.fingerprint} as a peer there (blockdevctl replicate identity shows it)"


class Link:
    """A path's."""

    def __init__(self, end: End, own: KeyPair, gate: Gate) -> None:
        self.end = end
        self.gate = gate
        self._own = own
        self._connection: asyncssh.SSHClientConnection | None = None
        self._connecting: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._channels = 0
        self._idle: asyncio.TimerHandle | None = None

    @property
    def is_connected(self) -> bool:
        return self._connection is not None

    async def open(self) -> Channel:
        """A channel of its own; tell `done` when it is not used any more.  Unreached; Rejected; Unavailable."""
        self._channels += 1
        try:
            connection = await self._connected()
            return await open_channel(connection, self.gate)
        except BaseException:
            self.done()
            raise

    def done(self) -> None:
        """A channel is not used any more."""
        self._channels -= 1
        if not self._channels and self._idle is None:
            self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS_MAX, self._look_whether_idle)

    async def close(self) -> None:
        """At once; what is under way over it is cut."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.abort()

    def _look_whether_idle(self) -> None:
        self._idle = None
        if not self._channels and self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """All who wait for it have the same one, or the same error."""
        if self._connection is not None:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._connect())
        return await asyncio.shield(self._connecting)

    async def _connect(self) -> asyncssh.SSHClientConnection:
        try:
            made, client = await connect(self.end, self._own)
        finally:
            self._connecting = None
        if client.lost.is_set():
            raise Unreached(f"{self.end} closed the connection at once")
        self._connection = made
        waiting = asyncio.get_running_loop().create_task(self._forget_when_lost(made, client))
        waiting.add_done_callback(lambda task: None)  # keeps it alive as long as it runs
        return made

    async def _forget_when_lost(self, connection: asyncssh.SSHClientConnection, client: _Client) -> None:
        await client.lost.wait()
        if self._connection is connection:
            self._connection = None


async def open_channel(connection: asyncssh.SSHClientConnection, gate: Gate | None = None) -> Channel:
    """On a connection that is there.  Unavailable."""
    wire = connection.get_extra_info("wire")
    assert isinstance(wire, Wire)
    channel = Channel(wire, gate)
    opening = asyncio.get_running_loop().create_task(
        connection.create_session(
            lambda: _Session(channel),
            subsystem=ssh.SUBSYSTEM,
            encoding=None,
            request_pty=False,
            window=WINDOW_BYTES,
            max_pktsize=PACKET_BYTES,
        )
    )
    try:
        opened, _session = await asyncio.wait_for(asyncio.shield(opening), OPEN_SECONDS_MAX)
    except asyncio.CancelledError:
        opening.add_done_callback(_give_up)  # at the other end it may be open already
        raise
    except (OSError, asyncssh.Error) as error:  # TimeoutError is an OSError
        opening.add_done_callback(_give_up)
        with suppress(Exception):
            channel.end(Cut("it was never opened"))
        raise Unavailable(f"the other end opens no channel: {str(error) or type(error).__name__}") from None
    channel.opened(opened)
    return channel


def _give_up(opening: asyncio.Task[tuple[Any, Any]]) -> None:
    """A channel that opens after all, which nobody waits for any more."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


def _reason(error: Exception) -> str:
    """Connection refused: without asyncio's words and numbers, which say the address once more."""
    number = getattr(error, "errno", None)
    if isinstance(number, int) and number > 0:
        return os.strerror(number)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
