"""Where peers reach this home: an SSH server that offers one subsystem to keys that it knows, and nothing else to anybody.

Bounds: connections, of them those that have not logged in yet, in all and from one address, and how long they may take;
connections and channels of one peer.  Threads: one for each channel, in which its state machine works; the rest is the loop's.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

import asyncssh

from blockdev.clock import monotonic_seconds
from blockdev.errors import BlockdevError
from blockdev.priority import give_way_to_guests
from blockdev.replicate import pairing, ssh
from blockdev.replicate.channel import PACKET_BYTES, WINDOW_BYTES, Channel, Cut
from blockdev.replicate.control import encode_refuse
from blockdev.replicate.driver import Receiving, run_receiver
from blockdev.replicate.engine_watch import EngineWatch
from blockdev.replicate.identity import KeyPair, public_line
from blockdev.replicate.pairing import Admission, Invitations, Invited, Ticket
from blockdev.replicate.sessions import Handing
from blockdev.replicate.wire import Doorkeeper, Wire
from blockdev.vmmap.catalog_replication import PeerRow

logger = logging.getLogger(__name__)
CONNECTIONS_MAX = 256
STRANGERS_MAX = 32  # connections that have not logged in,
STRANGERS_OF_ADDRESS_MAX = 8  # from one address
CONNECTIONS_OF_PEER_MAX = 64  # the oldest goes: it is what a cut cable has left; half as many are of paths (paths.PATHS_OF_HOME_MAX)
CHANNELS_MAX = 16  # of a connection
CHANNELS_OF_PEER_MAX = 128
CHANNELS_IN_ALL_MAX = 256
CHANNELS_WIDE_MAX = 4  # of a connection,
CHANNELS_WIDE_OF_PEER_MAX = 8  # of one peer; the others, of which a home has half a dozen for each path, get a window of
WINDOW_BYTES_NARROW = 2 << 20  # so that a peer that lets all of them fill costs some hundred MiB
IDLE_SECONDS_MAX = 20.0  # of a channel that is opened and asks for nothing


class Doors(Protocol):
    """What the server needs of its home.  Its calls block; any thread."""

    def find_peer(self, key: str) -> PeerRow | None:
        """Whose key this is; that he has it is not proven yet."""

    def entered(self, peer: PeerRow) -> None:
        """He has connected, and proven to have his key."""

    def open(self, peer: PeerRow) -> Receiving:
        """What speaks to him over a new channel.  BlockdevError: he is refused."""

    def engine_answers(self, seconds: float) -> bool:
        """Whether this home's engine does, within so long."""

    def admit(self, invited: Invited, key: str) -> None:
        """He came by an invitation: make him a peer.  BlockdevError."""


class Server:
    """Listens from `listen` to `close`."""

    def __init__(self, own: KeyPair, doors: Doors, invitations: Invitations) -> None:
        self.doors = doors
        self.invitations = invitations
        self._own = own
        self._acceptor: asyncssh.SSHAcceptor | None = None
        self._transports: dict[asyncio.BaseTransport, str | None] = {}  # of strangers: the address
        self._guests: dict[Guest, None] = {}  # who has logged in; the oldest first
        self._threads: set[threading.Thread] = set()
        self._watch = EngineWatch(doors.engine_answers)
        self.lock = threading.Lock()  # guards _guests and _threads, which other threads look at

    async def listen(self, listener: socket.socket) -> None:
        """On a bound socket."""
        self._acceptor = await asyncssh.listen(
            "",
            0,
            tunnel=Doorkeeper(listener, self._admit, self._ended),
            server_factory=lambda: Guest(self),
            server_version="blockdev",
            server_host_keys=[self._own.private],
            public_key_auth=True,
            password_auth=True,
            allow_pty=False,
            line_editor=False,
            x11_forwarding=False,
            sftp_factory=None,
            **ssh.options(),
        )
        self._watch.start()

    async def close(self) -> None:
        """No more connections; those that there are end at once."""
        self._watch.stop()
        if self._acceptor is not None:
            self._acceptor.close()
        for transport in list(self._transports):
            transport.abort()  # type: ignore[attr-defined]

    def join(self, seconds: float) -> None:
        """Until the threads of the channels have ended, or so long; not in the loop's thread."""
        deadline = monotonic_seconds() + seconds
        with self.lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(max(deadline - monotonic_seconds(), 0.0))

    def keys(self) -> set[str]:
        """Of the peers that are connected."""
        with self.lock:
            return {guest.key for guest in self._guests if guest.key is not None}

    def disconnect(self, key: str) -> None:
        """He is not known any more, or only by other terms."""
        for guest in list(self._of(key)):
            guest.abort()

    # connections

    def _admit(self, transport: asyncio.BaseTransport) -> bool:
        """Whether a connection may try to log in."""
        address = str((transport.get_extra_info("peername") or ("?",))[0])
        strangers = Counter(one for one in self._transports.values() if one is not None)
        if (
            len(self._transports) >= CONNECTIONS_MAX
            or strangers.total() >= STRANGERS_MAX
            or strangers[address] >= STRANGERS_OF_ADDRESS_MAX
        ):
            return False
        self._transports[transport] = address
        return True

    def _ended(self, transport: asyncio.BaseTransport) -> None:
        self._transports.pop(transport, None)

    def entered(self, guest: Guest, transport: asyncio.BaseTransport | None) -> None:
        """He has logged in."""
        if transport in self._transports:
            self._transports[transport] = None
        with self.lock:
            self._guests[guest] = None
        if guest.key is not None:
            for oldest in list(self._of(guest.key))[:-CONNECTIONS_OF_PEER_MAX]:
                oldest.abort()

    def left(self, guest: Guest) -> None:
        with self.lock:
            self._guests.pop(guest, None)

    def _of(self, key: str) -> Iterator[Guest]:
        return (guest for guest in self._guests if guest.key == key)

    # channels

    @property
    def is_full(self) -> bool:
        return len(self._threads) >= CHANNELS_IN_ALL_MAX

    def channels_of(self, guest: Guest) -> int:
        """Those of his that are open, over all his connections."""
        if guest.key is None:
            return guest.channels
        return sum(one.channels for one in self._of(guest.key))

    def serve(self, guest: Guest, channel: Channel) -> None:
        """Have a thread speak over a channel."""
        thread = threading.Thread(target=self._serve, args=(guest, channel), name="receive", daemon=True)
        with self.lock:
            self._threads.add(thread)
        thread.start()

    def _serve(self, guest: Guest, channel: Channel) -> None:
        give_way_to_guests()
        try:
            with self._watch.working(partial(_refuse, channel)) as work:
                run_receiver(guest.machine(), channel, work)
        except BlockdevError as error:
            _refuse(channel, error)
        except Exception:  # a bug: its trace belongs in the log
            logger.exception("a channel of peer %s failed", guest.name)
            channel.abort()
        finally:
            with self.lock:
                self._threads.discard(threading.current_thread())


def _refuse(channel: Channel, error: BlockdevError) -> None:
    with suppress(Cut):
        channel.send_last(encode_refuse(error))


class Guest(asyncssh.SSHServer):
    """A connection."""

    def __init__(self, server: Server) -> None:
        self.key: str | None = None  # of the peer that has logged in
        self.name = "?"
        self._server = server
        self._connection: asyncssh.SSHServerConnection | None = None
        self._user = ""
        self._peer: PeerRow | None = None  # who logs in, or has
        self._ticket: Ticket | None = None
        self.channels = 0  # that are open

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.left(self)
        if self._ticket is not None:
            self._ticket.give_back()

    def abort(self) -> None:
        if self._connection is not None:
            self._connection.abort()

    # logging in

    def begin_auth(self, username: str) -> bool:
        self._user = username
        return True

    def public_key_auth_supported(self) -> bool:
        return self._user != pairing.USER

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        """asyncssh verifies the signature by this key right afterwards, and tells `auth_completed` without letting go."""
        self._peer = None
        try:
            line = public_line(key)
            found = await asyncio.get_running_loop().run_in_executor(None, self._server.doors.find_peer, line)
        except BlockdevError:
            return False
        self._peer = found
        return found is not None

    def password_auth_supported(self) -> bool:
        return self._user == pairing.USER and self._server.invitations.is_any_open

    def validate_password(self, username: str, password: str) -> bool:
        self._peer = None
        if username != pairing.USER or self._ticket is not None:
            return False
        self._ticket = self._server.invitations.take(pairing.secret_of(password))
        if self._ticket is None:
            asyncio.get_running_loop().call_soon(self.abort)  # one try for each connection
        return self._ticket is not None

    def auth_completed(self) -> None:
        if self._peer is not None:
            self.key, self.name = self._peer.key, self._peer.name
        elif self._ticket is None:
            self.abort()
            return
        assert self._connection is not None
        self._server.entered(self, self._wire().socket)
        if self._peer is not None:
            asyncio.get_running_loop().run_in_executor(None, self._server.doors.entered, self._peer)

    def _wire(self) -> Wire:
        assert self._connection is not None
        wire = self._connection.get_extra_info("wire")
        assert isinstance(wire, Wire)
        return wire

    # channels

    def session_requested(self) -> tuple[asyncssh.SSHServerChannel[Any], asyncssh.SSHServerSession[Any]]:
        of_peer = self._server.channels_of(self)
        if self.channels >= CHANNELS_MAX or of_peer >= CHANNELS_OF_PEER_MAX or self._server.is_full:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "there are too many channels already")
        is_wide = self.channels < CHANNELS_WIDE_MAX and of_peer < CHANNELS_WIDE_OF_PEER_MAX
        self.channels += 1
        assert self._connection is not None
        window = WINDOW_BYTES if is_wide else WINDOW_BYTES_NARROW
        channel = self._connection.create_server_channel(None, "strict", window, PACKET_BYTES)
        return channel, GuestSession(self)

    def channel_ended(self) -> None:
        self.channels -= 1

    def channel(self) -> Channel:
        return Channel(self._wire())

    def serve(self, channel: Channel) -> None:
        self._server.serve(self, channel)

    def machine(self) -> Receiving:
        """What speaks over a channel of his.  BlockdevError."""
        if self._peer is not None:
            return self._server.doors.open(self._peer)
        assert self._ticket is not None
        return Admission(self._ticket, self._server.doors.admit)


def _keep_no_environment(_packet: object) -> bool:
    return False


class GuestSession(Handing, asyncssh.SSHServerSession):
    """A channel that was opened: refuses all but the one subsystem."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._ssh: Any = None
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, chan: Any) -> None:
        self._ssh = chan
        chan._process_env_request = _keep_no_environment  # asyncssh has no setting for it, and keeps all that comes
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS_MAX, chan.abort)

    def subsystem_requested(self, subsystem: str) -> bool:
        return subsystem == ssh.SUBSYSTEM

    def session_started(self) -> None:
        assert self._idle is not None
        self._idle.cancel()
        self._channel = self._guest.channel()
        self._channel.opened(self._ssh)
        self._guest.serve(self._channel)

    def connection_lost(self, exc: Exception | None) -> None:
        self._guest.channel_ended()
        if self._idle is not None:
            self._idle.cancel()
        super().connection_lost(exc)
