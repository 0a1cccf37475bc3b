"""All that goes over the network between homes: paths to others, and where others reach this one.

Threads: every method may be called from any, and blocks; a loop of its own does the SSH.  Nothing here is durable but the key.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextlib import suppress

from blockdev.addresses import listen
from blockdev.clock import monotonic_seconds, now_seconds
from blockdev.errors import InvalidArgument, NotAllowed, Unavailable
from blockdev.home import Home
from blockdev.replicate import pairing
from blockdev.replicate.channel import Channel, Cut
from blockdev.replicate.control import encode_hello
from blockdev.replicate.driver import Sending, run_sender
from blockdev.replicate.gate import Gate
from blockdev.replicate.halt import Halt
from blockdev.replicate.identity import KeyPair
from blockdev.replicate.keys import fingerprint
from blockdev.replicate.link import End, Link, connect, open_channel
from blockdev.replicate.loop import Loop
from blockdev.replicate.negotiation import own_hello
from blockdev.replicate.pairing import Invitations, Invited
from blockdev.replicate.sender import Requester
from blockdev.replicate.server import Doors, Server
from blockdev.replicate.throttle import Throttle
from blockdev.vmmap.catalog_replication import PathRow

MEASURE_SECONDS_MAX = 30.0
PAIR_SECONDS_MAX = 30.0


class Transport:
    """One home's."""

    def __init__(self, home: Home, listen: tuple[str, int] | None, doors: Doors) -> None:
        """listen: address and port where peers reach this home (port 0: any); None: they do not."""
        self._home = home
        self._listen = listen
        self._doors = doors
        self._loop = Loop()
        self._lock = threading.Lock()  # guards what follows
        self._own: KeyPair | None = None
        self._links: dict[int, Link] = {}  # by the path's id
        self._server: Server | None = None
        self._invitations = Invitations(monotonic_seconds)
        self.listening: tuple[str, int] | None = None  # where it does

    # beginning and end

    def start(self) -> None:
        """Listen, if told to.  Busy: the port is taken; MediumError; InvalidArgument: the home's key cannot be used."""
        if self._listen is None:
            self._loop.start()
            return
        server = Server(self.own(), self._doors, self._invitations)
        listener = listen(*self._listen)
        self.listening = listener.getsockname()[:2]
        self._loop.start()
        self._loop.call(server.listen(listener))
        self._server = server

    def cut(self) -> None:
        """What is under way, and let nobody in any more."""
        if not self._loop.is_running:
            return
        with self._lock:
            links = list(self._links.values())
        for link in links:
            self._loop.call(link.close())
        if self._server is not None:
            self._loop.call(self._server.close())

    def stop(self, seconds: float) -> None:
        """As `cut`, and wait so long for what receives to save how far it is."""
        self.cut()
        if self._server is not None:
            self._server.join(seconds)
        self._loop.stop()

    def own(self) -> KeyPair:
        """Who this home is; made when it has no key yet.  MediumError; InvalidArgument."""
        with self._lock:
            if self._own is None:
                self._own = KeyPair.load(self._home)
            return self._own

    # paths

    def run(self, path: PathRow, machine: Sending, halt: Halt) -> None:
        """Over a channel of its own, in this thread, until it is done.

        Halted; Unreached: the other end is not; Rejected: it is another one, or does not know this home; Unavailable: it was
        cut; what the machine raises, with what the other end refuses among that.
        """
        link = self._link(path)
        self._set_throttle(link, Throttle.from_json(json.loads(path.throttle)))
        channel = self._loop.call(link.open(), halt)
        self._over(link, channel, machine, halt)

    def measure(self, path: PathRow) -> float:
        """Seconds for a message to the other end and one back.  As `run`."""
        link = self._link(path)
        channel = self._loop.call(link.open())
        try:
            began = monotonic_seconds()
            channel.send(encode_hello(own_hello()))
            channel.receive(MEASURE_SECONDS_MAX)
            return monotonic_seconds() - began
        finally:
            channel.abort()
            self._loop.asyncio.call_soon_threadsafe(link.done)

    def set_throttle(self, path_id: int, throttle: Throttle) -> None:
        """For what is being sent over the path, too; it need not be connected."""
        with self._lock:
            link = self._links.get(path_id)
        if link is not None:
            self._set_throttle(link, throttle)

    def close_path(self, path_id: int) -> None:
        """It is no more, or leads elsewhere: what is under way over it is cut."""
        with self._lock:
            link = self._links.pop(path_id, None)
        if link is not None:
            self._loop.call(link.close())

    def is_connected(self, path_id: int) -> bool:
        with self._lock:
            link = self._links.get(path_id)
        return link is not None and link.is_connected

    def _link(self, path: PathRow) -> Link:
        end = End(path.host, path.port, fingerprint(path.key))
        own = self.own()
        with self._lock:
            link = self._links.get(path.id)
            if link is not None and link.end == end:
                return link
            made = self._links[path.id] = Link(end, own, Gate())
        if link is not None:
            self._loop.call(link.close())
        return made

    def _set_throttle(self, link: Link, throttle: Throttle) -> None:
        if link.gate.throttle != throttle:
            self._loop.asyncio.call_soon_threadsafe(link.gate.set, throttle)

    def _over(self, link: Link, channel: Channel, machine: Sending, halt: Halt) -> None:
        try:
            run_sender(machine, channel, halt)
        except BaseException:
            channel.abort()
            raise
        else:
            channel.close()
        finally:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.asyncio.call_soon_threadsafe(link.done)

    # peers

    def connected_keys(self) -> set[str]:
        """Of the peers that are connected to this home."""
        return set() if self._server is None else self._server.keys()

    def disconnect_peer(self, key: str) -> None:
        """It is no peer any more, or by other terms: what it has under way here is cut."""
        if self._server is not None:
            server = self._server
            self._loop.asyncio.call_soon_threadsafe(server.disconnect, key)

    def invite(self, invited: Invited, seconds: float) -> tuple[str, float]:
        """A code, and until when it is good, in seconds since 1970.  InvalidArgument: this home does not listen."""
        if self.listening is None:
            raise InvalidArgument("nobody can reach this home: have it served with --replicate ADDR:PORT, then invite")
        return self._invitations.invite(invited, self.own().fingerprint, seconds), now_seconds() + seconds

    def pair(self, host: str, port: int, code: str) -> str:
        """Use an invitation; the key of the home that made it, which knows ours then.

        InvalidArgument: no code; NotAllowed: not (or no more) a valid one, or another home is there; Unreached; Unavailable.
        """
        given = pairing.decode_code(code)
        if given.fingerprint == self.own().fingerprint:
            raise InvalidArgument("that code was made by this home: use it on the other one")
        return self._loop.call(self._pair(End(host, port, given.fingerprint), given.secret))

    async def _pair(self, end: End, secret: bytes) -> str:
        own = self.own()
        connection, client = await connect(end, own, secret)
        try:
            channel = await open_channel(connection)
            requester = Requester(pairing.REQUEST, pairing.pair_arguments(own.key))
            asking = self._loop.asyncio.run_in_executor(None, run_sender, requester, channel, Halt())
            await asyncio.wait_for(asking, PAIR_SECONDS_MAX)
            channel.close()
        except Cut as error:
            raise Unavailable(
                f"{error.message}; {end} may know this home already: if blockdevctl replicate peer list there shows it, add the path "
                "with that home's key (--key), else have it invite again"
            ) from None
        except TimeoutError:
            connection.abort()  # which ends that thread, too
            raise Unavailable(f"{end} did not answer within {PAIR_SECONDS_MAX:g} s: see its log, then have it invite again") from None
        finally:
            connection.close()
        if client.found is None:
            raise NotAllowed(f"{end} did not show its key")
        return client.found
